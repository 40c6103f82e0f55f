"""For a log without a stack, the features of the failing code are named, with the flags that the user can leave out."""

from __future__ import annotations

import pytest

from stackgen.diagnose import diagnose
from stackgen.diagnose.features import FEATURES, describe_features, describe_test
from stackgen.flags import load_flags
from stackgen.runtimes.observation.evidence import collect_from_log

CRASH = """[2026-05-02 23:26:04 TP1] Scheduler hit an exception: Traceback (most recent call last):
  File "/opt/sglang/python/sglang/srt/speculative/eagle_worker_v2.py", line 828, in verify
    vocab_mask = generate_token_bitmask(
  File "/opt/venv/lib/python3.12/site-packages/xgrammar/matcher.py", line 270, in fill_next_token_bitmask
    return self._handle.fill_next_token_bitmask(bitmask, index, debug_print)
TypeError: the frobnicator is out of plums

[2026-05-02 23:26:04] Received sigquit from a child process. It usually means the child failed.
"""


def test_an_unknown_failure_names_the_features_of_its_traceback() -> None:
    found = diagnose(collect_from_log(CRASH))
    assert found[0].id == "SG-0000"
    assert "speculative decoding and structured outputs: as a test" in found[0].fix


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_every_flag_of_a_feature_exists(engine: str) -> None:
    known = load_flags(engine)
    assert known
    for one in FEATURES:
        flags = getattr(one, engine)
        assert flags and all(flag in known.by_name for flag in flags), one.name


def test_other_engines_and_other_code_have_no_features() -> None:
    assert describe_features("vllm/v1/spec_decode/eagle.py", "llamacpp") == ""
    assert describe_features("vllm/v1/engine/core.py run_engine_core", "vllm") == ""
    assert (
        describe_features("vllm/v1/worker/gpu/cudagraph_utils.py", "vllm") == "CUDA graphs (off with --enforce-eager)"
    )


def test_a_flag_that_turns_a_feature_off_is_to_be_added_and_not_removed() -> None:
    reduce, eagle = "device_communicators/custom_all_reduce.py register", "vllm/v1/spec_decode/eagle.py"
    assert describe_test(reduce, "sglang").endswith("as a test, start once with --disable-custom-all-reduce")
    both = describe_test(f"{reduce} {eagle}", "vllm")
    assert "with --disable-custom-all-reduce and without --speculative-config (if set), or with another value" in both
    assert describe_test(eagle, "vllm").endswith(
        "start once without --speculative-config (if set), or with another value"
    )
