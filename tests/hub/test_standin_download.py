"""The download program, with the real `hf` client, against a fake Hub."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from .standin import Hub

SCRIPT = Path(__file__).parents[2] / "templates/images/common/download.py"
REPO, GATED = "org/tiny", "org/gated"
GOOD, STRANGER = "hf_good0secret", "hf_stranger0secret"
pytest.importorskip("huggingface_hub")


def write(folder: Path, **sizes: int) -> Path:
    """Writes files of random bytes, the same in every run; in names, `__` is a dot and `___` a slash."""
    for name, size in sizes.items():
        path = folder / name.replace("___", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(name + str(size)).randbytes(size))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(
        tmp_path_factory.mktemp("model"),
        config__json=300, README__md=40, model__safetensors=3_000_000, pytorch_model__bin=1_000_000,
        original___consolidated__00__pth=400_000, onnx___model__onnx=300_000, model__gguf=500_000,
        pooling___weights__bin=2_000,
    )  # fmt: skip


WANTED = {"config.json", "README.md", "model.safetensors", "pooling/weights.bin"}


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    models = {REPO: folder, GATED: folder}
    with closing(Hub(models, gated=(GATED,), tokens={GOOD: True, STRANGER: False})) as running:
        yield running


class Run:
    """Runs the program with a cache of its own: `start` returns the process, calling the object waits for it."""

    def __init__(self, hub: Hub, cache: Path) -> None:
        self.hub, self.cache = hub, cache

    def start(self, *arguments: str, token: str = "", patch: str = "") -> subprocess.Popen[str]:
        secret = self.cache.parent / "hf_token"
        secret.write_text(token)
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        environment = {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.cache), "HF_HUB_CACHE": str(self.cache / "hub")}
        environment |= {"HF_XET_CACHE": str(self.cache / "xet"), "HF_TOKEN_PATH": str(secret), "NO_PROXY": "*"}
        program = [str(SCRIPT)]
        if patch:  # simulates a state of the machine, e.g. a full disk
            start = "import runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
            program = ["-c", f"{patch}; {start}", *program]
        return subprocess.Popen(
            [sys.executable, *program, *arguments], env=kept | environment, text=True, umask=0o077,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def __call__(self, *arguments: str, token: str = "", patch: str = "") -> tuple[int, str]:
        with self.start(*arguments, token=token, patch=patch) as process:
            output = process.communicate(timeout=120)[0]
        return process.returncode, output

    def snapshot(self, repo: str = REPO, revision: str = "main") -> dict[str, Path]:
        """The files that an engine finds, offline and with the same huggingface_hub: name -> path."""
        ask = "import sys, huggingface_hub as h; print(h.snapshot_download(sys.argv[1], revision=sys.argv[2]))"
        environment = {"PATH": os.environ["PATH"], "HF_HUB_CACHE": str(self.cache / "hub"), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", ask, repo, revision]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        found = Path(answer.strip())
        return {str(path.relative_to(found)): path for path in found.rglob("*") if path.is_file()}


@pytest.fixture
def run(hub: Hub, tmp_path: Path) -> Run:
    return Run(hub, tmp_path / "models")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_downloads_the_files_that_engines_load_and_none_twice(run: Run, hub: Hub, folder: Path) -> None:
    code, output = run("--model", REPO)
    assert code == 0, output
    found = run.snapshot()
    assert set(found) == WANTED
    assert all(path.read_bytes() == (folder / name).read_bytes() for name, path in found.items())
    total = sum((folder / name).stat().st_size for name in WANTED)
    lines = re.findall(rf"^stackgen: download {REPO} (\d+)/(\d+) bytes$", output, re.MULTILINE)
    progress = [tuple(map(int, line)) for line in lines]
    assert progress[-1] == (total, total)
    assert progress == sorted(progress)
    assert hub.sent() == 3_000_000 + 2_000

    hub.requests.clear()
    code, output = run("--model", REPO)
    assert (code, output) == (0, f"stackgen: {REPO} is already there\n")
    assert hub.requests == []


def test_second_run_needs_no_hub(run: Run, hub: Hub) -> None:
    assert run("--model", REPO)[0] == 0
    hub.close()
    assert run("--model", REPO) == (0, f"stackgen: {REPO} is already there\n")


def test_every_user_can_read_the_files(run: Run) -> None:
    assert run("--model", REPO)[0] == 0  # under umask 077
    for path in run.cache.rglob("*"):
        assert path.stat().st_mode & (0o555 if path.is_dir() else 0o444) in {0o555, 0o444}, path


def test_truncated_file_is_downloaded_again(run: Run, hub: Hub) -> None:
    assert run("--model", REPO)[0] == 0
    blob = run.snapshot()["model.safetensors"].resolve()
    blob.write_bytes(blob.read_bytes()[:1000])
    hub.requests.clear()
    code, output = run("--model", REPO)
    assert code == 0, output
    assert blob.stat().st_size == 3_000_000
    assert hub.sent() == 3_000_000


def test_interrupted_download_resumes(run: Run, hub: Hub, tmp_path: Path) -> None:
    size, mebi = 25 * 2**20, 2**20
    hub.publish("org/large", write(tmp_path / "large", model__safetensors=size))
    hub.cut(after=23 * mebi)  # the client writes blocks of 10 MiB, so 20 MiB are on disk by then
    code, output = run("--model", "org/large")
    assert code == 0, output
    assert [request.range for request in hub.requests if request.where == "cdn"] == ["", f"bytes={20 * mebi}-"]
    assert hub.sent() < 1.2 * size


@pytest.mark.parametrize("status", [429, 500])
def test_temporary_failure_of_the_hub_is_retried(run: Run, hub: Hub, status: int) -> None:
    hub.fail(status, path="/revision/")
    code, output = run("--model", REPO)
    assert code == 0, output
    assert f"attempt 1 of 5 at {REPO}: the hub answers HTTP {status}; again in 2 s" in output


def test_unreachable_hub_fails_after_the_last_attempt(run: Run, hub: Hub) -> None:
    hub.close()
    code, output = run("--attempts", "2", "--model", REPO)
    assert code == 12
    assert "attempt 1 of 2" in output
    assert f"stackgen: cannot download {REPO}: no connection to {hub.url}: Connection refused; check" in output
    assert "Traceback" not in output


def test_unknown_host_is_reported(run: Run, hub: Hub) -> None:
    hub.url = "http://hub.invalid:1"
    code, output = run("--attempts", "1", "--model", REPO)
    assert code == 12
    assert re.search(r"no connection to http://hub\.invalid:1: .*(name|Name)", output), output


def test_branches_and_commits_are_downloaded_as_revisions(run: Run, hub: Hub, tmp_path: Path) -> None:
    old = hub.commit(REPO)
    hub.publish(REPO, {"v2": write(tmp_path / "v2", config__json=10, model__safetensors=1000)})
    code, output = run("--model", REPO, "--revision", "v2", "--model", REPO, "--revision", old)
    assert code == 0, output
    assert run.snapshot(revision="v2")["model.safetensors"].stat().st_size == 1000
    assert set(run.snapshot(revision=old)) == WANTED


def test_moved_branch_is_downloaded_once_the_marker_is_removed(run: Run, hub: Hub, tmp_path: Path) -> None:
    assert run("--model", REPO)[0] == 0
    hub.publish(REPO, write(tmp_path / "new", config__json=10, model__safetensors=1000))
    assert "already there" in run("--model", REPO)[1]
    (run.cache / ".stackgen/org--tiny@main+all.json").unlink()
    assert run("--model", REPO)[0] == 0
    assert set(run.snapshot()) == {"config.json", "model.safetensors"}


def test_file_patterns_restrict_the_download(run: Run) -> None:
    code, output = run("--model", REPO, "--file", "*.gguf")
    assert code == 0, output
    assert set(run.snapshot()) == {"model.gguf"}
    code, output = run("--model", REPO, "--file", "*.gguf", "--file", "original/*")
    assert code == 0, output
    assert set(run.snapshot()) == {"model.gguf", "original/consolidated.00.pth"}
    code, output = run("--model", REPO, "--file", "*.zip")
    assert code == 11
    assert "none of its files matches ['*.zip']" in output


def test_repository_without_usable_weights_fails(run: Run, hub: Hub, tmp_path: Path) -> None:
    hub.publish("org/gguf", write(tmp_path / "gguf", model__gguf=1000))
    code, output = run("--model", "org/gguf")
    assert code == 11
    assert "none of its files matches" in output


@pytest.mark.parametrize(
    ("token", "code", "cause", "remedy"),
    [
        (
            "",
            10,
            "it needs a token and none was given (HTTP 401)",
            "accept the model's license at {page}, then set HF_TOKEN_FILE",
        ),
        (
            STRANGER,
            10,
            "the token's account has no access (HTTP 403)",
            "accept the model's license at {page} with that account",
        ),
        ("hf_expired", 10, "the hub refuses the token (HTTP 401)", "create a new token at"),
        (GOOD + "\n", 0, "", ""),
    ],
)
def test_gated_model_needs_a_token_with_access(
    run: Run, hub: Hub, token: str, code: int, cause: str, remedy: str
) -> None:
    got, output = run("--model", GATED, token=token)
    assert got == code, output
    assert cause in output
    assert remedy.format(page=f"{hub.url}/{GATED}") in output
    assert not token or token.strip() not in output
    assert not any(request.authorized for request in hub.requests if request.where == "cdn")
    if code:
        assert f"stackgen: cannot download {GATED}: " in output.splitlines()[-1]
        assert "attempt" not in output
        assert hub.sent() == 0


@pytest.mark.parametrize("token", ["", GOOD])
def test_missing_model_and_missing_revision_are_reported(run: Run, hub: Hub, token: str) -> None:
    code, output = run("--model", "org/missing", token=token)
    assert code == 11
    assert f"stackgen: cannot download org/missing: {hub.url} has no such model, or it is private" in output
    code, output = run("--model", REPO, "--revision", "v9", token=token)
    assert code == 11
    assert f"stackgen: cannot download {REPO}: it has no revision 'v9' (HTTP 404)" in output


def test_one_refused_model_ends_the_download_with_its_name_and_keeps_complete_models(run: Run, hub: Hub) -> None:
    models = ("--model", REPO, "--model", GATED, "--model", "org/missing")
    code, output = run(*models)
    assert code == 10
    # docs/explanation/restarts-and-health.md shows this line
    assert output.splitlines()[-1] == (
        f"stackgen: cannot download {GATED}: it needs a token and none was given (HTTP 401); accept the model's "
        f"license at {hub.url}/{GATED}, then set HF_TOKEN_FILE"
    )
    assert "org/missing" not in output
    sent = hub.sent()
    code, output = run(*models)
    assert code == 10 and f"{REPO} is already there" in output and hub.sent() == sent


def test_too_small_disk_is_reported_before_downloading(run: Run, hub: Hub) -> None:
    small = "import shutil, types; shutil.disk_usage = lambda path: types.SimpleNamespace(free=1_000_000)"
    code, output = run("--model", REPO, patch=small)
    assert code == 13
    assert re.search(r"3002340 bytes are missing and \S+ has 1000000 bytes free; free some space", output), output
    assert hub.sent() == 0


def test_two_processes_download_only_once(run: Run, hub: Hub) -> None:
    hub.rate = 1_500_000
    with run.start("--model", REPO) as first:
        wait_for(lambda: hub.sent() > 0)
        second = run("--model", REPO)
        first.communicate(timeout=60)
    assert (first.returncode, second[0]) == (0, 0)
    assert second[1].splitlines() == [
        f"stackgen: another process is downloading {REPO}: waiting until that download ends",
        f"stackgen: {REPO} is already there",
    ]
    assert hub.sent() == 3_000_000 + 2_000


def test_sigterm_leaves_no_process_and_no_partial_file_behind(run: Run, hub: Hub) -> None:
    hub.rate = 100_000
    with run.start("--model", REPO) as process:
        wait_for(lambda: hub.sent() > 50_000)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)  # returns only after the child has closed its end of the pipe too
    assert process.returncode == 143
    assert not list(run.cache.rglob("*.????????.incomplete"))
    hub.rate = 0
    assert run("--model", REPO)[0] == 0
    assert set(run.snapshot()) == WANTED


@pytest.mark.parametrize("arguments", [["--revision", "v1"], ["--model"], ["--model", REPO, "--what", "x"]])
def test_wrong_arguments_exit_with_usage(run: Run, hub: Hub, arguments: list[str]) -> None:
    code, output = run(*arguments)
    assert code == 2
    assert "download.py [--attempts 5] --model REPO" in output
    assert hub.requests == []
