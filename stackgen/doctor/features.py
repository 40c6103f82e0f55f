"""What the Compose file uses, and which Compose and engine that needs: each feature by its name and its line.

Versions are those of Compose's and the engine's release notes. A Compose that is too old for a key refuses the file.
An engine below 25 has no `start_interval`: Compose up to 2.23 leaves it out, 2.24 and newer refuse to start the service
(docker/compose pull request 10939, "can't set healthcheck.start_interval").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from stackgen.doctor.facts import at_least
from stackgen.doctor.finding import Case, Results, fail, good, unknown, warn

__all__ = ["FEATURES", "Feature", "compose", "engine_version"]

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature of the Compose file, the `pattern` of its line, and the first versions that have it."""

    name: str
    pattern: re.Pattern[str]
    compose: Version = ()
    engine: Version = ()


def _key(name: str, indent: str = r"[ ]+", value: str = "") -> re.Pattern[str]:
    return re.compile(rf"(?m)^{indent}(?:- )?{re.escape(name)}:{value}")


FEATURES = (
    Feature("healthcheck.start_interval", _key("start_interval"), (2, 20, 2), (25,)),
    Feature("driver: cdi", _key("driver", value=r"[ ]+['\"]?cdi\b"), engine=(25,)),
    Feature("gpus", _key("gpus", "[ ]{4}"), (2, 30)),
    Feature("configs.content", _key("content"), (2, 23, 1)),
    Feature("depends_on.restart", _key("restart", "[ ]{8,}", r"[ ]+['\"]?(?:true|false)\b"), (2, 17)),
    Feature("build.additional_contexts", _key("additional_contexts"), (2, 17)),
    Feature("models", _key("models", ""), (2, 38)),
    Feature("pre_start", _key("pre_start"), (5, 3)),
)
# every stack has health checks
ALWAYS = FEATURES[:1]
# what stackgen itself calls is tried with this and newer
TRIED = (2, 24)


def _used(case: Case) -> Iterator[tuple[Feature, str]]:
    """The features that the Compose file on this disk uses (what would be rendered, where there is none), and where."""
    if case.stack is None:
        yield from ((feature, "every rendered file") for feature in ALWAYS)
    for feature in FEATURES:
        if match := feature.pattern.search(case.compose_file):
            line = case.compose_file.count("\n", 0, match.start()) + 1
            yield feature, f"compose.yaml line {line}"


def _text(version: Version) -> str:
    return ".".join(map(str, version))


def engine_version(case: Case) -> Results:
    """What the Compose file needs of the engine."""
    host = case.host
    if host.engine_state not in (None, "ok"):
        return
    if at_least(host.engine, 0) is None:
        yield unknown("the engine's version is unknown", host.engine or "")
        return
    lacking = [(one, where) for one, where in _used(case) if one.engine and not at_least(host.engine, *one.engine)]
    ignored = [one for one, _ in lacking if one in ALWAYS and at_least(host.compose, *TRIED) is False]
    if not at_least(host.engine, 23):
        yield fail("the Docker engine is too old", f"version {host.engine}, wanted 25 or newer", "update Docker Engine")
    elif len(lacking) > len(ignored):
        names = ", ".join(one.name for one, _ in lacking)
        cdi = any(one.name == "driver: cdi" for one, _ in lacking)
        yield fail(f"this engine lacks {names}", _told(f"version {host.engine}", lacking, "engine"),
                   "update Docker Engine", "gpu_driver" if cdi else "")  # fmt: skip
    elif ignored:
        yield warn("this engine ignores healthcheck.start_interval: a service counts as healthy up to 30 s later than "
                   "it is", _told(f"version {host.engine}", lacking, "engine"), "update Docker Engine")  # fmt: skip
    else:
        yield good("the engine has what the stack uses", host.engine or "")


def compose(case: Case) -> Results:
    """The compose plugin, and what the Compose file needs of it."""
    host = case.host
    if host.compose_missing:
        yield fail("the docker compose plugin is missing", "`docker compose version` does not work",
                   f"install docker-compose-plugin, version {_text(TRIED)} or newer")  # fmt: skip
        return
    if at_least(host.compose, 0) is None:
        yield unknown("Compose's version is unknown", host.compose or "")
        return
    lacking = [(one, where) for one, where in _used(case) if one.compose and not at_least(host.compose, *one.compose)]
    if lacking:
        newest = max(TRIED, *(one.compose for one, _ in lacking))
        yield fail(f"Compose is too old for {', '.join(one.name for one, _ in lacking)}",
                   _told(host.compose or "", lacking, "compose"),
                   f"install docker-compose-plugin, version {_text(newest)} or newer")  # fmt: skip
    elif not at_least(host.compose, *TRIED):
        yield warn("Compose is older than what stackgen is tried with",
                   f"{host.compose}, wanted {_text(TRIED)} or newer", "update docker-compose-plugin")  # fmt: skip
    else:
        yield good("Compose has what the stack uses", host.compose or "")


def _told(have: str, lacking: list[tuple[Feature, str]], side: str) -> str:
    needs = (f"{one.name} ({where}) came with {_text(getattr(one, side))}" for one, where in lacking)
    return f"{have}; " + ", ".join(needs)
