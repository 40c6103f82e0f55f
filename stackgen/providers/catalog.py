"""The table of providers: base URLs, the places of their keys, and the features that they support.

A provider is a kind of server with a name that `--provider` accepts. Every engine and every cloud is a provider.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from stackgen import engines
from stackgen.check.dialects import OPENAI, TOGETHER
from stackgen.check.target import is_loopback, normalize_url
from stackgen.errors import StackgenError
from stackgen.plan import Dialect, clouds
from stackgen.stack.envfile import API_KEY, read_env

__all__ = ["Key", "Provider", "find_key", "find_provider", "key_names_for", "providers"]


@dataclass(frozen=True, slots=True)
class Provider:
    """One kind of server.

    - `key_names`: environment variables that may contain the key; the first variable that is set wins.
    - `hosts`: host names of the provider; their subdomains belong to it too.
    - `url_variable`: environment variable that overrides `url`; empty if there is none.
    - `source`: where these facts come from.
    """

    name: str
    title: str
    url: str
    dialect: Dialect
    key_names: tuple[str, ...]
    hosts: tuple[str, ...] = ()
    url_variable: str = ""
    source: str = ""

    @property
    def base_url(self) -> str:
        """The base URL in use: `url_variable` from the environment if set, else `url`.

        Raises StackgenError if the variable contains no valid base URL.
        """
        override = os.environ.get(self.url_variable)
        if not override:
            return normalize_url(self.url)
        try:
            return normalize_url(override)
        except StackgenError as error:
            problem = StackgenError(f"{self.url_variable}: {error.message}", error.hint)
        raise problem

    @property
    def is_local(self) -> bool:
        """Whether `url` is on this machine's loopback interface."""
        return is_loopback(self.url)

    def dialect_at(self, base_url: str) -> Dialect | None:
        """The dialect of this provider's server at `base_url`; None if it must be detected from responses."""
        # any server may be behind an OpenAI-compatible URL
        return None if self.dialect is OPENAI and not self._owns(base_url) else self.dialect

    def _owns(self, base_url: str) -> bool:
        host = (urlsplit(base_url).hostname or "").rstrip(".")
        return any(host == known or host.endswith(f".{known}") for known in self.hosts)

    def _is_moved_to(self, base_url: str) -> bool:
        # an invalid override is an error only for commands that use this provider
        with suppress(StackgenError):
            return bool(os.environ.get(self.url_variable)) and self.base_url == base_url
        return False

    def feature_support(self) -> dict[str, str]:
        """`yes`, `no`, `ignored` or `depends` (on the model or the server's options), by name of the check.

        A feature without an entry is unknown until `stackgen check` tries it.
        """
        support = dict.fromkeys(self.dialect.claims, "yes")
        support |= dict.fromkeys(self.dialect.lacks, "no")
        support |= dict.fromkeys(self.dialect.ignores, "ignored")
        support |= dict.fromkeys(self.dialect.depends, "depends")
        # every stream requests usage, so every dialect declares whether it reports usage
        return support | {"stream-usage": "yes" if self.dialect.stream_usage else "no"}


@dataclass(frozen=True, slots=True)
class Key:
    """An API key and where it was found; `name` is its variable, empty for `--api-key`. The repr hides `value`."""

    value: str = field(repr=False)
    name: str
    place: str

    def __str__(self) -> str:
        return f"{self.name} ({self.place})" if self.name else self.place


# VLLM_API_KEY and LLAMA_API_KEY are the variables that the servers themselves read
# facts that an engine's dialect lacks: title, base URL, variables tried after STACKGEN_API_KEY, source
ENGINE_FACTS: Mapping[str, tuple[str, str, tuple[str, ...], str]] = {
    "vllm": ("vLLM", "http://127.0.0.1:8000/v1", ("VLLM_API_KEY",), "recorded from vLLM 0.32"),
    "fastchat": ("FastChat", "http://127.0.0.1:8000/v1", (), "recorded from FastChat 0.2.36"),
    "sglang": ("SGLang", "http://127.0.0.1:30000/v1", (), "source of SGLang 0.5.23"),
    "llamacpp": ("llama.cpp", "http://127.0.0.1:8080/v1", ("LLAMA_API_KEY",), "recorded from llama-server"),
}
CLOUD_DIALECTS = {"together": TOGETHER}
CLOUDS = tuple(
    Provider(
        cloud.name,
        title=cloud.title,
        url=cloud.url,
        dialect=CLOUD_DIALECTS.get(cloud.name, OPENAI),
        key_names=cloud.key_names,
        hosts=cloud.hosts,
        url_variable=cloud.url_variable,
        source=cloud.source,
    )
    for cloud in clouds.CLOUDS.values()
)


@cache
def providers() -> dict[str, Provider]:
    """All providers by name: Together AI, the engines, then the other clouds."""
    table = {cloud.name: cloud for cloud in CLOUDS[:1]}
    for name in engines.names():
        # engines that this table doesn't list still work, with these defaults
        title, url, key_names, source = ENGINE_FACTS.get(name, (name, "http://127.0.0.1:8000/v1", (), ""))
        table[name] = Provider(
            name,
            title=title,
            url=url,
            dialect=engines.get(name).dialect,
            # first the key of stacks that stackgen renders
            key_names=(API_KEY, *key_names),
            source=source,
        )
    return table | {cloud.name: cloud for cloud in CLOUDS[1:]}


def find_provider(base_url: str) -> Provider | None:
    """The cloud that `base_url` belongs to, by its host or its URL variable; None for any other server."""
    # whole labels only: a key must not be sent to `together.example.org`
    return next((cloud for cloud in CLOUDS if cloud._owns(base_url) or cloud._is_moved_to(base_url)), None)


def key_names_for(base_url: str) -> tuple[str, ...]:
    """Returns the variables that may contain a key for `base_url` without a provider; empty if there are none."""
    provider = find_provider(base_url)
    if provider:
        return provider.key_names
    # a stack's key is sent only to this machine; for any other host the user specifies the key
    return (API_KEY,) if is_loopback(base_url) else ()


def find_key(names: Iterable[str], folders: Iterable[Path] = (), given: str | None = None) -> Key | None:
    """The first key found: `given` (from --api-key), then the environment, then the `.env` of each folder.

    Empty values and folders without a `.env` are skipped. Raises StackgenError for a `.env` that is not UTF-8.
    """
    names = tuple(names)
    if given:
        return Key(given, name="", place="--api-key")
    # the environment overrides .env, as in Compose
    for name in names:
        # variables often end in a newline
        if value := os.environ.get(name, "").strip():
            return Key(value, name=name, place="environment")
    # two folders may be the same folder, such as `.` and the stack's folder
    for folder in dict.fromkeys(folders):
        values = read_env(folder)
        for name in names:
            if values.get(name):
                return Key(values[name], name=name, place=str(folder / ".env"))
    return None
