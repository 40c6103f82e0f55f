"""Clouds with an OpenAI-compatible API: base URL, host names, and the variables that contain their keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["CLOUDS", "Cloud"]


@dataclass(frozen=True, slots=True)
class Cloud:
    """One cloud. `name` is its name in stack files and in `--provider`.

    - `key_names`: environment variables that may contain the key; the first variable that is set wins.
    - `hosts`: host names of the cloud; their subdomains belong to it too.
    - `url_variable`: environment variable that overrides `url`.
    - `source`: where these facts come from.
    """

    name: str
    title: str
    url: str
    key_names: tuple[str, ...]
    hosts: tuple[str, ...]
    url_variable: str
    source: str

    def owns(self, host: str) -> bool:
        """Whether `host` is one of the cloud's hosts or a subdomain of such a host."""
        host = host.rstrip(".").lower()
        # match whole labels: the key must not be sent to `together.example.org` or `nottogether.ai`
        return any(host == known or host.endswith(f".{known}") for known in self.hosts)


CLOUDS: Mapping[str, Cloud] = {
    cloud.name: cloud
    for cloud in (
        Cloud(
            "together",
            title="Together AI",
            # older guides use api.together.xyz
            url="https://api.together.ai/v1",
            # Together's SDK reads the first name, older guides set the second
            key_names=("TOGETHER_API_KEY", "TOGETHERAI_API_KEY"),
            hosts=("together.ai", "together.xyz"),
            url_variable="TOGETHER_BASE_URL",
            source="docs.together.ai and together 3.1",
        ),
        Cloud(
            "openai",
            title="any OpenAI-compatible URL",
            url="https://api.openai.com/v1",
            key_names=("OPENAI_API_KEY",),
            hosts=("openai.com",),
            url_variable="OPENAI_BASE_URL",
            source="platform.openai.com",
        ),
    )
}
