"""The change for a cause: computed from stack.yaml and from the numbers in the message."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from stackgen.diagnose import Evidence, Finding, ServiceEvidence, diagnose
from stackgen.diagnose.rule import Edit
from stackgen.diagnose.stack_edit import apply_edit
from stackgen.errors import StackgenError
from stackgen.resolve.pipeline import resolve
from stackgen.stack.load import parse_stack
from stackgen.targets.compose import ComposeSite

STACK = "name: demo\nmodels:\n  - model: acme/one\n    engine: vllm\n    gpus: [0]\n    served_names: [one]\n"
P = "(EngineCore pid=88) ERROR 11-20 10:00:00 [core.py:700] "
GRAPHS = f'{P}  File "x.py", line 1, in capture_model\n{P}torch.OutOfMemoryError: CUDA out of memory.\n'
SAMPLER = f"{P}RuntimeError: CUDA out of memory occurred when warming up sampler with {{}} dummy requests.\n"
NCCL = f"{P}NCCL WARN Error while creating shared memory segment /dev/shm/nccl-AbCdEf (size 33030528)\n"
SHM = f"{P}RuntimeError: Insufficient space in /dev/shm for ring buffer: {{}} required, {{}} free.\n"
HELD = (
    f"{P}ValueError: Free memory on device cuda:0 ({{}}/80.0 GiB) on startup is less than desired GPU memory "
    "utilization (0.92, 73.6 GiB).\n"
)
OTHER = (
    f"{P}ValueError: Quantization method specified in the model config (gptq) does not match the quantization method "
    "specified in the `quantization` argument (awq).\n"
)


def diagnose_log(log: str, more: str = "") -> tuple[str, Finding]:
    text = STACK + more
    spec = parse_stack(text)
    plan = resolve(spec, ComposeSite(Path("x"), Path("x")), "stack.yaml")
    service = ServiceEvidence("vllm-one", engine="vllm", state="exited", exit_code=1, log=log)
    return text, diagnose(Evidence((service,), spec=spec, plan=plan))[0]


@pytest.mark.parametrize(
    ("id", "log", "more", "value", "safe"),
    [
        ("SG-M006", GRAPHS, "", 0.87, False),
        ("SG-M006", GRAPHS, "    gpu_memory_utilization: 0.8\n", 0.75, False),
        ("SG-M004", SAMPLER.format(32), "    max_num_seqs: 32\n", 16, False),
        ("SG-M004", SAMPLER.format(256), "", 128, False),
        ("SG-M010", NCCL, "", "8g", True),
        ("SG-M010", NCCL, "    shm_size: 1g\n", "8g", True),
        ("SG-M010", NCCL, "    shm_size: 16g\n", None, True),
        ("SG-M010", NCCL, "    ipc: host\n", None, True),
        ("SG-M009", SHM.format("160 MiB", "64 MiB"), "    shm_size: 64m\n", "1g", True),
        ("SG-M009", SHM.format("9160 MiB", "8192 MiB"), "    shm_size: 8g\n", "17g", True),
        ("SG-M009", SHM.format("160 MiB", "64 MiB"), "    ipc: host\n", None, True),
        ("SG-M002", HELD.format("61.3"), "", 0.75, False),
        ("SG-M002", HELD.format("3.1"), "", None, False),
    ],
)
def test_new_sizes_are_computed_from_the_stack_file_and_the_message(
    id: str, log: str, more: str, value: object, safe: bool
) -> None:
    text, found = diagnose_log(log, more)
    assert found.id == id
    if value is None:
        assert found.edit is None
        return
    assert found.edit is not None and found.edit.safe is safe
    after = yaml.safe_load(apply_edit(text, found.edit))["models"][0]
    assert after[found.edit.path[-1]] == value
    parse_stack(apply_edit(text, found.edit))


@pytest.mark.parametrize("more", ["    quantization: awq\n", "    quantization: awq   # why\n    seed: 1\n"])
def test_an_unneeded_field_is_removed(more: str) -> None:
    text, found = diagnose_log(OTHER, more.replace("    seed: 1\n", "    max_num_seqs: 4\n"))
    assert found.id == "SG-V010" and found.edit is not None and not found.edit.safe and found.edit.was == "awq"
    after = apply_edit(text, found.edit)
    assert "quantization" not in after and after.replace("\n", "") in text.replace(more.split("\n")[0], "").replace(
        "\n", ""
    )
    # without the field there is nothing to remove
    assert diagnose_log(OTHER)[1].edit is None


@pytest.mark.parametrize(
    "text",
    [
        "models:\n  - quantization: awq\n    model: a\n",
        "models:\n  - model: a\n    quantization: |\n      awq\n",
        "models:\n  - model: a\n",
    ],
)
def test_a_field_that_can_not_be_removed_safely_stays(text: str) -> None:
    with pytest.raises(StackgenError, match=r"stack\.yaml can't be edited safely"):
        apply_edit(text, Edit(("models", 0, "quantization"), remove=True))


def test_a_field_is_removed_from_a_flow_mapping() -> None:
    edit = Edit(("models", 0, "quantization"), remove=True)
    assert apply_edit("models: [{model: a, quantization: awq, engine: vllm}]\n", edit) == (
        "models: [{model: a, engine: vllm}]\n"
    )


def test_a_value_that_is_already_set_is_no_change() -> None:
    text = "RuntimeError: torch._inductor.exc.InvalidCxxCompiler: No working C++ compiler found"
    assert diagnose_log(text)[1].edit is not None
    assert diagnose_log(text, "    enforce_eager: true\n")[1].edit is None


def test_interleaved_tracebacks_of_several_workers_are_kept_apart() -> None:
    """With tensor parallel 4, the tracebacks of all workers are printed at the same time, line by line."""
    frames = [
        'Traceback (most recent call last):', '  File "worker.py", line 1, in load_model',
        *(f'  File "linear.py", line {number}, in __init__' for number in range(45)),
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 224.00 MiB. GPU 0 has a total capacity of "
        "23.69 GiB of which 1.00 MiB is free.",
    ]  # fmt: skip
    log = "".join(
        f"(Worker_TP{rank} pid={100 + rank}) ERROR 11-20 10:00:00 [multiproc.py:600] {frame}\n"
        for frame in frames
        for rank in range(4)
    )
    service = ServiceEvidence("a", engine="vllm", state="exited", exit_code=1, log=log)
    found = diagnose(Evidence((service,)))
    assert [one.id for one in found] == ["SG-M005"] and "224.00 MiB" in found[0].cause
