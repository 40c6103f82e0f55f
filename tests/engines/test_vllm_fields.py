"""vLLM's fields for speculative decoding, parallelism, memory and caches: their flags, and what excludes what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stackgen.errors import SpecError
from stackgen.flags import load_flags
from stackgen.flags.arguments import FIELD_OF_FLAG
from stackgen.plan import Bind, Plan
from stackgen.resolve.pipeline import resolve
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite
from tests.doctor.hosts import CONFIG, EIGHT_80, NOTHING_KNOWN, findings, problem_ids, single_problem, write_stack


def plan(**model: Any) -> Plan:
    stack = {"name": "demo", "gateway": False, "cpu_arch": model.pop("stack_cpu_arch", "x86_64")}
    entry = {"model": "org/m", "engine": "vllm", "gpus": 4, "revision": "abc"} | model
    return resolve(build_spec(stack | {"models": [entry]}, "test"), ComposeSite(), "test")


def command(**model: Any) -> list[str]:
    return list(next(one for one in plan(**model).services if one.role == "engine").command)


@pytest.mark.parametrize(
    ("fields", "flags"),
    [
        ({"data_parallel_size": 2}, ["--tensor-parallel-size", "2", "--data-parallel-size", "2"]),
        ({"expert_parallel": True}, ["--enable-expert-parallel"]),
        ({"max_num_batched_tokens": 8192}, ["--max-num-batched-tokens", "8192"]),
        ({"prefix_caching": True}, ["--enable-prefix-caching"]),
        ({"prefix_caching": False}, ["--no-enable-prefix-caching"]),
        ({"kv_cache_memory": "20g"}, ["--kv-cache-memory-bytes", str(20 * 2**30)]),
        ({"kv_cache_memory": "512mb"}, ["--kv-cache-memory-bytes", str(512 * 2**20)]),
        ({"cpu_offload_gib": 2.5}, ["--cpu-offload-gb", "2.5"]),
        ({"load_format": "runai_streamer"}, ["--load-format", "runai_streamer"]),
        ({"limit_mm_per_prompt": {"image": 2, "video": 0}}, ["--limit-mm-per-prompt", '{"image": 2, "video": 0}']),
        ({"sleep_mode": True}, ["--enable-sleep-mode"]),
        ({"speculative": {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3}},
         ["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3}']),
    ],
)  # fmt: skip
def test_each_field_sets_its_flag(fields: dict[str, Any], flags: list[str]) -> None:
    plain, made = command(), command(**fields)
    at = made.index(flags[-2] if len(flags) > 1 else flags[0])
    assert made[at : at + len(flags[-2:])] == flags[-2:]
    assert all(one in made for one in flags)
    assert not set(flags[-2:-1]) & set(plain)
    known = load_flags("vllm")
    assert known and all(one in known.by_name for one in flags if one.startswith("--"))


def test_layers_for_speculation_come_from_the_model_or_from_a_repository_of_their_own() -> None:
    for method in ("mtp", "dspark"):
        own = command(speculative={"method": method, "num_speculative_tokens": 2})
        assert json.loads(own[own.index("--speculative-config") + 1]) == {"method": method, "num_speculative_tokens": 2}
        made = plan(speculative={"method": method, "model": "org/head"})
        assert made.services[0].command[-2:] == ("--model", "org/head")


def test_a_draft_model_is_downloaded_or_mounted() -> None:
    made = plan(speculative={"model": "org/draft", "revision": "v1", "num_speculative_tokens": 3})
    assert made.services[0].command[-4:] == ("--model", "org/draft", "--revision", "v1")
    engine = next(one for one in plan(speculative={"model": "./draft", "method": "eagle3"}).services
                  if one.role == "engine")  # fmt: skip
    assert Bind("./draft", "/srv/draft", True) in engine.mounts
    value = engine.command[engine.command.index("--speculative-config") + 1]
    assert json.loads(value) == {"method": "eagle3", "model": "/srv/draft"}


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"speculative": {}}, "needs `method` or `model`"),
        ({"speculative": {"method": "ngram"}}, "needs `num_speculative_tokens`"),
        ({"speculative": {"method": "eagle3"}}, "needs `model` for the method eagle3"),
        ({"speculative": {"method": "ngram", "model": "org/d", "num_speculative_tokens": 2}}, "does not use"),
        ({"speculative": {"method": "mtp"}}, "needs `num_speculative_tokens` for the method mtp"),
        ({"speculative": {"method": "draft_model", "model": "org/d"}}, "needs `num_speculative_tokens` for the method"),
        ({"speculative": {"method": "mtp", "num_speculative_tokens": 1, "prompt_lookup_max": 2}},
         "only the method ngram uses"),
        ({"speculative": {"model": "org/d", "max_model_len": 4097}, "max_model_len": "4096"},
         "is 4097, which is more than the model's max_model_len (4096)"),
        ({"speculative": {"method": "medusa", "model": "org/d"}, "engine_version": "0.33.0"},
         "vllm 0.33.0 does not know the value 'medusa'"),
        ({"speculative": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_min": 4,
                          "prompt_lookup_max": 2}}, "prompt_lookup_min above"),
        ({"speculative": {"model": "./d", "revision": "x"}}, "which needs a Hub id"),
        ({"speculative": {"model": "org/d", "draft_tensor_parallel_size": 2}}, "set 1 or 4"),
        ({"speculative": {"method": "eagle4", "model": "org/d"}}, "models[0].speculative.method"),
        ({"max_num_batched_tokens": 64, "max_num_seqs": 128}, "less than max_num_seqs (128)"),
        ({"max_num_batched_tokens": 64, "extra_args": ["--max-num-seqs", "128"]}, "less than max_num_seqs (128)"),
        ({"max_num_batched_tokens": 1024, "max_model_len": "4K", "extra_args": ["--no-enable-chunked-prefill"]},
         "a whole prompt of up to 4096 tokens"),
        ({"max_num_batched_tokens": 64, "max_num_seqs": 32, "lora_adapters": [{"name": "a", "path": "org/a"}],
          "speculative": {"method": "ngram", "num_speculative_tokens": 2}}, "one step needs 96 tokens"),
        ({"gpus": "none", "cpu_offload_gib": 2}, "has no effect on the CPU"),
        ({"gpus": "none", "kv_cache_memory": "2g"}, "set cpu_kv_cache_gib"),
        ({"gpus": "none", "sleep_mode": True}, "vLLM supports it only on GPUs"),
        ({"gpus": "none", "kv_cache_dtype": "fp8", "stack_cpu_arch": "arm64"}, "only on x86_64 with AVX-512 or AMX"),
        ({"load_format": "safetensor"}, "did you mean safetensors?"),
        ({"limit_mm_per_prompt": {"images": 1}}, "limit_mm_per_prompt"),
        ({"kv_cache_memory": "20"}, "with the unit k, m or g, for example 8g"),
        ({"kv_cache_memory": 20 * 2**30}, "with the unit k, m or g, for example 20g"),
        ({"kv_cache_memory": "12 GiB"}, "with the unit k, m or g, for example 12g"),
        ({"extra_args": ["--speculative-config", "{}"]}, "set speculative"),
        ({"extra_args": ["--spec-model", "org/d"]}, "set speculative"),
        ({"speculative": {"method": "ngram", "num_speculative_tokens": 2}, "extra_args": ["--spec-method", "mtp"]},
         "which `speculative` sets"),
        ({"extra_args": ["-dp", "2"]}, "set data_parallel_size"),
        ({"prefix_caching": True, "extra_args": ["--no-enable-prefix-caching"]}, "which `prefix_caching` sets"),
        ({"max_num_batched_tokens": 64, "extra_args": ["--max-num-batched-tokens=128"]},
         "which `max_num_batched_tokens` sets"),
    ],
)  # fmt: skip
def test_what_vllm_would_refuse_or_ignore_is_an_error(fields: dict[str, Any], part: str) -> None:
    with pytest.raises(SpecError) as caught:
        plan(**fields)
    found = [str(one) for one in caught.value.mistakes]
    assert len(found) == 1 and part in found[0], found


def test_a_flag_without_its_field_is_allowed() -> None:
    assert "--max-num-batched-tokens" in command(extra_args=["--max-num-batched-tokens", "4096"])


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"sleep_mode": True}, "VLLM_SERVER_DEV_MODE=1"),
        ({"expert_parallel": True, "gpus": 1}, "expert_parallel has no effect"),
        ({"gpus": "none", "kv_cache_dtype": "fp8_e5m2"}, "only if the CPU has AVX-512 or AMX"),
        ({"gpus": "none", "gpu_memory_utilization": 0.5}, "gpu_memory_utilization has no effect: on the CPU"),
        ({"load_format": "dummy"}, "the weights are random"),
        ({"kv_cache_memory": "2g", "gpu_memory_utilization": 0.5}, "gpu_memory_utilization only decides"),
        ({"extra_args": ["--enable-force-include-usage"]}, "pydantic-ai and langchain-openai add up"),
        # another version, and the flag as people write it
        (
            {"extra_args": ["--seed", "1", "--enable_force_include_usage"], "engine_version": "0.31.0"},
            "extra_args[2]: with --enable_force_include_usage",
        ),
    ],
)
def test_what_surprises_is_a_warning(fields: dict[str, Any], part: str) -> None:
    assert [one for one in plan(**fields).warnings if part in one]
    assert not [one for one in plan().warnings if part in one]


def test_a_usage_that_is_not_forced_is_no_warning() -> None:
    for switches in (["--no-enable-force-include-usage"],
                     ["--enable-force-include-usage", "--no-enable-force-include-usage"]):  # fmt: skip
        assert not [one for one in plan(extra_args=switches).warnings if "force-include-usage" in one]


def test_every_field_of_a_flag_exists() -> None:
    fields = build_spec({"name": "d", "models": [{"model": "o/m", "engine": "vllm"}]}, "t").models[0]
    named = {one for one in FIELD_OF_FLAG["vllm"].values() if one.isidentifier()} - {"bind", "port"}
    assert named <= set(type(fields).model_fields)


def test_doctor_compares_experts_and_offloaded_weights_with_the_machine(tmp_path: Path) -> None:
    dense = write_stack(tmp_path / "dense", expert_parallel=True)
    assert single_problem(findings(EIGHT_80, dense), "SG-P046", "fail").place == "models[0].expert_parallel"
    experts = CONFIG | {"num_local_experts": 8}
    assert "SG-P046" in problem_ids(findings(EIGHT_80, write_stack(tmp_path / "moe", expert_parallel=True,
                                                                   config=experts)), "ok")  # fmt: skip
    hub = write_stack(tmp_path / "hub", model="org/m", expert_parallel=True)
    assert "SG-P046" in problem_ids(findings(NOTHING_KNOWN, hub), "unknown")
    # 8 GPUs with 40 GiB each are more than this machine's memory
    large = write_stack(tmp_path / "large", gpus=8, cpu_offload_gib=40)
    found = [one for one in findings(EIGHT_80, large) if "cpu_offload_gib" in one.evidence]
    assert [one.status for one in found] == ["fail"] and "320.0 GiB" in found[0].evidence
    draft = write_stack(tmp_path / "draft", speculative={"model": "./nowhere", "method": "eagle3"})
    assert [one.place for one in findings(EIGHT_80, draft) if "./nowhere does not exist" in one.message] == [
        "models[0].speculative.model"]  # fmt: skip
