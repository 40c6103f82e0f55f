"""Which program around the engines wrote a log, for the next steps of a failure that no rule explains."""

from __future__ import annotations

import re

__all__ = ["find_component"]

# by words that only this program or its own packages write
COMPONENTS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("LiteLLM", r"\blitellm[./]|LiteLLM (?:Proxy|Router)|\blitellm-\d+ +\|"),
        ("Open WebUI", r"\bopen_webui[./]|\bopen-webui-\d+ +\|"),
        ("Grafana", r"\blogger=[\w.]+ .*\blevel=|\bgrafana-\d+ +\||GF_[A-Z]+_"),
        ("Prometheus", r"\bsource=\w+\.go:\d+ .*component=|\bprometheus-\d+ +\|"),
        ("NVIDIA's DCGM exporter", r"(?i)\bdcgm[-_]exporter\b"),
        ("KServe", r"\bkserve\.io/|/kserve/|\bkserve INFO\b"),
        ("NVIDIA's GPU Operator", r"\bgpu-operator\b|\bnvidia-operator-validator\b"),
        ("NVIDIA's Kubernetes device plugin", r"\bk8s-device-plugin\b"),
        ("Ray", r"\braylet\b|\bray::|\bRayWorkerWrapper\b"),
        ("Helm", r"^Error: (?:INSTALLATION|UPGRADE) FAILED"),
        ("Podman", r"^Error: (?:netavark|OCI runtime|crun|pasta|slirp4netns)|^\$ podman "),
        ("Traefik", r"\btraefik-\d+ +\||\bentryPointName=|github\.com/traefik/"),
        ("Caddy", r"\"logger\":\"(?:http\.|tls\.|admin)|\bcaddy-\d+ +\|"),
        ("HAProxy", r"^\[(?:ALERT|WARNING|NOTICE)\] +\(\d+\) : "),
        ("huggingface_hub", r"/huggingface_hub/"),
    )
)


def find_component(log: str) -> str:
    """The program around an engine whose words `log` contains; "" if there are none, or an engine's own."""
    for line in log.splitlines():
        for name, pattern in COMPONENTS:
            if pattern.search(line):
                return name
    return ""
