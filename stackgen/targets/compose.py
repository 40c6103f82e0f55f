"""Docker Compose: containers on a network, and YAML scalars that Compose reads back unchanged.

Neither `json.dumps` nor `yaml.safe_dump` quotes correctly here: Compose's parser rejects surrogate escapes, reads
`1e-5` and `08` as numbers, and interpolates `$`. A property test compares this module with `docker compose config`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stackgen.plan import Bind, EnvRef, GpuRequest, GroupNode
from stackgen.targets.snapshot import find_repository, follow_link

__all__ = ["COMPOSE_FILE", "TEMPLATE", "ComposeSite", "RawYaml", "format_comment", "format_scalar", "quote"]

COMPOSE_FILE = "compose.yaml"
TEMPLATE = "compose/compose.yaml.j2"

# Text that no YAML parser needs quoted: starts with a letter, slash, dot-slash or two dashes; no blank, no final colon
_PLAIN = re.compile(r"(?:--)?(?:[A-Za-z]|\.{0,2}/)[A-Za-z0-9_./@+=-]*(?::[A-Za-z0-9_./@+=-]+)*")
_RESERVED_WORDS = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"])
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
_ESCAPED = re.compile(r'[\\"]')


@dataclass(frozen=True, slots=True)
class ComposeSite:
    """Containers that reach each other by name; scripts, models and caches are mounted at fixed paths.

    Relative paths in the stack file are relative to `stack_dir`. Rendered files are written to `out_dir`.
    """

    stack_dir: Path = Path()
    out_dir: Path = Path()

    @property
    def uses_containers(self) -> bool:
        return True

    @property
    def is_cluster(self) -> bool:
        return False

    @property
    def nameserver(self) -> str:
        # Docker's own, in each container: docs.docker.com, "Networking overview", "DNS services"
        return "127.0.0.11:53"

    def url(self, service: str, port: int) -> str:
        return f"http://{service}:{port}"

    def own_url(self, service: str, port: int) -> str:
        return self.url(service, port)

    def group_node(self) -> GroupNode:
        raise NotImplementedError("a stack of containers runs on one machine")

    def local_url(self, service: str, port: int) -> str:
        return f"http://127.0.0.1:{port}"

    def public_url(self, address: str, port: int) -> str:
        # a client can't connect to a wildcard address
        reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "[::]": "[::1]"}.get(address, address)
        if ":" in reachable and not reachable.startswith("["):
            reachable = f"[{reachable}]"
        return f"http://{reachable}:{port}/v1"

    def listen(self, service: str, port: int, *, host_port: int = 0) -> tuple[str, int]:
        # not loopback: other containers and the published port connect from outside the container
        return "0.0.0.0", port

    def models_dir(self) -> str:
        return "/models"

    def cache_dir(self) -> str:
        return "/home/vllm/.cache"

    def home_dir(self) -> str:
        return "/tmp"

    def local_path(self, path: str) -> str:
        return self._container_path(follow_link(self.stack_dir, path))

    def _container_path(self, path: str) -> str:
        path = os.path.normpath(path)
        if path.startswith(("/", "~")):  # a prefix, so that it can't collide with a relative path
            return "/srv/host/" + path.lstrip("/")
        return "/srv/" + path.replace("../", "up/")

    def host_path(self, path: str) -> str:
        expanded = Path(os.path.expanduser(path))  # checked before Path(), which would turn `./~x` into a home folder
        if expanded.is_absolute():
            return str(expanded)
        if self.stack_dir == self.out_dir:
            return f"./{expanded}" if not str(expanded).startswith("..") else str(expanded)
        return str((self.stack_dir / expanded).resolve())

    def find_on_disk(self, path: str) -> str:
        return str(self.stack_dir / os.path.expanduser(path))

    def mount(self, path: str) -> Bind:
        path = follow_link(self.stack_dir, path)
        # the files of a Hub snapshot are links into another folder of the repository
        whole = find_repository(path) or path
        return Bind(self.host_path(whole), self._container_path(whole))

    def script(self, name: str) -> str:
        return f"/stackgen/{name}"

    def image_file(self, image: str, name: str) -> str:
        return f"/opt/stackgen/{name}"

    def gpu_environment(self, gpus: GpuRequest | None) -> tuple[tuple[str, str], ...]:
        # /dev/kfd and /dev/dri give access to all AMD GPUs
        if gpus and gpus.driver == "amd" and gpus.ids:
            return (("ROCR_VISIBLE_DEVICES", ",".join(gpus.ids)),)
        return ()


class RawYaml(str):
    """Text that `format_scalar` prints unchanged, such as a comment or a value that is already quoted."""


def format_comment(text: str) -> RawYaml:
    """Formats `text` as a YAML comment: one line, without control characters."""
    # a line break would end the comment and start YAML
    return RawYaml("".join(ch if ch.isprintable() else " " for ch in text))


def format_scalar(value: Any) -> str:
    """Formats `value` as a YAML scalar that Compose reads back unchanged. `$` is doubled to prevent interpolation.

    Used as Jinja's `finalize`, so that no template can forget it. Raises TypeError if `value` isn't a scalar.
    """
    if isinstance(value, RawYaml):
        return str(value)
    # before int, because a bool is also an int in Python
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, EnvRef):
        # a `}` would end the reference to the variable
        reason = value.required.replace("$", "$$").replace("}", ")")
        if not value.required:
            return quote(f"${{{value.name}:-{value.default}}}")
        if value.alternative:
            # no `:?` here: Compose evaluates the inner variable even if it isn't used, so `:?` would require both
            return quote(f"${{{value.name}:-${{{value.alternative}:-}}}}")
        return quote(f"${{{value.name}:?{reason}}}")
    if not isinstance(value, str):
        raise TypeError(f"not a scalar: {value!r}")
    if _PLAIN.fullmatch(value) and value.lower() not in _RESERVED_WORDS:
        return value
    return quote(value.replace("$", "$$"))


def quote(text: str) -> str:
    """Puts `text` in double quotes, with YAML's escapes. `$` is left unchanged."""
    if text.isprintable() and not _ESCAPED.search(text):
        return f'"{text}"'
    return '"' + "".join(_ESCAPES.get(ch) or (ch if ch.isprintable() else _hex(ch)) for ch in text) + '"'


def _hex(ch: str) -> str:
    code = ord(ch)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
