"""A FastChat worker that can't start: the other models answer, and `up` names it. With stand-ins of the programs.

The health checks are the real ones.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]

PORT = 18126
IMAGE = "sgtest-fastchat-standin"


@pytest.fixture
def image(standin_image: str, tmp_path: Path) -> Iterator[str]:
    context = tmp_path / "context"
    shutil.copytree(ROOT / "tests/standin/fastchat", context)
    shutil.copy(ROOT / "templates/images/fastchat/health.py", context)
    (context / "Dockerfile").write_text(f"FROM {standin_image}\nCOPY launch.py health.py /opt/stackgen/\n")
    done = subprocess.run(["docker", "build", "-q", "-t", IMAGE, str(context)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    yield IMAGE
    subprocess.run(["docker", "rmi", "--force", IMAGE], capture_output=True)


def chat(model: str) -> int:
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/v1/chat/completions", json.dumps({"model": model}).encode()
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_broken_worker_leaves_the_other_models_available(image: str, tmp_path: Path) -> None:
    models = []
    for name in ("good", "broken"):
        (tmp_path / name).mkdir()
        models.append({"model": f"./{name}", "engine": "fastchat", "image": image, "served_names": [name]})
    data = {"name": "sgtest-order", "port": PORT, "restart": "on-failure:1", "gateway": False, "models": models}
    with LiveStack(tmp_path, data) as stack:
        done = stack.run_stackgen("up", str(tmp_path), "--progress", "plain")
        assert done.returncode == 1, done.stdout + done.stderr
        assert "stackgen: fastchat-broken exited with code 3" in done.stderr, done.stderr
        assert chat("good") == 200 and chat("broken") == 400
        assert stack.inspect("fastchat-broken")["State"]["Status"] == "exited"
        api, good = (stack.inspect(f"fastchat-{name}")["State"] for name in ("api", "good"))
        # the order is kept: the API server starts after the worker that works
        assert api["Health"]["Status"] == "healthy" and good["StartedAt"] < api["StartedAt"]
