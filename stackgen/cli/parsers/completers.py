"""Values that a shell completes: engines, fields, ids, checks, providers and models.

What they need is imported only while a shell completes a word.

argcomplete calls a completer with the prefix and the arguments so far, and completes files where there is no completer.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stackgen.stack.folder import Stack

__all__ = ["checks", "complete_with", "engines", "fields", "ids", "models", "providers", "replicas", "services",
           "stored"]  # fmt: skip


def complete_with(
    action: argparse.Action, values: Callable[[argparse.Namespace], Iterable[str]], several: bool = False
) -> None:
    """Lets a shell complete the argument `action` with `values`. `several`: values are separated by commas."""

    def complete(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
        head = prefix[: prefix.rfind(",") + 1] if several else ""
        # a broken stack must not print errors into the user's command line
        with suppress(Exception):
            return sorted({f"{head}{one}" for one in values(parsed_args) if one.startswith(prefix[len(head) :])})
        return []

    action.completer = complete  # type: ignore[attr-defined]


def engines(_: argparse.Namespace) -> Iterable[str]:
    """The names of all engines."""
    from stackgen import engines

    return engines.names()


def fields(_: argparse.Namespace) -> Iterable[str]:
    """The fields that `--set` can set: `FIELD=`."""
    from stackgen import engines
    from stackgen.spec import StackSpec

    models = (field for name in engines.names() for field in engines.get(name).Model.model_fields)
    return (f"{name}=" for name in (*StackSpec.model_fields, *models) if name not in ("models", "engine", "model"))


def ids(_: argparse.Namespace) -> Iterable[str]:
    """The ids that `explain` explains."""
    from stackgen.diagnose.rules import RULES
    from stackgen.doctor.table import CHECKS

    return [*(rule.id for rule in RULES), *(check.id for check in CHECKS)]


def checks(_: argparse.Namespace) -> Iterable[str]:
    """The names of the checks of an endpoint."""
    from stackgen.check.checks.table import CHECKS

    return (one.name for one in CHECKS)


def providers(args: argparse.Namespace) -> Iterable[str]:
    """The names of providers, and of the named endpoints of the stack."""
    from stackgen.providers.catalog import providers
    from stackgen.providers.named import open_endpoint_source

    with suppress(Exception):
        yield from (one.name for one in open_endpoint_source(_stack(args)).entries)
    yield from providers()


def models(args: argparse.Namespace) -> Iterable[str]:
    """The names of the models that the stack serves."""
    from stackgen.engines.base import served_names

    return (name for model in _open_stack(args).spec.models for name in served_names(model))


def replicas(args: argparse.Namespace) -> Iterable[str]:
    """The arguments of `scale`: `MODEL=`."""
    return (f"{name}=" for name in models(args))


def services(args: argparse.Namespace) -> Iterable[str]:
    """The services of the rendered stack."""
    return (one.name for one in _open_stack(args).plan.services)


def stored(_: argparse.Namespace) -> Iterable[str]:
    """The models in all stores, and the volumes that all stacks share."""
    from stackgen.runtimes.observation.storage_use import read_storage

    stores = read_storage().stores
    yield from (one.store.name for one in stores if one.volume)
    yield from (one.model.repository for store in stores for one in store.models or ())


def _open_stack(args: argparse.Namespace) -> Stack:
    from stackgen.stack.folder import open_stack

    return open_stack(_stack(args))


def _stack(args: argparse.Namespace) -> str:
    """The stack that the arguments so far name: an option or a path among the words."""
    words = [*(getattr(args, "services", None) or ()), *(getattr(args, "replicas", None) or ())]
    paths = (one for one in words if re.search(r"/|\.ya?ml$|^\.+$", one) or (Path(one) / "stack.yaml").exists())
    return next(paths, None) or getattr(args, "where", None) or getattr(args, "stack", None) or "."
