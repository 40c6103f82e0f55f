"""Verdicts, the changes that would help, and the comparison with an engine's log."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.fit_rows import DATA
from stackgen.fit import Gpu, Model, Settings, Weights, estimate, find_gpu
from stackgen.fit.changes import find_changes
from stackgen.fit.config import read_config
from stackgen.fit.estimate import CLOSE, FITS, NOT
from stackgen.fit.gpus import GIB
from stackgen.fit.observe import compare, read_start

CONFIGS = json.loads((DATA / "models.json").read_text())
LLAMA = Model(read_config(CONFIGS["meta-llama/Llama-3.1-8B-Instruct"]), Weights(16060522496), "llama")
QWEN = Model(read_config(CONFIGS["Qwen/Qwen2.5-72B-Instruct"]), Weights(145412407296), "qwen")
# vLLM 0.30, H100: public file in rows.tsv (string-index id 70682754770), lines without names of machines
LOG = """
(EngineCore pid=326) INFO 10-06 17:00:02 [core.py:114] Initializing a V1 LLM engine (v0.30.0) with config: model='x'
(EngineCore pid=326) INFO 10-06 17:00:11 [model_runner.py:407] Model loading took 15.0 GiB memory and 5.420225 seconds
(EngineCore pid=326) INFO 10-06 17:00:33 [gpu_worker.py:692] Available KV cache memory: 56.21 GiB
(EngineCore pid=326) INFO 10-06 17:00:33 [kv_cache_utils.py:2464] GPU KV cache size: 460,496 tokens, Maximum concurrency for 131,072 tokens per request: 3.51x
(EngineCore pid=326) INFO 10-06 17:00:41 [gpu_worker.py:955] Free memory on device (78.84/79.25 GiB) on startup. Desired GPU memory utilization is (0.92, 72.91 GiB). Actual usage is 15.26 GiB for consumed memory (weights + non-torch), 1.44 GiB for peak activation, and 0.23 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with `--kv-cache-memory=60141234567` (56.01 GiB) to fit into requested memory, or `--kv-cache-memory=66273897472` (61.72 GiB) to fully utilize gpu memory. Current kv cache memory in use is 56.21 GiB.
"""  # noqa: E501


def test_a_small_model_on_a_large_gpu_fits() -> None:
    found = estimate(LLAMA, Settings(), find_gpu("H100"))
    assert found.verdict == FITS
    assert found.longest == 131072
    assert find_changes(found, LLAMA) == ()


def test_a_model_that_is_too_large_gets_changes_that_make_it_fit() -> None:
    gpu = find_gpu("RTX-4090")
    found = estimate(LLAMA, Settings(), gpu)
    assert found.verdict == NOT
    assert "are missing" in found.reason
    changes = {change.field: change.value for change in find_changes(found, LLAMA)}
    assert {"max_model_len", "gpus"} <= set(changes)
    # the change is what it promises
    assert estimate(LLAMA, Settings(max_model_len=int(changes["max_model_len"])), gpu).verdict == FITS
    assert estimate(LLAMA, Settings(tensor_parallel=int(changes["gpus"])), gpu).verdict == FITS


def test_a_72b_model_needs_more_gpus_or_fewer_bits() -> None:
    found = estimate(QWEN, Settings(max_model_len=8192), find_gpu("H100"))
    assert found.verdict == NOT
    words = " ".join(change.text for change in find_changes(found, QWEN))
    assert "across 4 GPUs" in words or "across 2 GPUs" in words
    assert "4-bit" in words


def test_gpus_that_the_constants_are_not_measured_on_are_too_close_to_call() -> None:
    assert estimate(LLAMA, Settings(max_model_len=8192), find_gpu("GB10")).verdict == CLOSE


def test_on_amd_a_model_fits_if_there_is_room_for_buffers_of_three_times_the_size() -> None:
    found = estimate(LLAMA, Settings(max_model_len=8192), find_gpu("MI300X"))
    assert found.verdict == FITS and not found.doubts
    assert "even if buffers take 3 times as much as on NVIDIA GPUs" in found.reason
    order, ranks = [NOT, CLOSE, FITS], {"9.0": list[int](), "gfx942": list[int]()}
    for size in range(16, 60):
        for compute, own in ranks.items():
            found = estimate(LLAMA, Settings(max_model_len=8192), Gpu("x", size * GIB, compute=compute))
            own.append(order.index(found.verdict))
            assert found.verdict != CLOSE or compute == "9.0" or found.cache[0] < found.request or (
                "the sizes of buffers were measured on NVIDIA GPUs" in found.reason)  # fmt: skip
    # never better than on an NVIDIA GPU of the same size, and worse near the limit
    assert all(amd <= nvidia for nvidia, amd in zip(*ranks.values(), strict=True))
    assert sum(ranks["gfx942"]) < sum(ranks["9.0"]) and ranks["gfx942"][-1] == 2


def test_settings_that_are_not_estimated_are_too_close_to_call() -> None:
    found = estimate(LLAMA, Settings(doubts=("--speculative-config is not estimated",)), find_gpu("H100"))
    assert found.verdict == CLOSE
    assert "speculative" in found.reason


def test_more_memory_never_makes_it_fit_worse() -> None:
    order = [NOT, CLOSE, FITS]
    ranks = [order.index(estimate(LLAMA, Settings(max_model_len=8192), Gpu("x", size * GIB)).verdict)
             for size in range(8, 100, 4)]  # fmt: skip
    assert ranks == sorted(ranks)
    assert set(ranks) == {0, 1, 2}


def test_activations_shrink_in_vllm_0_17() -> None:
    before, after = (estimate(LLAMA, Settings(version=version), find_gpu("H100")).terms[1].bytes / GIB
                     for version in ((0, 16, 0), (0, 17, 0)))  # fmt: skip
    # logged for Qwen3-14B: 5.64 and 2.23 GiB (llm-d-planner, accuracy_report.md)
    assert after / before == pytest.approx(2.23 / 5.64, abs=0.06)


def test_the_smallest_utilization_starts_for_certain() -> None:
    gpu = find_gpu("H100")
    share = estimate(LLAMA, Settings(max_model_len=8192), gpu).smallest_utilization
    assert share and share < 0.5
    assert estimate(LLAMA, Settings(max_model_len=8192, utilization=share), gpu).verdict == FITS


def test_a_log_is_compared_term_by_term() -> None:
    seen = read_start(LOG)
    assert seen is not None
    assert (seen.version, seen.kv_tokens, seen.context, seen.pin, seen.cold) == (
        "0.30.0",
        460496,
        131072,
        60141234567,
        False,
    )
    found = estimate(LLAMA, Settings(version=(0, 30, 0)), Gpu("H100", int(79.25 * GIB)))
    rows = {row["term"]: row for row in compare(found, seen)}
    assert set(rows) == {
        "weights",
        "activations",
        "CUDA graphs",
        "CUDA and NCCL",
        "room for the KV cache",
        "tokens in that room",
    }
    # the log's GiB are rounded, the tokens are not
    assert rows["tokens in that room"]["inside"]
    assert all(row["inside"] for row in rows.values())


def test_the_last_start_of_a_log_counts_and_a_compile_makes_it_cold() -> None:
    first = LOG.replace("15.0 GiB", "14.0 GiB")
    assert read_start(first + LOG).terms["weights"] == 15 * GIB  # type: ignore[union-attr]
    cold = LOG + "INFO [backends.py:372] Cache the graph of compile range (1, 8192) for later use\n"
    assert read_start(cold).cold  # type: ignore[union-attr]


@pytest.mark.parametrize("log", ["", "Traceback (most recent call last):", "Application startup complete"])
def test_a_log_without_a_start_is_none(log: str) -> None:
    assert read_start(log) is None


# `llama-server -v` of b11434 with SmolLM2-135M-Instruct.Q4_1.gguf: slots, context of a slot, tokens at a time, type of
# the cache -> MiB of the cache and of the compute buffer
MEASURED = [(2, 2048, 512, "f16", 90.0, 16.64), (1, 8192, 128, "f16", 180.0, 5.66), (4, 512, 512, "q8_0", 23.91, 15.17)]


@pytest.mark.parametrize(("slots", "length", "tokens", "dtype", "cache", "buffer"), MEASURED)
def test_llamacpp_allocates_what_its_header_and_flags_say(
    slots: int, length: int, tokens: int, dtype: str, cache: float, buffer: float
) -> None:
    config = {"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
              "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152,
              "max_position_embeddings": 8192, "tie_word_embeddings": True}  # fmt: skip
    model = Model(replace(read_config(config), quantization="gguf"), Weights(96576768))
    settings = Settings(engine="llamacpp", max_num_seqs=slots, max_model_len=length, max_num_batched_tokens=tokens,
                        kv_cache_dtype=dtype)  # fmt: skip
    found = estimate(model, settings, Gpu("x", 8 * GIB))
    # one cell more: fit reserves a block
    assert found.request / 2**20 == pytest.approx(cache, rel=0.003)
    assert next(term.bytes for term in found.terms if term.name == "compute buffer") / 2**20 == pytest.approx(
        buffer, abs=0.06
    )


def test_slots_divide_the_models_own_context() -> None:
    gguf = replace(LLAMA, architecture=replace(LLAMA.architecture, quantization="gguf"))
    four = Settings(engine="llamacpp", max_num_seqs=4)
    found, one = (estimate(gguf, each, find_gpu("H100")) for each in (four, Settings(engine="llamacpp")))
    # the cache has as many tokens as for one request with the whole context
    assert found.length == 131072 // 4 and found.request == pytest.approx(one.request, rel=0.001)
    assert any("divides the model's context of 131072 tokens among 4 requests" in text for text in found.warnings)
    given = estimate(gguf, replace(four, max_model_len=8192), find_gpu("H100"))
    assert given.length == 8192 and not given.warnings and not one.warnings


def test_a_context_beyond_the_models_limit_is_a_warning() -> None:
    def warnings(**fields: Any) -> str:
        return " ".join(estimate(LLAMA, Settings(**fields), find_gpu("H100")).warnings)

    assert "max_model_len is 131073, but the model's limit is 131072 tokens" in warnings(max_model_len=131073)
    assert not warnings(max_model_len=131072) and not warnings(max_model_len=-1)
    # --hf-overrides can raise the limit
    assert not warnings(max_model_len=200000, doubts=("--hf-overrides changes the model's config",))


@pytest.mark.parametrize(("rope", "length"), [({"type": "linear", "factor": 4}, 16384), ({"type": "yarn", "factor": 4},
                                                                                      4096)])  # fmt: skip
def test_a_rope_factor_makes_the_context_longer_as_in_vllm(rope: dict[str, Any], length: int) -> None:
    config = CONFIGS["meta-llama/Llama-3.1-8B-Instruct"] | {"max_position_embeddings": 4096, "rope_scaling": rope}
    assert read_config(config).length == length
