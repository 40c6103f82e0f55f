"""From plan to texts. Jinja only prints: every decision stands in the plan.

`StrictUndefined` makes a missing name an error, and `finalize` quotes each expression for the target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from stackgen.plan import Bind, Plan, Port, Tmpfs
from stackgen.resources import cache_dir, templates_dir
from stackgen.targets import compose, haproxy, yaml

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["RenderedFile", "render"]

HEADER = (
    "# Written by stackgen from {source}. Start it with `docker compose up -d`; keys come from .env.\n"
    "# It is yours: edit it if you like, and stackgen leaves it alone unless told --force.\n"
)


# how each expression of a template is quoted
FINALIZE: dict[str, Callable[[Any], str]] = {
    "compose": compose.scalar,
    "yaml": yaml.scalar,
    "haproxy": haproxy.quoted,
    "text": str,
}


@dataclass(frozen=True, slots=True)
class RenderedFile:
    """A path, relative to the stack's folder, and the text that belongs there."""

    path: str
    text: str


def render(plan: Plan, source: str = "stack.yaml") -> tuple[RenderedFile, ...]:
    """All files of the stack, the Compose file first. The same plan gives the same bytes."""
    template = _environment().get_template(compose.TEMPLATE)
    text = HEADER.format(source=compose.comment(source)) + template.render(plan=plan) + "\n"
    files = [RenderedFile(compose.COMPOSE_FILE, text)]
    for asset in plan.assets:
        files.append(RenderedFile(asset.path, (templates_dir() / asset.template).read_text("utf-8")))
    for one in plan.documents:
        files.append(
            RenderedFile(one.path, _environment(one.language).get_template(one.template).render(data=one.data) + "\n")
        )
    return tuple(files)


@cache
def _environment(language: str = "compose") -> Environment:
    from jinja2 import Environment, FileSystemBytecodeCache, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(templates_dir()),
        undefined=StrictUndefined,
        finalize=FINALIZE[language],
        autoescape=False,
        keep_trailing_newline=False,
        auto_reload=False,
        # compiling the template costs a quarter of a render; Jinja checks the source's hash itself
        bytecode_cache=FileSystemBytecodeCache(folder) if (folder := cache_dir("templates")) else None,
    )
    environment.filters |= {
        "comment": compose.comment,
        "text": lambda value: compose.Raw(compose.quoted(str(value).replace("$", "$$"))),
        "seconds": lambda value: compose.Raw(f"{value}s"),
        "published": _published,
        "tmpfs_line": lambda mount: mount.target + (f":{mount.options}" if mount.options else ""),
    }
    environment.tests |= {
        "bind": lambda mount: isinstance(mount, Bind),
        "tmpfs": lambda mount: isinstance(mount, Tmpfs),
    }
    return environment


def _published(port: Port) -> compose.Raw:
    address = f"[{port.address}]" if ":" in port.address and not port.address.startswith("[") else port.address
    return compose.Raw(f'"{address}:{port.host}:{port.container}"')
