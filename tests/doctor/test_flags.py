"""`extra_args` are checked against the flags of the pinned engine versions."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.generate_flags import PROGRAMS, read_help
from stackgen.doctor.flags import FIELD_OF_FLAG, check_flags
from stackgen.flags import REMOVED_FLAGS, REMOVED_IN, REMOVED_SWITCHES, load_flags
from stackgen.images.tags import VERSIONS, cpu_image_tag
from tests.doctor.hosts import NO_GPU, findings, single_problem, write_stack


def check(engine: str, *arguments: str) -> list[tuple[str, str, str]]:
    known = load_flags(engine)
    assert known
    return [(one.status, one.message, one.fix) for one in check_flags(engine, arguments, known, "x")]


@pytest.mark.parametrize("engine", PROGRAMS)
def test_flag_tables_are_for_the_pinned_versions(engine: str) -> None:
    known = load_flags(engine)
    assert known and known.version == VERSIONS[PROGRAMS[engine][0]]
    assert len(known.by_name) > 30
    assert not set(REMOVED_FLAGS[engine]) & set(known.by_name)
    assert set(REMOVED_FLAGS["vllm"]) >= REMOVED_SWITCHES
    assert set(FIELD_OF_FLAG[engine]) <= set(known.by_name)
    for advice in REMOVED_FLAGS[engine].values():
        assert set(re.findall(r"--[a-z][a-z-]+", advice)) <= set(known.by_name), advice


@pytest.mark.docker
@pytest.mark.parametrize("engine", PROGRAMS)
def test_flag_tables_equal_the_help_of_the_programs(engine: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(f"{engine}_image")
    folder, arguments = PROGRAMS[engine]
    command = ["docker", "run", "--rm", "--entrypoint", arguments[0], "-e", "HOME=/tmp", "-e", "LOGDIR="]
    command += ["-e", "COLUMNS=400", cpu_image_tag(folder)]
    done = subprocess.run([*command, *arguments[1:]], capture_output=True, text=True, check=True)
    names = {name for flag in read_help(done.stdout + done.stderr) for name in flag["names"]}  # type: ignore[attr-defined]
    known = load_flags(engine)
    assert known and names == set(known.by_name)


@pytest.mark.parametrize(
    ("engine", "arguments"),
    [
        ("vllm", ["--max-num-batched-tokens", "8192", "--enable-prefix-caching"]),
        ("vllm", ["--no-enable-prefix-caching", "--max_num_batched_tokens=8192", "-O3"]),
        ("vllm", ["--speculative-config.method", "ngram", "--compilation-config.cudagraph_capture_sizes+", "8"]),
        ("vllm", ["--max-num-batched", "8192"]),
        ("vllm", ["--kv-cache-memory-bytes", "-1"]),
        ("fastchat", ["--stream-interval", "2", "--seed=-1"]),
        ("llamacpp", ["--flash-attn", "on", "-tb", "4", "--cache_type_k", "q8_0"]),
        ("llamacpp", ["-n", "-1"]),
    ],
)
def test_valid_flags_give_no_finding(engine: str, arguments: list[str]) -> None:
    assert check(engine, *arguments) == []


@pytest.mark.parametrize(
    ("engine", "arguments", "status", "fix"),
    [
        ("vllm", ["--enable-prefix-cachin"], "", ""),  # argparse accepts this prefix
        ("vllm", ["--enable-prefx-caching"], "fail", "did you mean --enable-prefix-caching?"),
        ("vllm", ["--disable-log-requests"], "fail", "remove the flag"),
        ("vllm", ["--disable_log_requests"], "fail", "remove the flag"),
        ("vllm", ["--enable-reasoning"], "fail", "reasoning_parser"),
        ("vllm", ["--model", "x"], "warn", "set model"),
        ("vllm", ["--tensor-parallel-size", "2"], "warn", "tensor_parallel_size"),
        ("vllm", ["-tp", "2"], "warn", "tensor_parallel_size"),
        ("vllm", ["--runner", "generat"], "fail", "did you mean generate?"),
        ("vllm", ["--runner=nothing"], "fail", "one of auto"),
        ("vllm", ["--flash-attn"], "fail", "llamacpp"),
        ("fastchat", ["--limit_worker_concurrency", "3"], "fail", "--limit-worker-concurrency"),
        ("fastchat", ["--api-keys", "sk-secret"], "fail", "process list"),
        ("fastchat", ["--xft-dtype", "gpu"], "fail", "one of"),
        ("llamacpp", ["--draft-max", "4"], "fail", "--spec-draft-n-max"),
        ("llamacpp", ["--ctx-siz", "4"], "fail", "did you mean --ctx-size?"),
        ("llamacpp", ["--ctx-size", "4"], "warn", "max_model_len"),
    ],
)
def test_invalid_flags_are_reported_with_a_fix(engine: str, arguments: list[str], status: str, fix: str) -> None:
    found = check(engine, *arguments)
    assert [one[0] for one in found] == ([status] if status else [])
    assert not found or fix in found[0][2]
    assert "secret" not in repr(found)


def test_removed_flag_is_reported_with_the_version_that_removed_it() -> None:
    assert check("vllm", "--swap_space", "4")[0][1] == "--swap_space was removed in vllm 0.18.0"
    # removed before the first release that REMOVED_IN covers
    assert check("vllm", "--speculative-model", "m")[0][1] == "--speculative-model was removed"
    assert set(REMOVED_IN) < set(REMOVED_FLAGS["vllm"])


@settings(deadline=None)
@given(st.lists(st.text()), st.sampled_from(["vllm", "fastchat", "llamacpp"]))
def test_any_arguments_are_parsed_without_an_exception(arguments: list[str], engine: str) -> None:
    assert all(
        status in ("fail", "warn")
        for status, _, _ in check(engine, *arguments, *(f"--{argument}" for argument in arguments))
    )


def test_extra_args_of_a_stack_are_checked_unless_it_has_its_own_image(tmp_path: Path) -> None:
    found = findings(NO_GPU, write_stack(tmp_path, gpus="none", extra_args=["--max-log-len", "9", "--max-log-length"]))
    assert single_problem(found, "SG-P090", "fail").place == "models[0].extra_args[2]"
    path = write_stack(tmp_path, gpus="none", image="my/vllm:1.0", extra_args=["--brand-new"])
    assert [one.status for one in findings(NO_GPU, path) if one.id == "SG-P090"] == ["unknown"]


@pytest.mark.docker
def test_real_vllm_rejects_removed_flags(vllm_image: str) -> None:
    program = (
        "import sys\nfrom vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser\n"
        "parser = make_arg_parser(FlexibleArgumentParser())\n"
        "for flag in sys.argv[1:]:\n"
        "    try:\n        parser.parse_args(['m', flag, '1'])\n        print('taken', flag)\n"
        "    except SystemExit:\n        pass\n"
    )
    arguments = ["docker", "run", "--rm", "-e", "HOME=/tmp", "--entrypoint", "python3", vllm_image, "-c", program]
    done = subprocess.run([*arguments, *REMOVED_FLAGS["vllm"]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    assert "taken" not in done.stdout
