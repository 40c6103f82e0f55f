"""The source and the rendered Compose file side by side, service by service and key by key."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import yaml

from stackgen.importing.container import Container
from stackgen.importing.source import Imported
from stackgen.importing.stack_file import plan_of
from stackgen.render.templating import render
from stackgen.resolve.naming import name_services
from stackgen.spec import StackSpec

__all__ = ["compare"]

MIN_COLUMN = 30


def compare(found: Imported, text: str, folder: Path, width: int) -> Iterator[str]:
    """Yields the lines: on the left a service of the source, on the right the service that stackgen renders for it.

    `width` is the width of the terminal in characters. Raises SpecError if the stack can't be rendered.
    """
    spec, plan = plan_of(text, folder)
    compose = render(plan, "stack.yaml")[0].text
    services = _split_services(compose)
    shown: set[str] = set()
    for left_name, right_name, container in _pairs(found, spec):
        shown.add(right_name)
        left = found.ledger.mask(_source_text(container)) if container else ""
        yield from _columns(left_name, right_name, _blocks(left), _blocks(services.get(right_name, "")), width)
        yield ""
    more = [name for name in services if name not in shown]
    if more:
        yield f"only in the rendered file: {', '.join(more)}"


def _pairs(found: Imported, spec: StackSpec) -> Iterator[tuple[str, str, Container | None]]:
    names, _ = name_services(spec)
    containers = found.assembled.containers
    for (index, number), service in names.items():
        draft = found.assembled.drafts[index]
        sources = [draft.source, *draft.also]
        source = sources[number] if number < len(sources) else sources[0]
        yield source or found.kind, service, containers.get(source)


def _source_text(container: Container) -> str:
    """The service as the source writes it; a command as the keys of Compose."""
    if (
        container.place.startswith(("services.", container.name))
        and container.text
        and ":" in container.text.splitlines()[0]
    ):
        return container.text
    data: dict[str, object] = {"image": container.image.text} if container.image else {}
    data["command"] = [word.item.text for word in container.words]
    data |= {"environment": {name: str(one.value) for name, one in container.environment.items()}}
    data["ports"] = [port.item.text for port in container.ports]
    data["volumes"] = [mount.item.text for mount in container.mounts]
    data["gpus"] = [ask.item.text for ask in container.gpus]
    data |= {name: one.value for name, one in container.options.items()}
    return yaml.safe_dump({key: value for key, value in data.items() if value}, sort_keys=False, width=1000)


def _split_services(compose: str) -> dict[str, str]:
    """The text of each service of a rendered Compose file, without its indentation."""
    body = compose.partition("\nservices:\n")[2]
    body = re.split(r"(?m)^\S", body)[0]
    found = {}
    for match in re.finditer(r"(?ms)^  ([\w.-]+):\n(.*?)(?=^  \S|\Z)", body):
        found[match[1]] = textwrap.dedent(match[2])
    return found


def _blocks(text: str) -> dict[str, list[str]]:
    """The lines of each top-level key, in order."""
    blocks: dict[str, list[str]] = {}
    key = ""
    for line in text.rstrip().splitlines():
        if match := re.match(r"([\w.-]+):", line):
            key = match[1]
        blocks.setdefault(key, []).append(line)
    return blocks


def _columns(
    left_name: str, right_name: str, left: dict[str, list[str]], right: dict[str, list[str]], width: int
) -> Iterator[str]:
    column = max(MIN_COLUMN, (width - 3) // 2)
    yield f"{left_name:<{column}} │ {right_name}"
    yield f"{'─' * column}─┼─{'─' * column}"
    for key in [*left, *(one for one in right if one not in left)]:
        rows = [_wrap(left.get(key, []), column), _wrap(right.get(key, []), column)]
        for index in range(max(map(len, rows))):
            one, other = (side[index] if index < len(side) else "" for side in rows)
            yield f"{one:<{column}} │ {other}".rstrip()


def _wrap(lines: list[str], column: int) -> list[str]:
    # cut and not wrapped at words: YAML needs its spaces
    return [line[start : start + column] for line in lines for start in range(0, max(len(line), 1), column)]
