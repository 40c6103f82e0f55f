"""Checks the versions of Compose and Docker Engine: those that the features in compose.yaml need.

Versions are from Compose's and Docker Engine's release notes. A Compose that is too old for a key rejects the file.
Docker Engine below 25 has no `start_interval`: Compose up to 2.23 drops it, 2.24 and newer refuse to start the service
(docker/compose pull request 10939, "can't set healthcheck.start_interval").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from stackgen.doctor.facts import is_version_at_least
from stackgen.doctor.finding import DoctorInputs, Results, fail, ok, unknown, warn

__all__ = ["FEATURES", "Feature", "check_compose_version", "check_engine_version"]

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature of the Compose file, the `pattern` of its line, and the first versions that support it."""

    name: str
    pattern: re.Pattern[str]
    compose: Version = ()
    engine: Version = ()


def _key_pattern(name: str, indent: str = r"[ ]+", value: str = "") -> re.Pattern[str]:
    return re.compile(rf"(?m)^{indent}(?:- )?{re.escape(name)}:{value}")


# the indent tells keys of the same name apart: `models:` at the top level, `restart:` inside depends_on
FEATURES = (
    Feature("healthcheck.start_interval", _key_pattern("start_interval"), compose=(2, 20, 2), engine=(25,)),
    Feature("driver: cdi", _key_pattern("driver", value=r"[ ]+['\"]?cdi\b"), engine=(25,)),
    Feature("gpus", _key_pattern("gpus", "[ ]{4}"), compose=(2, 30)),
    Feature("configs.content", _key_pattern("content"), compose=(2, 23, 1)),
    Feature("depends_on.restart", _key_pattern("restart", "[ ]{8,}", r"[ ]+['\"]?(?:true|false)\b"), compose=(2, 17)),
    Feature("depends_on.required", _key_pattern("required", "[ ]{8,}", r"[ ]+false\b"), compose=(2, 20, 2)),
    Feature("build.additional_contexts", _key_pattern("additional_contexts"), compose=(2, 17)),
    Feature("models", _key_pattern("models", ""), compose=(2, 38)),
    Feature("pre_start", _key_pattern("pre_start"), compose=(5, 3)),
)
# every stack has health checks, so every machine needs this feature, even when doctor runs without a stack
ALWAYS_USED = FEATURES[:1]
# the oldest version of Compose that stackgen is tested with
TESTED_COMPOSE = (2, 24)


def _find_used_features(inputs: DoctorInputs) -> Iterator[tuple[Feature, str]]:
    """The features that compose.yaml uses on disk (or would use, if not rendered yet), and where it uses them."""
    if inputs.stack is None:
        yield from ((feature, "every rendered file") for feature in ALWAYS_USED)
    for feature in FEATURES:
        if match := feature.pattern.search(inputs.compose_file):
            # with the line, users find a key that they added themselves
            line = inputs.compose_file.count("\n", 0, match.start()) + 1
            yield feature, f"compose.yaml line {line}"


def _format_version(version: Version) -> str:
    return ".".join(map(str, version))


def check_engine_version(inputs: DoctorInputs) -> Results:
    """Docker Engine supports the features that the Compose file uses."""
    host = inputs.host
    # an engine that can't be used is reported by SG-P001
    if host.engine_state not in (None, "ok"):
        return
    if is_version_at_least(host.engine, 0) is None:
        yield unknown("Docker Engine's version is unknown", evidence=host.engine or "")
        return
    used = [(feature, where) for feature, where in _find_used_features(inputs) if feature.engine]
    missing = [(feature, where) for feature, where in used if not is_version_at_least(host.engine, *feature.engine)]
    # Compose before 2.24 drops start_interval for such an engine instead of refusing it
    dropped = [one for one, _ in missing
               if one in ALWAYS_USED and is_version_at_least(host.compose, *TESTED_COMPOSE) is False]  # fmt: skip
    evidence = _describe_missing("Docker Engine", host.engine, missing, "engine")
    if not is_version_at_least(host.engine, 23):
        yield fail(
            "Docker Engine is too old",
            evidence=f"this machine has version {host.engine}, but version 25 or newer is needed",
            fix="update Docker Engine",
        )
    elif len(missing) > len(dropped):
        names = ", ".join(one.name for one, _ in missing)
        # stack.yaml has a field for this feature only
        has_cdi = any(one.name == "driver: cdi" for one, _ in missing)
        yield fail(
            f"this Docker Engine does not support {names}",
            evidence=evidence,
            fix="update Docker Engine",
            place="gpu_driver" if has_cdi else "",
        )
    elif dropped:
        yield warn(
            "this Docker Engine ignores `healthcheck.start_interval`, so a service can take up to 30 s longer to "
            "become healthy",
            evidence=evidence,
            fix="update Docker Engine",
        )
    else:
        yield ok("Docker Engine supports all features that the stack uses", evidence=host.engine or "")


def check_compose_version(inputs: DoctorInputs) -> Results:
    """The Compose plugin exists and supports the features that the Compose file uses."""
    host = inputs.host
    if host.compose_missing:
        yield fail(
            "the docker compose plugin is missing",
            evidence="`docker compose version` fails",
            fix=f"install docker-compose-plugin {_format_version(TESTED_COMPOSE)} or newer",
        )
        return
    if is_version_at_least(host.compose, 0) is None:
        yield unknown("Compose's version is unknown", evidence=host.compose or "")
        return
    used = [(feature, where) for feature, where in _find_used_features(inputs) if feature.compose]
    missing = [(feature, where) for feature, where in used if not is_version_at_least(host.compose, *feature.compose)]
    if missing:
        # an update for the feature alone might still be older than what stackgen needs
        newest = max(TESTED_COMPOSE, *(one.compose for one, _ in missing))
        yield fail(
            f"Compose is too old for {', '.join(one.name for one, _ in missing)}",
            evidence=_describe_missing("Compose", host.compose, missing, "compose"),
            fix=f"install docker-compose-plugin {_format_version(newest)} or newer",
        )
    elif not is_version_at_least(host.compose, *TESTED_COMPOSE):
        yield warn(
            "stackgen is not tested with this version of Compose",
            evidence=f"this machine has Compose {host.compose}, and stackgen is tested with "
            f"{_format_version(TESTED_COMPOSE)} or newer",
            fix="update docker-compose-plugin",
        )
    else:
        yield ok("Compose supports all features that the stack uses", evidence=host.compose or "")


def _describe_missing(product: str, version: str | None, missing: list[tuple[Feature, str]], side: str) -> str:
    needs = (f"{one.name} ({where}) needs {product} {_format_version(getattr(one, side))}" for one, where in missing)
    return f"this machine has {product} {version}, but " + ", ".join(needs)
