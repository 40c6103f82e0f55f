"""A fake provider for tests of a model's fallback, because the tests can't reach a real one."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stackgen.stack.envfile import create_env
from tests.live.containers import address, docker

__all__ = ["MODEL", "PROVIDER_KEY", "Provider", "create_certificates", "start_provider", "write_env"]

SCRIPT = Path(__file__).with_name("provider.py")
PROVIDER_KEY = 'tgp_v1_0123 %[env(PATH)]"\\x'
MODEL = 'meta-llama/Llama-3.1"%b\\8B'
# the provider's host names in the stack's network
ALIASES = ("provider", "cloud.test", "other.test")


@dataclass
class Provider:
    """The container of the fake provider."""

    name: str

    def received(self) -> list[dict[str, Any]]:
        """Returns the requests that it has received."""
        found: list[dict[str, Any]] = self._get("/seen")
        return found

    def last(self) -> dict[str, Any]:
        """Returns the last request that it has received."""
        found: dict[str, Any] = self._get("/seen/last")
        return found

    @cached_property
    def _url(self) -> str:
        return f"http://{address(self.name)}:9000"

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(self._url + path, timeout=20) as response:
            return json.load(response)

    def remove(self) -> None:
        subprocess.run(["docker", "rm", "--force", self.name], capture_output=True)


def start_provider(stack: str, image: str, *args: str, mounts: tuple[str, ...] = ()) -> Provider:
    """Starts the fake provider in the network of `stack`, under all of its host names."""
    provider = Provider(f"{stack}-provider")
    provider.remove()
    docker("run", "--detach", "--init", "--user", "0:0", "--name", provider.name, "--network", f"{stack}_default",
           *(argument for alias in ALIASES for argument in ("--network-alias", alias)),
           "--env", f"PROVIDER_KEY={PROVIDER_KEY}", "--volume", f"{SCRIPT}:/provider.py:ro",
           *(argument for mount in mounts for argument in ("--volume", mount)),
           "--entrypoint", "python3", image, "/provider.py", "9000", *args)  # fmt: skip
    return provider


def write_env(folder: Path) -> None:
    """Writes .env with the provider's key, and with a wrong key as OTHER_KEY."""
    create_env(folder)
    with (folder / ".env").open("a") as file:
        file.write(f"PROVIDER_KEY='{PROVIDER_KEY}'\nOTHER_KEY=wrong-key\n")


def create_certificates(folder: Path) -> None:
    """Creates an authority, a certificate by it for cloud.test, and a self-signed one for the same name."""
    for name in ("known", "unknown"):
        (folder / name).mkdir()
    run = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    for command in (
        [*run, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca of a test"],
        [*run, "-keyout", "known/key.pem", "-out", "known/cert.pem", "-subj", "/CN=cloud.test", "-CA", "ca.crt",
         "-CAkey", "ca.key", "-addext", "subjectAltName=DNS:cloud.test", "-addext", "basicConstraints=CA:FALSE"],
        [*run, "-keyout", "unknown/key.pem", "-out", "unknown/cert.pem", "-subj", "/CN=cloud.test",
         "-addext", "subjectAltName=DNS:cloud.test"],
    ):  # fmt: skip
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    for key in folder.glob("*/key.pem"):
        key.chmod(0o644)
