"""The field `engine_version`: which version of an engine a model gets, and what stackgen knows about that version.

The tables in `stackgen/flags/` are made from the real programs by `scripts/generate_flags.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

from stackgen.engines.base import Context, Replica
from stackgen.errors import Mistake
from stackgen.flags import known_versions

__all__ = ["BuildNumber", "EngineVersion", "find_version_mistakes", "warn_of_versions"]

VERSION = r"^[0-9]+(?:\.[0-9]+){1,3}(?:\.?(?:post|rc)[0-9]+)?$"


def _drop_letter(value: Any, pattern: str) -> Any:
    """Refuses a tag such as `v0.33.0` or `b11434` with the version in it as the suggestion."""
    if isinstance(value, str) and re.fullmatch(pattern, value[1:]) and value[0] in "vb":
        raise PydanticCustomError("version", "{tag} is a tag. Write the version: {version}",
                                  {"tag": value, "version": value[1:]})  # fmt: skip
    return value


EngineVersion = Annotated[
    Annotated[str, StringConstraints(pattern=VERSION)] | None,
    BeforeValidator(lambda value: _drop_letter(value, VERSION)),
    Field(None, description="Version of the engine, for example 0.33.0. stackgen uses the official image of this "
          "version. Default: the version that stackgen was tested with. `stackgen upgrade` shows what another "
          "version changes"),
]  # fmt: skip


def _to_text(value: Any) -> Any:
    # YAML reads a build as a number
    return str(value) if type(value) is int else _drop_letter(value, BUILD)


BUILD = r"^[1-9][0-9]{3,5}$"
# llama.cpp's releases are numbered builds: 11434 is the tag b11434
BuildNumber = Annotated[
    Annotated[str, StringConstraints(pattern=BUILD)] | None,
    BeforeValidator(_to_text),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": BUILD},
                              {"type": "integer", "minimum": 1000, "maximum": 999999}, {"type": "null"}]}),
    Field(None, description="Build of llama.cpp, for example 11434, which is the tag b11434. Default: the build that "
          "stackgen was tested with. `stackgen upgrade` shows what another build changes"),
]  # fmt: skip


def _first_replicas(context: Context) -> Iterator[Replica]:
    # all replicas of a model have the same fields
    return (one for one in context.replicas if one.index == 0)


def find_version_mistakes(context: Context) -> Iterator[Mistake]:
    """A version next to an image of the user's own, which has a version already."""
    for replica in _first_replicas(context):
        if replica.spec.engine_version and replica.spec.image:
            yield Mistake(f"{replica.path}.engine_version", "has no effect, because `image` determines the version",
                          hint="remove engine_version, or remove image")  # fmt: skip


def _suggest(version: str, known: tuple[str, ...]) -> str:
    # the tag v0.33 does not exist
    longer = [one for one in known if one.startswith(f"{version}.")]
    return f". Did you mean {longer[-1]}?" if longer else ""


def warn_of_versions(engine: str, context: Context) -> tuple[str, ...]:
    """A warning for each model with a version of which stackgen has no table."""
    known = known_versions(engine)
    return tuple(
        f"{replica.path}.engine_version: stackgen has no table of {engine} {replica.spec.engine_version}, so it checks "
        f"neither flags nor values. It knows {', '.join(known)}{_suggest(replica.spec.engine_version, known)}"
        for replica in _first_replicas(context)
        if replica.spec.engine_version and replica.spec.engine_version not in known
    )
