"""The fields of a model that vLLM serves."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stackgen.engines._lora import LoraAdapter
from stackgen.engines._speculative import SpeculativeSpec
from stackgen.engines._versions import EngineVersion
from stackgen.spec import ModelSpec, Text, TokenCount
from stackgen.spec.types import ByteSize

__all__ = ["VllmModel"]


class VllmModel(ModelSpec):
    """A model served by vLLM."""

    engine: Literal["vllm"] = Field(description="The engine")
    engine_version: EngineVersion = None
    tensor_parallel_size: int | None = Field(
        None, ge=1, le=64, description="Each layer is split across this number of GPUs. Default: all GPUs of a replica"
    )
    pipeline_parallel_size: int = Field(
        1, ge=1, le=64, description="Number of pipeline stages. A stage is a group of layers that runs on its own GPUs"
    )
    data_parallel_size: int = Field(
        1, ge=1, le=64, description="Number of copies of the model inside a replica, each with its own GPUs. For "
        "most models, use `replicas` instead, which are separate services. With `expert_parallel`, the copies of a "
        "mixture-of-experts model share the experts",
    )  # fmt: skip
    split_hosts: bool = Field(
        False, description="Run one replica on all machines in `host` together, if the model is too large for one. "
        "Each machine is a pipeline stage with its own `gpus`. Needs a private network that only these machines "
        "can use",
    )  # fmt: skip
    expert_parallel: bool = Field(
        False,
        description="Distribute the experts of a mixture-of-experts model among the GPUs, instead of "
        "splitting each expert",
    )
    max_model_len: TokenCount | None = Field(
        None,
        description="Context length in tokens (not a batch size): 8192, 32k (32,000), 32K (32,768), or `auto` for the "
        "longest context that fits into memory. Default: the model's own context length; if it does not fit into "
        "memory, vLLM does not start",
    )
    quantization: Text | None = Field(
        None, description="Quantization method, for example awq, gptq or fp8. Default: from the model's config"
    )
    kv_cache_dtype: Text | None = Field(
        None,
        description="Data type of the KV cache, for example fp8 (on NVIDIA GPUs of the generations Ada, Hopper and "
        "Blackwell, on AMD GPUs, and on CPUs with AVX-512 or AMX). Default: the model's data type",
    )
    max_num_seqs: int | None = Field(
        None, ge=1, description="Maximum number of requests that run at the same time. Default: vLLM's own, 256 or, on "
        "GPUs with 70 GiB and more, 1024 (A100: 256). Without the field, the gateway sends at most 256 requests at a "
        "time to each replica, and queues the others",
    )  # fmt: skip
    max_num_batched_tokens: int | None = Field(
        None, ge=1, description="Maximum number of tokens in one step, across all requests. More tokens shorten the "
        "time to first token, and make the steps of running requests longer",
    )  # fmt: skip
    prefix_caching: bool | None = Field(
        None, description="Reuse the KV cache of common prompt prefixes. Default: on for models that support it"
    )
    kv_cache_memory: ByteSize | None = Field(
        None, description="Memory for the KV cache on each GPU, for example 20g. Default: the part of "
        "`gpu_memory_utilization` that weights and activations don't use",
    )  # fmt: skip
    cpu_offload_gib: float | None = Field(
        None, gt=0, description="GiB of weights per GPU that stay in the host's memory. Each step reads them again, so "
        "generation is much slower",
    )  # fmt: skip
    load_format: Text | None = Field(
        None, description="How the weights are loaded, for example safetensors, runai_streamer or instanttensor. "
        "Default: auto",
    )  # fmt: skip
    speculative: SpeculativeSpec | None = Field(
        None,
        description="Speculative decoding: predict several tokens at once, and let the model accept or reject them",
    )
    limit_mm_per_prompt: dict[Literal["image", "video", "audio"], Annotated[int, Field(ge=0)]] = Field(
        {}, description="Maximum number of images, videos and audio clips in a request, for example `{image: 2, video: "
        "0}`. If a number is 0, vLLM reserves no memory for this kind of input",
    )  # fmt: skip
    sleep_mode: bool = Field(
        False, description="Allow the engine to sleep, which frees GPU memory without ending the process"
    )
    enforce_eager: bool = Field(False, description="Disable CUDA graphs: saves memory, but slows decoding down")
    chat_template: Text | None = Field(None, description="Local Jinja file that replaces the model's chat template")
    tool_call_parser: Text | None = Field(None, description="Parser for tool calls; also enables automatic tool choice")
    reasoning_parser: Text | None = Field(None, description="Parser that separates reasoning from the answer")
    lora_adapters: tuple[LoraAdapter, ...] = Field((), description="LoRA adapters, served next to the model")
    max_lora_rank: int | None = Field(
        None,
        ge=1,
        description="Highest rank of all LoRA adapters. Default: read from adapter_config.json of local adapters, else "
        "16, vLLM's default. Adapters from the Hub with a higher rank need this field",
    )
    max_loras: int | None = Field(
        None,
        ge=1,
        description="How many different LoRA adapters vLLM computes in one batch. Each takes GPU memory. Default: 1, "
        "so requests for several adapters wait for each other",
    )
    cache_aware: bool = Field(
        False,
        description="Use vllm-router to send requests with the same prefix to the same replica, which has the "
        "prefix in its cache. Needs at least two replicas and the gateway",
    )
    cpu_kv_cache_gib: int = Field(4, ge=1, description="Memory for the KV cache of a model on the CPU, in GiB")
