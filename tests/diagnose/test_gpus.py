"""The GPUs' state as evidence: read by a stub `nvidia-smi` that prints in the real one's format, and what rules make of
it. No machine here has a card."""

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
from stackgen.diagnose.bundle import pack
from stackgen.diagnose.gpus import GpuState, summary
from stackgen.runtimes.observation.gpu_tools import gpu_state
from tests.cli.test_diagnose import words
from tests.diagnose.fixtures import LOGS, load
from tests.diagnose.test_rules import planned

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
    """`programs(name=script, …)` makes these the only programs on the PATH, beside the shell's own."""
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


def smi(rows: str = ROWS, ecc: int = 0) -> str:
    return (
        'case "$1" in\n--query-gpu=*) cat <<E\n' + rows.format(ecc=ecc) + "E\n;;\n"
        f"--query-compute-apps=*) cat <<E\n{APPS}E\n;;\n*) cat <<E\n{HEAD}E\n;;\nesac"
    )


def says(text: str, code: int) -> str:
    return f'cat <<"E"\n{text}E\nexit {code}'


def test_a_stub_nvidia_smi_is_read(programs: Programs) -> None:
    programs(nvidia_smi=smi(), dmesg=says("[ 0.0] Linux version 6.1\n" + XID, 0))
    state = gpu_state()
    assert (state.driver, state.cuda, state.unknown, state.error) == ("570.86.10", "12.8", "", "")
    assert state.xids == (XID.strip(),)
    busy, idle = state.cards or ()
    assert (busy.index, busy.uuid[:12], busy.name, busy.compute) == (0, "GPU-5e2b8b1c", "NVIDIA H100 80GB HBM3", "9.0")
    assert [busy.memory_total, busy.memory_used, busy.memory_free] == [n * 2**20 for n in (81559, 77845, 3200)]
    assert [(one.pid, one.name, one.memory) for one in busy.processes] == [(4242, "VLLM::EngineCore", 77834 * 2**20)]
    assert idle.processes == () and idle.ecc_errors == 0
    told = "\n".join(summary(state))
    assert "GPU 0 (NVIDIA H100 80GB HBM3, capability 9.0): 76.0 GiB used of 79.6 GiB, 3.1 GiB free" in told
    assert "held by VLLM::EngineCore (pid 4242, 76.0 GiB)" in told and "driver 570.86.10" in told


def test_without_nvidia_smi_the_state_is_unknown(programs: Programs) -> None:
    state = gpu_state()
    assert state.cards is None and "no nvidia-smi" in state.unknown and state.xids is None
    assert summary(state)[0].startswith("GPUs: unknown: there is no nvidia-smi")


def test_a_stub_nvidia_smi_that_finds_no_card(programs: Programs) -> None:
    programs(nvidia_smi=says("No devices were found\n", 6))
    assert gpu_state().cards == () and summary(gpu_state()) == ("GPUs: none",)


def test_a_stub_nvidia_smi_of_an_old_driver_lacks_a_field(programs: Programs) -> None:
    programs(nvidia_smi=f'case "$1" in *compute_cap*) {says(OLD, 2)};; esac\n{smi(ROWS.replace("9.0", "NVIDIA H100"))}')
    state = gpu_state()
    assert [one.compute for one in state.cards or ()] == [None, None] and state.driver == "570.86.10"


def test_a_kernel_log_that_may_not_be_read_is_unknown(programs: Programs) -> None:
    programs(nvidia_smi=smi(), dmesg="echo 'dmesg: read kernel buffer failed: Operation not permitted' >&2; exit 1")
    assert gpu_state().xids is None


def failing(log: str, gpus: GpuState, **more: object) -> Evidence:
    service = ServiceEvidence("vllm-one", engine="vllm", state="exited", exit_code=1, log=log, **more)  # type: ignore[arg-type]
    return planned(service, gpus=gpus)


def body(name: str) -> str:
    return load(LOGS / f"{name}.log").text


def test_who_holds_the_card_is_named(programs: Programs) -> None:
    programs(nvidia_smi=smi())
    for name, id in (("SG-M002-free-memory", "SG-M002"), ("SG-M008-plain", "SG-M008"), ("SG-M005-weights", "SG-M005")):
        found = diagnose(failing(body(name), gpu_state()))[0]
        assert found.id == id and "VLLM::EngineCore (pid 4242, 76.0 GiB)" in found.cause, found
        assert any("GPU 0 (NVIDIA H100" in line for line in found.evidence)
        # the plan gives this service card 0 and no other
        assert not any("GPU 1" in line for line in found.evidence)


def test_llamacpp_names_the_holder_as_well(programs: Programs) -> None:
    programs(nvidia_smi=smi())
    service = ServiceEvidence("a", engine="llamacpp", state="exited", exit_code=1, log=body("SG-A011-cuda"))
    found = diagnose(Evidence((service,), gpus=gpu_state()))[0]
    assert found.id == "SG-A011" and "VLLM::EngineCore (pid 4242, 76.0 GiB) on GPU 0" in found.cause


def test_a_driver_that_is_too_old_is_named(programs: Programs) -> None:
    programs(nvidia_smi=smi())
    log = "RuntimeError: The NVIDIA driver on your system is too old (found version 12080). Please update your driver"
    found = diagnose(failing(log, gpu_state()))[0]
    assert found.id == "SG-G002" and "570.86.10" in found.cause


@pytest.mark.parametrize(
    ("tool", "kernel", "id", "said"),
    [
        (says(LOST, 15), "", "SG-G012", "Unable to determine the device handle"),
        (smi(), XID, "SG-G012", "fallen off the bus"),
        (says(DEAD, 9), "", "SG-G013", "couldn't communicate"),
        (says("Failed to initialize NVML: Driver/library version mismatch\n", 18), "", "SG-G013", "mismatch"),
    ],
)
def test_a_machine_whose_cards_fail(programs: Programs, tool: str, kernel: str, id: str, said: str) -> None:
    programs(nvidia_smi=tool, dmesg=says(kernel, 0))
    found = diagnose(failing("RuntimeError: No CUDA GPUs are available", gpu_state()))
    assert found[0].id == id and said in " ".join(found[0].evidence), found
    # what the container met of it stands below
    assert "SG-G007" in [one.id for one in found]


def test_faulty_memory_counts_where_nothing_else_is_known(programs: Programs) -> None:
    programs(nvidia_smi=smi(ecc=3))
    broken = failing("CUDA error: unspecified launch failure", gpu_state())
    on_one = replace(broken, services=(replace(broken.services[0], service="vllm-two"),))
    assert diagnose(on_one)[0].id == "SG-G014" and "GPU 1 counts 3" in diagnose(on_one)[0].cause
    # the other card is whole, and a known cause is told instead
    assert diagnose(broken)[0].id == "SG-0000"
    known = replace(on_one.services[0], log="ValueError: No available memory for the cache blocks")
    assert [one.id for one in diagnose(replace(on_one, services=(known,)))] == ["SG-M001"]


def test_cards_are_no_matter_of_a_stack_without_them(programs: Programs) -> None:
    programs(nvidia_smi=says(LOST, 15))
    service = ServiceEvidence("vllm-one", engine="vllm", state="running", health="healthy")
    assert diagnose(planned(service, gpus=gpu_state())) == ()


STACK = "name: t\nmodels:\n  - {model: acme/one, engine: vllm, gpus: none}\n"


def told(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """What `stackgen diagnose` prints of a stack of local processes that was never started: no Docker is asked."""
    (folder / "stack.yaml").write_text(STACK)
    assert command.diagnose(words("diagnose", str(folder), "--runtime", "process", *more)) == 1
    return capsys.readouterr().out


def test_text_json_and_bundle_hold_the_state_by_a_stub(
    tmp_path: Path, programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    programs(nvidia_smi=smi())
    assert "held by VLLM::EngineCore (pid 4242, 76.0 GiB)" in told(tmp_path, capsys)
    card = json.loads(told(tmp_path, capsys, "--json"))["gpus"]["cards"][0]
    assert card["processes"] == [{"pid": 4242, "name": "VLLM::EngineCore", "memory": 77834 * 2**20}]
    told(tmp_path, capsys, "--bundle", str(tmp_path / "b.tar.gz"))
    with tarfile.open(tmp_path / "b.tar.gz") as tar:
        files = {one.name: tar.extractfile(one).read().decode() for one in tar.getmembers()}  # type: ignore[union-attr]
    assert "VLLM::EngineCore" in files["stackgen-report/gpus.txt"]
    assert json.loads(files["stackgen-report/evidence.json"])["gpus"]["driver"] == "570.86.10"


def test_text_and_json_say_unknown_without_the_tool(
    tmp_path: Path, programs: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "GPUs: unknown: there is no nvidia-smi" in told(tmp_path, capsys)
    gpus = json.loads(told(tmp_path, capsys, "--json"))["gpus"]
    assert gpus["cards"] is None and "no nvidia-smi" in gpus["unknown"]


def test_a_log_alone_says_nothing_of_this_machines_cards(programs: Programs) -> None:
    from stackgen.runtimes.observation.evidence import of_log

    programs(nvidia_smi=smi())
    assert of_log(body("SG-M002-free-memory")).gpus is None


def test_a_secret_in_a_processes_name_is_taken_out(programs: Programs) -> None:
    programs(nvidia_smi=smi().replace("VLLM::EngineCore", "python3 --api-key hunter2hunter2"))
    evidence = failing(body("SG-M002-free-memory"), gpu_state())
    found = diagnose(evidence)
    assert "hunter2hunter2" not in json.dumps(found[0].to_json())
    with tarfile.open(fileobj=io.BytesIO(pack(evidence, found, {}, {})), mode="r:gz") as tar:
        assert not any(b"hunter2" in tar.extractfile(one).read() for one in tar.getmembers())  # type: ignore[union-attr]


def test_this_machines_own_tool_is_asked_without_a_stub() -> None:
    """Whatever is here: with a card its state, else why it is unknown."""
    state = gpu_state()
    assert state.cards is not None or state.unknown or state.error
