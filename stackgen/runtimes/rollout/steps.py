"""Single steps of a change to a running stack: drain, start, prove, stop, bring back, take away."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stackgen.errors import StartError
from stackgen.plan import Plan
from stackgen.resolve.addons.gateway import SERVICE
from stackgen.runtimes.compose import lifecycle as compose
from stackgen.runtimes.compose.command import compose_command
from stackgen.runtimes.compose.docker_sdk import sdk
from stackgen.runtimes.compose.gateway import Gateway, execute, reload_changed, running_gateway
from stackgen.runtimes.rollout.downtime import once
from stackgen.runtimes.rollout.drift import Container, containers

__all__ = ["Done", "Progress", "Steps"]

Progress = Callable[[str, str], None]
# asks FastChat's controller to look at its workers now, instead of after their heartbeats have been missing for 15 s
FORGET = "import urllib.request as u;u.urlopen(u.Request('http://127.0.0.1:21001/refresh_all_workers',b''),timeout=30)"


@dataclass(slots=True)
class Done:
    """What was done so far, in order."""

    started: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    reloaded: bool = False


class Steps:
    """Each raises StartError where it fails; `failing` is the service that is being started.

    `running` is what ran before; `stopped` are those of them that were stopped, and are still there.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        progress: Progress,
        timeout: float | None,
        running: Mapping[str, Container],
    ) -> None:
        self.plan, self.folder = plan, folder
        self.progress, self.timeout, self.running = once(progress), timeout, running
        self.gateway: Gateway | None = running_gateway(plan.name)
        self.done = Done()
        self.failing = ""
        self.stopped: list[str] = []

    def roll(self, names: Sequence[str]) -> None:
        """Makes the services anew one by one: drained, started, proven, and open again."""
        for name in names:
            drained = self.drain(name)
            if self.plan.service(name).role == "worker":
                self.stop(name)
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
        words = [*compose_command(self.folder), "--progress", "plain", "up", "--detach", "--no-deps", *names]
        with tempfile.TemporaryFile("w+") as said:
            started = subprocess.Popen(words, stdout=said, stderr=said, text=True, start_new_session=True)
            try:
                # the old container ends meanwhile, which is no failure: looked at is only what comes after
                started.wait()
                fresh, end = dict.fromkeys(names, ""), time.monotonic() + self._limit(part)
                compose._follow(part, compose._client(), started, self.progress, end, fresh)
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

    def drain(self, name: str) -> bool:
        """No new request for the replica, and those at work answered; False where the gateway does not know it."""
        if not self.gateway or not self.gateway.servers(name):
            return False
        if self.gateway.alone(name):
            self.progress(name, "the only replica that is up: no answers meanwhile")
        limit = max((one.data.timeout for one in self.plan.documents if one.path == "gateway/haproxy.cfg"), default=600)
        self.progress(name, "drain")
        if left := self.gateway.drain(name, limit, lambda told: self.progress(name, told)):
            self.progress(name, f"{left} requests are cut off after {limit} s")
        return True

    def set_aside(self, name: str) -> None:
        """Stops one that ran, so that it can be brought back as it was; the gateway too, whose requests end first."""
        if name == SERVICE:
            self.gateway = None
        else:
            self.drain(name)
            self._settle(name)
        self.stop(name)
        self.stopped.append(name)
        self.progress(name, "stopped")

    def bring_back(self, name: str) -> None:
        """Starts one that was set aside, and waits until it is healthy."""
        self.failing = name
        client, end = compose._client(), time.monotonic() + self._limit(self.plan)
        try:
            client.containers.get(self.running[name].id).start()
            while (state := client.api.inspect_container(self.running[name].id)["State"])["Status"] == "running":
                if (state.get("Health") or {}).get("Status", "healthy") == "healthy":
                    self.failing = ""
                    self.progress(name, "runs again")
                    return
                if time.monotonic() > end:
                    break
                time.sleep(0.5)
        except sdk().errors.APIError as error:
            raise StartError(f"{name} does not start again: {error.explanation or error}") from None
        raise StartError(f"{name} does not come up again", f"`stackgen logs {name}` tells more")

    def take_away(self, names: Sequence[str]) -> None:
        """Removes containers, after what they are at work on."""
        for name in names:
            self._settle(name)
            self.stop(name, remove=True)
            if name == SERVICE:
                self.gateway = None
            self.done.removed.append(name)
            self.progress(name, "removed")

    def stop(self, name: str, remove: bool = False) -> None:
        """Stops a container, with the time it asks for, and removes it."""
        client = compose._client()
        try:
            container: Any = client.containers.get(containers(self.plan.name)[name].id)
            container.stop(timeout=int(container.attrs["Config"].get("StopTimeout") or 10))
            if remove:
                container.remove(v=True)
        except (KeyError, sdk().errors.NotFound):
            return
        controller = next((one.name for one in self.plan.services if one.role == "controller"), None)
        there = containers(self.plan.name).get(controller or "")
        if controller and there and name.startswith(self.plan.service(controller).engine):
            execute(client.containers.get(there.id), ("python3", "-c", FORGET))

    def _settle(self, name: str) -> None:
        # a worker of an earlier configuration can't be told that a replica is drained
        if self.gateway:
            self.gateway.settle(600, lambda told: self.progress(name, told))

    def _prove(self, name: str) -> None:
        """The service's own health check once more, now that nothing else asks it: it generates a token."""
        check = self.plan.service(name).health
        self.progress(name, "ask for a token")
        container = compose._client().containers.get(containers(self.plan.name)[name].id)
        code, said = execute(container, check.command) if check else (0, "")
        if code:
            self.failing = name
            raise StartError(f"{name} is healthy, but does not generate: {said.strip()[-300:]}")

    def _limit(self, part: Plan) -> float:
        """Seconds for a start of the services of `part`."""
        periods = (one.health.start_period for one in part.services if one.health)
        return self.timeout or 120 + max(periods, default=0)
