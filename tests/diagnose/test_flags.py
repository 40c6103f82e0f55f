"""Flags that an engine rejects: the fix, and what is removed from stack.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from stackgen.diagnose import Evidence, Finding, ServiceEvidence, diagnose
from stackgen.diagnose.stack_edit import apply_edit
from stackgen.resolve.pipeline import resolve
from stackgen.runtimes.observation.evidence import collect_from_log
from stackgen.stack.load import parse_stack
from stackgen.targets.compose import ComposeSite

STACK = """\
name: demo
models:
  - model: acme/one
    engine: {engine}
    gpus: [0]
    served_names: [one]
    extra_args: [{args}]   # kept
"""
REFUSALS = {
    "vllm": "vllm: error: unrecognized arguments: {}",
    "fastchat": "2026-11-23 05:22:08 | ERROR | stderr | launch.py: error: unrecognized arguments: {}",
    "llamacpp": "error: invalid argument: {}",
}


def diagnose_refusal(engine: str, args: str, rejected: str) -> tuple[str, Finding]:
    text = STACK.format(engine=engine, args=args)
    if engine == "llamacpp":
        text = text.replace("    gpus: [0]\n", "    gpus: [0]\n    file: one.gguf\n")
    spec = parse_stack(text)
    plan = resolve(spec, ComposeSite(Path("x"), Path("x")), "stack.yaml")
    service = next(one.name for one in plan.services if one.engine == engine and one.role in ("engine", "worker"))
    log = REFUSALS[engine].format(rejected)
    evidence = ServiceEvidence(service, engine=engine, state="exited", exit_code=2, log=log)
    return text, diagnose(Evidence((evidence,), spec=spec, plan=plan))[0]


@pytest.mark.parametrize(
    ("args", "rejected", "left", "safe"),
    [
        ("--disable-log-requests, --seed, '7'", "--disable-log-requests", ["--seed", "7"], True),
        ("--seed, '7', --disable_log_requests", "--disable_log_requests", ["--seed", "7"], True),
        ("--enable-reasoning", "--enable-reasoning", [], True),
        # its value is removed with it, which a person must confirm
        ("--swap-space, '4', --seed, '4'", "--swap-space 4", ["--seed", "4"], False),
        ("--seed, '4', --swap-space, '4'", "--swap-space 4", ["--seed", "4"], False),
        ("--swap-space=4, --seed, '7'", "--swap-space=4", ["--seed", "7"], False),
    ],
)
def test_an_unneeded_flag_is_removed_with_its_value(args: str, rejected: str, left: list[str], safe: bool) -> None:
    text, found = diagnose_refusal("vllm", args, rejected)
    assert found.id == "SG-V003" and found.edit is not None and found.edit.safe is safe
    after = apply_edit(text, found.edit)
    assert yaml.safe_load(after)["models"][0]["extra_args"] == left and "# kept" in after


@pytest.mark.parametrize(
    ("args", "rejected", "fix"),
    [
        ("--task, embed", "--task embed", "use --runner"),
        ("--rope-scaling, '{\"a\": 1}'", '--rope-scaling {"a": 1}', "use --hf-overrides"),
        ("--worker-use-ray", "--worker-use-ray", "--distributed-executor-backend ray"),
        # the value is missing, so the next argument may be anything
        ("--swap-space, --seed, '7'", "--swap-space", "remove the flag: vLLM recomputes preempted requests"),
    ],
)
def test_a_flag_that_needs_a_replacement_is_not_removed(args: str, rejected: str, fix: str) -> None:
    _, found = diagnose_refusal("vllm", args, rejected)
    assert found.id == "SG-V003" and fix in found.fix and found.edit is None


@pytest.mark.parametrize(
    ("engine", "flag", "fix"),
    [
        ("vllm", "--model-names", "--model-names is a flag of fastchat"),
        ("vllm", "--num-gpus", "--num-gpus is a flag of fastchat"),
        ("vllm", "--load-8bit", "--load-8bit is a flag of fastchat"),
        ("vllm", "--limit-worker-concurrency", "--limit-worker-concurrency is a flag of fastchat"),
        ("vllm", "--ctx-size", "--ctx-size is a flag of llamacpp"),
        ("vllm", "--tensor-paralel-size", "did you mean --tensor-parallel-size?"),
        ("vllm", "--async-schedulng", "did you mean --async-scheduling?"),
        ("fastchat", "--max-model-len", "--max-model-len is a flag of vllm"),
        ("fastchat", "--limit_worker_concurrency", "did you mean --limit-worker-concurrency?"),
        ("fastchat", "--conv-templat", "did you mean --conv-template?"),
        ("fastchat", "--api-keys", "the key comes from .env"),
        ("llamacpp", "--enforce-eager", "there are no CUDA graphs"),
        ("llamacpp", "--ctx-siz", "did you mean --ctx-size?"),
    ],
)
def test_a_flag_of_another_engine_is_recognized(engine: str, flag: str, fix: str) -> None:
    _, found = diagnose_refusal(engine, f"{flag}, '2'", f"{flag} 2")
    assert found.id == ("SG-A001" if engine == "llamacpp" else "SG-V004") and fix in found.fix


@pytest.mark.parametrize("flag", ["--rope-theta", "--enable-lora-bias", "--override-pooler-config", "--swap_space"])
def test_doctor_and_diagnose_know_the_same_removed_flags(flag: str) -> None:
    from stackgen.doctor.flags import check_flags
    from stackgen.flags import load_flags

    known = load_flags("vllm")
    assert known
    (before,) = check_flags("vllm", (flag,), known, "x")
    after = diagnose(collect_from_log(f"vllm: error: unrecognized arguments: {flag} 3\n"))[0]
    assert after.id == "SG-V003" and before.fix == after.fix


def test_a_vllm_flag_is_removed_from_llamacpp_with_its_value() -> None:
    text, found = diagnose_refusal("llamacpp", "--dtype, half, --mlock", "--dtype")
    assert found.edit is not None and not found.edit.safe
    assert yaml.safe_load(apply_edit(text, found.edit))["models"][0]["extra_args"] == ["--mlock"]
    assert diagnose_refusal("llamacpp", "--max-num-seqs, '4'", "--max-num-seqs")[1].edit is None
