"""`stackgen up`: render what is missing, start, wait, and request a real completion."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from stackgen.check.report import Report
from stackgen.cli.commands.drains import report_drains
from stackgen.cli.commands.env_keys import write_keys
from stackgen.cli.commands.fix import fix
from stackgen.cli.commands.locking import lock_stack
from stackgen.cli.commands.output import note, print_report
from stackgen.cli.commands.ownership import check_ownership
from stackgen.cli.commands.preflight import require_startable
from stackgen.cli.commands.renames import describe_rename
from stackgen.cli.commands.rendering import prepare_files
from stackgen.cli.commands.rollout import confirm_downtime
from stackgen.cli.commands.start_times import report_start
from stackgen.cli.progress import show_progress
from stackgen.diagnose.explain import format_finding
from stackgen.errors import MachineError, StackgenError, StartError
from stackgen.providers.probe import check_plan
from stackgen.render.read import stack_file_in
from stackgen.runtimes.compose import lifecycle as compose
from stackgen.runtimes.compose.exporter_image import build_exporter
from stackgen.runtimes.compose.gateway import reload_if_changed
from stackgen.runtimes.compose.volumes import create_shared_volumes
from stackgen.runtimes.observation.evidence import explain_failure
from stackgen.runtimes.process.lifecycle import prepare_processes, start_processes
from stackgen.runtimes.rollout.drift import save_applied_files
from stackgen.runtimes.rollout.rolling import run_rollout
from stackgen.runtimes.rollout.running import plan_start
from stackgen.stack.edit import require_unchanged
from stackgen.stack.folder import Stack, find_stack_file, open_stack
from stackgen.stack.start_times import StartClock

__all__ = ["up"]


def up(args: Namespace) -> int:
    """Runs `stackgen up`. Returns 1 if the check fails, 2 if running services must be interrupted and nobody agrees.

    Raises StartError or MachineError if the start fails, StackBusyError if another command is changing the stack.
    """
    with lock_stack(args, args.stack):
        stack = open_stack(args.stack)
        if stack.site.is_cluster:
            # most stacks run on one machine
            from stackgen.cli.commands.cluster import up_cluster

            return up_cluster(args, stack)
        if args.runtime == "process":
            prepare_files(stack, "processes", args.new_keys)
            return _up_processes(args, stack)
        return _up_containers(args, stack)


def _up_containers(args: Namespace, stack: Stack) -> int:
    for warning in (*stack.plan.warnings, *describe_rename(stack)):
        note(f"warning: {warning}")
    check_ownership(stack.plan.name, stack.folder)
    if not args.skip_doctor:
        require_startable(stack)
    # Compose can't compare the running services with a file whose keys are missing
    write_keys(stack, "containers", args.new_keys)
    start = plan_start(stack)
    lines = start.rollout.summary() if start.rollout else [f"downtime: {sentence}" for sentence in start.downtime]
    for line in lines:
        note(line)
    if not confirm_downtime(args, start.downtime):
        return 2
    # the plan, and the user's answer to it, are about this stack.yaml
    require_unchanged(find_stack_file(args.stack) or stack.folder / stack.source, stack.text)
    prepare_files(stack)
    create_shared_volumes(stack.plan)
    if start.rollout:
        # not explained below, because its error contains the cause, and the failed container is gone
        with show_progress(args.progress, stack.plan) as progress:
            run_rollout(stack, start.rollout, progress, args.timeout)
    clock = StartClock()
    try:
        report_drains(stack.plan, stack.folder)
        with show_progress(args.progress, stack.plan) as show:
            progress = clock.watch(show)
            build_exporter(stack.plan, stack.folder, progress)
            compose.up(stack.plan, stack.folder, progress, args.timeout, start.recreate)
            # Compose does not notice changes in mounted files
            if reload_if_changed(stack.plan, stack.folder):
                progress("gateway", "new configuration loaded")
            # the check needs a limit even if the start has none
            report = check_plan(stack.plan, stack.folder, progress, args.timeout or 120)
    except (StartError, MachineError) as error:
        _explain(args, stack, error)
        raise
    missing = _find_missing(stack, report)
    for endpoint, host in missing:
        note(
            f"{endpoint} does not answer yet, because it runs on {host}. Start the stack there. The stack on this "
            "machine needs no restart"
        )
    if followed := sorted({one.follows for one in stack.plan.services if one.follows}):
        note(f"this machine computes only a part of the model. Send requests to {', '.join(followed)}")
    # all services of this machine are healthy, and other machines answer for all models
    elsewhere = not report.endpoints and bool(missing or followed)
    # a rollback needs files that are known to work, so save these
    if report.ok or elsewhere:
        save_applied_files(stack.folder)
    times = report_start(args, clock, stack.folder)
    code = print_report(args, report, more=times)
    return 0 if elsewhere else code


def _find_missing(stack: Stack, report: Report) -> list[tuple[str, str]]:
    """The models on other machines that do not answer, and their machines."""
    found = {one.name for one in report.endpoints}
    return [(one.models[0], one.remote.host) for one in stack.plan.endpoints if one.remote and one.name not in found]


def _up_processes(args: Namespace, stack: Stack) -> int:
    try:
        local = prepare_processes(Path(args.stack), note)
        clock = StartClock()
        with show_progress(args.progress, local.plan) as progress:
            report = start_processes(local, clock.watch(progress), args.timeout)
    except StartError as error:
        _explain(args, stack, error)
        raise
    code = print_report(args, report, more=report_start(args, clock, local.folder))
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
            fix(args, (finding,), find_stack_file(args.stack) or stack_file_in(stack.folder))
        # the cause is printed above; lines of the log would hide it
        error.message = error.message.splitlines()[0]
        change = "; --fix applies the change" if finding.edit and finding.edit.safe and not args.fix else ""
        error.hint = f"run `stackgen diagnose`, which shows all findings{change}"
