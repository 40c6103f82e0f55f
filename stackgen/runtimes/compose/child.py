"""A running `docker compose up` and its end: Compose is never ended while it replaces containers."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from stackgen.errors import StartError
from stackgen.plan import Plan
from stackgen.runtimes.compose.command import compose_command, compose_error

__all__ = ["create_containers", "end_compose", "has_all_images", "start_compose"]

POLL_SECONDS = 0.2
# seconds that Compose gets after SIGTERM
TERMINATE_SECONDS = 30
# seconds for creating and starting containers, in addition to the time that old containers may take to stop
STEP_SECONDS = 60


def start_compose(folder: Path, output: IO[str], *args: str) -> subprocess.Popen[str]:
    """Starts `docker compose up` with `args` for the stack in `folder`. Its output goes to the file `output`."""
    command = [*compose_command(folder), "--progress", "plain", "up", *args]
    # in its own process group: Ctrl-C must reach stackgen first, which then ends Compose
    return subprocess.Popen(command, stdout=output, stderr=output, text=True, start_new_session=True)


def end_compose(process: subprocess.Popen[str], plan: Plan, is_consistent: Callable[[], bool]) -> None:
    """Lets Compose exit by itself, or ends it as soon as `is_consistent()` returns True.

    Waits as long as old containers may take to stop, and one minute. A second Ctrl-C ends Compose at once.
    """
    limit = STEP_SECONDS + max((service.stop_grace_period for service in plan.services), default=0)
    deadline = time.monotonic() + limit
    try:
        # the Docker engine may have stopped answering, and the first error must reach the user
        with suppress(Exception):
            while process.poll() is None and time.monotonic() < deadline and not is_consistent():
                time.sleep(POLL_SECONDS)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=TERMINATE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def has_all_images(plan: Plan, client: Any, services: Sequence[str] = ()) -> bool:
    """Whether this machine has the images of `services` (default: all). Until then, Compose changes no container."""
    images = {tag for image in client.api.images() for tag in image["RepoTags"] or ()}
    return all(one.image in images for one in plan.services if not services or one.name in services)


def create_containers(
    plan: Plan,
    folder: Path,
    client: Any,
    args: Sequence[str],
    deadline: float,
    on_poll: Callable[[], None],
    has_started: Callable[[], bool],
) -> None:
    """Pulls and builds images, and replaces the containers of changed services, without starting the new ones.

    After an error, and after Ctrl-C, Compose finishes first, and starts what it has replaced until `has_started()`.
    `deadline` (time.monotonic()) bounds only the pulling and building. Raises StartError if it has passed, and what
    `compose_error` returns if Compose fails.
    """
    had_started = has_started()
    with tempfile.TemporaryFile("w+") as output:
        process = start_compose(folder, output, "--no-start", *args)
        try:
            while process.poll() is None:
                on_poll()
                if time.monotonic() > deadline and not has_all_images(plan, client):
                    raise StartError(
                        "start timed out: the images of the stack are not all on this machine yet",
                        "run `docker compose pull`, which shows the progress of the images, or use a longer --timeout",
                    )
                time.sleep(POLL_SECONDS)
            if process.returncode:
                output.seek(0)
                raise compose_error(output.read())
        except BaseException:
            end_compose(process, plan, lambda: not has_all_images(plan, client))
            if had_started and not has_started():
                end_compose(start_compose(folder, output, "--detach", "--no-recreate"), plan, has_started)
            raise
