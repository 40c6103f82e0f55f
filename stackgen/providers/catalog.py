"""The matrix of providers: base URL, where keys are found, what they support.

A provider is a kind of server under a name that people can say. Every engine is one; the rest stands here.
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
from stackgen.check.target import is_loopback, normal_url
from stackgen.errors import StackgenError
from stackgen.plan import Dialect, clouds
from stackgen.stack.envfile import API_KEY, read_env

__all__ = ["Key", "Provider", "find_key", "key_names", "of_url", "providers"]


@dataclass(frozen=True, slots=True)
class Provider:
    """One kind of server. `keys` are names of variables, the first that is set counts; `hosts` are host names (with
    all below them) that belong to it, and `url_variable` names the variable that moves it elsewhere.

    `source` says where the row comes from.
    """

    name: str
    title: str
    url: str
    dialect: Dialect
    keys: tuple[str, ...]
    hosts: tuple[str, ...] = ()
    url_variable: str = ""
    source: str = ""

    @property
    def base_url(self) -> str:
        """The base URL in use: that of `url_variable` where it is set. Raises StackgenError for one that is none."""
        moved = os.environ.get(self.url_variable)
        if not moved:
            return normal_url(self.url)
        try:
            return normal_url(moved)
        except StackgenError as error:
            problem = StackgenError(f"{self.url_variable}: {error.message}", error.hint)
        raise problem

    @property
    def is_local(self) -> bool:
        """Whether its usual place is this machine."""
        return is_loopback(self.url)

    def dialect_at(self, base_url: str) -> Dialect | None:
        """The dialect of this provider's server at `base_url`; None where its responses must tell.

        Anything may stand behind a URL that is only OpenAI-compatible.
        """
        return None if self.dialect is OPENAI and not self._owns(base_url) else self.dialect

    def _owns(self, base_url: str) -> bool:
        host = (urlsplit(base_url).hostname or "").rstrip(".")
        return any(host == known or host.endswith(f".{known}") for known in self.hosts)

    def _moved_to(self, base_url: str) -> bool:
        # a variable with a mistake in it is told to those who mean this provider, and to nobody else
        with suppress(StackgenError):
            return bool(os.environ.get(self.url_variable)) and self.base_url == base_url
        return False

    def supports(self) -> dict[str, str]:
        """`yes`, `no`, `ignored` or `depends` (on the model, or on how the server was started) by name of feature.

        Names are those of checks; a feature that is not named is not known.
        """
        found = dict.fromkeys(self.dialect.claims, "yes")
        found |= dict.fromkeys(self.dialect.lacks, "no")
        found |= dict.fromkeys(self.dialect.ignores, "ignored")
        found |= dict.fromkeys(self.dialect.depends, "depends")
        # asked of every server, so it is known of every dialect
        return found | {"stream-usage": "yes" if self.dialect.stream_usage else "no"}


@dataclass(frozen=True, slots=True)
class Key:
    """A key and where it was found, in words for people; the repr hides the key."""

    value: str = field(repr=False)
    name: str
    place: str

    def __str__(self) -> str:
        return f"{self.name} ({self.place})" if self.name else self.place


# what no dialect tells: title, base URL, keys before STACKGEN_API_KEY's own, source
LOCAL: Mapping[str, tuple[str, str, tuple[str, ...], str]] = {
    "vllm": ("vLLM", "http://127.0.0.1:8000/v1", ("VLLM_API_KEY",), "recorded from vLLM 0.32"),
    "fastchat": ("FastChat", "http://127.0.0.1:8000/v1", (), "recorded from FastChat 0.2.36"),
    "llamacpp": ("llama.cpp", "http://127.0.0.1:8080/v1", ("LLAMA_API_KEY",), "recorded from llama-server"),
}
DIALECTS = {"together": TOGETHER}
CLOUDS = tuple(
    Provider(one.name, one.title, one.url, DIALECTS.get(one.name, OPENAI), one.keys, one.hosts, one.url_variable,
             one.source)
    for one in clouds.CLOUDS.values()
)  # fmt: skip


@cache
def providers() -> dict[str, Provider]:
    """All providers by name: the clouds, then the engines."""
    found = {cloud.name: cloud for cloud in CLOUDS[:1]}
    for name in engines.names():
        # an engine that this table does not know works all the same
        title, url, keys, source = LOCAL.get(name, (name, "http://127.0.0.1:8000/v1", (), ""))
        found[name] = Provider(name, title, url, engines.get(name).dialect, (API_KEY, *keys), source=source)
    return found | {cloud.name: cloud for cloud in CLOUDS[1:]}


def of_url(base_url: str) -> Provider | None:
    """The provider that `base_url` belongs to by its host; None for a server of one's own.

    Only whole host names count: a key must not go to `together.example.org`.
    """
    return next((provider for provider in CLOUDS if provider._owns(base_url) or provider._moved_to(base_url)), None)


def key_names(base_url: str) -> tuple[str, ...]:
    """Names of the variables that may hold a key for `base_url`, where no provider was named.

    A stack's key goes to this machine only, and a cloud's to that cloud: any other host must be named with its key.
    """
    provider = of_url(base_url)
    if provider:
        return provider.keys
    return (API_KEY,) if is_loopback(base_url) else ()


def find_key(names: Iterable[str], folders: Iterable[Path] = (), given: str | None = None) -> Key | None:
    """The first key there is: `given` (by --api-key), then the environment, then the `.env` of each folder.

    Raises nothing for folders without one; an empty value counts as none.
    """
    wanted = tuple(names)
    if given:
        return Key(given, "", "--api-key")
    for name in wanted:
        # variables often carry a line end
        if value := os.environ.get(name, "").strip():
            return Key(value, name, "environment")
    for folder in dict.fromkeys(folders):
        values = read_env(folder)
        for name in wanted:
            if values.get(name):
                return Key(values[name], name, str(folder / ".env"))
    return None
