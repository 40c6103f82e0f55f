"""The state of the GPUs as evidence, from a stub `nvidia-smi` that prints the real one's format, and the rules for it.

No development machine has a GPU.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from stackgen.cli.commands import diagnose as command
from stackgen.diagnose import Evidence, ServiceEvidence, diagnose
from stackgen.diagnose.bundle import build_bundle
from stackgen.diagnose.gpus import GpuState, format_gpus
from stackgen.runtimes.observation.gpu_tools import read_gpu_state
from tests.cli.test_diagnose import parse_args
from tests.diagnose.fixtures import LOGS, load_fixture
from tests.diagnose.test_rules import with_plan

# as nvidia-smi 570 prints `--query-gpu=… --format=csv,noheader,nounits` with the fields of gpu_tools.QUERY
ROWS = """\
0, GPU-5e2b8b1c-0f2d-4c9e-9a67-3f1d2a4b5c6d, NVIDIA H100 80GB HBM3, 81559, 3200, 9.0, Disabled, 0, Enabled, \
570.86.10, 77845
1, GPU-a1b2c3d4-1111-2222-3333-444455556666, NVIDIA H100 80GB HBM3, 81559, 80994, 9.0, Disabled, {ecc}, Enabled, \
570.86.10, 4
"""
APPS = "GPU-5e2b8b1c-0f2d-4c9e-9a67-3f1d2a4b5c6d, 4242, VLLM::EngineCore, 77834\n"
HEAD = """\
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 570.86.10              Driver Version: 570.86.10      CUDA Version: 12.8     |
|-----------------------------------------+------------------------+----------------------+
"""
# open-gpu-kernel-modules issues 387 and 507; the kernel's log as gpud and NVSentinel quote it
LOST = "Unable to determine the device handle for GPU0000:07:00.0: Unknown Error\n"
XID = "[ 1843.308145] NVRM: Xid (PCI:0000:07:00): 79, pid=4242, name=python3, GPU has fallen off the bus.\n"
DEAD = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA "
    "driver is installed and running.\n"
)
OLD = 'Field "compute_cap" is not a valid field to query.\n'
Programs = Callable[..., None]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """`programs(name=script, …)` makes these the only programs on the PATH, besides sh and cat."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "cat"):
        (folder / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("DOCKER_HOST", raising=False)

    def make(**scripts: str) -> None:
        for name, script in scripts.items():
            path = folder / name.replace("_", "-")
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)

    return make


def nvidia_smi_script(rows: str = ROWS, ecc: int = 0) -> str:
    return (
        'case "$1" in\n--query-gpu=*) cat <<E\n' + rows.format(ecc=ecc) + "E\n;;\n"
        f"--query-compute-apps=*) cat <<E\n{APPS}E\n;;\n*) cat <<E\n{HEAD}E\n;;\nesac"
    )


def print_and_exit(text: str, code: int) -> str:
    return f'cat <<"E"\n{text}E\nexit {code}'


def test_the_output_of_nvidia_smi_is_parsed(programs: Programs) -> None:
    programs(nvidia_smi=nvidia_smi_script(), dmesg=print_and_exit("[ 0.0] Linux version 6.1\n" + XID, 0))
    state = read_gpu_state()
    assert (state.driver, state.cuda, state.unknown, state.error) == ("570.86.10", "12.8", "", "")
    assert state.xids == (XID.strip(),)
    busy, idle = state.devices or ()
    assert (busy.index, busy.uuid[:12], busy.name, busy.compute) == (0, "GPU-5e2b8b1c", "NVIDIA H100 80GB HBM3", "9.0")
    assert [busy.memory_total, busy.memory_used, busy.memory_free] == [n * 2**20 for n in (81559, 77845, 3200)]
    assert [(one.pid, one.name, one.memory) for one in busy.processes] == [(4242, "VLLM::EngineCore", 77834 * 2**20)]
    assert idle.processes == () and idle.ecc_errors == 0
    shown = "\n".join(format_gpus(state))
    assert "GPU 0 (NVIDIA H100 80GB HBM3, capability 9.0): 76.0 GiB used of 79.6 GiB, 3.1 GiB free" in shown
    assert "used by VLLM::EngineCore (pid 4242, 76.0 GiB)" in shown and "driver 570.86.10" in shown


def test_without_nvidia_smi_the_state_is_unknown(programs: Programs) -> None:
    state = read_gpu_state()
    assert state.devices is None and "nvidia-smi was not found on the PATH" in state.unknown and state.xids is None
    assert format_gpus(state)[0].startswith("GPUs: unknown: nvidia-smi was not found on the PATH")


def test_nvidia_smi_reports_no_gpus(programs: Programs) -> None:
    programs(nvidia_smi=print_and_exit("No devices were found\n", 6))
    assert read_gpu_state().devices == () and format_gpus(read_gpu_state()) == ("GPUs: none",)


def test_an_old_driver_lacks_a_field(programs: Programs) -> None:
    script = nvidia_smi_script(ROWS.replace("9.0", "NVIDIA H100"))
    programs(nvidia_smi=f'case "$1" in *compute_cap*) {print_and_exit(OLD, 2)};; esac\n{script}')
    state = read_gpu_state()
    assert [one.compute for one in state.devices or ()] == [None, None] and state.driver == "570.86.10"


def test_a_kernel_log_without_read_permission_is_unknown(programs: Programs) -> None:
    programs(
        nvidia_smi=nvidia_smi_script(),
        dmesg="echo 'dmesg: read kernel buffer failed: Operation not permitted' >&2; exit 1",
    )
    assert read_gpu_state().xids is None


def failed_service(log: str, gpus: GpuState, **more: object) -> Evidence:
    service = ServiceEvidence("vllm-one", engine="vllm", state="exited", exit_code=1, log=log, **more)  # type: ignore[arg-type]
    return with_plan(service, gpus=gpus)


def log_text(name: str) -> str:
    return load_fixture(LOGS / f"{name}.log").text


def test_the_process_that_holds_the_gpu_is_named(programs: Programs) -> None:
    programs(nvidia_smi=nvidia_smi_script())
    for name, id in (("SG-M002-free-memory", "SG-M002"), ("SG-M008-plain", "SG-M008"), ("SG-M005-weights", "SG-M005")):
        found = diagnose(failed_service(log_text(name), read_gpu_state()))[0]
        assert found.id == id and "VLLM::EngineCore (pid 4242, 76.0 GiB)" in found.cause, found
        assert any("GPU 0 (NVIDIA H100" in line for line in found.evidence)
        # the plan gives this service GPU 0 only
        assert not any("GPU 1" in line for line in found.evidence)


def test_the_holder_is_also_named_for_llamacpp(programs: Programs) -> None:
    programs(nvidia_smi=nvidia_smi_script())
    service = ServiceEvidence("a", engine="llamacpp", state="exited", exit_code=1, log=log_text("SG-A011-cuda"))
    found = diagnose(Evidence((service,), gpus=read_gpu_state()))[0]
    assert found.id == "SG-A011" and "VLLM::EngineCore (pid 4242, 76.0 GiB) on GPU 0" in found.cause


def test_the_version_of_a_driver_that_is_too_old_is_shown(programs: Programs) -> None:
    programs(nvidia_smi=nvidia_smi_script())
    log = "RuntimeError: The NVIDIA driver on your system is too old (found version 12080). Please update your driver"
    found = diagnose(failed_service(log, read_gpu_state()))[0]
    assert found.id == "SG-G002" and "570.86.10" in found.cause


@pytest.mark.parametrize(
    ("tool", "kernel", "id", "line"),
    [
        (print_and_exit(LOST, 15), "", "SG-G012", "Unable to determine the device handle"),
        (nvidia_smi_script(), XID, "SG-G012", "fallen off the bus"),
        (print_and_exit(DEAD, 9), "", "SG-G013", "couldn't communicate"),
        (print_and_exit("Failed to initialize NVML: Driver/library version mismatch\n", 18), "", "SG-G013", "mismatch"),
    ],
)
def test_a_lost_gpu_or_dead_driver_comes_before_its_consequences(
    programs: Programs, tool: str, kernel: str, id: str, line: str
) -> None:
    programs(nvidia_smi=tool, dmesg=print_and_exit(kernel, 0))
    found = diagnose(failed_service("RuntimeError: No CUDA GPUs are available", read_gpu_state()))
    assert found[0].id == id and line in " ".join(found[0].evidence), found
    # what it caused in the container comes after it
    assert "SG-G007" in [one.id for one in found]


def test_faulty_gpu_memory_is_reported_only_without_another_cause(programs: Programs) -> None:
    programs(nvidia_smi=nvidia_smi_script(ecc=3))
    broken = failed_service("CUDA error: unspecified launch failure", read_gpu_state())
    on_one = replace(broken, services=(replace(broken.services[0], service="vllm-two"),))
    assert diagnose(on_one)[0].id == "SG-G014" and "GPU 1 has counted 3" in diagnose(on_one)[0].cause
    # the other GPU works; and a known cause hides this one
    assert diagnose(broken)[0].id == "SG-G034"
    known = replace(on_one.services[0], log="ValueError: No available memory for the cache blocks")
    assert [one.id for one in diagnose(replace(on_one, services=(known,)))] == ["SG-M001"]


def test_a_broken_gpu_is_ignored_while_the_stack_works(programs: Programs) -> None:
    programs(nvidia_smi=print_and_exit(LOST, 15))
    service = ServiceEvidence("vllm-one", engine="vllm", state="running", health="healthy")
    assert diagnose(with_plan(service, gpus=read_gpu_state())) == ()


STACK = "name: t\nmodels:\n  - {model: acme/one, engine: vllm, gpus: none}\n"


def diagnose_stack(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The output of `stackgen diagnose` for a stack of local processes that was never started; needs no Docker."""
    (folder / "stack.yaml").write_text(STACK)
    assert command.diagnose(parse_args("diagnose", str(folder), "--runtime", "process", *more)) == 1
    return capsys.readouterr().out


def test_text_json_and_bundle_contain_the_gpu_state(
    tmp_path: Path, programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    programs(nvidia_smi=nvidia_smi_script())
    assert "used by VLLM::EngineCore (pid 4242, 76.0 GiB)" in diagnose_stack(tmp_path, capsys)
    card = json.loads(diagnose_stack(tmp_path, capsys, "--json"))["gpus"]["cards"][0]
    assert card["processes"] == [{"pid": 4242, "name": "VLLM::EngineCore", "memory": 77834 * 2**20}]
    diagnose_stack(tmp_path, capsys, "--bundle", str(tmp_path / "b.tar.gz"))
    with tarfile.open(tmp_path / "b.tar.gz") as tar:
        files = {one.name: tar.extractfile(one).read().decode() for one in tar.getmembers()}  # type: ignore[union-attr]
    assert "VLLM::EngineCore" in files["stackgen-report/gpus.txt"]
    assert json.loads(files["stackgen-report/evidence.json"])["gpus"]["driver"] == "570.86.10"


def test_text_and_json_show_unknown_without_nvidia_smi(
    tmp_path: Path, programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "GPUs: unknown: nvidia-smi was not found on the PATH" in diagnose_stack(tmp_path, capsys)
    gpus = json.loads(diagnose_stack(tmp_path, capsys, "--json"))["gpus"]
    assert gpus["cards"] is None and "nvidia-smi was not found on the PATH" in gpus["unknown"]


def test_a_log_alone_does_not_include_this_machines_gpus(programs: Programs) -> None:
    from stackgen.runtimes.observation.evidence import collect_from_log

    programs(nvidia_smi=nvidia_smi_script())
    assert collect_from_log(log_text("SG-M002-free-memory")).gpus is None


def test_a_secret_in_a_process_name_is_redacted(programs: Programs) -> None:
    programs(nvidia_smi=nvidia_smi_script().replace("VLLM::EngineCore", "python3 --api-key hunter2hunter2"))
    evidence = failed_service(log_text("SG-M002-free-memory"), read_gpu_state())
    found = diagnose(evidence)
    assert "hunter2hunter2" not in json.dumps(found[0].to_json())
    with tarfile.open(fileobj=io.BytesIO(build_bundle(evidence, found, {}, {})), mode="r:gz") as tar:
        assert not any(b"hunter2" in tar.extractfile(one).read() for one in tar.getmembers())  # type: ignore[union-attr]


def test_the_gpu_state_of_this_machine_is_read_without_a_stub() -> None:
    """With a GPU its state, otherwise the reason why it is unknown."""
    state = read_gpu_state()
    assert state.devices is not None or state.unknown or state.error
