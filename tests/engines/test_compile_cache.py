"""The folder of compiled code that a container chooses when it starts: the real scripts, with a fake nvidia-smi."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

TEMPLATES = Path(__file__).parents[2] / "templates"
SUPERVISE = TEMPLATES / "images" / "common" / "supervise.sh"
SETUP = TEMPLATES / "engines" / "vllm_cache.py"
NAMES = ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder of programs that is first in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def gpus(programs: Path, *names: str) -> None:
    lines = "".join(f"echo '{name}, 9.0'\n" for name in names)
    (programs / "nvidia-smi").write_text(f"#!/bin/sh\n{lines or 'exit 9'}\n")
    (programs / "nvidia-smi").chmod(0o755)


def install(packages: Path, checksum: str) -> None:
    """A Python package whose files have this checksum."""
    record = packages / "vllm-0.32.0.dist-info" / "RECORD"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(f"vllm/_C.abi3.so,sha256={checksum},5\n")


def start(
    programs: Path, packages: Path, setup: str = f"{sys.executable} {SETUP}", folder: str = "/proc/cache dir/code/m-1"
) -> tuple[list[str], str]:
    """The three variables that the service sees, and what supervise.sh prints."""
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(packages), "STACKGEN_SETUP": setup,
        "STACKGEN_READY_FILE": str(programs.parent / "ready"), "VLLM_CACHE_ROOT": folder,
    }  # fmt: skip
    # the service ends at once, as one that was never healthy
    words = ["sh", str(SUPERVISE), "sh", "-c", "".join(f'echo "${name}"; ' for name in NAMES)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=30)
    return done.stdout.splitlines(), done.stderr


def test_each_image_and_each_kind_of_gpu_gets_a_folder(programs: Path, tmp_path: Path) -> None:
    packages, folder = tmp_path / "packages", f"{tmp_path}/cache dir/code/m-1"
    install(packages, "one")
    gpus(programs, "NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3")
    (root, inductor, triton), _ = start(programs, packages, folder=folder)
    assert root.startswith(f"{folder}/") and (inductor, triton) == (f"{root}/inductor", f"{root}/triton")
    # neither the number of GPUs nor a restart is another kind
    gpus(programs, "NVIDIA H100 80GB HBM3")
    assert start(programs, packages, folder=folder)[0][0] == root
    seen = {root}
    gpus(programs, "NVIDIA A100-SXM4-80GB")
    seen.add(start(programs, packages, folder=folder)[0][0])
    # a tag that was pulled again: the same version with other libraries
    install(packages, "two")
    seen.add(start(programs, packages, folder=folder)[0][0])
    # a driver that fails: the processor decides
    gpus(programs)
    seen.add(start(programs, packages, folder=folder)[0][0])
    assert len(seen) == 4


def test_a_folder_that_cannot_be_written_is_not_used(programs: Path, tmp_path: Path) -> None:
    """An image with another user may have created the folders in the volume: vLLM would not start."""
    (root, inductor, _), log = start(programs, tmp_path)
    assert Path(root).parent == Path(tempfile.gettempdir(), "stackgen-cache") and inductor == f"{root}/inductor"
    assert "compiled code is not kept" in log and "can't write /proc/cache dir/code/m-1" in log


def test_a_service_starts_with_the_folder_of_the_stack_file_if_the_script_fails(programs: Path, tmp_path: Path) -> None:
    (root, inductor, triton), log = start(programs, tmp_path, "false")
    assert (root, inductor, triton) == ("/proc/cache dir/code/m-1", "", "")
    assert '"false" failed' in log


def test_what_vllm_knows_about_model_classes_is_shared_within_an_image(programs: Path, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    install(packages, "one")
    gpus(programs, "NVIDIA H100 80GB HBM3")
    code = tmp_path / "code"
    first, second = (
        Path(start(programs, packages, folder=str(code / name))[0][0]) / "modelinfos" for name in ("m-1", "m-2")
    )
    (first / "llama.json").write_text("{}")
    assert (second / "llama.json").read_text() == "{}"
    # a folder of compiled code can be removed without it
    assert not first.resolve().is_relative_to(code)
    # another image has other classes
    install(packages, "two")
    other = Path(start(programs, packages, folder=str(code / "m-1"))[0][0]) / "modelinfos"
    assert other.is_dir() and not list(other.iterdir())
    # a folder of an earlier version stays as it is
    other.unlink()
    other.mkdir()
    (other / "old.json").write_text("{}")
    start(programs, packages, folder=str(code / "m-1"))
    assert [one.name for one in other.iterdir()] == ["old.json"]


def test_a_folder_of_another_user_is_not_shared(tmp_path: Path) -> None:
    """A stack that runs as root may have created the folder in the volume first."""
    call = (
        "import os, runpy, sys; from pathlib import Path; "
        f"share = runpy.run_path({str(SETUP)!r})['share_model_infos']; "
        "root, shared = map(Path, sys.argv[1:3]); share(root, shared); print((root / 'modelinfos').is_symlink()); "
        "os.access = lambda *_: False; share(root, shared); print((root / 'modelinfos').is_symlink())"
    )
    # root may write everywhere, so the answer of the kernel is replaced
    words = [sys.executable, "-c", call, str(tmp_path / "root"), str(tmp_path / "shared")]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.split() == ["True", "False"]
