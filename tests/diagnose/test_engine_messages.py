"""SG-V046: errors that explain themselves, found in the engines' own source, with the settings that they concern."""

from __future__ import annotations

import ast
import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stackgen.diagnose import Finding, diagnose
from stackgen.diagnose.error_lines import is_consequence
from stackgen.diagnose.known_messages import DATA, find_known_message
from stackgen.diagnose.message_kinds import find_kind
from stackgen.runtimes.observation.evidence import collect_from_log
from stackgen.stack.load import parse_stack
from tests.diagnose.fixtures import load_fixtures

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from message_source import Reader, is_specific, read_native

CORE = "(EngineCore pid=86) ERROR 11-23 04:27:04 [core.py:1341] "
FRAME = CORE + '  File "/usr/local/lib/python3.12/dist-packages/{}", line 7, in {}\n'
# raised by vllm/v1/core/kv_cache_utils.py, unify_hybrid_kv_cache_specs
HYBRID = "ValueError: Hybrid KV cache manager is disabled but failed to convert the KV cache specs to one unified type."


def log_of(error: str, *frames: tuple[str, str]) -> str:
    above = "".join(FRAME.format(*one) + f"{CORE}    raise x\n" for one in frames)
    return f"{CORE}EngineCore failed to start.\n{CORE}Traceback (most recent call last):\n{above}{CORE}{error}\n"


def diagnose_log(text: str, **fields: object) -> Finding:
    model = {"model": "acme/one", "engine": "vllm", "gpus": 2, **fields}
    stack = parse_stack(f"name: acme\nmodels: [{json.dumps(model)}]\n")
    return diagnose(replace(collect_from_log(text), spec=stack))[0]


def rows() -> list[list[str]]:
    return [line.split("\t") for line in gzip.decompress(DATA.read_bytes()).decode().splitlines()]


def test_the_data_is_small_and_contains_no_consequence() -> None:
    head, *found = rows()
    assert head == ["package", "versions", "place", "exception", "text", "settings"]
    assert DATA.stat().st_size <= 1_100_000
    assert len(found) > 20_000 and all(len(row) == 6 for row in found)
    assert {"vllm", "sglang", "fastchat", "llamacpp", "transformers", "torch"} <= {row[0] for row in found}
    assert [row[4] for row in found if is_consequence(row[4]) or not is_specific(row[4])] == []


def test_a_message_names_the_code_and_the_setting_with_its_value_and_place() -> None:
    found = diagnose_log(
        log_of(HYBRID), extra_args=["--kv-transfer-config", '{"kv_connector":"A"}', "--max-num-seqs", "4"]
    )
    assert found.id == "SG-V046"
    assert "Hybrid KV cache manager is disabled but failed to convert" in found.cause
    assert "vllm/v1/core/kv_cache_utils.py, unify_hybrid_kv_cache_specs" in found.cause
    assert '--kv-transfer-config {"kv_connector":"A"} (models[0].extra_args)' in found.fix
    assert "max-num-seqs" not in found.fix


def test_a_setting_that_the_stack_does_not_set_is_not_called_the_reason() -> None:
    found = diagnose_log(log_of(HYBRID))
    assert found.id == "SG-V046"
    assert "change" not in found.fix and "no setting in stack.yaml" in found.fix


@pytest.mark.parametrize(
    "before",
    [
        "ValueError: the frobnicator is out of plums",
        "RuntimeError: NVML: Insufficient Plums",
    ],
)
def test_an_unknown_error_before_the_message_is_not_hidden(before: str) -> None:
    found = diagnose_log(f"{log_of(before)}{CORE}{HYBRID}\n")
    assert found.id == "SG-0000"
    assert before in found.evidence


def test_an_exception_of_the_programs_state_gives_way_to_the_one_that_it_led_to() -> None:
    text = log_of("KeyError: 'plum'") + f"{CORE}During handling of the above exception, another exception occurred:\n"
    assert diagnose_log(f"{text}{CORE}{HYBRID}\n").id == "SG-V046"


def test_an_exception_without_a_known_message_is_explained_by_its_frame_and_the_settings() -> None:
    text = log_of("ValueError: the frobnicator is out of plums", ("vllm/v1/spec_decode/plum.py", "load"))
    found = diagnose_log(text, extra_args=["--speculative-config", '{"method":"plum"}'])
    assert found.id == "SG-V046"
    assert "vllm/v1/spec_decode/plum.py, load (according to the log)" in found.cause
    assert '--speculative-config {"method":"plum"}' in found.fix
    # without such a setting, nothing is known
    assert diagnose_log(text).id == "SG-0000"


def test_a_failed_check_of_llamacpp_names_the_flag_that_runs_its_file() -> None:
    line = "/app/ggml/src/ggml-backend-meta.cpp:535: GGML_ASSERT(ret.axis != GGML_BACKEND_SPLIT_AXIS_UNKNOWN) failed"
    found = diagnose_log(line, engine="llamacpp", file="one.gguf", extra_args=["--split-mode", "tensor"])
    assert found.id == "SG-A053"
    assert "--split-mode tensor" in found.cause and "[--split-mode, layer]" in found.fix


def test_the_value_of_a_secret_variable_is_not_shown() -> None:
    text = log_of("ValueError: VLLM_PLUM_API_KEY does not work together with the hybrid plum", ("vllm/plum.py", "load"))
    found = diagnose_log(text, extra_env={"VLLM_PLUM_API_KEY": "sk-plum-1234567890"})
    assert "VLLM_PLUM_API_KEY" in found.fix and "sk-plum" not in found.fix


@pytest.mark.parametrize(
    ("line", "engine"),
    [
        # too general for one place
        ("ValueError: the plum is not supported yet", "vllm"),
        ("failed to initialize the plum: it is blue", "llamacpp"),
        ("RuntimeError: something failed", "vllm"),
        # another engine's message
        (HYBRID, "sglang"),
    ],
)
def test_a_general_line_is_no_known_message(line: str, engine: str) -> None:
    assert find_known_message(line, engine) is None


def test_a_message_of_another_version_is_called_similar() -> None:
    text = HYBRID.replace("one unified type", "a plum")
    known = find_known_message(text, "vllm")
    assert known and known.share < 1
    assert "a similar message" in diagnose_log(log_of(text), extra_args=["--kv-transfer-config", "{}"]).cause


@pytest.mark.parametrize("name", [one.name for one in load_fixtures() if not one.rule])
def test_lines_of_a_healthy_start_are_no_cause_of_a_later_unknown_error(name: str) -> None:
    fixture = next(one for one in load_fixtures() if one.name == name)
    if fixture.head.get("kind", "log") != "log":
        return
    # the start without the lines that say that it succeeded, and an error that nobody knows
    lines = [line for line in fixture.text.splitlines() if "startup complete" not in line and "listening" not in line]
    for found in diagnose(collect_from_log("\n".join([*lines, "ValueError: the frobnicator is out of plums"]))):
        assert found.id != "SG-V046", (found.cause, found.evidence)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("ImportError: plum is not installed", "package"),
        ("FileNotFoundError: no plum at /plum", "file"),
        ("ValueError: plums are not supported with pears", "unsupported"),
        ("RuntimeError: plums need compute capability 9.0", "hardware"),
        ("ValueError: 7 plums are not divisible by 2", "size"),
        ("ValueError: plums must be blue", "value"),
        ("RuntimeError: plum", "other"),
    ],
)
def test_the_kind_of_a_message_decides_the_step(text: str, kind: str) -> None:
    assert find_kind(text).name == kind


SOURCE = """
def check(self, plums):
    if self.parallel_config.tensor_parallel_size > 1:
        raise ValueError(f"the orchard has {plums} plums for " f"{self.x} baskets")
    message = "the ladder is shorter than the tree %s" % plums
    raise RuntimeError(message)
    logger.error("the basket %s fell from the ladder", plums)
    logger.warning("the basket %s may fall from the ladder", plums)
    assert self.enable_lora, "the picker came without a wheelbarrow"
    raise TypeError("the orchard is closed in winter: ", "come in summer")
    raise KeyError(plums)
"""


def test_messages_are_read_with_their_place_and_the_settings_in_their_conditions() -> None:
    found = {one.text: one for one in Reader("a/b", ast.parse(SOURCE)).found}
    assert set(found) == {
        "the orchard has {}plums for {}baskets",
        "the ladder is shorter than the tree {}",
        "the basket {}fell from the ladder",
        "the picker came without a wheelbarrow",
        "the orchard is closed in winter:{}come in summer",
    }
    first = found["the orchard has {}plums for {}baskets"]
    assert (first.raised, first.place) == ("ValueError", "a/b:check")
    assert "tensor_parallel_size" in first.names
    assert "enable_lora" in found["the picker came without a wheelbarrow"].names
    assert found["the basket {}fell from the ladder"].raised == "log"


def test_messages_of_cpp_are_read_with_their_function() -> None:
    text = 'bool pick(int plums) {\n    LLAMA_LOG_ERROR("%s: the orchard has only %d plums\\n", __func__, plums);\n}\n'
    (one,) = read_native("src/orchard.cpp", text)
    assert (one.text, one.place) == ("the orchard has only {}plums", "src/orchard.cpp:pick")
