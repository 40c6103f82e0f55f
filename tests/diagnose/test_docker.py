"""Reading the log of a real container. Without a Docker engine the same is tested on files."""

from __future__ import annotations

import subprocess

import pytest

from stackgen.diagnose.evidence import HEAD_LINES, LOG_LINES
from stackgen.diagnose.log_text import OMITTED
from stackgen.runtimes.observation.evidence import collect_from_container

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]


@pytest.mark.parametrize(("count", "cut"), [(10, False), (2300, False), (6000, True)])
def test_the_first_and_last_lines_of_a_container_log_are_read(llamacpp_image: str, count: int, cut: bool) -> None:
    name = f"sgtest-diaglog-{count}"
    script = f"i=0; while [ $i -lt {count} ]; do echo line $i; i=$((i+1)); done"
    command = ["docker", "run", "--name", name, "--entrypoint", "/bin/sh", llamacpp_image, "-c", script]
    try:
        subprocess.run(command, check=True, capture_output=True)
        (service,) = collect_from_container(name).services
    finally:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True)
    lines = service.log.splitlines()
    if cut:
        assert lines[0] == "line 0" and lines[HEAD_LINES] == OMITTED and len(lines) == HEAD_LINES + 1 + LOG_LINES
    else:
        assert lines == [f"line {number}" for number in range(count)]
    assert lines[-1] == f"line {count - 1}" and (service.state, service.exit_code) == ("exited", 0)
