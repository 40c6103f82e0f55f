"""Commands for stacks: one call into the package each, then printing."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from stackgen.commands.output import note, print_data, print_report
from stackgen.errors import MachineError, StackgenError, StartError

__all__ = ["completion", "down", "init", "logs", "render", "schema", "status", "up"]


def init(words: Namespace) -> int:
    """`stackgen init`: a commented stack.yaml, its schema, and a .env with a new key."""
    from stackgen.starter import write_starter

    written = write_starter(Path(words.folder), words.engine, words.model, words.gpus, words.file)
    print_data(words, {"written": [str(path) for path in written]}, [f"wrote {path}" for path in written])
    note(f"next: look at {words.folder}/stack.yaml, then `stackgen up {words.folder}`")
    return 0


def render(words: Namespace) -> int:
    """`stackgen render`: files, or what would change."""
    from stackgen.stack import from_flags, open_stack, stack_file
    from stackgen.write import diff

    if stack_file(words.stack) or not words.engine:
        stack = open_stack(words.stack, words.output)
    else:
        stack = from_flags(words.stack, vars(words), words.set, words.output)
    if words.stdout:
        sys.stdout.write(stack.files()[0].text)
        return 0
    changes = _changes(stack, validate=not words.no_validate)
    stale = [change for change in changes if change.kind != "same"]
    if (words.diff or words.check) and not words.json:
        print("\n".join(diff(changes)), end="\n" if stale else "")
    if not (words.diff or words.check):
        _write(stack, changes, words.force)
    for warning in stack.plan.warnings:
        note(f"warning: {warning}")
    plain = [] if words.diff or words.check else [f"{change.kind:8}{stack.folder / change.path}" for change in stale]
    told = [{"path": change.path, "kind": change.kind, "edited": change.edited} for change in changes]
    data = {"folder": str(stack.folder), "changes": told,
            "warnings": list(stack.plan.warnings)}  # fmt: skip
    print_data(words, data, plain or ([] if stale else [f"{stack.folder}: up to date"]))
    return 1 if words.check and stale else 0


def up(words: Namespace) -> int:
    """`stackgen up`: render what is missing, start, wait, and ask for a real completion."""
    from stackgen.progress import shown
    from stackgen.stack import open_stack

    stack = open_stack(words.stack)
    _prepare(stack)
    if words.runtime == "process":
        from stackgen.runtimes.process import up_processes

        try:
            return up_processes(Path(words.stack), words.timeout, words.progress, words.json)
        except StartError as error:
            _explain(words, stack, error)
            raise
    for warning in stack.plan.warnings:
        note(f"warning: {warning}")
    from stackgen.runtimes import compose
    from stackgen.runtimes.drift import remember
    from stackgen.runtimes.exporter import build_exporter
    from stackgen.runtimes.gateway import reload_changed

    try:
        with shown(words.progress, stack.plan) as progress:
            build_exporter(stack.plan, stack.folder, progress)
            compose.up(stack.plan, stack.folder, progress, words.timeout)
            if reload_changed(stack.plan, stack.folder):
                progress("gateway", "new configuration loaded")
            report = _proof(stack.plan, stack.folder, progress, words.timeout or 120)
    except (StartError, MachineError) as error:
        _explain(words, stack, error)
        raise
    if report.ok:
        remember(stack.folder)
    return print_report(words, report)


def _explain(words: Namespace, stack: Any, error: StackgenError) -> None:
    """Why a start failed, where a rule knows it, and with --fix the change; the error itself is told after it."""
    from stackgen.commands.diagnose import fix
    from stackgen.diagnose.explain import told
    from stackgen.runtimes.evidence import explain_failure

    processes = Path(words.stack) if words.runtime == "process" else None
    finding = explain_failure(stack.plan, stack.folder, error.output, processes)
    if finding and not finding.fallback:
        note(told(finding))
        if words.fix:
            fix(words, (finding,), Path(words.stack) if Path(words.stack).is_file() else stack.folder / "stack.yaml")
        # the cause stands above; the lines of the log would only bury it
        error.message = error.message.splitlines()[0]
        change = "; --fix makes the change" if finding.edit and finding.edit.safe and not words.fix else ""
        error.hint = f"`stackgen diagnose` tells what else was found{change}"


def down(words: Namespace) -> int:
    """`stackgen down`: stop and remove, keep the volumes unless told otherwise."""
    folder = _folder(words.stack)
    if _runtime(words, folder) == "process":
        from stackgen.runtimes.process import down_processes

        stopped = down_processes(folder)
        told = f"stopped {', '.join(stopped)}" if stopped else "nothing was running"
    else:
        from stackgen.runtimes import compose

        compose.down(folder, words.volumes)
        stopped = []
        told = "stopped" + ("" if words.volumes else "; the volumes with the weights are kept (--volumes removes them)")
    print_data(words, {"stopped": True, "processes": stopped, "volumes_removed": words.volumes}, [told])
    return 0


def status(words: Namespace) -> int:
    """`stackgen status`: one line a service; exit 1 unless all of them work."""
    from dataclasses import asdict

    from stackgen.stack import open_stack

    folder = _folder(words.stack)
    if _runtime(words, folder) == "process":
        from stackgen.runtimes.process import process_status

        states = process_status(folder)
    else:
        from stackgen.runtimes import compose

        states = compose.status(open_stack(words.stack).plan)
    rows = [(s.service, s.state + (f" ({s.exit_code})" if s.exit_code is not None else ""), s.health or "-",
             f"{s.restarts} restarts" if s.restarts else "", " ".join(s.ports)) for s in states]  # fmt: skip
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    print_data(words, {"services": [asdict(state) for state in states]}, lines)
    good = (("running", "healthy"), ("running", ""))
    return 0 if all((s.state, s.health) in good or (s.role == "download" and s.exit_code == 0) for s in states) else 1


def logs(words: Namespace) -> int:
    """`stackgen logs`: hand the terminal to the runtime's logs."""
    folder = _folder(words.stack)
    if _runtime(words, folder) == "process":
        from stackgen.runtimes.process import process_logs

        return process_logs(folder, tuple(words.services), words.follow, words.tail)
    from stackgen.runtimes import compose

    return compose.logs(folder, tuple(words.services), words.follow, words.tail)


def schema(words: Namespace) -> int:
    """`stackgen schema`: the JSON Schema of stack.yaml."""
    from stackgen.schema import stack_schema

    print(json.dumps(stack_schema(), indent=2))
    return 0


def completion(words: Namespace) -> int:
    """`stackgen completion SHELL`: a script for the shell to source."""
    from argcomplete.shell_integration import shellcode

    print(shellcode(["stackgen"], shell=words.shell))
    return 0


def _changes(stack: Any, validate: bool) -> Any:
    from stackgen.render import RenderedFile
    from stackgen.runtimes.docker_cli import has_compose
    from stackgen.runtimes.docker_cli import validate as ask_compose
    from stackgen.write import compare

    files = stack.files()
    if validate and has_compose():
        ask_compose(stack.plan, files[0].text, stack.folder)
    if stack.own_file:
        files = (*files, RenderedFile("stack.yaml", stack.own_file))
    return compare(files, stack.folder)


def _write(stack: Any, changes: Any, force: bool) -> None:
    from stackgen.write import diff, write_files

    for line in diff([change for change in changes if change.kind == "changed"]):
        note(line)
    write_files(changes, stack.folder, force)
    _complete(stack)


def _complete(stack: Any) -> None:
    """What belongs to the stack and is no text: it is made, not rendered."""
    from stackgen.runtimes.certificate import ensure_certificate
    from stackgen.runtimes.exporter import write_wheel

    write_wheel(stack.plan, stack.folder)
    if made := ensure_certificate(stack.spec, stack.plan, stack.folder):
        note(f"made a certificate that signs itself: {made}")


def _prepare(stack: Any) -> None:
    """Rendered files and a key must be there before a start; a hand-edited file is used as it is."""
    from stackgen.envfile import complete_env, create_env
    from stackgen.plan import EnvRef
    from stackgen.write import write_files

    changes = _changes(stack, validate=False)
    kept = [change.path for change in changes if change.edited]
    stale = [change for change in changes if change.kind != "same" and not change.edited]
    write_files(stale, stack.folder)
    _complete(stack)
    if any(change.kind == "changed" for change in stale):
        note(f"rendered anew: {', '.join(change.path for change in stale)}")
    if kept:
        note(f"edited by hand, so used as it is: {', '.join(kept)}")
    if create_env(stack.folder):
        note(f"wrote {stack.folder / '.env'} with a new key")
    values = (value for service in stack.plan.services for _, value in service.environment)
    if added := complete_env(stack.folder, (value.name for value in values if isinstance(value, EnvRef))):
        note(f"added to {stack.folder / '.env'}: {', '.join(added)}")


def _proof(plan: Any, folder: Path, progress: Any, wait: float) -> Any:
    from stackgen.check.options import Options
    from stackgen.endpoints import from_plan
    from stackgen.probe import run_check

    for endpoint in plan.endpoints:
        progress(endpoint.service, "ask for a completion")
    report = run_check(from_plan(plan, folder), Options(timeout=60.0), wait)
    for endpoint in plan.endpoints:
        progress(endpoint.service, "answered" if report.ok else "does not answer as it should")
    return report


def _folder(words: str) -> Path:
    from stackgen.errors import StackgenError
    from stackgen.stack import stack_file

    folder = (stack_file(words) or Path(words) / "stack.yaml").parent
    if not (folder / "compose.yaml").exists() and not (folder / ".stackgen").exists():
        raise StackgenError(f"{folder} holds no rendered stack", "`stackgen render` writes one")
    return folder


def _runtime(words: Namespace, folder: Path) -> str:
    """What was asked for; else processes where the stack's run, or ran last. A stack file may be broken by now."""
    if words.runtime:
        return str(words.runtime)
    if not (folder / ".stackgen" / "state.json").exists():
        return "compose"
    from stackgen.errors import StackgenError
    from stackgen.runtimes.evidence import ran_as_processes
    from stackgen.runtimes.process import process_status
    from stackgen.stack import open_stack

    try:
        return "process" if ran_as_processes(open_stack(words.stack).plan, folder) else "compose"
    except StackgenError:
        running = any(one.state in ("running", "waiting", "restarting") for one in process_status(folder))
        return "process" if running else "compose"
