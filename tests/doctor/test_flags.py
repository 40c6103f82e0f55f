"""`extra_args` are checked against the flags of the pinned engine versions."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.generate_flags import PARSERS, PROGRAMS, READER, VALUES, read_help
from stackgen import flags
from stackgen.doctor.flags import check_flags
from stackgen.engines import sglang
from stackgen.flags import REMOVED_FLAGS, REMOVED_IN, REMOVED_SWITCHES, load_flags
from stackgen.flags.arguments import FIELD_OF_FLAG
from stackgen.images.tags import VERSIONS, cpu_image_tag
from tests.doctor.hosts import NO_GPU, findings, single_problem, write_stack

# what `vllm serve --help=all` runs, then the parser with each argument of this program as a flag
HELP_AND_PARSE = """
import contextlib, io, sys
flags, sys.argv = sys.argv[1:], ["vllm", "serve", "--help=all"]
from vllm.entrypoints.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code, end
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser, accepted = make_arg_parser(FlexibleArgumentParser()), []
assert parser.parse_args(["m", "--seed", "1"]).seed == 1
for flag in flags:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        parser.parse_args(["m", flag, "1"])
        accepted.append(flag)
print("= accepted:" + " ".join(accepted))
sys.argv = ["read_engine.py", "vllm"]
""" + READER.read_text("utf-8")
# engine -> the image and the program whose help lists the flags
HELPS = {**PROGRAMS, "vllm": ("vllm-cpu", ["vllm", "serve", "--help=all"])}
PINNED = {engine: VERSIONS[folder] for engine, (folder, _) in HELPS.items()} | {"sglang": sglang.VERSION}


def real_engine(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that runs the program of a real engine."""
    return pytest.mark.docker(pytest.mark.engine(pytest.mark.xdist_group("engines")(test)))


def check(engine: str, *arguments: str) -> list[tuple[str, str, str]]:
    known = load_flags(engine)
    assert known
    return [(one.status, one.message, one.fix) for one in check_flags(engine, arguments, known, "x")]


def test_every_engine_has_a_flag_table() -> None:
    assert set(PINNED) == {*PROGRAMS, *PARSERS}


@pytest.mark.parametrize("engine", PINNED)
def test_flag_tables_are_for_the_pinned_versions(engine: str) -> None:
    known = load_flags(engine)
    assert known and known.version == PINNED[engine]
    assert len(known.by_name) > 30
    assert not set(REMOVED_FLAGS[engine]) & set(known.by_name)
    assert set(REMOVED_FLAGS["vllm"]) >= REMOVED_SWITCHES
    assert set(FIELD_OF_FLAG[engine]) <= set(known.by_name)
    for advice in REMOVED_FLAGS[engine].values():
        assert set(re.findall(r"--[a-z][a-z-]+", advice)) <= set(known.by_name), advice


def run_program(engine: str, *more: str, program: tuple[str, ...] = ()) -> str:
    """Runs a real engine's program, which prints its help, and returns its output."""
    folder, arguments = HELPS[engine]
    entrypoint, *rest = program or arguments
    command = ["docker", "run", "--rm", "--entrypoint", entrypoint, "-e", "HOME=/tmp", "-e", "LOGDIR="]
    command += ["-e", "COLUMNS=400", cpu_image_tag(folder), *rest, *more]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout + done.stderr


def find_values(output: str) -> str:
    """The line that the programs in VALUES print, which warnings on standard error follow."""
    return next(line for line in reversed(output.splitlines()) if line.startswith('{"'))


@pytest.fixture(scope="module")
def vllm_output(vllm_image: str) -> tuple[str, str, str]:
    """VLLM's help, the removed flags that its parser accepts, and values as JSON: one process, which loads for 8 s."""
    output = run_program("vllm", *REMOVED_FLAGS["vllm"], program=("python3", "-c", HELP_AND_PARSE))
    shown, _, accepted = output.partition("= accepted:")
    return shown, accepted.splitlines()[0], find_values(accepted)


@real_engine
@pytest.mark.parametrize("engine", HELPS)
def test_flag_tables_equal_the_help_of_the_programs(engine: str, request: pytest.FixtureRequest) -> None:
    if engine == "vllm":
        shown = request.getfixturevalue("vllm_output")[0]
    else:
        request.getfixturevalue(f"{engine}_image")
        shown = run_program(engine)
    names = {name for flag in read_help(shown) for name in flag["names"]}  # type: ignore[attr-defined]
    known = load_flags(engine)
    assert known and names == set(known.by_name)


@real_engine
@pytest.mark.parametrize("engine", VALUES)
def test_values_equal_the_registries_of_the_programs(engine: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(f"{engine}_image")
    shown = find_values(run_program(engine, program=("python3", "-c", VALUES[engine])))
    known = load_flags(engine)
    assert known
    assert {flag: known.by_name[flag]["values"] for flag in json.loads(shown)} == json.loads(shown)


@real_engine
def test_the_table_of_vllm_is_what_its_program_has(vllm_output: tuple[str, str, str]) -> None:
    table = json.loads((Path(flags.__file__).parent / f"vllm-{VERSIONS['vllm-cpu']}.json").read_text("utf-8"))
    found = json.loads(vllm_output[2])
    assert found == {name: value for name, value in table.items() if name in found}


@pytest.mark.parametrize(
    ("engine", "arguments"),
    [
        ("vllm", ["--max-num-batched-tokens", "8192", "--enable-prefix-caching"]),
        ("vllm", ["--no-enable-prefix-caching", "--max_num_batched_tokens=8192", "-O3"]),
        ("vllm", ["--compilation-config.mode", "3", "--compilation-config.cudagraph_capture_sizes+", "8"]),
        ("vllm", ["--max-num-batched", "8192"]),
        ("vllm", ["--kv-cache-memory-bytes", "-1"]),
        ("fastchat", ["--stream-interval", "2", "--seed=-1"]),
        ("llamacpp", ["--flash-attn", "on", "-tb", "4", "--cache_type_k", "q8_0"]),
        ("llamacpp", ["-n", "-1"]),
        ("vllm", ["--load-format", "Safetensors", "--attention-backend=flash_attn"]),
        # the path of a plugin is no parser, and a plugin may register any parser
        ("vllm", ["--tool-parser-plugin", "/mine.py", "--reasoning-parser-plugin=/mine.py"]),
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
        ("vllm", ["--load-format", "safetensor"], "fail", "did you mean safetensors?"),
        ("vllm", ["--attention-backend", "FLASH_INFER"], "fail", "did you mean FLASHINFER?"),
        ("vllm", ["--flash-attn"], "fail", "llamacpp"),
        ("vllm", ["--max-model-len 4096"], "fail", "two items, `--max-model-len` and its value, or use the field"),
        ("vllm", ["--seed 7"], "fail", "write two items, `--seed` and its value"),
        ("fastchat", ["--limit_worker_concurrency", "3"], "fail", "--limit-worker-concurrency"),
        ("fastchat", ["--api-keys", "sk-secret"], "fail", "process list"),
        ("fastchat", ["--xft-dtype", "gpu"], "fail", "one of"),
        ("llamacpp", ["--draft-max", "4"], "fail", "--spec-draft-n-max"),
        ("llamacpp", ["--ctx-siz", "4"], "fail", "did you mean --ctx-size?"),
        ("llamacpp", ["--ctx-size", "4"], "warn", "max_model_len"),
        ("llamacpp", ["-ctk", "q8"], "fail", "did you mean q8_0?"),
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


@real_engine
def test_real_vllm_rejects_removed_flags(vllm_output: tuple[str, str, str]) -> None:
    assert vllm_output[1] == ""


def test_a_forced_usage_is_a_warning_that_says_whom_it_hurts(tmp_path: Path) -> None:
    folder = write_stack(tmp_path, gpus="none", extra_args=["--seed", "1", "--enable-force-include-usage"])
    found = single_problem(findings(NO_GPU, folder), "SG-P090", "warn")
    assert found.place == "models[0].extra_args[2]" and "pydantic-ai and langchain-openai" in found.evidence
    assert "stream_options: {include_usage: true}" in found.fix
    assert not check("vllm", "--enable-force-include-usage", "--no-enable-force-include-usage")
