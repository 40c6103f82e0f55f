"""What will not work for a client, from the recipe, the engine's dialect and the stack's flags. Sends no request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from stackgen import engines
from stackgen.catalog import find_parser
from stackgen.connect.recipe import API_PATHS, Recipe
from stackgen.connect.served import ServedModel
from stackgen.connect.settings import fit_output

__all__ = ["Problem", "find_access_problems", "find_problems"]

CONTEXT_FIELD, TOOLS_FIELD = "max_model_len", "tool_call_parser"


@dataclass(frozen=True, slots=True)
class Problem:
    """`level`: the client does `not work`, or works with a restriction. `field`: what to set in the stack file."""

    level: Literal["does not work", "warning", "note"]
    text: str
    field: str = ""


def find_problems(recipe: Recipe, model: ServedModel) -> list[Problem]:
    """Returns what is known about the client with this model, the most important first."""
    # without a variable for its limit, the client asks for what it always asks for
    limit = fit_output(recipe, model.context_length) if recipe.sends.output_setting else recipe.sends.max_output_tokens
    found = [*_apis(recipe, model), *_tools(recipe, model), *_schema(recipe, model), *_context(recipe, model, limit)]
    found += _usage(recipe, model)
    levels = ("does not work", "warning", "note")
    return sorted(found, key=lambda problem: levels.index(problem.level))


def _apis(recipe: Recipe, model: ServedModel) -> Iterator[Problem]:
    served = model.endpoint.dialect.api_paths
    for api in (*recipe.needs, *recipe.also):
        path = API_PATHS[api]
        if path not in served:
            able = [name for name in engines.names() if path in engines.get(name).dialect.api_paths]
            text = f"{recipe.title} uses {path}, which {model.engine} does not serve"
            hint = f". These engines serve it: {', '.join(able)}" if able else ""
            level: Literal["does not work", "warning"] = "does not work" if api in recipe.needs else "warning"
            yield Problem(level, text + hint, f"{model.place}.engine")
        elif api == "embeddings":
            yield Problem("note", f"{path} needs a model for embeddings. A chat model does not serve it", "")


def _tools(recipe: Recipe, model: ServedModel) -> Iterator[Problem]:
    if recipe.sends.tools == "never":
        return
    always = recipe.sends.tools == "always"
    when = "" if always else f" {recipe.sends.tools_when}"
    dialect = model.endpoint.dialect
    # vLLM's /v1/responses takes tools without a parser
    if model.refuses_tools and {"chat", "messages"} & set(recipe.needs):
        text = (
            f"{recipe.title} sends `tools`{when}. {model.engine} answers such requests with a 400, even for `tools: "
            f"[]`, because {TOOLS_FIELD} is not set"
        )
        if fact := find_parser("tool_call_parser", model.source, *model.names):
            text += f". {fact.origin} names the parser `{fact.value}`"
        yield Problem("does not work" if always else "warning", text, f"{model.place}.{TOOLS_FIELD}")
    elif model.refuses_tools:
        text = f"{recipe.title} sends `tools`{when}: without {TOOLS_FIELD}, {model.engine} returns tool calls as text"
        yield Problem("warning", text, f"{model.place}.{TOOLS_FIELD}")
    elif "tools" in (*dialect.lacks, *dialect.refuses):
        text = f"{recipe.title} sends `tools`{when}, and {model.engine} refuses them"
        yield Problem("does not work" if always else "warning", text, f"{model.place}.engine")
    elif "tools" in dialect.ignores:
        text = f"{recipe.title} sends `tools`{when}, and {model.engine} ignores them: the model never calls a tool"
        yield Problem("warning", text, f"{model.place}.engine")
    elif "tools" in dialect.depends and not dialect.tools_flags:
        text = "tool calls need a model whose chat template supports tools"
        # measured on build 11434: a 200 with text, also for `required`; server-common.cpp reads `tool_choice` as a text
        if dialect.name == "llamacpp":
            text += (
                ". Without such a template, llama.cpp answers with text and ignores `tool_choice`. With any template, "
                "it ignores a `tool_choice` that is an object"
            )
        yield Problem("note", text, "")


def _schema(recipe: Recipe, model: ServedModel) -> Iterator[Problem]:
    dialect, when = model.endpoint.dialect, recipe.sends.schema_when
    if when and "json-schema" in (*dialect.lacks, *dialect.refuses, *dialect.ignores):
        verb = "ignores" if "json-schema" in dialect.ignores else "refuses"
        text = f"{recipe.title} sends a JSON schema {when}, and {model.engine} {verb} it"
        yield Problem("warning", text, f"{model.place}.engine")


def _context(recipe: Recipe, model: ServedModel, output_tokens: int) -> Iterator[Problem]:
    sends, context, field = recipe.sends, model.context_length, f"{model.place}.{CONTEXT_FIELD}"
    prompt = sends.prompt_tokens + sends.tools_tokens
    sizes = _sizes(recipe, output_tokens)
    if not sizes:
        return
    if context is None:
        # not `field`: FastChat has none, and the model's own length is often enough
        yield Problem("note", f"{recipe.title} {sizes}: the model's own context length must be larger")
        return
    source = "" if model.own_length else " (from the catalog of models)"
    too_small = f"{recipe.title} {sizes}, but the context has {context:,}{source}"
    # some chat templates leave out the tools, and then the first prompt fits
    if sends.prompt_tokens >= context:
        yield Problem("does not work", too_small, field)
    elif prompt >= context:
        yield Problem("warning", f"{too_small}: requests fail if the chat template contains the tools", field)
    elif prompt + output_tokens > context and model.endpoint.dialect.accepts_large_max_tokens:
        yield Problem("warning", f"{too_small}: answers are cut off where the context ends", field)
    elif prompt + output_tokens > context:
        yield Problem("does not work", f"{too_small}, and {model.engine} refuses such requests with a 400", field)
    if output_tokens < sends.max_output_tokens:
        name = "the file" if sends.output_setting == "file" else sends.output_setting
        text = f"{name} limits answers to {output_tokens:,} tokens instead of {sends.max_output_tokens:,}"
        yield Problem("warning", f"{text}, because the context has {context:,}{source}", field)


def _sizes(recipe: Recipe, output_tokens: int) -> str:
    """`sends about 4,580 tokens before the first word and asks for 32,000`; "" if neither is known."""
    sends, parts = recipe.sends, []
    if sends.prompt_tokens:
        tools = f" (and {sends.tools_tokens:,} of tools)" if sends.tools_tokens else ""
        parts.append(f"sends about {sends.prompt_tokens:,} tokens{tools} before the first word")
    if output_tokens:
        parts.append(f"asks for {output_tokens:,} output tokens")
    return " and ".join(parts)


def _usage(recipe: Recipe, model: ServedModel) -> Iterator[Problem]:
    if recipe.sends.stream_usage and not model.endpoint.dialect.stream_usage:
        yield Problem("note", f"{model.engine} reports no token counts in streams, so {recipe.title} shows none", "")


def find_access_problems(recipe: Recipe, model: ServedModel, ca_file: str, namespace: str = "") -> list[Problem]:
    """Returns what is known about reaching the endpoint. `ca_file`: a certificate that the client must trust, or "".

    `namespace` is that of a stack in a cluster.
    """
    found = []
    if namespace:
        found.append(_name_in_cluster(model.endpoint.base_url, namespace))
    if ca_file and recipe.ca == "system":
        found.append(Problem("warning", f"{recipe.title} trusts only the system's certificates: add {ca_file} to them"))
    elif ca_file and recipe.ca == "SSL_CERT_FILE":
        text = f"{recipe.ca} replaces the system's certificates, so the client reaches no other HTTPS servers"
        found.append(Problem("note", text))
    if model.other_urls:
        others = ", ".join(model.other_urls)
        found.append(
            Problem("note", f"no gateway distributes requests among this replica and the others: {others}", "gateway")
        )
    if not model.has_gateway:
        found += [Problem("note", text) for text in recipe.notes_without_gateway]
    if model.endpoint.exposed and not namespace:
        found.append(Problem("note", "on another machine, use this machine's name or address instead of 127.0.0.1"))
    return found


def _name_in_cluster(base_url: str, namespace: str) -> Problem:
    url = urlsplit(base_url)
    text = f"only pods of the cluster know the name {url.hostname}"
    if url.scheme == "https":
        # a forwarded port does not have the certificate's name
        return Problem("note", f"{text}. Elsewhere, use the name for which the gateway's certificate is valid")
    return Problem("note", f"{text}. Elsewhere, run `kubectl -n {namespace} port-forward service/gateway {url.port}`, "
                   f"and use 127.0.0.1 instead of the name, or use the address of your ingress")  # fmt: skip
