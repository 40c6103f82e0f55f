"""Which cause comes first, and what is said if the log shows none: general cases, not single reports."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stackgen.diagnose import Finding, diagnose
from stackgen.diagnose.rule import UNKNOWN
from stackgen.diagnose.templates import fill_template
from stackgen.runtimes.observation.evidence import collect_from_log
from stackgen.stack.load import parse_stack

INFER = "RuntimeError: Failed to infer device type, please set the environment variable"
HARMFUL = ("restart docker", "systemctl restart", "restart the machine", "prune", "download")


def first(text: str, stack: str = "") -> Finding:
    evidence = collect_from_log(text)
    return diagnose(replace(evidence, spec=parse_stack(stack)) if stack else evidence)[0]


@pytest.mark.parametrize(
    ("line", "id", "cause"),
    [
        ("Failed to initialize NVML: Unknown Error", "SG-G005", "cgroup denies access"),
        ("Failed to initialize NVML: Driver/library version mismatch", "SG-G005", "kernel module of the old version"),
        ("Failed to initialize NVML: Insufficient Permissions", "SG-G029", "SELinux"),
        ("Failed to initialize NVML: the moon is full", UNKNOWN, "most likely show the cause"),
    ],
)
def test_the_earliest_specific_error_wins_over_a_general_one(line: str, id: str, cause: str) -> None:
    found = diagnose(collect_from_log(f"{line}\nTraceback (most recent call last):\n{INFER}\n"))
    assert [one.id for one in found] == [id] and cause in found[0].cause and line in found[0].evidence
    assert not any(word in found[0].fix.lower() for word in HARMFUL)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("SG-M017 OSError: [Errno 12] Cannot allocate memory", "SG-V008 ValueError: Please pass the argument "
         "`trust_remote_code=True` to allow custom code to be run."),
        ("SG-G035 RuntimeError: CUDA-capable device(s) is/are busy or unavailable", "SG-L009 OSError: [Errno 5] "
         "Input/output error"),
    ],
)  # fmt: skip
def test_the_order_of_the_log_decides_between_two_causes_of_one_process(earlier: str, later: str) -> None:
    (one, a), (other, b) = earlier.split(" ", 1), later.split(" ", 1)
    assert first(f"{a}\n{b}\n").id == one and first(f"{b}\n{a}\n").id == other


ENDED = "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above."


@pytest.mark.parametrize(
    "log",
    [
        f"(EngineCore pid=9) INFO 07-06 20:11:48 [x.py:4] Starting to load model acme/one...\n{ENDED}\n",
        f'(APIServer pid=1) Traceback (most recent call last):\n(APIServer pid=1)   File "/x/utils.py", line 3, in w\n'
        f"(APIServer pid=1)     raise RuntimeError(\n{ENDED}\n",
        "llama_model_load_from_file_impl: failed to load model\nllama_server: exiting due to model loading error\n",
    ],
)
def test_a_log_of_consequences_alone_is_not_said_to_show_the_cause(log: str) -> None:
    found = first(log)
    assert found.id == UNKNOWN and "does not contain the cause" in found.cause and "most likely show" not in found.cause
    assert "OOMKilled" in found.fix and "exit code" in found.fix
    assert not any(line.startswith(("File", "raise", "Traceback")) for line in found.evidence)
    # with an error of another process, the log does show it
    assert "most likely show" in first(f"ValueError: the frobnicator is out of plums\n{log}").cause


FRAME = '  File "/x/plum.py", line 9, in pick\n'


def test_an_exception_without_its_own_line_is_read_from_the_code_that_raises_it() -> None:
    line = 'raise RuntimeError("the frobnicator is out of plums")'
    found = first(f"{FRAME}    {line}\n{ENDED}\n")
    assert line in found.evidence and "most likely show" in found.cause
    # the exception's own line is shown alone
    own = "RuntimeError: the frobnicator is out of plums"
    assert first(f"{FRAME}    {line}\n{own}\n{ENDED}\n").evidence == (own,)


def test_a_traceback_that_ends_early_is_not_called_a_killed_process() -> None:
    found = first(f"{FRAME}    pick(plums)\n{ENDED}\n")
    assert found.id == UNKNOWN and "not the exception at its end" in found.cause and "killed" not in found.cause
    assert 'File "/x/plum.py", line 9, in pick' in found.evidence and "pick(plums)" in found.evidence
    # vLLM's prefix in front of the frames
    core = "(EngineCore pid=9) "
    assert first(f"{core}{FRAME}{core}    pick(plums)\n{ENDED}\n").cause == found.cause
    line = 'raise RuntimeError("the frobnicator is out of plums")'
    assert line in first(f"{core}{FRAME}{core}    {line}\n{ENDED}\n").evidence


def test_a_failed_request_is_not_called_the_end_of_the_server() -> None:
    frame = '  File "/x/vllm/entrypoints/openai/chat_completion/serving.py", line 9, in render_chat_request\n'
    assert "may still be running" in first(f"{frame}    pick(plums)\nValueError: out of plums\n").cause
    assert "may still be running" not in first(f"{FRAME}    pick(plums)\nValueError: out of plums\n").cause
    # the same file at the start, and a server that ended
    assert (
        "may still be running"
        not in first(f"{frame.replace('render_chat_request', '__init__')}ValueError: plums\n").cause
    )
    assert "may still be running" not in first(f"{frame}    pick()\nValueError: plums\na-1 exited with code 1\n").cause


SHARED = """\
name: two
models:
  - {model: acme/a, engine: vllm, gpus: [0], gpu_memory_utilization: 0.2, share_gpus: true}
  - {model: acme/b, engine: vllm, gpus: [0], gpu_memory_utilization: 0.2, share_gpus: true}
"""
ALONE = "name: one\nmodels:\n  - {model: acme/a, engine: vllm, gpus: [0]}\n"
NO_BLOCKS = "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`\n"


def test_a_symptom_with_several_causes_asks_the_stack() -> None:
    assert "another model" in first(NO_BLOCKS, SHARED).cause and "quantize" not in first(NO_BLOCKS, SHARED).fix
    # two models that start at the same time count each other's memory: more memory for this model would not help
    assert first(NO_BLOCKS, SHARED).fix.startswith("start this service again when the other model is healthy")
    assert "another model" not in first(NO_BLOCKS, ALONE).cause and "another model" not in first(NO_BLOCKS).cause


def test_advice_does_not_name_what_the_stack_does_not_have() -> None:
    log = "RuntimeError: No CUDA GPUs are available\n"
    hidden = ALONE.replace("gpus: [0]}", "gpus: [0], extra_env: {CUDA_VISIBLE_DEVICES: '7'}}")
    assert "CUDA_VISIBLE_DEVICES" in first(log, hidden).fix and "set `gpus`" not in first(log, hidden).fix
    assert "CUDA_VISIBLE_DEVICES" not in first(log, ALONE).fix
    # a log alone shows neither
    assert "CUDA_VISIBLE_DEVICES" in first(log).fix and "set `gpus`" in first(log).fix


def test_conditions_in_templates_read_fields_flags_and_variables() -> None:
    model = parse_stack(ALONE.replace("gpus: [0]}", "gpus: [0], image: 'a:1', extra_args: ['--host=::']}")).models[0]
    template = "[[?image|a]][[!image|b]][[?extra_args.--host|c]][[?extra_args.--port|d]][[?extra_env.X|e]]"
    assert fill_template(template, {}, model) == "ac" and fill_template(template, {}) == "abcde"


@pytest.mark.parametrize(
    ("flag", "fix"),
    [("--enable-fast-mode", "remove the flag"), ("--tensor-paralel-size", "did you mean --tensor-parallel-size?"),
     ("--enable-prefix-cache", "remove the flag")],
)  # fmt: skip
def test_only_a_typo_is_corrected_and_removal_is_always_offered(flag: str, fix: str) -> None:
    found = first(f"vllm: error: unrecognized arguments: {flag}\n")
    assert found.id == "SG-V004" and fix in found.fix and "remove the flag" in found.fix
    assert "did you mean" not in found.fix or fix.startswith("did you mean")
