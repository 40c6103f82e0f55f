"""Reads config.json of Hugging Face Transformers into an `Architecture`.

Sources: vLLM 0.32.0, `ModelArchConfigConvertorBase` (vllm/transformers_utils/model_arch_config_convertor.py) for heads
and sizes, and the model's file in vllm/model_executor/models/ for the kind of each layer. Where config.json leaves a
list of layer types out, it is built as the config class of Transformers 5.19.0 builds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stackgen.errors import StackgenError
from stackgen.fit.architecture import DTYPE_BYTES, Architecture, CacheLayer
from stackgen.fit.families import FAMILIES, Fields, layer_types, state_of
from stackgen.fit.lengths import rope_factor

__all__ = ["read_block_size", "read_config", "text_config"]

# the language model inside the config of a multimodal model; `thinker_config` contains a text_config itself
NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
ACTIVE = ("num_experts_per_tok", "moe_topk", "num_experts_per_token", "moe_k", "top_k_experts")
EXPERT_SIZES = ("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size")
LENGTHS = ("max_position_embeddings", "n_positions", "seq_length", "max_sequence_length", "max_seq_len")
# the first positions of RoBERTa are for padding; vllm/model_executor/models/roberta.py
POSITIONS_OFFSET = {"roberta": 2, "xlm-roberta": 2}


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the language model, which multimodal models nest in the whole config."""
    for name in NESTED:
        if isinstance(found := config.get(name), dict):
            return text_config(found)
    return config


def read_config(config: Mapping[str, Any], source: str = "config.json") -> Architecture:
    """Returns the architecture of the model that `config` describes.

    Raises StackgenError if the model's type is unknown or a size is missing, because any estimate would be a guess.
    """
    text = text_config(config)
    fields = Fields(text, config, source)
    family = str(text.get("model_type") or config.get("model_type") or "")
    if family not in FAMILIES:
        names = config.get("architectures")
        name = str(names[0]) if isinstance(names, list) and names else family
        raise StackgenError(
            f"{source}: the architecture {name or 'of the model'} (model_type {family!r}) is not known to stackgen",
            "the sizes of its caches can't be computed. With `gpus: auto`, list the model's GPUs instead, for example "
            "`gpus: [1]`. To measure the memory, start the model once, and run `stackgen fit --observe`",
        )
    heads = fields.number("num_attention_heads", "n_head", "num_heads")
    hidden = fields.number("hidden_size", "n_embd", "d_model", "n_embed")
    depth = fields.number("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    vision = config.get("vision_config")
    found = config.get("architectures")
    experts = fields.optional(*EXPERTS)
    return Architecture(
        name=str(found[0]) if isinstance(found, list) and found else family,
        family=family,
        layers=() if FAMILIES[family].encoder else tuple(_read_layers(fields, family, heads, hidden, depth)),
        depth=depth, hidden=hidden, heads=heads,
        vocabulary=fields.number("vocab_size", "padded_vocab_size"),
        dtype=_read_dtype(config, text),
        length=max(0, int(fields.optional(*LENGTHS) * rope_factor(text)[0]) - POSITIONS_OFFSET.get(family, 0)),
        feed_forward=fields.optional("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size") or 4 * hidden,
        experts=experts,
        active_experts=fields.optional(*ACTIVE) if experts else 0,
        expert_size=fields.optional(*EXPERT_SIZES) if experts else 0,
        tied=_is_tied(config, text, family),
        quantization=_read_quantization(config, text),
        block=read_block_size(config),
        vision=_read_vision(vision) if isinstance(vision, dict) else (0, 0, 0),
        expanded=_read_expanded(fields, heads) if FAMILIES[family].latent else 0,
        doubts=tuple(_find_doubts(config, fields)),
    )  # fmt: skip


def _read_layers(fields: Fields, family: str, heads: int, hidden: int, depth: int) -> list[CacheLayer]:
    if depth > 10_000:
        raise fields.error(f"num_hidden_layers is {depth}", "a model has at most a few hundred layers")
    kv_heads = fields.optional("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num",
                               "num_attention_groups", "attention_groups") or heads  # fmt: skip
    if fields.text.get("multi_query") and not fields.text.get("new_decoder_architecture"):
        kv_heads = 1
    size = fields.optional("head_dim", "hidden_size_per_head", "kv_channels") or hidden // heads
    latent = fields.optional("kv_lora_rank") if FAMILIES[family].latent else 0
    window = fields.optional("sliding_window", "sliding_window_size") + FAMILIES[family].window_offset
    types = layer_types(fields, family, depth)
    # the last layers of Gemma 3n and 4 read the caches of earlier layers
    own = depth - fields.optional("num_kv_shared_layers") if len(types) == depth else len(types)
    layers = []
    for kind in types[:own]:
        if kind == "state+full":
            # a parallel block has both: Falcon-H1
            layers += [CacheLayer("full", kv_heads, size, size), CacheLayer("state", state=state_of(fields, family))]
        elif kind in ("state", "conv"):
            layers.append(CacheLayer("state", state=state_of(fields, family)))
        elif kind == "none":
            # a layer without attention: only a feed-forward network
            continue
        elif latent:
            layers.append(CacheLayer("mla", 1, latent + fields.number("qk_rope_head_dim")))
        elif kind == "sliding" and window:
            local_heads, local_size = fields.local(kv_heads, size)
            layers.append(
                CacheLayer("sliding", local_heads, local_size, fields.optional("v_head_dim") or local_size, window)
            )
        elif kind == "chunked":
            layers.append(CacheLayer("chunked", kv_heads, size, size, fields.number("attention_chunk_size")))
        else:
            full_heads, full_size = fields.whole(kv_heads, size)
            layers.append(CacheLayer("full", full_heads, full_size, fields.optional("v_head_dim") or full_size))
    return layers


def _read_expanded(fields: Fields, heads: int) -> int:
    keys = fields.optional("qk_nope_head_dim") + fields.optional("qk_rope_head_dim")
    return heads * (keys + fields.optional("v_head_dim"))


def _read_dtype(config: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    # Transformers 5 writes dtype, older versions torch_dtype
    for part in (text, config):
        for name in ("dtype", "torch_dtype"):
            if isinstance(found := part.get(name), str) and (found := found.removeprefix("torch.")) in DTYPE_BYTES:
                # vLLM 0.32.0, `_resolve_auto_dtype`: a model in float32 runs with 16 bits
                return "bfloat16" if found in ("float32", "float") else found
    return "bfloat16"


def _is_tied(config: Mapping[str, Any], text: Mapping[str, Any], family: str) -> bool:
    for part in (text, config):
        for name in ("tie_word_embeddings", "tie_embedding"):
            if isinstance(part.get(name), bool):
                return bool(part[name])
    return FAMILIES[family].tied


def read_block_size(config: Mapping[str, Any]) -> int:
    """How many inputs a block of FP8 weights has, for a dense model; 0 without blocks."""
    found = config.get("quantization_config")
    block = found.get("weight_block_size") if isinstance(found, dict) else None
    # vLLM 0.32 gives experts smaller blocks; and weights that are not quantized have none
    if not isinstance(found, dict) or not isinstance(block, list) or "down_proj" in str(found):
        return 0
    return block[-1] if len(block) == 2 and type(block[1]) is int and block[1] > 0 else 0


def _read_quantization(config: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    for part in (config, text):
        found = part.get("quantization_config", part.get("compression_config"))
        if isinstance(found, dict):
            method = found.get("quant_method", "")
            return method.lower() if isinstance(method, str) else ""
    return ""


def _read_vision(vision: Mapping[str, Any]) -> tuple[int, int, int]:
    def number(*names: str) -> int:
        return next((value for name in names if isinstance(value := vision.get(name), int) and value > 0), 0)

    hidden, depth = number("hidden_size", "embed_dim", "width"), number("num_hidden_layers", "depth", "layers")
    patch = number("patch_size") or 14
    # without an image size, the encoder takes images of any size
    side = number("image_size", "img_size") or 1024
    return hidden, depth, (side // patch) ** 2


def _find_doubts(config: Mapping[str, Any], fields: Fields) -> list[str]:
    doubts = []
    if isinstance(config.get("audio_config"), dict):
        doubts.append("the audio encoder's activations are not estimated")
    if fields.optional("index_topk") or fields.text.get("compress_ratios"):
        doubts.append("sparse attention has an indexer cache, which is not estimated")
    return doubts
