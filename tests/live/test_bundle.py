"""A bundle of real images: created on this engine, and loaded into empty ones that have no route to anywhere.

The engine for models is the stand-in, which starts in 0.3 s (`benchmarks/bundle.py` does the same with real vLLM). The
empty engines are those of the GPU tests, without GPUs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.bundle.bundles import flip_byte, snapshot_files
from tests.live.gpu_engine import GpuEngine, reason_to_skip

pytestmark = [pytest.mark.docker, pytest.mark.gpu_stub, pytest.mark.timeout(240)]

STORE, PORT = "sgtest-bundle-models", 18457
STACKGEN = [sys.executable, "-m", "stackgen"]
WEIGHTS = bytes(range(256)) * 20_000
# hides the engine's folder, as if the engine were on another machine: files of volumes are reached only with Docker
HIDE = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && shift 0 && exec "$@"']


@pytest.fixture(scope="module", autouse=True)
def possible() -> None:
    if reason := reason_to_skip():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def stack(standin_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A stack whose weights are in a volume of this machine's engine."""
    folder = tmp_path_factory.mktemp("stack")
    model = {"model": "org/tiny", "engine": "vllm", "image": standin_image, "served_names": ["tiny"], "gpus": "none",
             "max_model_len": 512, "revision": "main"}  # fmt: skip
    data = {"name": "sgtest-bundle", "port": PORT, "gateway": False, "storage": {"volume": STORE}, "models": [model]}
    (folder / "stack.yaml").write_text("# my comment\n" + yaml.safe_dump(data))
    (folder / ".env").write_text("STACKGEN_API_KEY=sk-of-the-first-machine\n")
    subprocess.run(["docker", "volume", "rm", "--force", STORE], capture_output=True)
    subprocess.run(["docker", "volume", "create", STORE], capture_output=True, check=True)
    inspected = subprocess.run(["docker", "volume", "inspect", STORE], capture_output=True, text=True, check=True)
    write_tree(Path(json.loads(inspected.stdout)[0]["Mountpoint"]))
    yield folder
    subprocess.run(["docker", "volume", "rm", "--force", STORE], capture_output=True)


def write_tree(root: Path) -> None:
    for path, content in snapshot_files(WEIGHTS).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            (root / path).symlink_to(content)
        else:
            (root / path).write_bytes(content)


def create(stack: Path, target: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [*STACKGEN, "bundle", "create", str(stack), "-o", str(target), "--no-wheels", *args]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def bundle(stack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the stack, in parts of 64 MiB."""
    target = tmp_path_factory.mktemp("bundle") / "b"
    done = create(stack, target, "--part-size", "64MiB")
    assert done.returncode == 0, done.stderr
    assert "digest: sha256:" in done.stdout
    assert all(b"sk-of-the-first-machine" not in path.read_bytes() for path in target.rglob("*") if path.is_file())
    return target


@pytest.fixture(scope="module")
def engine() -> Iterator[GpuEngine]:
    with GpuEngine(0) as made:
        yield made


def run(engine: GpuEngine, *args: str | Path, code: int = 0, prefix: tuple[str, ...] = ()) -> str:
    """Runs stackgen in the network of an empty engine; returns both outputs."""
    done = engine.inside(*prefix, *STACKGEN, *map(str, args), timeout=200)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def contents(engine: GpuEngine) -> tuple[str, str]:
    images = engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", "reference=stackgen/*").stdout
    return images.strip(), engine.docker("volume", "ls", "--quiet").stdout.strip()


def hide(engine: GpuEngine) -> tuple[str, ...]:
    return (*HIDE, f"{engine.root}/data")


def test_damaged_bundle_and_wrong_platform_load_nothing(bundle: Path, engine: GpuEngine, tmp_path: Path) -> None:
    copy = tmp_path / "b"
    # links: only what is changed below is copied
    subprocess.run(["cp", "--archive", "--link", bundle, copy], check=True)
    piece = max((copy / "part-002").rglob("*.0*"), key=lambda path: path.stat().st_size)
    data = piece.read_bytes()
    piece.unlink()
    piece.write_bytes(data)
    flip_byte(piece, len(data) // 2)
    text = run(engine, "bundle", "load", copy, "-o", tmp_path / "s", code=1)
    assert f"{piece.relative_to(copy)}: damaged" in text and "image stackgen/vllm-standin" in text
    manifest = (copy / "manifest.json").read_text()
    (copy / "manifest.json").unlink()
    (copy / "manifest.json").write_text(manifest.replace('"linux/amd64"', '"linux/riscv64"'))
    text = run(engine, "bundle", "load", copy, "-o", tmp_path / "s", code=3)
    assert (
        "the image is for linux/riscv64, but this Docker engine runs linux/" in text
        and "image stackgen/vllm-standin" in text
    )
    assert contents(engine) == ("", "") and not (tmp_path / "s").exists()


def test_loaded_stack_starts_and_answers_without_any_route(
    stack: Path, bundle: Path, engine: GpuEngine, tmp_path: Path
) -> None:
    target = tmp_path / "s"
    assert "default" not in engine.inside("ip", "route").stdout
    text = run(engine, "bundle", "load", bundle, "-o", target)
    assert "weights  org/tiny" in text
    assert "# my comment" in (target / "stack.yaml").read_text()
    assert "sk-of-the-first-machine" not in (target / ".env").read_text()
    try:
        assert "healthy" in run(engine, "up", target)
        assert run(engine, "ask", "Hello?", target).strip()
        # a later bundle without the layers and weights of this one: the machine has them
        second = tmp_path / "second"
        assert create(stack, second, "--base", str(bundle)).returncode == 0
        assert max(path.stat().st_size for path in second.rglob("blobs/sha256/*")) < 1_000_000
        run(engine, "bundle", "load", second, "-o", target)
        # the running stack stays
        assert "running" in run(engine, "status", target)
    finally:
        run(engine, "down", target)
    engine.docker("compose", "--project-directory", str(target), "up", "--detach", "--wait", timeout=120)
    engine.docker("compose", "--project-directory", str(target), "down")


def test_volumes_that_only_docker_can_open_are_read_and_written(
    bundle: Path, engine: GpuEngine, tmp_path: Path
) -> None:
    prefix = hide(engine)
    engine.docker("volume", "rm", "--force", STORE)
    run(engine, "bundle", "load", bundle, "-o", tmp_path / "s", prefix=prefix)
    mountpoint = Path(engine.docker("volume", "inspect", "--format", "{{.Mountpoint}}", STORE).stdout.strip())
    wanted = snapshot_files(WEIGHTS)
    paths = [path for path in mountpoint.rglob("*") if path.is_symlink() or path.is_file()]
    found = {path.relative_to(mountpoint).as_posix(): path for path in paths}
    assert {
        name: os.readlink(path) if path.is_symlink() else path.read_bytes() for name, path in found.items()
    } == wanted
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in (mountpoint, *found.values())} == {(2000, 0)}
    # and back into a bundle, which then has the same content
    run(engine, "bundle", "create", tmp_path / "s", "-o", tmp_path / "again", "--no-wheels", prefix=prefix)
    text = json.loads(run(engine, "bundle", "diff", bundle, tmp_path / "again", "--json", code=1))
    assert {one["kind"] for one in text["differences"]} == {"file"}
    assert not engine.docker("ps", "--all", "--quiet").stdout


# the last test that uses `engine`, because it stops the engine
def test_a_shutdown_of_the_machine_finishes_the_requests_in_flight(
    bundle: Path, engine: GpuEngine, tmp_path: Path
) -> None:
    """On a shutdown, init stops dockerd, and dockerd stops all containers."""
    target = tmp_path / "s"
    run(engine, "bundle", "load", bundle, "-o", target)
    run(engine, "up", target)
    key = (target / ".env").read_text().partition("STACKGEN_API_KEY=")[2].split()[0]
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 400, "stream": True}
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(
            engine.inside, "curl", "--silent", "--no-buffer", "--header", f"Authorization: Bearer {key}", "--json",
            json.dumps(body), f"http://127.0.0.1:{PORT}/v1/chat/completions",
        )  # fmt: skip
        time.sleep(0.7)
        assert not answer.done()
        engine.shut_down()
        lines = answer.result().stdout.split("\n\n")
    assert lines[-2] == "data: [DONE]" and sum('"content":"' in line for line in lines) > 400
    assert "error" not in answer.result().stdout


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """Mounts a file system of `size` at `folder`; yields a function that changes its size."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_full_disk_of_the_engine_leaves_nothing_half_loaded(bundle: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "data", "330m"), GpuEngine(0, {"data-root": str(tmp_path / "data")}) as small:
        target = tmp_path / "s"
        text = run(small, "bundle", "load", bundle, "-o", target, code=3)
        assert "images stackgen/vllm-standin" in text and "are needed on the disk of" in text
        # the folder of the engine is hidden, so its space is unknown: Docker itself runs out of it
        hidden = (*HIDE, str(tmp_path / "data"))
        text = run(small, "bundle", "load", bundle, "-o", target, code=3, prefix=hidden)
        assert "the disk of the Docker engine is full" in text
        assert contents(small) == ("", "") and not target.exists()


def test_create_continues_after_a_full_disk_and_a_kill(stack: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "100m") as resize:
        target = tmp_path / "disk" / "b"
        done = create(stack, target)
        assert done.returncode == 3 and f"No space left on device: {target}" in done.stderr
        assert (target / ".create.json").exists() and not (target / "manifest.json").exists()
        resize("700m")
        command = [*STACKGEN, "bundle", "create", str(stack), "-o", str(target), "--no-wheels"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            end = time.monotonic() + 60
            # a layer that is being written
            while not list(target.rglob("*.tmp")) and process.poll() is None and time.monotonic() < end:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        assert not (target / "manifest.json").exists()
        assert create(stack, target).returncode == 0
        done = subprocess.run([*STACKGEN, "bundle", "verify", str(target), "--json"], capture_output=True, text=True)
        assert json.loads(done.stdout)["intact"] and not list(target.rglob("*.tmp"))
