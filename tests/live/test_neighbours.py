"""What `render` sees of the other stacks of this machine: a real container of another Compose project."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from stackgen.cli.main import main

pytestmark = pytest.mark.docker

PORT = 18149


def test_render_warns_of_a_port_that_a_container_of_another_stack_has(
    standin_image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stack.yaml").write_text(
        f"name: sgtest-second\nport: {PORT}\nmodels: [{{model: acme/m, engine: vllm, revision: main}}]\n"
    )
    command = [
        "docker", "run", "--detach", "--rm", "--name", "sgtest-neighbour", "--publish", f"127.0.0.1:{PORT}:80",
        "--label", "com.docker.compose.project=first", "--entrypoint", "sleep", standin_image, "60",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    try:
        assert main(["render", str(tmp_path)]) == 0
    finally:
        subprocess.run(["docker", "rm", "--force", "sgtest-neighbour"], capture_output=True)
    text = (
        f"warning: port: on this machine, port {PORT} is taken (used by container sgtest-neighbour of the stack first)"
    )
    assert text in capsys.readouterr().err
    # the stack's own containers are no conflict, and neither is a container that is gone
    assert main(["render", str(tmp_path)]) == 0
    assert "on this machine" not in capsys.readouterr().err
