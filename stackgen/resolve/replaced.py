"""Variables in `extra_env` that replace what the engine's plan sets: the key is refused, the others are warnings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from stackgen.engines.base import API_KEY, Context, Engine
from stackgen.errors import Mistake
from stackgen.plan import EnvRef

__all__ = ["find_replaced"]


def find_replaced(contexts: Sequence[tuple[Engine, Context]]) -> tuple[list[Mistake], list[str]]:
    """Returns an error for each replaced key, and a warning for each other replaced variable.

    Call it for a stack without errors: the engines plan their services once more, without `extra_env`.
    """
    mistakes, warnings = list[Mistake](), list[str]()
    for path, name, value in _find_all(contexts):
        if value == API_KEY:
            # clients, the gateway, the health checks and `stackgen check` all use the key in .env
            mistakes.append(
                Mistake(
                    f"{path}.extra_env.{name}", "is the engine's key, which stackgen sets to the key in .env",
                    hint="remove the variable. To choose the key yourself, change STACKGEN_API_KEY in .env",
                )
            )  # fmt: skip
        else:
            shown = f"{value!r}" if isinstance(value, str) else "a variable of .env"
            warnings.append(f"{path}.extra_env.{name} replaces the value that stackgen sets: {shown}")
    return mistakes, warnings


def _find_all(contexts: Sequence[tuple[Engine, Context]]) -> Iterator[tuple[str, str, str | EnvRef]]:
    """Yields the model's path, the name and stackgen's value of each variable that the user replaces with another."""
    for engine, context in contexts:
        # replicas have the same variables
        users = [one for one in context.replicas if one.spec.extra_env and not one.index]
        if not users:
            continue
        plain = tuple(replace(one, spec=one.spec.model_copy(update={"extra_env": {}})) for one in context.replicas)
        services = {one.name: dict(one.environment) for one in engine.plan(replace(context, replicas=plain)).services}
        for user in users:
            own = services.get(user.service, {})
            for name, value in user.spec.extra_env.items():
                if name in own and own[name] != value:
                    yield user.path, name, own[name]
