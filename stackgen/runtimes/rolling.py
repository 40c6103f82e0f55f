"""Changes to a running stack, one replica at a time behind its gateway, so that no request is lost.

`look` tells what would be done and where answers would be missing meanwhile; `carry_out` does it, and puts everything
back where a replica does not come up.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from stackgen.addons.gateway import SERVICE
from stackgen.errors import StackgenError, StartError
from stackgen.runtimes import compose
from stackgen.runtimes.certificate import ensure_certificate
from stackgen.runtimes.docker_cli import compose_command
from stackgen.runtimes.drift import (
    Container,
    Files,
    containers,
    differing,
    one_at_a_time,
    previous_files,
    remember,
    restore,
)
from stackgen.runtimes.gaps import gaps, once, routers
from stackgen.runtimes.gateway import Gateway, execute, reload_changed, running_gateway
from stackgen.stack import Stack
from stackgen.targets.compose import COMPOSE_FILE
from stackgen.write import Change, compare, write_atomically, write_files

__all__ = ["Done", "Work", "carry_out", "look"]

Progress = Callable[[str, str], None]
# asks FastChat's controller to look at its workers now, instead of after their heartbeats have been missing for 15 s
FORGET = "import urllib.request as u;u.urlopen(u.Request('http://127.0.0.1:21001/refresh_all_workers',b''),timeout=30)"


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


@dataclass(slots=True)
class Done:
    """What was done so far, in order."""

    started: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    reloaded: bool = False


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
    removed = [name for name in running if name not in {one.name for one in plan.services}]
    before: dict[str, str | None] = {
        one.path: None if one.kind == "new" else one.old for one in changes if one.kind != "same" and not one.edited
    }
    previous = previous_files(folder, before, changed, running)
    if own and previous is not None:
        previous = {**previous, stack.source: (folder / stack.source).read_text("utf-8")}
    return Work(tuple(added), tuple(changed), tuple(removed), tuple(one for one in changes if not one.edited),
                tuple(gaps(plan, changed, removed, running)), previous, own)  # fmt: skip


def carry_out(stack: Stack, work: Work, progress: Progress, timeout: float | None = None) -> Done:
    """Does `work`. Raises StartError with the cause where a service does not come up; then all is as it was."""
    with one_at_a_time(stack.folder):
        if work.own:
            path = stack.folder / stack.source
            write_atomically(path, work.own, path.stat().st_mode & 0o777)
        write_files(work.changes, stack.folder)
        ensure_certificate(stack.spec, stack.plan, stack.folder)
        rolling = _Rolling(stack, progress, timeout, containers(stack.plan.name))
        try:
            rolling.run(work)
        except StartError as error:
            raise _back(rolling, work, error) from None
        except KeyboardInterrupt:
            if rolling.gateway:
                rolling.gateway.open_all()
            raise
        remember(stack.folder)
        return rolling.done


class _Rolling:
    def __init__(
        self, stack: Stack, progress: Progress, timeout: float | None, running: Mapping[str, Container]
    ) -> None:
        self.plan, self.folder = stack.plan, stack.folder
        self.progress, self.timeout, self.running = once(progress), timeout, running
        self.gateway: Gateway | None = running_gateway(stack.plan.name)
        self.done = Done()
        self.failing = ""

    def run(self, work: Work) -> None:
        if self.gateway:  # a run that was killed may have left one drained
            self.gateway.open_all()
        downloads = [name for name in (*work.added, *work.changed) if self.plan.service(name).role == "download"]
        added = [name for name in work.added if name not in downloads]
        changed = [name for name in work.changed if name not in (*downloads, SERVICE)]
        if downloads:
            self.start(downloads)
        # a router can't drain a replica: while it is drained itself, the gateway sends to the replicas directly
        for name in routers(self.plan, {*changed, *work.removed}):
            self._drain(name)
        if self._in_the_way(added, changed):
            self.roll(changed)
            changed = []
        if added:
            self.start(added)
            self.done.started += added
        for name in work.removed:
            self._drain(name)
        # before the others are taken out of service one by one: what was started takes its share
        if added or work.removed:
            self.reload()
        for name in added:
            if self.gateway and self.gateway.servers(name):
                self.progress(name, "wait for the gateway to find it")
                self.gateway.wait_up(name)
        self._take_away(work.removed)
        self.roll(changed)
        if SERVICE in work.changed:
            self.start([SERVICE])
            self.done.updated.append(SERVICE)
        self.reload()
        if self.gateway:
            self.gateway.open_all()

    def roll(self, names: Sequence[str]) -> None:
        """Makes the services anew one by one: drained, started, proven, and open again."""
        for name in names:
            drained = self._drain(name)
            if self.plan.service(name).role == "worker":
                self._stop(name)
            self.start([name])
            self._prove(name)
            if drained and self.gateway:
                self.progress(name, "open in the gateway")
                self.gateway.open(name)
            self.done.updated.append(name)
            self.progress(name, "updated")

    def start(self, names: Sequence[str]) -> None:
        """`compose up` for these alone, until they are healthy; raises StartError with the reason."""
        self.failing = names[0]
        part = replace(self.plan, services=tuple(one for one in self.plan.services if one.name in names))
        limit = self.timeout or 120 + max((one.health.start_period for one in part.services if one.health), default=0)
        words = [*compose_command(self.folder), "--progress", "plain", "up", "--detach", "--no-deps", *names]
        with tempfile.TemporaryFile("w+") as said:
            started = subprocess.Popen(words, stdout=said, stderr=said, text=True, start_new_session=True)
            try:
                # the old container ends meanwhile, which is no failure: looked at is only what comes after
                started.wait()
                fresh = dict.fromkeys(names, "")
                compose._follow(part, compose._client(), started, self.progress, time.monotonic() + limit, fresh)
            except BaseException:
                started.terminate()
                started.wait(timeout=30)
                raise
            said.seek(0)
            if started.returncode:
                refused = compose._refused(said.read())
                failed = StartError(refused.message, refused.hint)
                failed.output = refused.output
                raise failed
        if SERVICE in names:
            self.gateway = running_gateway(self.plan.name)
        self.failing = ""

    def reload(self) -> None:
        """The gateway's own new configuration, where it has one."""
        self.done.reloaded |= reload_changed(self.plan, self.folder)

    def _prove(self, name: str) -> None:
        """The service's own health check once more, now that nothing else asks it: it generates a token."""
        check = self.plan.service(name).health
        self.progress(name, "ask for a token")
        container = compose._client().containers.get(containers(self.plan.name)[name].id)
        code, said = execute(container, check.command) if check else (0, "")
        if code:
            self.failing = name
            raise StartError(f"{name} is healthy, but does not generate: {said.strip()[-300:]}")

    def _drain(self, name: str) -> bool:
        if not self.gateway or not self.gateway.servers(name):
            return False
        if self.gateway.alone(name):
            self.progress(name, "the only replica that is up: no answers meanwhile")
        limit = max((one.data.timeout for one in self.plan.documents if one.path == "gateway/haproxy.cfg"), default=600)
        self.progress(name, "drain")
        if left := self.gateway.drain(name, limit, lambda told: self.progress(name, told)):
            self.progress(name, f"{left} requests are cut off after {limit} s")
        return True

    def _take_away(self, names: Sequence[str]) -> None:
        for name in names:
            if self.gateway:
                self.gateway.settle(600, lambda told, name=name: self.progress(name, told))  # type: ignore[misc]
            self._stop(name, remove=True)
            self.done.removed.append(name)
            self.progress(name, "removed")

    def _stop(self, name: str, remove: bool = False) -> None:
        import docker.errors

        client = compose._client()
        try:
            container = client.containers.get(containers(self.plan.name)[name].id)
            container.stop()
            if remove:
                container.remove(v=True)
        except (KeyError, docker.errors.NotFound):
            return
        controller = next((one.name for one in self.plan.services if one.role == "controller"), None)
        if controller and name.startswith(self.plan.service(controller).engine):
            execute(client.containers.get(containers(self.plan.name)[controller].id), ("python3", "-c", FORGET))

    def _in_the_way(self, added: Sequence[str], changed: Sequence[str]) -> bool:
        """Whether one that is to be made anew holds a GPU that a new one is to get."""
        held = {id for name in changed for id in self.running[name].gpus}
        wanted = {id for name in added if (gpus := self.plan.service(name).gpus) for id in gpus.ids}
        return bool(held & wanted)


def _back(rolling: _Rolling, work: Work, error: StartError) -> StartError:
    """Puts everything back; the error that says so, with the cause."""
    from stackgen.diagnose.explain import told
    from stackgen.runtimes.evidence import explain_failure

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
    failed = [name for name in (rolling.failing,) if name in work.changed]
    started = [*rolling.done.started, *(name for name in work.added if name not in rolling.done.started)]
    try:
        rolling.reload()
        for name in started:
            if name not in rolling.running:
                rolling._take_away([name])
        rolling.roll([*failed, *(name for name in reversed(rolling.done.updated) if name not in failed)])
        if rolling.gateway:
            rolling.gateway.open_all()
    except StartError as second:
        return StartError(f"{cause}\nrolling back failed as well: {second.message}", "`stackgen diagnose` tells more")
    own = "stack.yaml is as it was" if work.own else "stack.yaml still asks for it"
    return StartError(f"{cause}\nrolled back: what ran before runs again, and {own}", error.hint)
