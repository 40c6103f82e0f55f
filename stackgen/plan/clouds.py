"""Clouds that speak the OpenAI API: where each is, what its hosts are called, and which variables hold its key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["CLOUDS", "Cloud"]


@dataclass(frozen=True, slots=True)
class Cloud:
    """A cloud under a name that people can say. `keys` are names of variables, the first that is set counts; `hosts`
    are host names that belong to it with all below them, and `url_variable` names the variable that moves it elsewhere.

    `source` says where the row comes from.
    """

    name: str
    title: str
    url: str
    keys: tuple[str, ...]
    hosts: tuple[str, ...]
    url_variable: str
    source: str

    def owns(self, host: str) -> bool:
        """Whether `host` is one of its own. Only whole names count: a key must not go to `together.example.org`."""
        host = host.rstrip(".").lower()
        return any(host == known or host.endswith(f".{known}") for known in self.hosts)


CLOUDS: Mapping[str, Cloud] = {
    cloud.name: cloud
    for cloud in (
        Cloud(
            "together",
            "Together AI",
            # older guides say api.together.xyz
            "https://api.together.ai/v1",
            # its own SDK reads the first name, older guides the second
            ("TOGETHER_API_KEY", "TOGETHERAI_API_KEY"),
            ("together.ai", "together.xyz"),
            "TOGETHER_BASE_URL",
            "docs.together.ai and together 3.1",
        ),
        Cloud(
            "openai",
            "any OpenAI-compatible URL",
            "https://api.openai.com/v1",
            ("OPENAI_API_KEY",),
            ("openai.com",),
            "OPENAI_BASE_URL",
            "platform.openai.com",
        ),
    )
}
