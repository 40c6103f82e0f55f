"""GPU memory: weights, KV cache, activations and CUDA graphs. Texts of vLLM 0.32.0; `source` names the files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import is_below_error, lines_since_ready, process_name, strip_prefix
from stackgen.diagnose.rule import Change, Finder, Hit, Rule, compile_patterns
from stackgen.spec import ModelSpec

__all__ = ["RULES"]

OUT_OF_MEMORY = r"(?:torch\.(?:cuda\.)?OutOfMemoryError|(?:CUDA|HIP) (?:error: )?out of memory)"
SIZES = r"Tried to allocate (?P<wanted>[\d.]+ [KMG]iB).*?total capacity of (?P<total>[\d.]+ [KMG]iB)"
BUDGET = (
    "At startup vLLM takes `gpu_memory_utilization` (0.92) of the whole GPU, weights and KV cache together, whatever "
    "the model needs. What is left after weights, activation peak and CUDA graphs is the KV cache."
)


def _out_of_memory_finder(phases: tuple[str, ...], excluded: tuple[str, ...] = ()) -> Finder:
    """A finder of CUDA out of memory in a traceback through a function in `phases` and none in `excluded`."""

    def find(evidence: Evidence) -> Iterator[Hit]:
        for service in evidence.services:
            # lines below error may quote a request that contains the same text
            original = [line for line in lines_since_ready(service.log) if not is_below_error(line)]
            lines = [strip_prefix(line) for line in original]
            at = [index for index, line in enumerate(lines) if re.search(OUT_OF_MEMORY, line)]
            if not at:
                continue
            # only the first error counts: later ones are passed on by other processes
            process = process_name(original[at[0]])
            # with tensor parallel, the tracebacks of several workers are interleaved
            own = [line for whole, line in zip(original[: at[0]], lines, strict=False)
                   if not process or process_name(whole) == process]  # fmt: skip
            frames = "\n".join(own[-120:])
            if phases and not any(f"in {name}" in frames for name in phases):
                continue
            if any(f"in {name}" in frames for name in excluded):
                continue
            match = re.search(SIZES, lines[at[0]])
            yield Hit(service.service, (lines[at[0]].strip(),), match.groupdict() if match else {})

    return find


def _smaller_share(model: ModelSpec | None, _: Mapping[str, str]) -> str | None:
    """gpu_memory_utilization minus 0.05; None below 0.3."""
    # 0.92 is the default of vLLM 0.32
    was = (model and model.gpu_memory_utilization) or 0.92
    return f"{was - 0.05:.3g}" if was >= 0.3 else None


def _free_share(_: ModelSpec | None, values: Mapping[str, str]) -> str | None:
    """The free memory as a share of the GPU, minus 0.01; None below 0.3."""
    share = int(100 * float(values["free"]) / float(values["total"])) - 1
    return f"{share / 100:.3g}" if share >= 30 else None


def _half_requests(_: ModelSpec | None, values: Mapping[str, str]) -> str | None:
    """Half of the max concurrent requests; None if it is 1 already."""
    return str(int(values["seqs"]) // 2) if int(values["seqs"]) > 1 else None


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V012",
        title="the KV cache is too small for the context",
        cause="one request of {length} tokens needs {needed} GiB of KV cache, but only {free} GiB are left for it[[; "
        "{limit} tokens would fit]]",
        fix="lower max_model_len to what fits, or set it to `auto`; for more cache: gpu_memory_utilization, "
        "kv_cache_dtype: fp8, or cpu_kv_cache_gib on the CPU",
        source="vLLM 0.32.0, v1/core/kv_cache_utils.py, _check_enough_kv_cache_memory; reproduced on the CPU",
        explain="vLLM starts only if one request of the full context fits in its KV cache. max_model_len is the "
        "longest context (prompt and answer), not a batch size: lowering it costs nothing but long requests. Older "
        "advice takes it for the batch size; that is max_num_seqs and max_num_batched_tokens, and lowering those does "
        "not help here.\n\n`max_model_len: auto` takes the longest context that fits. An fp8 cache doubles it on GPUs "
        "that support fp8.",
        patterns=compile_patterns(
            r"To serve at least one request with the models?'s max seq len \((?P<length>\d+)\), \((?P<needed>[\d.]+) "
            r"GiB KV cache is needed.*?KV cache memory \((?P<free>[\d.]+) GiB\)"
            r"(?:.*?estimated maximum model length is (?P<limit>\d+))?",
        ),
        engines=("vllm",),
        change=Change("max_model_len", "{limit}"),
        shows_gpus=True,
    ),
    Rule(
        "SG-M001",
        title="no memory is left for the KV cache",
        cause="the weights and the peak of a forward pass fill vLLM's share of memory: not one block of KV cache fits",
        fix="raise gpu_memory_utilization, quantize the model, or split it: more `gpus` with tensor_parallel_size",
        source="vLLM 0.32.0, v1/core/kv_cache_utils.py, _check_enough_kv_cache_memory and auto-fit; reproduced on the "
        "CPU, and with 0.26.0 on an H100",
        explain=BUDGET
        + " Raising the share helps only if the GPU is free; otherwise use a smaller or quantized model, or more "
        "GPUs. Lowering max_num_seqs lowers the activation peak. enforce_eager: true saves the memory of CUDA "
        "graphs and makes decoding slower; it does not turn on continuous batching, which is always on.",
        patterns=compile_patterns(
            r"No available memory for the cache blocks", r"Cannot auto-fit max_model_len: not enough GPU memory"
        ),
        engines=("vllm",),
        shows_gpus=True,
    ),
    Rule(
        "SG-M002",
        title="another process holds the GPU's memory",
        cause="{free} of {total} GiB are free on {device}, but vLLM needs {wanted} GiB ({share} of the GPU)[[; now "
        "held by {holders}]]",
        fix="end the process that holds it[[: {holders}]] (`nvidia-smi` lists processes), choose another GPU with "
        "`gpus: [1]`, or lower gpu_memory_utilization; two models on one GPU need share_gpus: true and shares that "
        "sum to less than 1",
        source="vLLM 0.32.0, v1/worker/utils.py, request_memory; reproduced with 0.26.0 on an H100",
        explain=BUDGET
        + " Two services on one GPU each want 0.92 of it: the second can't start. Docker's GPU reservations are not "
        "exclusive: two services with `count: 1` both get GPU 0. stackgen places models on separate GPUs unless "
        "both set share_gpus: true and a gpu_memory_utilization each. A killed run may leave a process behind.",
        patterns=compile_patterns(
            r"Free memory on device (?P<device>\S+) \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less than "
            r"(?:desired GPU memory utilization|the engine's budget.*?) \((?P<share>[\d.]+), (?P<wanted>[\d.]+) GiB\)",
        ),
        engines=("vllm",),
        change=Change("gpu_memory_utilization", "0.6", safe=False, compute=_free_share),
        shows_gpus=True,
    ),
    Rule(
        "SG-M003",
        title="GPU memory changed during the start",
        cause="another process freed GPU memory while vLLM measured its own: {before} GiB were free before, {after} "
        "GiB after",
        fix="start again; start models that share a GPU one after the other",
        source="vLLM 0.32.0, v1/worker/gpu_worker.py, determine_available_memory",
        explain="vLLM measures its activation peak by the GPU's free memory before and after. A second process that "
        "ends meanwhile invalidates the measurement. Start services that share a GPU one after the other, or give "
        "each its own GPU.",
        patterns=compile_patterns(
            r"Error in memory profiling\. Initial free memory (?P<before>[\d.]+) GiB, current free memory "
            r"(?P<after>[\d.]+) GiB"
        ),
        engines=("vllm",),
        shows_gpus=True,
    ),
    Rule(
        "SG-M004",
        title="the sampler's warm-up does not fit on the GPU",
        cause="a sampler run with {seqs} requests at once does not fit in what is left of the GPU's memory",
        fix="lower max_num_seqs, or gpu_memory_utilization",
        source="vLLM 0.32.0, v1/worker/gpu_model_runner.py, _dummy_sampler_run",
        explain="At startup vLLM tries the worst case: max_num_seqs requests (256, on large GPUs 1024) sampled at "
        "once, each with a row as wide as the vocabulary. Half of it is enough for most users. max_num_seqs is the "
        "batch size; max_model_len is not.",
        patterns=compile_patterns(
            r"out of memory occurred when warming up (?:sampler|pooler) with (?P<seqs>\d+) dummy requests"
        ),
        engines=("vllm",),
        change=Change("max_num_seqs", "64", safe=False, compute=_half_requests),
        shows_gpus=True,
    ),
    Rule(
        "SG-M005",
        title="the weights do not fit on the GPU",
        cause="loading the weights needs more memory than the GPU has free[[: {wanted} at once, on a GPU of "
        "{total}]][[; now held by {holders}]]",
        fix="quantize (an AWQ, GPTQ or FP8 version of the model), or split it: more `gpus` with tensor_parallel_size; "
        "if the GPU is shared, free it first",
        source="torch 2.x, c10/cuda/CUDACachingAllocator.cpp; frames of vLLM 0.32.0, gpu_worker.py load_model; "
        "reproduced with 0.26.0 on an H100",
        explain="A model takes 2 bytes per parameter in bfloat16: 7 B are 14 GB, 70 B are 140 GB, divided by "
        "tensor_parallel_size. Neither max_model_len nor gpu_memory_utilization changes the size of the weights.",
        find=_out_of_memory_finder(
            ("load_model", "load_weights", "from_pretrained", "create_weights"), ("capture_model",)
        ),
        engines=("vllm", "fastchat"),
        shows_gpus=True,
    ),
    Rule(
        "SG-M006",
        title="capturing CUDA graphs does not fit on the GPU",
        cause="capturing CUDA graphs needs more memory than the GPU has free[[: {wanted} at once, on a GPU of "
        "{total}]]",
        fix="lower gpu_memory_utilization by 0.05, or max_num_seqs; enforce_eager: true uses no CUDA graphs, but "
        "decoding is slower",
        source="torch 2.x, c10/cuda/CUDACachingAllocator.cpp; frames of vLLM 0.32.0, gpu_model_runner.py capture_model",
        explain="vLLM records the forward pass as CUDA graphs for many batch sizes, after the KV cache took its "
        "share. --enforce-eager turns them off: less memory, slower decoding. It has nothing to do with continuous "
        "batching, which is always on, whatever older advice says.",
        find=_out_of_memory_finder(("capture_model", "_capture_cudagraphs", "capture_graphs")),
        engines=("vllm",),
        change=Change("gpu_memory_utilization", "0.87", safe=False, compute=_smaller_share),
        shows_gpus=True,
    ),
    Rule(
        "SG-M007",
        title="the activation peak does not fit on the GPU",
        cause="a forward pass at full batch needs more memory than the GPU has free[[: {wanted} at once, on a GPU of "
        "{total}]]",
        fix='lower max_num_seqs, or gpu_memory_utilization; `extra_args: [--max-num-batched-tokens, "2048"]` lowers '
        "the peak of prompts",
        source="torch 2.x, c10/cuda/CUDACachingAllocator.cpp; frames of vLLM 0.32.0, gpu_worker.py",
        explain="The peak comes from the tokens computed at once (max_num_batched_tokens) and from sampling "
        "(max_num_seqs × vocabulary). max_model_len does not change it: it is the context, not the batch.",
        find=_out_of_memory_finder(("profile_run", "_dummy_run", "determine_available_memory", "execute_model")),
        engines=("vllm",),
        shows_gpus=True,
    ),
    Rule(
        "SG-M008",
        title="the GPU's memory is exhausted",
        cause="an allocation did not fit on the GPU[[: {wanted} at once, on a GPU of {total}]][[; now held by "
        "{holders}]]",
        fix="see which processes use it (`nvidia-smi`); lower max_num_seqs or gpu_memory_utilization, or quantize the "
        "model",
        source="torch 2.x, c10/cuda/CUDACachingAllocator.cpp",
        explain=BUDGET
        + " If the traceback names no phase: weights that do not fit fail while loading, a KV cache that is too "
        "small reports numbers, and another process on the GPU shows in `nvidia-smi`.",
        patterns=compile_patterns(rf"{OUT_OF_MEMORY}.*?{SIZES}", OUT_OF_MEMORY),
        fallback=True,
        shows_gpus=True,
    ),
)
