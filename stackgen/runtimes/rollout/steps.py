"""The single steps of a rollout: drain, start, verify, stop, restart and remove a service."""

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
from stackgen.plan.startup import start_seconds
from stackgen.resolve.addons.gateway import SERVICE
from stackgen.runtimes.compose.command import compose_command, compose_error
from stackgen.runtimes.compose.docker_sdk import sdk
from stackgen.runtimes.compose.gateway import Gateway, reload_if_changed, running_gateway
from stackgen.runtimes.compose.haproxy_api import execute
from stackgen.runtimes.compose.lifecycle import connect, wait_until_healthy
from stackgen.runtimes.rollout.downtime import skip_repeats
from stackgen.runtimes.rollout.drift import Container, find_containers

__all__ = ["Progress", "RolloutResult", "Steps"]

Progress = Callable[[str, str], None]
# what Compose needs to replace a container, in addition to the time that the old one needs to stop
COMPOSE_SECONDS = 20
# makes FastChat's controller check its workers now, instead of after 15 s without their heartbeats
REFRESH_WORKERS = (
    "import urllib.request as u;u.urlopen(u.Request('http://127.0.0.1:21001/refresh_all_workers',b''),timeout=30)"
)


# the names are the JSON of `stackgen scale --json` and `stackgen update --json`
@dataclass(slots=True)
class RolloutResult:
    """What a rollout has done so far: names of services, in the order in which their steps ended."""

    started: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    reloaded: bool = False


class Steps:
    """The steps of one rollout, and what they have done. Each step raises StartError if it fails.

    `running` are the containers from before the rollout, by service. `stopped` are those that `drain_and_stop` has
    stopped; their containers still exist. `failing` is the service that is being started, "" otherwise.
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
        self.progress, self.timeout, self.running = skip_repeats(progress), timeout, running
        self.gateway: Gateway | None = running_gateway(plan.name)
        self.result = RolloutResult()
        self.failing = ""
        self.stopped: list[str] = []

    def update(self, names: Sequence[str]) -> None:
        """Recreates services one by one: drains, starts, verifies and enables each before the next."""
        for name in names:
            drained = self.drain(name)
            # only `stop` makes FastChat's controller remove a worker at once
            if self.plan.service(name).role == "worker":
                self.stop(name)
            self.start([name])
            self._verify_generation(name)
            if drained and self.gateway:
                self.progress(name, "enabling in the gateway")
                self.gateway.enable(name)
            self.result.updated.append(name)
            self.progress(name, "updated")

    def start(self, names: Sequence[str]) -> None:
        """Runs `compose up` for these services alone, and waits until they are healthy."""
        self.failing = names[0]
        part = replace(self.plan, services=tuple(one for one in self.plan.services if one.name in names))
        args = [*compose_command(self.folder), "--progress", "plain", "up", "--detach", "--no-deps", *names]
        with tempfile.TemporaryFile("w+") as output:
            # in its own process group: Ctrl-C must reach stackgen first, which then ends Compose
            process = subprocess.Popen(args, stdout=output, stderr=output, text=True, start_new_session=True)
            try:
                # until `up` returns, the exit of the old container would look like a failed start
                process.wait()
                deadline = time.monotonic() + self._start_timeout(part)
                wait_until_healthy(part, connect(), process, self.progress, deadline, before={})
            except BaseException:
                self._finish_compose(process, part)
                raise
            output.seek(0)
            if process.returncode:
                error = compose_error(output.read())
                # only a StartError is rolled back
                failed = StartError(error.message, error.hint)
                failed.output = error.output
                raise failed
        if SERVICE in names:
            self.gateway = running_gateway(self.plan.name)
        self.failing = ""

    def reload(self) -> None:
        """Reloads the gateway if its files have changed."""
        self.result.reloaded |= reload_if_changed(self.plan, self.folder)

    def drain(self, name: str) -> bool:
        """Drains a replica and waits for its requests in flight. Returns False if the gateway has no such replica."""
        if not self.gateway or not self.gateway.servers(name):
            return False
        if self.gateway.is_last_up(name):
            self.progress(name, "is the only replica that is up: its model does not answer until a replica is ready")
        # a request may take as long as the gateway's timeout
        configs = [one.data for one in self.plan.documents if one.path == "gateway/haproxy.cfg"]
        timeout = max((config.timeout for config in configs), default=600)
        self.progress(name, "draining")
        if left := self.gateway.drain(name, timeout, lambda phase: self.progress(name, phase)):
            self.progress(name, f"not drained within {timeout} s: ending the requests in flight ({left})")
        return True

    def drain_and_stop(self, name: str) -> None:
        """Stops a running service but keeps its container, so that `restart_stopped` can bring it back."""
        # HAProxy finishes its own requests before it stops
        if name == SERVICE:
            self.gateway = None
        else:
            self.drain(name)
            self._wait_for_old_workers(name)
        self.stop(name)
        self.stopped.append(name)
        self.progress(name, "stopped")

    def restart_stopped(self, name: str) -> None:
        """Starts the container of a service in `stopped` again, and waits until it is healthy."""
        self.failing = name
        client, deadline = connect(), time.monotonic() + self._start_timeout(self.plan)
        try:
            # not through Compose, which could decide to recreate the container
            client.containers.get(self.running[name].id).start()
            while (state := client.api.inspect_container(self.running[name].id)["State"])["Status"] == "running":
                # a container without a health check counts as healthy
                if (state.get("Health") or {}).get("Status", "healthy") == "healthy":
                    self.failing = ""
                    self.progress(name, "running again")
                    return
                if time.monotonic() > deadline:
                    break
                time.sleep(0.5)
        except sdk().errors.APIError as error:
            raise StartError(f"{name} could not be restarted: {error.explanation or error}") from None
        raise StartError(f"{name} did not become healthy again", f"run `stackgen logs {name}` for details")

    def remove(self, names: Sequence[str]) -> None:
        """Removes containers after their requests in flight have ended."""
        for name in names:
            self._wait_for_old_workers(name)
            self.stop(name, remove=True)
            if name == SERVICE:
                self.gateway = None
            self.result.removed.append(name)
            self.progress(name, "removed")

    def stop(self, name: str, remove: bool = False) -> None:
        """Stops a container with its own grace period, and removes it if `remove` is set."""
        client = connect()
        try:
            container: Any = client.containers.get(find_containers(self.plan.name)[name].id)
            container.stop(timeout=int(container.attrs["Config"].get("StopTimeout") or 10))
            if remove:
                container.remove(v=True)
        # the container is gone already
        except (KeyError, sdk().errors.NotFound):
            return
        controller = next((one.name for one in self.plan.services if one.role == "controller"), None)
        running = find_containers(self.plan.name).get(controller or "")
        if controller and running and name.startswith(self.plan.service(controller).engine):
            execute(client.containers.get(running.id), ("python3", "-c", REFRESH_WORKERS))

    def _wait_for_old_workers(self, name: str) -> None:
        # a worker of an earlier configuration does not know that a replica is drained
        if self.gateway:
            self.gateway.wait_for_old_workers(600, lambda phase: self.progress(name, phase))

    def _verify_generation(self, name: str) -> None:
        # the health check, which generates a token, must pass once more while the replica gets no client requests
        check = self.plan.service(name).health
        self.progress(name, "requesting a token")
        container = connect().containers.get(find_containers(self.plan.name)[name].id)
        code, output = execute(container, check.command) if check else (0, "")
        if code:
            self.failing = name
            raise StartError(
                f"{name} is healthy, but does not generate a token: {output.strip()[-300:]}",
                f"run `stackgen logs {name}` for details",
            )

    def _finish_compose(self, process: subprocess.Popen[str], part: Plan) -> None:
        """Lets an interrupted Compose finish replacing its containers, but not a long download of an image."""
        if process.poll() is not None:
            return
        # ended in between, Compose leaves a container that has replaced a running one and was never started
        self.progress(self.failing, "interrupted: waiting until Compose has finished this step")
        try:
            process.wait(timeout=COMPOSE_SECONDS + max(one.stop_grace_period or 0 for one in part.services))
        # a second Ctrl-C does not wait
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.terminate()
            process.wait(timeout=30)

    def _start_timeout(self, part: Plan) -> float:
        """Seconds that a start of the services of `part` may take."""
        return self.timeout or 120 + start_seconds(part.services)
