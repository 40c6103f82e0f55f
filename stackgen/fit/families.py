"""The model families that `fit` knows, and which kind of cache each of their layers has.

Sources: vllm/model_executor/models/ of vLLM 0.32.0 for the caches; the config classes of Transformers 5.19.0 for the
layer types that config.json may leave out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stackgen.errors import StackgenError
from stackgen.fit.architecture import DTYPE_BYTES, State

__all__ = ["FAMILIES", "Family", "Fields", "layer_types", "state_of"]


@dataclass(frozen=True, slots=True)
class Family:
    """How the layers of a family differ from full attention in every layer.

    - `pattern`: every n-th layer has full attention, and the others a sliding window; 0 without a pattern.
    - `latent`: multi-head latent attention, if the config has `kv_lora_rank`.
    - `all_sliding`: `sliding_window` is for all layers, if config.json has no list of layer types.
    - `state`: the kind of its recurrent state. `window_offset`: tokens that the window is longer than the config says.
    - `tied`: the default of `tie_word_embeddings`. `encoder`: no layer has a cache.
    """

    pattern: int = 0
    latent: bool = False
    all_sliding: bool = False
    state: str = ""
    window_offset: int = 0
    tied: bool = False
    encoder: bool = False


KINDS = {
    "full_attention": "full", "attention": "full", "sliding_attention": "sliding", "chunked_attention": "chunked",
    "linear_attention": "state", "mamba": "state", "mamba2": "state", "conv": "state",
}  # fmt: skip
# vllm/model_executor/layers/mamba/mamba_mixer2.py: one block for the state at the end of the prompt
MAMBA2_KEPT = 2
_PLAIN = Family()
_TIED = Family(tied=True)
_LATENT = Family(latent=True)
_DELTA = Family(state="delta")
FAMILIES: dict[str, Family] = {
    **dict.fromkeys((
        "llama", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen2_vl", "qwen2_5_vl", "qwen2_vl_text",
        "qwen2_5_vl_text", "qwen3_vl_text", "qwen3_vl_moe_text", "granite", "granitemoe", "granitemoeshared", "phi",
        "gpt_neox", "olmo", "olmo2", "olmoe", "stablelm", "glm", "glm4", "glm4_moe", "chatglm", "internlm2",
        "internlm3", "baichuan", "minicpm", "minicpm3", "phimoe", "exaone", "ernie4_5", "ernie4_5_moe", "arcee",
        "apertus", "hunyuan_v1_dense", "hunyuan_v1_moe", "minimax_m2", "seed_oss", "dots1", "nemotron", "bailing_moe",
        "mimo", "smollm3", "opt", "mpt", "gptj", "decilm", "persimmon", "xverse", "orion", "aquila", "solar",
    ), _PLAIN),
    **dict.fromkeys(("gemma", "gpt2", "gpt_bigcode", "falcon", "cohere", "bloom", "starcoder"), _TIED),
    **dict.fromkeys(("mistral", "mixtral", "phi3", "starcoder2", "ministral", "mistral3"), Family(all_sliding=True)),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2", "glm4_moe_lite", "glm_moe_dsa",
                     "longcat_flash", "pangu_ultra_moe"), _LATENT),
    # DeepSeek's first models, and those that nest it as the language model of a vision model
    "deepseek": _PLAIN,
    "gemma2": Family(pattern=2, tied=True),
    **dict.fromkeys(("gemma3", "gemma3_text"), Family(pattern=6, tied=True)),
    **dict.fromkeys(("gemma4", "gemma4_text"), Family(pattern=6, tied=True)),
    **dict.fromkeys(("gemma3n", "gemma3n_text"), Family(pattern=5, tied=True)),
    "gpt_oss": Family(pattern=2),
    "cohere2": Family(pattern=4, window_offset=1, tied=True),
    **dict.fromkeys(("olmo3", "exaone4"), Family(pattern=4)),
    **dict.fromkeys(("llama4", "llama4_text"), Family(pattern=4)),
    **dict.fromkeys(("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"), _DELTA),
    **dict.fromkeys(("granitemoehybrid", "bamba"), Family(state="mamba2")),
    "falcon_h1": Family(state="falcon_h1"),
    "nemotron_h": Family(state="nemotron_h"),
    **dict.fromkeys(("lfm2", "lfm2_moe"), Family(state="conv", tied=True)),
    "jamba": Family(state="mamba1"),
    # embedding models and rerankers; vllm/model_executor/models/: bert.py, bert_with_rope.py, modernbert.py, roberta.py
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "modernbert", "nomic_bert", "gte", "new"),
                    Family(encoder=True, tied=True)),
    "kimi_linear": Family(latent=True, state="kda"),
}  # fmt: skip


class Fields:
    """Numbers of a config, with errors that name the file and the field."""

    def __init__(self, text: Mapping[str, Any], whole: Mapping[str, Any], source: str) -> None:
        self.text, self.config, self.source = text, whole, source

    def optional(self, *names: str) -> int:
        """The first of `names` that is a positive integer; 0 without one."""
        for name in names:
            value = self.text.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        return 0

    def number(self, *names: str) -> int:
        """As `optional`, but a missing number is a StackgenError."""
        if value := self.optional(*names):
            return value
        hint = (
            "download config.json again; if config.json is complete, start the model once, and measure its "
            "memory: `stackgen fit --observe`"
        )
        raise self.error(f"{names[0]} is missing, or not a positive number", hint)

    def error(self, message: str, hint: str) -> StackgenError:
        """An error that names the file."""
        return StackgenError(f"{self.source}: {message}", hint)

    def local(self, heads: int, size: int) -> tuple[int, int]:
        """KV heads and head size of layers with a sliding window, which have fields of their own in some models."""
        return self.optional("swa_num_key_value_heads") or heads, self.optional("swa_head_dim") or size

    def whole(self, heads: int, size: int) -> tuple[int, int]:
        """KV heads and head size of layers with full attention; Gemma 4 has fields for them (vllm gemma4.py)."""
        if not self.optional("global_head_dim"):
            return heads, size
        # with shared keys and values, the number of heads is a field of its own
        found = self.optional("num_global_key_value_heads") if self.text.get("attention_k_eq_v") else 0
        return found or heads, self.optional("global_head_dim")


def layer_types(fields: Fields, family: str, depth: int) -> list[str]:
    """The kind of each layer: `full`, `sliding`, `chunked`, `state`, `state+full` or `none`."""
    rules, text = FAMILIES[family], fields.text
    if rules.state == "falcon_h1":
        return ["state+full"] * depth
    if rules.state == "nemotron_h":
        return _nemotron_types(fields, depth)
    listed = text.get("layer_types") or text.get("layers_block_type")
    if isinstance(listed, list) and listed and all(isinstance(one, str) for one in listed):
        if len(listed) < depth:
            raise fields.error(
                f"layer_types has {len(listed)} entries for {depth} layers", "download config.json again"
            )
        return [_kind(one, fields) for one in listed[:depth]]
    if rules.state == "delta":
        interval = fields.optional("full_attention_interval") or 4
        return ["full" if (index + 1) % interval == 0 else "state" for index in range(depth)]
    if rules.state == "kda":
        linear = text.get("linear_attn_config") or {}
        # the list counts layers from 1
        return ["state" if index + 1 in (linear.get("kda_layers") or ()) else "full" for index in range(depth)]
    if rules.state == "mamba1":
        period, offset = fields.optional("attn_layer_period") or 8, text.get("attn_layer_offset", 4)
        return ["full" if index % period == offset else "state" for index in range(depth)]
    if rules.state == "mamba2":
        attention = text.get("attn_layer_indices") or ()
        return ["full" if index in attention else "state" for index in range(depth)]
    if rules.state == "conv":
        full = text.get("full_attn_idxs") or ()
        return ["full" if index in full else "state" for index in range(depth)]
    if family in ("llama4", "llama4_text"):
        # layers without RoPE attend to everything, the others to a chunk; `no_rope_layers` has 0 for the former
        ropes = text.get("no_rope_layers") or [int((index + 1) % 4 != 0) for index in range(depth)]
        local = "chunked" if fields.optional("attention_chunk_size") else "full"
        return [local if rope else "full" for rope in ropes[:depth]]
    pattern = fields.optional("sliding_window_pattern", "_sliding_window_pattern") or rules.pattern
    if pattern and fields.optional("sliding_window"):
        return ["full" if (index + 1) % pattern == 0 else "sliding" for index in range(depth)]
    # Qwen2's config has a window that `use_sliding_window` disables
    return ["sliding" if rules.all_sliding and fields.optional("sliding_window") else "full"] * depth


def _kind(name: str, fields: Fields) -> str:
    if name not in KINDS:
        raise fields.error(
            f"the layer type {name!r} is not known to stackgen",
            "start the model once, and measure its memory: `stackgen fit --observe`",
        )
    return KINDS[name]


def _nemotron_types(fields: Fields, depth: int) -> list[str]:
    pattern = fields.text.get("hybrid_override_pattern")
    if not isinstance(pattern, str) or len(pattern) < depth:
        raise fields.error("hybrid_override_pattern is missing, or too short", "download config.json again")
    # M: Mamba, *: attention, -: feed-forward, E: experts
    return [{"M": "state", "*": "full"}.get(letter, "none") for letter in pattern[:depth]]


def state_of(fields: Fields, family: str) -> State:
    """The recurrent state of a layer. See `State` for the source of the shapes."""
    kind, text = FAMILIES[family].state, fields.text
    if kind == "delta":
        key = fields.number("linear_key_head_dim") * fields.number("linear_num_key_heads")
        values, size = fields.number("linear_num_value_heads"), fields.number("linear_value_head_dim")
        temporal = values * size * fields.number("linear_key_head_dim")
        length = fields.number("linear_conv_kernel_dim") - 1
        return State(2 * key + values * size, length, temporal, _known(text.get("mamba_ssm_dtype")))
    if kind == "conv":
        return State(fields.optional("conv_dim") or fields.number("hidden_size"), fields.number("conv_L_cache") - 1)
    if kind == "kda":
        linear = Fields(text.get("linear_attn_config") or {}, fields.config, fields.source)
        heads, size = linear.number("num_heads"), linear.number("head_dim")
        length = linear.optional("short_conv_kernel_size") or 4
        return State(3 * heads * size, length - 1, heads * size * size, "float32")
    if kind == "mamba1":
        inner = fields.number("mamba_expand") * fields.number("hidden_size")
        return State(inner, fields.number("mamba_d_conv") - 1, inner * fields.number("mamba_d_state"))
    if kind == "nemotron_h":
        heads, size = fields.number("mamba_num_heads"), fields.number("mamba_head_dim")
        state = fields.number("ssm_state_size")
        # vLLM 0.32.0, `NemotronHForCausalLMConfig`: float32 unless the config names another dtype
        dtype = _known(text.get("mamba_ssm_cache_dtype")) or "float32"
        length, groups = fields.number("conv_kernel") - 1, fields.number("n_groups")
        return State(heads * size, length, heads * size * state, dtype, groups, state, MAMBA2_KEPT)
    heads, size, state = fields.number("mamba_n_heads"), fields.number("mamba_d_head"), fields.number("mamba_d_state")
    inner = fields.optional("mamba_d_ssm") or int(text.get("mamba_expand") or 2) * fields.number("hidden_size")
    return State(inner, fields.number("mamba_d_conv") - 1, heads * size * state, "",
                 fields.number("mamba_n_groups"), state, MAMBA2_KEPT)  # fmt: skip


def _known(dtype: object) -> str:
    return dtype if isinstance(dtype, str) and dtype in DTYPE_BYTES else ""
