"""Architectures from config.json, weights from headers, GGUF files, and input that is none of these."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fit_starts import MODELS
from stackgen.errors import StackgenError
from stackgen.fit import Gpu, Model, Settings, Weights, estimate, find_gpu, read_model
from stackgen.fit.cache import plan_cache
from stackgen.fit.changes import find_changes
from stackgen.fit.config import read_config
from stackgen.fit.gpus import GIB, known_gpus, observed_gpu, parse_memory
from stackgen.fit.others import fastchat_plan
from stackgen.fit.text import as_lines
from stackgen.fit.weights import Tensor, weigh

LLAMA = MODELS["gqa-untied"]
# what vLLM 0.32.0 computes for the configs of benchmarks/fit_starts.py with 1 GiB of cache on the CPU: blocks and
# tokens of `get_kv_cache_configs` and `get_kv_cache_capacity`, whose printed lines benchmarks/fit_starts.py compares
PLANNED = {
    "gqa-untied": (10922, 1398016), "tied": (4096, 524288), "mqa": (32768, 4194304), "mla": (29127, 466032),
    "sliding": (32768, 568719), "hybrid": (10922, 1491217),
}  # fmt: skip
# the same for further kinds of caches: an interval of linear attention, parallel blocks, short convolutions, chunks
FURTHER = {
    "qwen3_next": ({"full_attention_interval": 4, "num_hidden_layers": 4, "head_dim": 64, "linear_num_key_heads": 4,
                    "linear_num_value_heads": 8, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
                    "linear_conv_kernel_dim": 4}, (16384, 1525201)),
    "falcon_h1": ({"num_hidden_layers": 2, "mamba_d_ssm": 256, "mamba_n_heads": 8, "mamba_d_head": 32,
                   "mamba_n_groups": 1, "mamba_d_state": 64, "mamba_d_conv": 4}, (5461, 1242680)),
    "lfm2": ({"num_hidden_layers": 4, "layer_types": ["conv", "conv", "full_attention", "conv"], "conv_dim": 128,
              "conv_L_cache": 3}, (32768, 3050402)),
    "gpt_oss": ({"num_hidden_layers": 4, "head_dim": 64, "sliding_window": 128}, (8192, 508400)),
    "mistral": ({"num_hidden_layers": 2, "sliding_window": 256}, (16384, 1973790)),
    "gemma2": ({"num_hidden_layers": 5, "head_dim": 64, "sliding_window": 256}, (8192, 335544)),
    "gemma4_text": ({"num_hidden_layers": 6, "global_head_dim": 64, "num_global_key_value_heads": 1,
                     "attention_k_eq_v": True, "sliding_window": 256,
                     "layer_types": ["sliding_attention"] * 5 + ["full_attention"]}, (32768, 664444)),
}  # fmt: skip


def write_model(folder: Path, config: dict[str, Any], tensors: dict[str, tuple[str, list[int]]]) -> Path:
    """A folder with a config and a safetensors file that ends after its header."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    header = json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}
                         for name, (dtype, shape) in tensors.items()}).encode()  # fmt: skip
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return folder


@pytest.mark.parametrize("name", PLANNED)
def test_blocks_and_tokens_of_the_cache_are_those_of_vllm(name: str) -> None:
    plan = plan_cache(read_config(MODELS[name]), is_cpu=True, in_flight=2048, prefix_caching=True)
    assert (plan.blocks(GIB), plan.tokens(GIB, 2048)) == PLANNED[name]


@pytest.mark.parametrize("family", FURTHER)
def test_further_kinds_of_caches_are_those_of_vllm(family: str) -> None:
    fields, expected = FURTHER[family]
    config = {**{key: LLAMA[key] for key in LLAMA if key != "num_hidden_layers"}, "model_type": family, **fields}
    plan = plan_cache(read_config(config), is_cpu=True, in_flight=2048)
    assert (plan.blocks(GIB), plan.tokens(GIB, 2048)) == expected


def test_heads_that_cannot_be_split_are_copied() -> None:
    config = read_config({**LLAMA, "num_key_value_heads": 2})
    sizes = [plan_cache(config, tensor_parallel=parallel).token_bytes for parallel in (1, 2, 4)]
    assert sizes == [768, 384, 384]


def test_fp8_halves_the_cache_and_mla_is_never_split() -> None:
    config = read_config(MODELS["mla"])
    assert plan_cache(config, cache_dtype="fp8").token_bytes * 2 == plan_cache(config).token_bytes
    assert plan_cache(config, tensor_parallel=4).token_bytes == plan_cache(config).token_bytes


def test_a_tied_head_counts_once_and_parallelism_splits_matrices_but_no_norm() -> None:
    tensors = (Tensor("model.embed_tokens.weight", "BF16", (1024, 128)), Tensor("lm_head.weight", "BF16", (1024, 128)),
               Tensor("model.layers.0.self_attn.q_proj.weight", "BF16", (128, 128)),
               Tensor("model.layers.0.input_layernorm.weight", "BF16", (128,)))  # fmt: skip
    tied, untied = (read_config({**LLAMA, "tie_word_embeddings": one}) for one in (True, False))
    rope = 2048 * 32 * 2
    assert weigh(Weights(0, tensors), tied) == 262144 + 32768 + 256 + rope
    assert weigh(Weights(0, tensors), untied) == 2 * 262144 + 32768 + 256 + rope
    assert weigh(Weights(0, tensors), untied, tensor_parallel=2) == 262144 + 16384 + 256 + rope


def test_float32_checkpoints_and_online_quantization_change_the_weights() -> None:
    one = (Tensor("model.layers.0.mlp.up_proj.weight", "F32", (256, 128)),)
    known, rope = read_config(LLAMA), 2048 * 32 * 2
    assert weigh(Weights(0, one), known) == 2 * 256 * 128 + rope
    assert weigh(Weights(0, one), known, quantization="fp8") == 256 * 128 + rope


def test_a_model_is_read_from_its_headers_alone(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", LLAMA, {"model.embed_tokens.weight": ("BF16", [1024, 128])})
    assert read_model(folder).weights.tensors[0].bytes == 262144


@pytest.mark.parametrize(("file", "content", "expected"), [
    ("config.json", b"{", "is not JSON"),
    ("config.json", b"[]", "is not a JSON object"),
    ("config.json", b'{"model_type": "made_up", "architectures": ["MadeUpForCausalLM"]}', "MadeUpForCausalLM"),
    ("config.json", b'{"model_type": "llama"}', "num_attention_heads is missing"),
    ("config.json", None, "has no config.json"),
    ("model.safetensors", struct.pack("<Q", 5000) + b"{", "truncated inside its header"),
    ("model.safetensors", struct.pack("<Q", 2**40) + b"{", "not a safetensors file"),
    ("model.safetensors", struct.pack("<Q", 2) + b"[]", "no valid list of tensors"),
    ("model.safetensors", b"GGUF" + b"\0" * 40, "is a GGUF file"),
    ("model.safetensors", b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
    ("model.safetensors", None, "has no weights"),
    ("model.safetensors.index.json", b'{"weight_map": {"a": "lost.safetensors"}}', "lost.safetensors is missing"),
])  # fmt: skip
def test_bad_input_is_an_error_that_names_the_file(
    tmp_path: Path, file: str, content: bytes | None, expected: str
) -> None:
    folder = write_model(tmp_path / "m", LLAMA, {"model.embed_tokens.weight": ("BF16", [1024, 128])})
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(StackgenError, match=expected) as caught:
        read_model(folder)
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"GGU", b"not a model", b"GGUF\x03\0\0\0" + b"\xff" * 16, b"GGUF\x03\0\0\0"])
def test_a_damaged_gguf_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(StackgenError):
        read_model(path)


def test_each_engine_refuses_the_files_of_another() -> None:
    gguf = Model(read_config(LLAMA), Weights(1000))
    with pytest.raises(StackgenError, match="not a GGUF file"):
        estimate(gguf, Settings(engine="llamacpp"), Gpu("x", 8 * GIB))


def test_heads_that_a_parallel_size_does_not_divide_are_an_error() -> None:
    with pytest.raises(StackgenError, match="can't be divided"):
        estimate(Model(read_config(LLAMA), Weights(1000)), Settings(tensor_parallel=3), Gpu("x", 8 * GIB))


@pytest.mark.parametrize(("name", "expected"), [
    ("H100", "H100"), ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA GeForce RTX 4090", "RTX-4090"), ("4090", "RTX-4090"),
    ("rtx 4090", "RTX-4090"), ("NVIDIA A100-SXM4-80GB", "A100-80GB"), ("Tesla T4", "T4"), ("NVIDIA L4", "L4"),
    ("NVIDIA GB10", "GB10"),
])  # fmt: skip
def test_gpus_are_found_by_the_names_of_users_and_of_nvidia_smi(name: str, expected: str) -> None:
    assert find_gpu(name).name == expected


def test_an_unknown_gpu_is_an_error_with_similar_names() -> None:
    with pytest.raises(StackgenError) as caught:
        find_gpu("RTX 4099")
    assert "RTX-4090" in caught.value.hint


def test_each_gpu_has_a_size_and_a_source() -> None:
    assert len({gpu.name for gpu in known_gpus().values()}) > 40
    for gpu in known_gpus().values():
        assert gpu.source and 7 * GIB < gpu.memory < 300 * GIB and gpu.bandwidth > 100


def test_a_variant_with_another_size_keeps_its_size() -> None:
    assert observed_gpu("NVIDIA GeForce RTX 4090", 48 * GIB).memory == pytest.approx(48 * GIB * 0.985)
    assert observed_gpu("NVIDIA H100 80GB HBM3", 81559 * 2**20).memory == find_gpu("H100").memory


@pytest.mark.parametrize(("text", "size"), [("24", 24 * GIB), ("24GiB", 24 * GIB), ("24GB", 24 * 10**9),
                                            ("24576MiB", 24 * GIB)])  # fmt: skip
def test_sizes_of_memory_have_units(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "0", "24 kg", "-1", "1e9", "nan", "99999999999"])
def test_other_texts_are_no_size(text: str) -> None:
    with pytest.raises(StackgenError):
        parse_memory(text)


# bytes of the cache after a prompt of 2045 tokens, in a real worker of FastChat 0.2.36 on the CPU: float32
# (benchmarks/fit_fastchat.py, 2026-11-29)
FASTCHAT = {"gqa-untied": 3141120, "tied": 8376320, "mqa": 1047040, "mla": 20940800, "sliding": 1830400}


@pytest.mark.parametrize("name", FASTCHAT)
def test_the_cache_of_fastchat_is_what_a_worker_measured(name: str) -> None:
    plan = fastchat_plan(read_config(MODELS[name]), Settings(engine="fastchat", is_cpu=True))
    assert plan.token_bytes * 2045 + plan.fixed == FASTCHAT[name]
    half = fastchat_plan(read_config(MODELS[name]), Settings(engine="fastchat"))
    assert half.token_bytes * 2 == plan.token_bytes and half.fixed * 2 == plan.fixed


# the sizes of BAAI/bge-m3, whose weights are in float32
BGE = {
    "architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", "hidden_size": 1024, "num_attention_heads": 16,
    "num_hidden_layers": 24, "intermediate_size": 4096, "vocab_size": 250002, "max_position_embeddings": 8194,
    "torch_dtype": "float32",
}  # fmt: skip
# 32 bits a weight, as in the repository
BGE_TENSORS = {"embeddings.word_embeddings.weight": ("F32", [250002, 1024]),
               "encoder.layer.0.output.dense.weight": ("F32", [297000, 1024])}  # fmt: skip


def test_an_encoder_has_weights_and_activations_but_no_cache() -> None:
    model = Model(read_config(BGE), Weights(2271064456), "bge-m3")
    found = estimate(model, Settings(), find_gpu("RTX-4090"))
    assert found.verdict == "fits" and not found.has_cache and found.cache != (0, 0, 0)
    # vLLM computes each prompt in one step, and two positions of RoBERTa are for padding
    assert found.length == 8192 and "one step of 8192 tokens" in found.reason
    # the files may contain 32 bits a weight, of which vLLM keeps 16
    weights = found.terms[0]
    assert weights.low < 1.1 * GIB and weights.high > 2.1 * GIB
    assert estimate(model, Settings(max_num_batched_tokens=32768), find_gpu("RTX-4090")).needed[2] > found.needed[2]
    assert "no KV cache" in "\n".join(as_lines("bge-m3", found, (), 1))


def test_an_encoder_needs_its_share_of_the_gpu() -> None:
    model, gpu = Model(read_config(BGE), Weights(2271064456), "bge-m3"), find_gpu("RTX-4090")
    share = estimate(model, Settings(), gpu).smallest_utilization
    assert share and 0.1 < share < 0.3
    assert estimate(model, Settings(utilization=share), gpu).verdict == "fits"
    assert estimate(model, Settings(utilization=0.04), gpu).verdict == "doesn't fit"
    change = find_changes(estimate(model, Settings(utilization=0.1), gpu), model)[0]
    assert change.field == "gpu_memory_utilization"
    # llama.cpp and FastChat compute encoders in other ways
    with pytest.raises(StackgenError, match="only estimated for vLLM"):
        estimate(model, Settings(engine="fastchat"), gpu)


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "gte", "new"])
def test_each_family_of_encoders_is_read(family: str) -> None:
    assert read_config(BGE | {"model_type": family}).is_encoder
    nomic = {"model_type": "nomic_bert", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_inner": 3072,
             "vocab_size": 30528, "n_positions": 8192}  # fmt: skip
    assert read_config(nomic).is_encoder and read_config(nomic).length == 8192
