"""The recipe of a client: what it needs from a server, its settings, and its first requests. One YAML file each."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator

from stackgen.errors import StackgenError
from stackgen.spec import Strict, Text
from stackgen.stack.yaml_text import read_mapping

__all__ = ["API_PATHS", "KEY", "RECIPES", "Recipe", "Request", "Sends", "Snippet", "load_recipe", "read_recipe",
           "recipe_names"]  # fmt: skip

RECIPES = Path(__file__).parent / "recipes"
# The variable that recipes read the key from. Not the variable of .env: in a shell, that one overrides each .env
KEY = "STACKGEN_CLIENT_API_KEY"
Api = Literal["chat", "responses", "messages", "completions", "embeddings"]
API_PATHS: Mapping[Api, str] = {
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
}
# Cursor: developers.cloudflare.com/ai-gateway/integrations/coding-agents/cursor, and issue 2520 of cursor/cursor
KNOWN_WITHOUT_RECIPE: Mapping[str, str] = {
    "cursor": "Cursor's servers send the requests, so they can't reach localhost or a private network. Cursor needs a "
    "public HTTPS address, see docs/faq.md. The coding agents that `stackgen connect` lists send their requests from "
    "your machine",
}
# of a suggestion: curl is no misspelled `cursor`
SIMILARITY = 0.7
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]*$")]


class Sends(Strict):
    """What the client's requests contain. Tokens are counted with the tokenizer of SmolLM2."""

    prompt_tokens: int = Field(0, ge=0, description="Tokens that the client sends before the user's first word")
    tools_tokens: int = Field(0, ge=0, description="Further tokens, if the chat template contains the field `tools`")
    max_output_tokens: int = Field(0, ge=0, description="`max_tokens` that the client asks for; 0: none, or the user's")
    output_setting: Variable | Literal["file"] | None = Field(
        None, description="What lowers `max_output_tokens`: a variable, or a line of the file below"
    )
    tools: Literal["never", "sometimes", "always"] = Field("never", description="When requests have the field `tools`")
    tools_when: str = Field("", description="With `tools: sometimes`: what makes the client send tools")
    schema_when: str = Field("", description="What makes the client send a JSON schema for the answer; empty: nothing")
    max_completion_tokens: bool = Field(False, description="The limit is sent as `max_completion_tokens` only")
    list_content: bool = Field(False, description="`content` is a list of parts instead of a text")
    stream_usage: bool = Field(False, description="Streams ask for their usage (`stream_options.include_usage`)")
    token_prompts: bool = Field(False, description="Prompts are lists of token ids")


class Snippet(Strict):
    """A file that the user writes. `<<name>>` in `text` is replaced by a value, quoted for `language`."""

    path: Text = Field(description="Where the client looks for the file; a name without a folder for an example")
    language: Literal["json", "toml", "yaml", "python"] = Field(description="How values are quoted")
    text: str = Field(min_length=1, description="The file, or the part of the file that concerns this stack")


class Request(Strict):
    """One of the first requests of the client, for `--try`."""

    name: Text = Field(description="What the request is for")
    method: Literal["HEAD", "GET", "POST"] = Field("POST", description="HTTP method")
    path: str = Field(pattern=r"^/", description="Path and query, relative to the server's root")
    api: Api | Literal["models", "any"] = Field(description="How to read the response. `any`: only its status counts")
    body: dict[str, Any] | None = Field(
        None, description="JSON body. MODEL, OUTPUT and PADDING are replaced by model, output limit and a long text"
    )
    headers: dict[str, str] = Field({}, description="Further headers; the key is sent as `Authorization: Bearer`")
    with_key: bool = Field(True, description="Whether the client sends the key with this request")
    padding: int = Field(0, ge=0, description="Number of characters in place of PADDING")
    max_answer_tokens: int = Field(0, ge=0, description="Limit in the body that the usage of the answer must keep")
    accept: tuple[int, ...] = Field((), description="Statuses other than 200 with which the client continues")


class Recipe(Strict):
    """How one client uses a stack."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="Name on the command line, and of the file")
    title: Text = Field(description="The client's own name")
    about: Text = Field(description="What the client is, in a few words")
    version: Text = Field(description="Version that the settings were measured with, or taken from")
    measured: date = Field(description="Date of the measurement")
    evidence: Literal["run", "documentation"] = Field(description="`run`: this version was run against real engines")
    source: Text = Field(description="Documentation of the settings")
    install: tuple[Text, ...] = Field((), description="Packages for `make clients`; `npm:NAME` for the npm registry")
    needs: tuple[Api, ...] = Field(min_length=1, description="APIs without which the client does not work")
    also: tuple[Api, ...] = Field((), description="APIs that further functions of the client use")
    base_url: Literal["with /v1", "without /v1"] = Field(description="Which base URL the client expects")
    lists_models: bool = Field(False, description="The client lists the models itself, so no model is chosen")
    sends: Sends = Field(default_factory=Sends, description="What the requests contain")
    environment: dict[Variable, str] = Field(
        {},
        description="Environment variables of the client. A variable is omitted if its value is empty after the "
        "template is filled in",
    )
    ca: Variable | Literal["system", "file"] = Field(
        description="How the client trusts a CA: a variable with the file, the system's store, or its own file below"
    )
    files: tuple[Snippet, ...] = Field((), description="Files to write")
    command: Text | None = Field(None, description="Shell command that uses the client")
    run: Text | None = Field(None, description="Command of `make clients`, if `command` waits for a person")
    notes: tuple[Text, ...] = Field((), description="What else a user must know, one sentence each")
    notes_without_gateway: tuple[Text, ...] = Field((), description="Further notes, for a stack without a gateway")
    requests: tuple[Request, ...] = Field(min_length=1, description="The client's first requests, in order")

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        # the key is read from one variable, so that no file and no command contains it
        for name, value in self.environment.items():
            if KEY in value and value != f"${KEY}":
                raise ValueError(f"environment.{name}: the key can't be a part of a value")
        if self.sends.output_setting not in (None, "file", *self.environment):
            raise ValueError("sends.output_setting is not in environment")
        missing = set(self.needs) - {request.api for request in self.requests}
        if missing:
            raise ValueError(f"no request tries {', '.join(sorted(missing))}")
        return self


def recipe_names() -> tuple[str, ...]:
    """The names of all clients, in alphabetical order."""
    return tuple(sorted(path.stem for path in RECIPES.glob("*.yaml")))


def load_recipe(name: str) -> Recipe:
    """Returns the recipe of the client called `name`. Raises StackgenError if there is none."""
    if name not in recipe_names():
        if reason := KNOWN_WITHOUT_RECIPE.get(name.lower()):
            raise StackgenError(f"stackgen has no settings for {name!r}", reason)
        close = get_close_matches(name.lower(), recipe_names(), n=1, cutoff=SIMILARITY)
        hint = f"did you mean {close[0]}?" if close else "`stackgen connect` lists the clients"
        raise StackgenError(f"unknown client {name!r}", hint)
    return read_recipe(RECIPES / f"{name}.yaml")


def read_recipe(path: Path) -> Recipe:
    """Reads and validates a recipe. Raises StackgenError if the file does not match the schema."""
    try:
        recipe = Recipe.model_validate(read_mapping(path.read_text("utf-8"), str(path)))
    except ValidationError as error:
        raise StackgenError(f"{path}: {error}", "docs/how-to/connect-a-client.md describes the fields") from None
    if recipe.name != path.stem:
        raise StackgenError(f"{path}: `name` is {recipe.name}", "the name of the file is the name of the client")
    return recipe
