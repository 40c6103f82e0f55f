"""Finds values that the pinned version of an engine refuses, and extra_args that repeat what stackgen sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stackgen.engines.base import Context, Replica
from stackgen.errors import Mistake
from stackgen.flags import load_flags
from stackgen.flags.arguments import (
    BREAKING_FLAGS,
    FIELD_OF_FLAG,
    OWN_FLAGS,
    Argument,
    find_plugin,
    parse_arguments,
    suggest_value,
)
from stackgen.flags.releases import flags_of

__all__ = ["find_value_mistakes"]


def find_value_mistakes(engine: str, context: Context) -> list[Mistake]:
    """Errors in the fields and `extra_args` of all models of `engine`, each once."""
    # all replicas of a model have the same fields
    models = [replica for replica in context.replicas if replica.index == 0]
    return [
        mistake for replica in models for mistake in (*_find_flags(engine, replica), *_find_values(engine, replica))
    ]


def _find_flags(engine: str, replica: Replica) -> Iterator[Mistake]:
    model: Any = replica.spec
    # the flags that the rest of a stack relies on have the same names in a version without a table
    known = flags_of(model) or load_flags(engine)
    if not known:
        return
    for argument in parse_arguments(engine, model.extra_args, known):
        name = argument.find_name(OWN_FLAGS[engine])
        if not name:
            yield from _find_repeated(engine, replica, argument)
        else:
            field = FIELD_OF_FLAG[engine].get(name)
            # the value is not repeated, because it may be a key
            yield Mistake(
                f"{replica.path}.extra_args[{argument.index}]",
                f"repeats {name}, which stackgen sets: the rest of the stack relies on stackgen's value",
                hint=f"remove the flag, and set {field}" if field else "remove the flag",
            )
        if name := argument.find_name(tuple(BREAKING_FLAGS[engine])):
            effect, remedy = BREAKING_FLAGS[engine][name]
            yield Mistake(f"{replica.path}.extra_args[{argument.index}]", f"{name} {effect}", hint=remedy)


def _find_values(engine: str, replica: Replica) -> Iterator[Mistake]:
    model: Any = replica.spec
    known = flags_of(model)
    if not known:
        return
    # another image may contain another version of the engine
    for flag, field in FIELD_OF_FLAG[engine].items() if not model.image else ():
        # `gpus` decides about a flag with other values than its own
        value = getattr(model, field, None) if field != "gpus" else None
        if not isinstance(value, (str, int)) or isinstance(value, bool) or find_plugin(flag, model.extra_args):
            continue
        if hint := suggest_value(known.by_name.get(flag, {"names": [flag]}), str(value)):
            yield Mistake(
                f"{replica.path}.{field}", f"{engine} {known.version} does not know the value {value!r}", hint=hint
            )


def _find_repeated(engine: str, replica: Replica, argument: Argument) -> Iterator[Mistake]:
    """A flag that a field of the stack file sets as well: the engine would use the flag, and ignore the field."""
    name = argument.find_name(FIELD_OF_FLAG[engine])
    field = FIELD_OF_FLAG[engine].get(name, "")
    # _lora.py reports the other one
    if field in replica.spec.model_fields_set and field != "max_lora_rank":
        yield Mistake(
            f"{replica.path}.extra_args[{argument.index}]",
            f"repeats {name}, which `{field}` sets: the engine would ignore the field",
            hint=f"remove the flag, or remove {field}",
        )
