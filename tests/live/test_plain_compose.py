"""A newcomer's path without `stackgen up`: render a stack with a gateway, then plain `docker compose up`.

Real Compose and a real gateway; the engine is the stand-in, which starts at once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from stackgen.stack.envfile import read_api_key
from tests.live.small_stacks import vllm_entry

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]

PORT = 18151


def request(path: str, key: str | None, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = json.dumps(body).encode() if body else None
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data, headers), timeout=20
        ) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_a_rendered_stack_starts_with_plain_compose(standin_image: str, haproxy_image: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    data = {"name": "sgtest-plain", "port": PORT, "gateway": {"image": haproxy_image},
            "models": [vllm_entry(standin_image, "./model")]}  # fmt: skip
    # JSON is YAML
    (tmp_path / "stack.yaml").write_text(json.dumps(data))
    # no key of the shell may stand in for one that .env lacks
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STACKGEN_")}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)

    done = run(sys.executable, "-m", "stackgen", "render")
    assert done.returncode == 0, done.stderr
    assert "docker compose up -d" in done.stderr
    try:
        done = run("docker", "compose", "up", "--detach", "--wait")
        assert done.returncode == 0, done.stderr + run("docker", "compose", "logs", "--no-color").stdout[-4000:]
        key = read_api_key(tmp_path)
        body = {"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}
        status, answer = request("/v1/chat/completions", key, body)
        assert status == 200 and answer["choices"][0]["message"]["content"], answer
        assert [one["id"] for one in request("/v1/models", key)[1]["data"]] == ["tiny"]
        for wrong in (None, "sk-wrong"):
            assert request("/v1/chat/completions", wrong, body)[0] == 401
        # the engine is reachable only through the gateway
        listed = run("docker", "compose", "ps", "--format", "{{.Ports}}").stdout.splitlines()
        ports = [line for line in listed if "->" in line]
        assert len(ports) == 1 and f"127.0.0.1:{PORT}->" in ports[0]
    finally:
        run("docker", "compose", "down", "--timeout", "2")
