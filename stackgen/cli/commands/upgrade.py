"""`stackgen upgrade`: what another version of an engine means for a stack, and the change of stack.yaml."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from difflib import unified_diff
from pathlib import Path
from typing import Any

from stackgen.cli.commands.confirm import confirm
from stackgen.cli.commands.fit_models import make_hub
from stackgen.cli.commands.locking import lock_stack
from stackgen.cli.commands.output import note, print_data
from stackgen.cli.commands.upgrade_report import make_report, report_lines
from stackgen.cli.scrub import scrub_diff
from stackgen.diagnose.rule import Edit
from stackgen.diagnose.stack_edit import apply_edit
from stackgen.engines.base import served_names
from stackgen.errors import StackgenError
from stackgen.flags import PINNED, known_versions
from stackgen.plan import Service
from stackgen.resolve.pipeline import resolve
from stackgen.stack.edit import write_stack_file
from stackgen.stack.folder import find_stack_file, make_site
from stackgen.stack.load import apply_placement, parse_stack, read_text
from stackgen.targets.commands import for_cluster

__all__ = ["upgrade"]

ENGINES = ("vllm", "sglang", "llamacpp")


def upgrade(args: Namespace) -> int:
    """Runs `stackgen upgrade`: prints the changes, shows the difference of stack.yaml, asks, and writes it."""
    with lock_stack(args, args.stack):
        path = find_stack_file(args.stack)
        if path is None:
            raise StackgenError(f"{args.stack} has no stack.yaml", "pass the folder of a stack, or its stack file")
        before = read_text(path)
        spec = parse_stack(before, str(path))
        plans = list(_plan(spec.models, args.to))
        after = before
        for index, _, _, new in plans:
            after = apply_edit(after, Edit(("models", index, "engine_version"), f'"{new}"'))
        was, now = _find_services(before, path), _find_services(after, path)
        hub = make_hub(spec, path.parent, offline=True)
        reports = []
        for index, model, old, new in plans:
            name = served_names(model)[0]
            services = (was.get(name), now.get(name))
            reports.append(make_report(f"models[{index}]", model, (old, new), services, hub, path.parent))
        lines = [line for report in reports for line in report_lines(report)]
        is_cluster = make_site(spec, path.parent).is_cluster
        print_data(
            args, {"models": reports}, [for_cluster(one, spec.namespace) for one in lines] if is_cluster else lines
        )
        if after == before:
            note("nothing to upgrade: every model has this version already")
            return 0
        for line in scrub_diff(unified_diff(before.splitlines(), after.splitlines(), str(path), str(path), lineterm=""),
                               [before, after]):  # fmt: skip
            note(line)
        if not confirm(
            "change stack.yaml?", args.yes, "stack.yaml was not changed. To change it without asking, add --yes"
        ):
            note("stack.yaml is unchanged")
            return 0
        write_stack_file(path, before, after)
        how = f"`stackgen update {args.stack}` replaces one replica at a time, and rolls back if one fails"
        if is_cluster:
            how = f"`stackgen up {args.stack}` replaces the pods one after the other"
        note(f"changed {path}. {how}")
    return 0


def _plan(models: Any, wanted: str | None) -> Iterator[tuple[int, Any, str, str]]:
    """Index, model, old and new version of each model that gets another version."""
    own = [(index, model) for index, model in enumerate(models) if model.engine in ENGINES and not model.image]
    if not own:
        raise StackgenError("`upgrade` can't change the engine version of any model in this stack",
                            "it changes only models with vLLM, SGLang or llama.cpp that do not set `image`. "
                            "stackgen knows only one version of FastChat")  # fmt: skip
    engines = {model.engine for _, model in own}
    fitting = {engine for engine in engines if not wanted or wanted in known_versions(engine)}
    if wanted and not fitting and len(engines) > 1:
        known = "; ".join(f"{one}: {', '.join(known_versions(one))}" for one in sorted(engines))
        raise StackgenError(f"no engine of this stack has a version {wanted} that stackgen knows", known)
    for index, model in own:
        if model.engine in (fitting or engines):
            old = model.engine_version or PINNED[model.engine]
            new = wanted or known_versions(model.engine)[-1]
            if old != new:
                yield index, model, old, new


def _find_services(text: str, path: Path) -> dict[str, Service]:
    """The engine's service for each served name, as the stack file `text` plans them; {} if it can't be planned."""
    spec = parse_stack(text, str(path))
    try:
        site = make_site(spec, path.parent)
        plan = resolve(spec if site.is_cluster else apply_placement(spec, path, text), site, str(path))
    # the report says what breaks; `render` says the rest
    except StackgenError:
        return {}
    by_name = {one.name: one for one in plan.services}
    found: dict[str, Service] = {}
    for endpoint in plan.endpoints:
        # a gateway answers for its replicas, which have the engine's image and flags
        services = [by_name[one] for one in (*endpoint.replicas, endpoint.service) if one in by_name]
        if engine := next((one for one in services if one.role == "engine"), None):
            found |= dict.fromkeys(endpoint.models, engine)
    return found
