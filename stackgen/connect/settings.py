"""A recipe filled in for one stack: variables, files and a command, with every value quoted for its language."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from jinja2 import Environment, StrictUndefined

from stackgen.connect.recipe import KEY, Recipe
from stackgen.connect.served import ServedModel

__all__ = ["Connection", "Settings", "build_settings", "describe", "export_line", "fit_output"]


@dataclass(frozen=True, slots=True)
class Connection:
    """How a client reaches one model.

    - `base_url` ends in `/v1`. `ca_file`: certificate that the client must trust; "" if the system's CAs are enough.
    - `key_line`: shell command that sets the variable with the key. `key_name`: name of the key at the gateway.
    - `output_tokens`: limit of an answer that fits into the context, for clients that ask for a fixed number.
    """

    model: str
    base_url: str
    ca_file: str
    key_name: str
    key_line: str
    context_length: int | None
    output_tokens: int

    @property
    def root_url(self) -> str:
        """The base URL without `/v1`."""
        return self.base_url.removesuffix("/v1")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user copies. `environment` are (name, value) pairs, `files` are (path, text) pairs."""

    key_line: str
    environment: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, str], ...]
    command: str
    run: str


def fit_output(recipe: Recipe, context: int | None) -> int:
    """Tokens of an answer for which the client leaves room in a context of `context` tokens."""
    sends = recipe.sends
    wanted = sends.max_output_tokens
    prompt = sends.prompt_tokens + sends.tools_tokens
    if context is None or prompt + wanted <= context:
        return wanted
    room = context - prompt if prompt < context else context - sends.prompt_tokens
    # half of what the first prompt leaves: the conversation needs the other half
    return max(1, min(wanted, room // 2))


def build_settings(recipe: Recipe, connection: Connection) -> Settings:
    """Fills in the recipe. Raises jinja2's errors only for a recipe that its tests would have refused."""
    values: dict[str, Any] = {
        "model": connection.model,
        "url": connection.base_url,
        "root": connection.root_url,
        "context": connection.context_length,
        "ca_file": connection.ca_file,
        "output_limit": connection.output_tokens,
        # empty if the client's own limit fits
        "output_tokens": connection.output_tokens if connection.output_tokens < recipe.sends.max_output_tokens else "",
    }
    environment = {name: _fill(text, values, str) for name, text in recipe.environment.items()}
    if connection.ca_file and recipe.ca not in ("system", "file"):
        environment[recipe.ca] = connection.ca_file
    # a value with control characters would end the line of the shell, so the shell quotes it
    shell = partial(_fill, values=values, quote=lambda value: shlex.quote(str(value)))
    return Settings(
        key_line=connection.key_line,
        environment=tuple((name, value) for name, value in environment.items() if value),
        files=tuple((one.path, _fill(one.text, values, QUOTES[one.language])) for one in recipe.files),
        command=shell(recipe.command or ""),
        run=shell(recipe.run or recipe.command or ""),
    )


def export_line(name: str, value: str) -> str:
    """The shell command that sets a variable; the key's variable is expanded by the shell."""
    return f'export {name}="{value}"' if value == f"${KEY}" else f"export {name}={shlex.quote(value)}"


def _fill(text: str, values: dict[str, Any], quote: Callable[[Any], str]) -> str:
    environment = Environment(
        variable_start_string="<<", variable_end_string=">>", block_start_string="<%", block_end_string="%>",
        comment_start_string="<#", comment_end_string="#>", undefined=StrictUndefined, keep_trailing_newline=True,
        trim_blocks=True, lstrip_blocks=True, finalize=quote,
    )  # fmt: skip
    return environment.from_string(text).render(values)


def _quote_data(value: Any) -> str:
    # a JSON text is also a text in TOML, YAML and Python; all of them need control characters escaped
    return re.sub("\x7f", r"\\u007f", json.dumps(value, ensure_ascii=False))


QUOTES: dict[str, Callable[[Any], str]] = dict.fromkeys(("json", "toml", "yaml", "python"), _quote_data)


def describe(model: ServedModel) -> str:
    """`vllm behind the gateway` or `vllm`, for headings."""
    return f"{model.engine} behind the gateway" if model.has_gateway else model.engine
