"""Change a running stack one replica at a time behind its gateway, so that no request is lost.

`plan_rollout` reports what would change and which downtime can't be avoided. `run_rollout` carries out the change, and
rolls everything back if a service does not become healthy.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from stackgen.diagnose.explain import format_finding
from stackgen.errors import StackgenError, StartError
from stackgen.plan.startup import start_waves
from stackgen.render.write import Change, compare, write_files
from stackgen.resolve.addons.gateway import SERVICE
from stackgen.runtimes.compose.certificate import ensure_certificate
from stackgen.runtimes.compose.exporter_image import build_exporter
from stackgen.runtimes.compose.gateway import has_stale_certificate, running_gateway
from stackgen.runtimes.compose.project import require_own_project
from stackgen.runtimes.observation.evidence import explain_failure
from stackgen.runtimes.rollout.downtime import find_downtime, find_routers
from stackgen.runtimes.rollout.drift import (
    Files,
    find_changed_services,
    find_containers,
    find_previous_files,
    gpus_in_use,
    restore_files,
    save_applied_files,
)
from stackgen.runtimes.rollout.gpu_handover import gpus_overlap, order_updates, removals_blocking, reserved_gpus
from stackgen.runtimes.rollout.steps import Progress, RolloutResult, Steps
from stackgen.stack.edit import require_unchanged, write_stack_file
from stackgen.stack.folder import Stack
from stackgen.stack.lock import stack_lock
from stackgen.targets.compose import COMPOSE_FILE

__all__ = ["Rollout", "RolloutResult", "plan_rollout", "run_rollout"]


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout: services to start, services to recreate one by one, services to remove, and files to write first.

    `downtime` contains a sentence for each service whose requests will fail. `previous_files` created the running
    containers; None if they are gone. `stack_yaml` is the new text of stack.yaml, "" if it stays as it is.
    """

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    file_changes: tuple[Change, ...] = ()
    downtime: tuple[str, ...] = ()
    previous_files: Files | None = None
    stack_yaml: str = ""

    def summary(self) -> list[str]:
        """Returns what will be done, then the downtime, one line each."""
        kinds = (("to start", self.added), ("to recreate, one by one", self.changed), ("to remove", self.removed))
        lines = [f"{kind}: {', '.join(names)}" for kind, names in kinds if names]
        return [*lines, *(f"downtime: {sentence}" for sentence in self.downtime)]


def plan_rollout(stack: Stack, stack_yaml: str = "") -> Rollout:
    """Returns the rollout that changes the running stack to `stack`. Writes nothing.

    Raises StackgenError if the stack is not running or belongs to another folder, MachineError without Docker.
    """
    plan, folder = stack.plan, stack.folder
    require_own_project(plan.name, folder)
    running = find_containers(plan.name)
    if not any(container.running for container in running.values()):
        raise StackgenError("the stack is not running", "`stackgen up` starts the stack with the current configuration")
    file_changes = compare(stack.files(), folder)
    # a file that was edited by hand is used unchanged
    text = next(one.old if one.edited else one.new for one in file_changes if one.path == COMPOSE_FILE)
    added = [
        service.name for service in plan.services
        if not (now := running.get(service.name))
        or not (now.running or (now.completed and service.role == "download"))
    ]  # fmt: skip
    changed = [name for name in find_changed_services(plan, folder, text, running) if name not in added]
    if SERVICE not in (*added, *changed) and has_stale_certificate(plan, folder):
        changed.append(SERVICE)
    removed = [name for name in running if name not in {service.name for service in plan.services}]
    before: dict[str, str | None] = {
        one.path: None if one.kind == "new" else one.old
        for one in file_changes
        if one.kind != "same" and not one.edited
    }
    previous_files = find_previous_files(folder, before, changed, running)
    # a rolled back `scale` restores stack.yaml as well
    if stack_yaml and previous_files is not None:
        previous_files = {**previous_files, stack.source: stack.text}
    return Rollout(
        added=tuple(added),
        changed=tuple(changed),
        removed=tuple(removed),
        file_changes=tuple(one for one in file_changes if not one.edited),
        downtime=tuple(find_downtime(plan, changed, removed, running, added)),
        previous_files=previous_files,
        stack_yaml=stack_yaml,
    )


def run_rollout(stack: Stack, rollout: Rollout, progress: Progress, timeout: float | None = None) -> RolloutResult:
    """Carries out `rollout`; `timeout` bounds each start, in seconds.

    Raises StartError with the cause if a service does not become healthy; everything is then rolled back.
    """
    with stack_lock(stack.folder):
        # the plan, and the user's answer to it, are about this stack.yaml
        require_unchanged(stack.folder / stack.source, stack.text)
        # first, because a failure is harmless while nothing has been written
        ensure_certificate(stack.spec, stack.plan, stack.folder)
        runner = _RolloutRunner(stack.plan, stack.folder, progress, timeout, find_containers(stack.plan.name))
        if rollout.stack_yaml:
            write_stack_file(stack.folder / stack.source, stack.text, rollout.stack_yaml)
        write_files(rollout.file_changes, stack.folder)
        build_exporter(stack.plan, stack.folder, progress)
        try:
            try:
                runner.run(rollout)
            except StartError as error:
                raise _roll_back(stack, runner, rollout, error) from None
        # also after Ctrl-C, SIGTERM or SIGHUP, and during a rollback: no replica stays drained
        except BaseException:
            # the gateway may not be running at this moment
            with suppress(StackgenError):
                if gateway := running_gateway(stack.plan.name):
                    gateway.enable_all()
            raise
        save_applied_files(stack.folder)
        return runner.result


class _RolloutRunner(Steps):
    """Carries out the steps of a rollout in order, or rolls them back."""

    def run(self, rollout: Rollout) -> None:
        """Carries out `rollout`."""
        # a rollout that was killed may have left a replica drained
        for drain in self.gateway.enable_all() if self.gateway else ():
            self.progress(drain.replica, f"was left {drain.describe()}: enabled again in the gateway")
        role = {service.name: service.role for service in self.plan.services}
        downloads = [name for name in (*rollout.added, *rollout.changed) if role[name] == "download"]
        # a router needs a replica that may have to be recreated first; a new gateway needs the port of an engine
        last = [name for name in rollout.added if role[name] in ("router", "gateway")]
        added = [name for name in rollout.added if name not in (*downloads, *last)]
        changed = [name for name in rollout.changed if name not in (*downloads, SERVICE)]
        removed = [name for name in rollout.removed if name != SERVICE]
        # downloads come first, because engines load the downloaded files
        if downloads:
            self.start(downloads)
        self._drain_routers(changed, removed)
        in_use = gpus_in_use(self.running)
        for name in removals_blocking(self.plan, (*added, *changed), removed, in_use):
            self.drain_and_stop(name)
        # updates come first if they free GPUs that a new service gets
        if any(
            gpus_overlap(reserved_gpus(self.plan.service(new)), in_use.get(old, frozenset()))
            for new in added
            for old in changed
        ):
            self._update_in_order(changed)
            changed = []
        # in waves, because `--no-deps` also ignores that engines which share a GPU start one after another
        for wave in start_waves(self.plan.services, added):
            self.start(wave)
            self.result.started += wave
        for name in removed:
            if name not in self.stopped:
                self.drain(name)
        # the gateway comes before the updates, so that the new replicas get requests while others are drained
        if SERVICE in rollout.changed:
            # the old gateway may be unable to reach new services or to load the new configuration
            self.start([SERVICE])
            self.result.updated.append(SERVICE)
            self.reload()
            self._drain_routers(changed, removed)
        elif added or removed:
            self.reload()
        for name in added:
            if self.gateway and self.gateway.servers(name):
                self.progress(name, "waiting until the gateway finds the replica")
                self.gateway.wait_until_up(name)
        # an engine takes over the gateway's port
        if SERVICE in rollout.removed:
            self.drain_and_stop(SERVICE)
        self._update_in_order(changed)
        for name in sorted(last, key=lambda name: name != SERVICE):
            self.start([name])
            self.result.started.append(name)
            if self.gateway and self.gateway.servers(name):
                self.progress(name, "enabling in the gateway")
                self.gateway.enable(name)
        # removals come last, because until here everything can be rolled back
        self.remove(rollout.removed)
        self.reload()
        if self.gateway:
            self.gateway.enable_all()

    def roll_back(self, rollout: Rollout) -> None:
        """Recreates what ran before, from files that are already restored. Raises StartError if that fails too."""
        again = [self.failing] if self.failing in rollout.changed else []
        again += [name for name in reversed(self.result.updated) if name not in again]
        self.gateway = running_gateway(self.plan.name)
        # a gateway that failed can neither drain nor load the old configuration
        if SERVICE in again:
            again.remove(SERVICE)
            self.start([SERVICE])
            self._drain_routers(again, ())
        else:
            self.reload()
        existing = find_containers(self.plan.name)
        self.remove([name for name in rollout.added if name in existing and name not in self.running])
        for name in again:
            # another service gets its GPUs back, and can't start before they are free
            if reserved_gpus(self.plan.service(name)) - self.running[name].gpus:
                self.drain(name)
                self.stop(name)
        self.update(again)
        for name in self.stopped:
            if name not in again:
                self.restart_stopped(name)
        self.gateway = running_gateway(self.plan.name)
        if self.gateway:
            self.gateway.enable_all()
            for name in self.stopped:
                self.gateway.wait_until_up(name)

    def _update_in_order(self, names: Sequence[str]) -> None:
        for name, stopped_first in order_updates(self.plan, names, gpus_in_use(self.running)):
            for other in stopped_first:
                self.drain_and_stop(other)
            self.update([name])

    def _drain_routers(self, changed: Sequence[str], removed: Sequence[str]) -> None:
        # a router can't drain a replica; while the router is drained, the gateway sends requests directly to replicas
        for name in find_routers(self.plan, {*changed, *removed}):
            self.drain(name)


def _roll_back(stack: Stack, runner: _RolloutRunner, rollout: Rollout, error: StartError) -> StartError:
    """Rolls back, and returns the error that reports the cause and how the rollback ended."""
    # explained first, because the rollback removes the failed container and its log
    finding = explain_failure(runner.plan, runner.folder, error.output)
    cause = format_finding(finding) + "\n" if finding and not finding.fallback else ""
    cause += error.message.splitlines()[0] if cause else error.message
    if rollout.previous_files is None:
        return StartError(
            f"{cause}\nnot rolled back: the files from which the running services were created no longer exist",
            "the other replicas keep running. Fix stack.yaml, and run `stackgen update`, which continues with"
            f" {runner.failing}",
        )
    runner.progress(runner.failing or SERVICE, "failed: rolling back")
    stack_yaml = _restore_files(stack, rollout, rollout.previous_files)
    try:
        runner.roll_back(rollout)
    except StartError as second:
        return StartError(
            f"{cause}\nthe rollback failed too: {second.message}", "run `stackgen diagnose` for the cause"
        )
    return StartError(f"{cause}\nrolled back: the previous services run again, and {stack_yaml}", error.hint)


def _restore_files(stack: Stack, rollout: Rollout, files: Files) -> str:
    """Restores `files`, but not over an edit of stack.yaml. Returns what stack.yaml contains now."""
    if not rollout.stack_yaml:
        restore_files(stack.folder, files)
        return "stack.yaml still contains the change"
    restore_files(stack.folder, {path: text for path, text in files.items() if path != stack.source})
    try:
        write_stack_file(stack.folder / stack.source, rollout.stack_yaml, stack.text)
    except StackgenError:
        return "stack.yaml, which was edited meanwhile, still contains the new number of replicas"
    return "stack.yaml is unchanged"
