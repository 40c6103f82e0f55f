"""The kind of machine: read from its files, or from the words of a log; and the rules that ask for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stackgen.diagnose import Finding, diagnose
from stackgen.diagnose.gpus import GpuDevice, GpuState
from stackgen.diagnose.machine import Machine, find_capability
from stackgen.runtimes.observation.evidence import collect_from_log
from stackgen.runtimes.observation.host_kind import read_machine

UVA = "RuntimeError: UVA is not available\n"
AVX = "[one:1] FATAL: UCX library was compiled with avx but CPU does not support it.\n"
PTX = "CUDA error: the provided PTX was compiled with an unsupported toolchain.\n"
NEEDS = "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.8, please update your driver\n"


def first(log: str, machine: Machine | None = None, compute: str = "") -> Finding:
    gpus = GpuState((GpuDevice(0, "GPU-1", "x", compute=compute),)) if compute else None
    return diagnose(replace(collect_from_log(log), machine=machine, gpus=gpus))[0]


def test_the_kind_of_the_machine_is_read_from_its_files(tmp_path: Path) -> None:
    assert read_machine(tmp_path) == Machine()
    for path, text in {
        "proc/sys/kernel/osrelease": "6.6.87.1-microsoft-standard-WSL2\n",
        "proc/cpuinfo": "processor : 0\nflags\t\t: fpu hypervisor avx\n",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.7, GCID: 1, BOARD: generic\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert read_machine(tmp_path) == Machine(wsl=True, virtual=True, jetson="R36 4.7")


@pytest.mark.parametrize(
    ("log", "machine", "words"),
    [
        (UVA, Machine(wsl=True), "This engine runs on WSL2"),
        (f"Using 'pin_memory=False' as WSL is detected.\n{UVA}", None, "This engine runs on WSL2"),
        (AVX, Machine(virtual=True), "this virtual machine does not offer"),
        (f"QEMU Virtual CPU version 2.5+\n{AVX}", None, "this virtual machine does not offer"),
        (NEEDS, Machine(jetson="R36 4.7"), "JetPack"),
    ],
)
def test_rules_ask_for_the_kind_of_the_machine(log: str, machine: Machine | None, words: str) -> None:
    assert words in first(log, machine).cause
    # an unknown kind is not taken for known
    assert words not in first(log.splitlines()[-1], Machine()).cause


def test_a_gpu_before_turing_is_not_sent_to_a_newer_driver_than_it_has() -> None:
    device = "  Device 0: NVIDIA GeForce GTX 1080 Ti, compute capability 6.1, VMM: yes\n"
    for found in (first(device + PTX), first(PTX, compute="6.1"), first(NEEDS, compute="7.0")):
        assert found.id == "SG-G002" and "580 series, which is the last one that supports this GPU" in found.fix
        assert "or newer" not in found.fix
    assert "or newer" in first(PTX, compute="8.9").fix and "or newer" in first(PTX).fix


@pytest.mark.parametrize(
    ("text", "capability"),
    [
        ("Device 0: NVIDIA L4, compute capability 8.9, VMM: yes", 8.9),
        ("Your Tesla T4 GPU has compute capability 7.5.", 7.5),
        ("the backend on Quadro RTX 8000 (compute capability 7.5); it requires SM89", 7.5),
        ("GPU 0: Tesla P40", 6.1),
        # what a kernel needs is not what a GPU has
        ("requires compute capability 7.0 or higher", None),
        ("nothing", None),
    ],
)
def test_the_capability_of_a_gpu_is_read_from_a_log(text: str, capability: float | None) -> None:
    assert find_capability(text) == capability
