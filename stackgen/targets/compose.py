"""Docker Compose: containers on a network, and YAML whose scalars Compose reads back unchanged.

`json.dumps` and `yaml.safe_dump` are both wrong quoters here: Compose's parser refuses surrogate escapes, reads
`1e-5` and `08` as numbers, and interpolates `$`. Proven by a property test against `docker compose config`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stackgen.plan import EnvRef, GpuRequest

__all__ = ["COMPOSE_FILE", "TEMPLATE", "ComposeSite", "comment", "quoted", "scalar"]

COMPOSE_FILE = "compose.yaml"
TEMPLATE = "compose/compose.yaml.j2"

# What every YAML parser reads as itself: starts with a letter, slash, dot-slash or two dashes; no blank, no colon at
# the end
_PLAIN = re.compile(r"(?:--)?(?:[A-Za-z]|\.{0,2}/)[A-Za-z0-9_./@+=-]*(?::[A-Za-z0-9_./@+=-]+)*")
_WORDS = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"])
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


@dataclass(frozen=True, slots=True)
class ComposeSite:
    """Services reach each other by name on the network; scripts, models and caches are mounted at fixed paths.

    Relative paths of the stack file start at `stack_dir`; the rendered files go to `out_dir`.
    """

    stack_dir: Path = Path()
    out_dir: Path = Path()

    @property
    def containers(self) -> bool:
        return True

    def url(self, service: str, port: int) -> str:
        return f"http://{service}:{port}"

    def local_url(self, service: str, port: int) -> str:
        return f"http://127.0.0.1:{port}"

    def public_url(self, address: str, port: int) -> str:
        reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "[::]": "[::1]"}.get(address, address)
        if ":" in reachable and not reachable.startswith("["):
            reachable = f"[{reachable}]"
        return f"http://{reachable}:{port}/v1"

    def listen(self, service: str, port: int, *, host_port: int = 0) -> tuple[str, int]:
        return "0.0.0.0", port

    def models_dir(self) -> str:
        return "/models"

    def cache_dir(self) -> str:
        return "/home/vllm/.cache"

    def home_dir(self) -> str:
        return "/tmp"

    def local_path(self, path: str) -> str:
        path = os.path.normpath(path)
        if path.startswith(("/", "~")):  # kept apart from a relative path of the same name
            return "/srv/host/" + path.lstrip("/")
        return "/srv/" + path.replace("../", "up/")

    def host_path(self, path: str) -> str:
        expanded = Path(os.path.expanduser(path))  # a Path would drop the `./` that keeps `./~x` from being a home
        if expanded.is_absolute():
            return str(expanded)
        if self.stack_dir == self.out_dir:
            return f"./{expanded}" if not str(expanded).startswith("..") else str(expanded)
        return str((self.stack_dir / expanded).resolve())

    def script(self, name: str) -> str:
        return f"/stackgen/{name}"

    def image_file(self, image: str, name: str) -> str:
        return f"/opt/stackgen/{name}"

    def gpu_environment(self, gpus: GpuRequest | None) -> tuple[tuple[str, str], ...]:
        if gpus and gpus.driver == "amd" and gpus.ids:
            return (("ROCR_VISIBLE_DEVICES", ",".join(gpus.ids)),)
        return ()


class Raw(str):
    """Text that is printed as it is: a comment."""


def comment(text: str) -> Raw:
    """`text` for a YAML comment: one line, without control characters."""
    return Raw("".join(ch if ch.isprintable() else " " for ch in text))


def scalar(value: Any) -> str:
    """One whole YAML scalar that Compose reads back as `value`; `$` is doubled against interpolation.

    Used as Jinja's `finalize`, so that no template can forget it. Raises TypeError for anything but a scalar.
    """
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, EnvRef):
        reason = value.required.replace("$", "$$").replace("}", ")")
        if not value.required:
            return quoted(f"${{{value.name}:-{value.default}}}")
        if value.other:
            # Compose looks at the inner one first, whether it counts or not: `:?` would ask for both
            return quoted(f"${{{value.name}:-${{{value.other}:-}}}}")
        return quoted(f"${{{value.name}:?{reason}}}")
    if not isinstance(value, str):
        raise TypeError(f"not a scalar: {value!r}")
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return quoted(value.replace("$", "$$"))


def quoted(text: str) -> str:
    """`text` in double quotes, with YAML's escapes; `$` is left as it is."""
    return '"' + "".join(_ESCAPES.get(ch) or (ch if ch.isprintable() else _hex(ch)) for ch in text) + '"'


def _hex(ch: str) -> str:
    code = ord(ch)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
