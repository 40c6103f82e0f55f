"""`stackgen up`: render what is missing, start, wait, and ask for a real completion."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from stackgen.cli.commands.fix import fix
from stackgen.cli.commands.output import note, print_report
from stackgen.cli.commands.rendering import prepare
from stackgen.cli.progress import shown
from stackgen.diagnose.explain import told
from stackgen.errors import MachineError, StackgenError, StartError
from stackgen.providers.probe import check_plan
from stackgen.runtimes.compose import lifecycle as compose
from stackgen.runtimes.compose.exporter_image import build_exporter
from stackgen.runtimes.compose.gateway import reload_changed
from stackgen.runtimes.observation.evidence import explain_failure
from stackgen.runtimes.process.lifecycle import prepare_processes, start_processes
from stackgen.runtimes.rollout.drift import remember
from stackgen.stack.folder import Stack, open_stack

__all__ = ["up"]


def up(args: Namespace) -> int:
    """`stackgen up`: render what is missing, start, wait, and ask for a real completion."""
    stack = open_stack(args.stack)
    prepare(stack)
    if args.runtime == "process":
        return _up_processes(args, stack)
    for warning in stack.plan.warnings:
        note(f"warning: {warning}")

    try:
        with shown(args.progress, stack.plan) as progress:
            build_exporter(stack.plan, stack.folder, progress)
            compose.up(stack.plan, stack.folder, progress, args.timeout)
            if reload_changed(stack.plan, stack.folder):
                progress("gateway", "new configuration loaded")
            report = check_plan(stack.plan, stack.folder, progress, args.timeout or 120)
    except (StartError, MachineError) as error:
        _explain(args, stack, error)
        raise
    if report.ok:
        remember(stack.folder)
    return print_report(args, report)


def _up_processes(args: Namespace, stack: Stack) -> int:
    try:
        local = prepare_processes(Path(args.stack), note)
        with shown(args.progress, local.plan) as progress:
            report = start_processes(local, progress, args.timeout)
    except StartError as error:
        _explain(args, stack, error)
        raise
    code = print_report(args, report)
    if not report.ok:
        note("the processes still run: `stackgen logs` and `stackgen down`, both with --runtime process")
    return code


def _explain(args: Namespace, stack: Stack, error: StackgenError) -> None:
    """Why a start failed, where a rule knows it, and with --fix the change; the error itself is told after it."""
    processes = Path(args.stack) if args.runtime == "process" else None
    finding = explain_failure(stack.plan, stack.folder, error.output, processes)
    if finding and not finding.fallback:
        note(told(finding))
        if args.fix:
            fix(args, (finding,), Path(args.stack) if Path(args.stack).is_file() else stack.folder / "stack.yaml")
        # the cause stands above; the lines of the log would only bury it
        error.message = error.message.splitlines()[0]
        change = "; --fix makes the change" if finding.edit and finding.edit.safe and not args.fix else ""
        error.hint = f"`stackgen diagnose` tells what else was found{change}"
