"""The download service in a real container, hardened as rendered. `test_hub.py` serves what it has downloaded.

The Hub is a fake one, tests/hub/standin.py in its own container. The service and its `hf` client are real.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stackgen.resolve.pipeline import resolve
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite

pytestmark = pytest.mark.docker
ROOT = Path(__file__).parents[2]
REPO, GATED, TOKEN = "org/tiny", "org/gated", "hf_good0secret"
SCRIPT, OWNER_SCRIPT = (f"{ROOT}/templates/images/common/{name}.py:/stackgen/{name}.py:ro"
                        for name in ("download", "store_owner"))  # fmt: skip
# the token's owner: neither root nor the store's owner, as on a machine that several people use
TOKEN_OWNER = 4242
CACHE = {"HF_HOME": "/models", "HF_HUB_CACHE": "/models/hub", "HF_XET_CACHE": "/models/xet", "HOME": "/tmp"}
HARDENED = {
    "read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"], "user": "0:0",
    "tmpfs": ["/tmp:mode=1777"],
}  # fmt: skip
REACH = "import socket; socket.create_connection(('127.0.0.1', 8000))"


class Stack:
    """A Compose project in its own folder. Calling it runs `docker compose` and returns exit code and output."""

    def __init__(self, folder: Path, services: dict[str, Any], **rest: Any) -> None:
        self.file = folder / "compose.yaml"
        self.name = f"sgtest-{folder.name}"
        self.file.write_text(json.dumps({"name": self.name, "services": services, **rest}))

    def __call__(self, *args: str, timeout: float = 300) -> tuple[int, str]:
        command = ["docker", "compose", "-f", str(self.file), *args]
        done = subprocess.run(
            command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
        )
        return done.returncode, done.stdout

    def up(self, service: str) -> tuple[int, str]:
        """Starts a service, waits for its end, and returns its exit code and log.

        The log comes from Docker: on a busy machine Compose 2.40 attaches to a container after its last line.
        """
        code, output = self("up", "--no-deps", "--exit-code-from", service, service)
        return code, output if code else self("logs", "--no-color", service)[1]

    def hub_requests(self) -> list[dict[str, Any]]:
        """Returns the requests that the Hub has received so far."""
        script = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/_requests').read().decode())"
        code, output = self("exec", "-T", "hub", "python3", "-c", script)
        assert code == 0, output
        requests: list[dict[str, Any]] = json.loads(output)
        return requests


@pytest.fixture(scope="module")
def stack(vllm_image: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("download")
    served = shutil.copytree(tiny_model, folder / "served")
    (served / "original").mkdir()
    (served / "original/consolidated.00.pth").write_bytes(bytes(1000))
    secret = folder / "hf_token"
    secret.write_text(TOKEN)
    secret.chmod(0o600)
    os.chown(secret, TOKEN_OWNER, TOKEN_OWNER)
    model = {"engine": "vllm", "model": REPO, "image": vllm_image}
    rendered = resolve(build_spec({"name": "demo", "models": [model]}, "test"), ComposeSite(), "test").service(
        "download"
    )
    download = {
        "image": vllm_image, "command": ["--model", REPO], "environment": {**CACHE, "HF_ENDPOINT": "http://hub:8000"},
        "volumes": [SCRIPT, OWNER_SCRIPT, "models:/models"], "networks": ["outside"], **HARDENED,
        "entrypoint": rendered.entrypoint, "user": rendered.user, "cap_add": rendered.cap_add,
    }  # fmt: skip
    # as earlier versions rendered it: root fills the store
    before = {"entrypoint": ["python3", "/stackgen/download.py"], "user": "0:0", "cap_add": ["DAC_READ_SEARCH"]}
    old_store = {"volumes": [SCRIPT, OWNER_SCRIPT, "old:/models"], "networks": ["outside"]}
    hub = ["/standin.py", "--gated", GATED, "--token", TOKEN, "--model", f"{REPO}=/tiny", "--model", f"{GATED}=/tiny"]
    services = {
        "hub": {
            "image": vllm_image, "entrypoint": ["python3"], "command": hub, "init": True, "networks": ["outside"],
            "volumes": [f"{ROOT}/tests/hub/standin.py:/standin.py:ro", f"{served}:/tiny:ro"], **HARDENED,
            "healthcheck": {"test": ["CMD", "python3", "-c", REACH], "interval": "1s", "retries": 30},
        },
        "download": {**download, "secrets": [{"source": "nothing", "target": "hf_token"}]},
        "gated": {
            **download, "command": ["--model", GATED], "secrets": [{"source": "token", "target": "hf_token"}],
        },
        "before": {**download, **before, **old_store},
        "after": {
            **download, **old_store, "command": ["--model", REPO, "--model", GATED],
            "secrets": [{"source": "token", "target": "hf_token"}],
        },
    }  # fmt: skip
    compose = Stack(
        folder, services, volumes={"models": {}, "old": {}}, networks={"outside": {}},
        secrets={"nothing": {"file": "/dev/null"}, "token": {"file": str(secret)}},
    )  # fmt: skip
    try:
        code, output = compose("up", "--detach", "--wait", "hub")
        assert code == 0, output
        yield compose
    finally:
        compose("--profile", "*", "down", "--volumes", "--timeout", "2")


@pytest.fixture(scope="module")
def downloaded(stack: Stack, tiny_model: Path) -> str:
    """Output of the first download."""
    code, output = stack.up("download")
    assert code == 0, output
    return output


def test_the_download_service_fetches_the_model(stack: Stack, downloaded: str, tiny_model: Path) -> None:
    weights = sum(path.stat().st_size for path in tiny_model.glob("*.safetensors"))
    assert f"stackgen: download {REPO} " in downloaded
    assert sum(request["sent"] for request in stack.hub_requests() if request["where"] == "cdn") >= weights


def test_the_second_up_sends_no_requests(stack: Stack, downloaded: str) -> None:
    before = len(stack.hub_requests())
    code, output = stack.up("download")
    assert code == 0, output
    assert f"stackgen: {REPO} is already there" in output
    assert len(stack.hub_requests()) == before


def test_a_token_reaches_the_hub_and_nothing_else(stack: Stack) -> None:
    code, output = stack("run", "--rm", "--no-deps", "download", "--model", GATED)
    assert code == 10, output
    code, output = stack.up("gated")
    assert code == 0, output
    ids = stack("ps", "--all", "--quiet", "gated")[1].split()
    shown = subprocess.run(["docker", "inspect", *ids], capture_output=True, text=True, check=True).stdout
    assert TOKEN not in output + shown + stack("logs", "gated")[1]


def owners(stack: Stack, service: str) -> set[str]:
    """Returns the owners of all files in the service's store."""
    code, output = stack("run", "--rm", "--no-deps", "--user", "0:0", "--entrypoint", "find", service,
                         "/models", "-printf", "owner %U\n")  # fmt: skip
    assert code == 0, output
    return {line for line in output.splitlines() if line.startswith("owner ")}


def test_a_new_store_belongs_to_the_user_of_the_download(stack: Stack, downloaded: str) -> None:
    assert owners(stack, "download") == {"owner 2000"}


def test_a_store_that_root_filled_is_used_and_filled_further(stack: Stack) -> None:
    code, output = stack.up("before")
    assert code == 0, output
    assert owners(stack, "before") == {"owner 0"}
    code, output = stack.up("after")
    assert code == 0, output
    assert f"{REPO} is already there" in output
    assert f"download {GATED} " in output


def test_a_stack_of_an_earlier_version_fills_a_store_that_root_does_not_own(stack: Stack, downloaded: str) -> None:
    code, output = stack("run", "--rm", "--no-deps", "--user", "0:0", "--entrypoint", "python3", "gated",
                         "/stackgen/download.py", "--model", REPO)  # fmt: skip
    assert code == 0, output
    assert f"{REPO} is already there" in output


@pytest.mark.parametrize(
    ("mount", "code", "cause"),
    [
        (["--tmpfs", "/models:size=64k"], 13, "bytes are missing and /models/hub has"),
        (["--tmpfs", "/models:mode=755,uid=1000", "--cap-drop", "ALL"], 14, "Permission denied: /models"),
        ([], 14, "Read-only file system: "),
    ],
)
def test_a_folder_that_cannot_be_written_is_reported(
    stack: Stack, vllm_image: str, mount: list[str], code: int, cause: str
) -> None:
    settings = [argument for name, value in CACHE.items() for argument in ("--env", f"{name}={value}")]
    done = subprocess.run(
        ["docker", "run", "--rm", "--network", f"{stack.name}_outside", "--user", "0:0", "--read-only",
         "--tmpfs", "/tmp", *mount, *settings,
         "--env", "HF_ENDPOINT=http://hub:8000", "--volume", SCRIPT, "--entrypoint", "python3", vllm_image,
         "/stackgen/download.py", "--model", REPO],
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert cause in done.stderr
    assert "Traceback" not in done.stderr
