"""Changes to a running stack, one replica at a time behind its gateway, so that no request is lost.

`look` tells what would be done and where answers would be missing meanwhile; `carry_out` does it, and puts everything
back where a replica does not come up.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from stackgen.diagnose.explain import told
from stackgen.errors import StackgenError, StartError
from stackgen.render.write import Change, compare, write_atomically, write_files
from stackgen.resolve.addons.gateway import SERVICE
from stackgen.runtimes.compose.certificate import ensure_certificate
from stackgen.runtimes.compose.exporter_image import build_exporter
from stackgen.runtimes.compose.gateway import certificate_replaced, running_gateway
from stackgen.runtimes.observation.evidence import explain_failure
from stackgen.runtimes.rollout.downtime import gaps, routers
from stackgen.runtimes.rollout.drift import (
    Files,
    containers,
    differing,
    holding,
    one_at_a_time,
    previous_files,
    remember,
    restore,
)
from stackgen.runtimes.rollout.gpu_handover import claimed, clash, early, turns
from stackgen.runtimes.rollout.steps import Done, Progress, Steps
from stackgen.stack.folder import Stack
from stackgen.targets.compose import COMPOSE_FILE

__all__ = ["Done", "Work", "carry_out", "look"]


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do: services to start, to make anew one by one, and to take away; files to write before it.

    `gaps` are sentences on what will not be answered meanwhile; `previous` are the files that the running containers
    were made from, None where they are gone. `own` is stack.yaml's new text where it changes as well.
    """

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    gaps: tuple[str, ...] = ()
    previous: Files | None = None
    own: str = ""

    def told(self) -> list[str]:
        """What will be done, and what will be missed, a line each."""
        kinds = (("to start", self.added), ("to make anew, one by one", self.changed), ("to remove", self.removed))
        lines = [f"{kind}: {', '.join(names)}" for kind, names in kinds if names]
        return [*lines, *(f"a gap: {gap}" for gap in self.gaps)]


def look(stack: Stack, own: str = "") -> Work:
    """What carrying out the stack would do. Writes nothing; raises StackgenError where the stack does not run."""
    plan, folder = stack.plan, stack.folder
    running = containers(plan.name)
    if not any(one.running for one in running.values()):
        raise StackgenError("the stack does not run", "`stackgen up` starts it as it is rendered now")
    changes = compare(stack.files(), folder)
    # a file that was edited by hand is used as it is
    text = next(one.old if one.edited else one.new for one in changes if one.path == COMPOSE_FILE)
    added = [
        one.name for one in plan.services
        if not (is_ := running.get(one.name)) or not (is_.running or (is_.complete and one.role == "download"))
    ]  # fmt: skip
    changed = [name for name in differing(plan, folder, text, running) if name not in added]
    if SERVICE not in (*added, *changed) and certificate_replaced(plan, folder):
        changed.append(SERVICE)
    removed = [name for name in running if name not in {one.name for one in plan.services}]
    before: dict[str, str | None] = {
        one.path: None if one.kind == "new" else one.old for one in changes if one.kind != "same" and not one.edited
    }
    previous = previous_files(folder, before, changed, running)
    if own and previous is not None:
        previous = {**previous, stack.source: (folder / stack.source).read_text("utf-8")}
    return Work(tuple(added), tuple(changed), tuple(removed), tuple(one for one in changes if not one.edited),
                tuple(gaps(plan, changed, removed, running, added)), previous, own)  # fmt: skip


def carry_out(stack: Stack, work: Work, progress: Progress, timeout: float | None = None) -> Done:
    """Does `work`. Raises StartError with the cause where a service does not come up; then all is as it was."""
    with one_at_a_time(stack.folder):
        # first what can be refused while nothing was written
        ensure_certificate(stack.spec, stack.plan, stack.folder)
        rolling = _Rolling(stack.plan, stack.folder, progress, timeout, containers(stack.plan.name))
        if work.own:
            path = stack.folder / stack.source
            write_atomically(path, work.own, path.stat().st_mode & 0o777)
        write_files(work.changes, stack.folder)
        build_exporter(stack.plan, stack.folder, progress)
        try:
            rolling.run(work)
        except StartError as error:
            raise _back(rolling, work, error) from None
        except KeyboardInterrupt:
            with suppress(StackgenError):  # it may be gone in this moment
                if rolling.gateway:
                    rolling.gateway.open_all()
            raise
        remember(stack.folder)
        return rolling.done


class _Rolling(Steps):
    """The steps of a change in their order, and the way back."""

    def run(self, work: Work) -> None:
        """Carries out `work`."""
        if self.gateway:  # a run that was killed may have left one drained
            self.gateway.open_all()
        role = {one.name: one.role for one in self.plan.services}
        downloads = [name for name in (*work.added, *work.changed) if role[name] == "download"]
        # a router is well only when it reaches a replica, which may have to be made anew for that; and a new gateway
        # gets the port that an engine gives up
        late = [name for name in work.added if role[name] in ("router", "gateway")]
        added = [name for name in work.added if name not in (*downloads, *late)]
        changed = [name for name in work.changed if name not in (*downloads, SERVICE)]
        removed = [name for name in work.removed if name != SERVICE]
        if downloads:
            self.start(downloads)
        self._hold_routers(changed, removed)
        held = holding(self.running)
        for name in early(self.plan, (*added, *changed), removed, held):
            self.set_aside(name)
        if any(clash(claimed(self.plan.service(new)), held.get(old, frozenset())) for new in added for old in changed):
            self._roll_in_turns(changed)
            changed = []
        if added:
            self.start(added)
            self.done.started += added
        for name in removed:
            if name not in self.stopped:
                self.drain(name)
        # before the others are taken out of service one by one: what was started takes its share
        if SERVICE in work.changed:  # the old one may neither reach what is new nor take the new configuration
            self.start([SERVICE])
            self.done.updated.append(SERVICE)
            self.reload()
            self._hold_routers(changed, removed)
        elif added or removed:
            self.reload()
        for name in added:
            if self.gateway and self.gateway.servers(name):
                self.progress(name, "wait for the gateway to find it")
                self.gateway.wait_up(name)
        if SERVICE in work.removed:  # an engine gets its port
            self.set_aside(SERVICE)
        self._roll_in_turns(changed)
        for name in sorted(late, key=lambda name: name != SERVICE):
            self.start([name])
            self.done.started.append(name)
            if self.gateway and self.gateway.servers(name):
                self.progress(name, "open in the gateway")
                self.gateway.open(name)
        # last: until here all can be put back as it was
        self.take_away(work.removed)
        self.reload()
        if self.gateway:
            self.gateway.open_all()

    def back(self, work: Work) -> None:
        """All as it was before; the files are put back already. Raises StartError where that fails as well."""
        again = [self.failing] if self.failing in work.changed else []
        again += [name for name in reversed(self.done.updated) if name not in again]
        self.gateway = running_gateway(self.plan.name)
        if SERVICE in again:  # there may be none that could drain, or take the old configuration
            again.remove(SERVICE)
            self.start([SERVICE])
            self._hold_routers(again, ())
        else:
            self.reload()
        there = containers(self.plan.name)
        self.take_away([name for name in work.added if name in there and name not in self.running])
        for name in again:
            if claimed(self.plan.service(name)) - self.running[name].gpus:  # somebody else's before
                self.drain(name)
                self.stop(name)
        self.roll(again)
        for name in self.stopped:
            if name not in again:
                self.bring_back(name)
        self.gateway = running_gateway(self.plan.name)
        if self.gateway:
            self.gateway.open_all()
            for name in self.stopped:
                self.gateway.wait_up(name)

    def _roll_in_turns(self, names: Sequence[str]) -> None:
        for name, first in turns(self.plan, names, holding(self.running)):
            for one in first:
                self.set_aside(one)
            self.roll([name])

    def _hold_routers(self, changed: Sequence[str], removed: Sequence[str]) -> None:
        # a router can't drain a replica: while it is drained itself, the gateway sends to the replicas directly
        for name in routers(self.plan, {*changed, *removed}):
            self.drain(name)


def _back(rolling: _Rolling, work: Work, error: StartError) -> StartError:
    """Puts everything back; the error that says so, with the cause."""
    # before its container, and with it the log, is gone
    finding = explain_failure(rolling.plan, rolling.folder, error.output)
    cause = told(finding) + "\n" if finding and not finding.fallback else ""
    cause += error.message.splitlines()[0] if cause else error.message
    if work.previous is None:
        return StartError(
            f"{cause}\nnot rolled back: the files that the running services were made from are gone",
            f"the other replicas go on; mend stack.yaml, then `stackgen update` goes on with {rolling.failing}",
        )
    rolling.progress(rolling.failing or SERVICE, "failed: roll back")
    restore(rolling.folder, work.previous)
    try:
        rolling.back(work)
    except StartError as second:
        return StartError(f"{cause}\nrolling back failed as well: {second.message}", "`stackgen diagnose` tells more")
    own = "stack.yaml is as it was" if work.own else "stack.yaml still asks for it"
    return StartError(f"{cause}\nrolled back: what ran before runs again, and {own}", error.hint)
