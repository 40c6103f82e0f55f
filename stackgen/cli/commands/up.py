"""`stackgen up`: render what is missing, start, wait, and request a real completion."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from stackgen.cli.commands.fix import fix
from stackgen.cli.commands.output import note, print_report
from stackgen.cli.commands.rendering import prepare_files
from stackgen.cli.progress import show_progress
from stackgen.diagnose.explain import format_finding
from stackgen.errors import MachineError, StackgenError, StartError
from stackgen.providers.probe import check_plan
from stackgen.runtimes.compose import lifecycle as compose
from stackgen.runtimes.compose.exporter_image import build_exporter
from stackgen.runtimes.compose.gateway import reload_if_changed
from stackgen.runtimes.observation.evidence import explain_failure
from stackgen.runtimes.process.lifecycle import prepare_processes, start_processes
from stackgen.runtimes.rollout.drift import save_applied_files
from stackgen.stack.folder import Stack, open_stack

__all__ = ["up"]


def up(args: Namespace) -> int:
    """Runs `stackgen up`. Returns 1 if the check fails. Raises StartError or MachineError if the start fails."""
    stack = open_stack(args.stack)
    prepare_files(stack)
    if args.runtime == "process":
        return _up_processes(args, stack)
    for warning in stack.plan.warnings:
        note(f"warning: {warning}")

    try:
        with show_progress(args.progress, stack.plan) as progress:
            build_exporter(stack.plan, stack.folder, progress)
            compose.up(stack.plan, stack.folder, progress, args.timeout)
            # Compose does not notice changes in mounted files
            if reload_if_changed(stack.plan, stack.folder):
                progress("gateway", "new configuration loaded")
            report = check_plan(stack.plan, stack.folder, progress, args.timeout or 120)
    except (StartError, MachineError) as error:
        _explain(args, stack, error)
        raise
    # a rollback needs files that are known to work, so save these
    if report.ok:
        save_applied_files(stack.folder)
    return print_report(args, report)


def _up_processes(args: Namespace, stack: Stack) -> int:
    try:
        local = prepare_processes(Path(args.stack), note)
        with show_progress(args.progress, local.plan) as progress:
            report = start_processes(local, progress, args.timeout)
    except StartError as error:
        _explain(args, stack, error)
        raise
    code = print_report(args, report)
    if not report.ok:
        note("the processes are still running: use `stackgen logs` and `stackgen down`, both with --runtime process")
    return code


def _explain(args: Namespace, stack: Stack, error: StackgenError) -> None:
    """Prints why a start failed, if a rule knows the cause. With --fix, offers the change. Shortens `error`."""
    processes = Path(args.stack) if args.runtime == "process" else None
    finding = explain_failure(stack.plan, stack.folder, error.output, processes)
    # a fallback rule contains less information than the log
    if finding and not finding.fallback:
        note(format_finding(finding))
        if args.fix:
            fix(args, (finding,), Path(args.stack) if Path(args.stack).is_file() else stack.folder / "stack.yaml")
        # the cause is printed above; lines of the log would hide it
        error.message = error.message.splitlines()[0]
        change = "; --fix applies the change" if finding.edit and finding.edit.safe and not args.fix else ""
        error.hint = f"`stackgen diagnose` shows what else was found{change}"
