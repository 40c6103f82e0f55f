"""GPU memory: weights, KV cache, activations and CUDA graphs. Texts of vLLM 0.32.0; `source` names the files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import is_below_error, lines_since_ready, process_name, strip_prefix
from stackgen.diagnose.rule import Change, Finder, Hit, Rule, Variant, compile_patterns
from stackgen.diagnose.rules.memory_kinds import OUT_OF_MEMORY, OWN_MEMORY, SIZES
from stackgen.spec import ModelSpec

__all__ = ["RULES"]

PROCESS = r"(?:Including non-PyTorch memory, this process|Process \d+) has [\d.]+ [KMG]iB memory in use\."
BUDGET = (
    "At startup, vLLM takes a share of the whole GPU memory, even if the model needs less. `gpu_memory_utilization` "
    "sets this share (0.92 by default). The KV cache gets the part of vLLM's share that the weights, the activation "
    "peak and the CUDA graphs do not use."
)


def _out_of_memory_finder(phases: tuple[str, ...], excluded: tuple[str, ...] = ()) -> Finder:
    """A finder of CUDA out of memory in a traceback through a function in `phases` and none in `excluded`."""

    def find(evidence: Evidence) -> Iterator[Hit]:
        """The traceback of a CUDA or HIP out-of-memory error contains a function that belongs to this cause."""
        for service in evidence.services:
            # lines below error may quote a request that contains the same text
            original = [line for line in lines_since_ready(service.log) if not is_below_error(line)]
            lines = [strip_prefix(line) for line in original]
            at = [index for index, line in enumerate(lines) if re.search(OUT_OF_MEMORY, line)]
            if not at:
                continue
            # only the first error counts: other processes repeat it later
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


def _shares_gpu(evidence: Evidence, service: str) -> bool:
    """Whether stack.yaml gives the GPUs of the service's model to another model as well."""
    if evidence.spec is None or (chosen := evidence.find_model(service)) is None:
        return False
    others = [one for index, one in enumerate(evidence.spec.models) if index != chosen[0]]
    own = chosen[1]
    ids = set(own.gpus) if isinstance(own.gpus, tuple) else set()
    named = any(isinstance(one.gpus, tuple) and ids & set(one.gpus) for one in others)
    return named or (own.share_gpus and any(one.share_gpus for one in others))


def _half_requests(_: ModelSpec | None, values: Mapping[str, str]) -> str | None:
    """Half of the max concurrent requests; None if it is 1 already."""
    return str(int(values["seqs"]) // 2) if int(values["seqs"]) > 1 else None


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V012",
        title="the KV cache is too small for the context",
        cause="one request of {length} tokens needs {needed} GiB of KV cache, but only {free} GiB are left for the "
        "KV cache[[. At most {limit} tokens fit]]",
        fix="lower max_model_len to a length that fits, or set max_model_len to auto; to enlarge the KV cache "
        "instead, raise gpu_memory_utilization, or set kv_cache_dtype to fp8; on the CPU, raise cpu_kv_cache_gib",
        source="The message comes from vLLM 0.32.0 (v1/core/kv_cache_utils.py, _check_enough_kv_cache_memory). The "
        "failure was reproduced on the CPU.",
        explain="vLLM starts only if one request of the full context fits in its KV cache. max_model_len is the "
        "longest context (prompt and answer) of one request, not a batch size. A lower max_model_len only excludes "
        "long requests. Older advice confuses max_model_len with the batch size. max_num_seqs and "
        "max_num_batched_tokens set the batch size, but lowering the batch size does not fix this failure.\n\nIf "
        "max_model_len is auto, vLLM uses the longest context that fits. An fp8 KV cache doubles the longest context "
        "on GPUs that support fp8.",
        patterns=compile_patterns(
            r"To serve at least one request with the models?'s max seq len \((?P<length>\d+)\),? \(?(?P<needed>[\d.]+) "
            r"GiB KV cache is needed.*?KV cache memory \((?P<free>[\d.]+) GiB\)"
            r"(?:.*?estimated maximum model length is (?P<limit>\d+))?",
        ),
        engines=("vllm",),
        # without an estimate in the message, {limit} is unknown and there is no change
        change=Change("max_model_len", "{limit}"),
        shows_gpus=True,
    ),
    Rule(
        "SG-M001",
        title="no memory is left for the KV cache",
        cause="the weights, the peak memory of a forward pass, and all other uses of the GPU fill vLLM's "
        "share of the GPU's memory. Nothing is left for the KV cache",
        fix="raise gpu_memory_utilization; if it is already high, run `nvidia-smi`, which shows whether other "
        "processes use the GPU; if no other process uses the GPU, use a quantized model, or split the model across "
        "more `gpus` with tensor_parallel_size",
        source="The messages come from vLLM 0.32.0 (v1/core/kv_cache_utils.py, _check_enough_kv_cache_memory and "
        "auto-fit). The failure was reproduced on the CPU, and with vLLM 0.26.0 on an H100.",
        explain=BUDGET
        + " Raising gpu_memory_utilization helps only if no other process uses the GPU. Otherwise, use a smaller or "
        "quantized model, or more GPUs. Lowering max_num_seqs lowers the activation peak. enforce_eager saves the "
        "memory of CUDA graphs but makes decoding slower. Continuous batching is always on and does not need "
        "enforce_eager.",
        patterns=compile_patterns(
            r"No available memory for the cache blocks",
            r"Cannot auto-fit max_model_len: not enough GPU memory",
            # of v1/worker/gpu_worker.py, in a log without its end
            r"Available KV cache memory: -\d[\d.]* GiB",
        ),
        engines=("vllm",),
        shows_gpus=True,
        variants=(
            Variant(
                compile_patterns(
                    r"No available memory for the cache blocks", r"Cannot auto-fit max_model_len: not enough GPU memory"
                ),
                cause="this model shares its GPU with another model. Either its share of the memory is too small, or "
                "vLLM measured its memory while the other model allocated memory, and counted that memory too "
                "(vllm-project/vllm issue 55827)",
                fix="start this service again when the other model is healthy (`stackgen up` starts models that "
                "share a GPU one after the other); if the failure comes back, raise gpu_memory_utilization of this "
                "model, or give each model its own GPU",
                applies=_shares_gpu,
                condition="the model shares its GPU with another model of stack.yaml",
            ),
        ),
    ),
    Rule(
        "SG-M002",
        title="another process uses the GPU's memory",
        cause="only {free} of {total} GiB are free[[ on {device}]], but vLLM needs {wanted} GiB ({share} of the GPU's "
        "memory)[[. Processes on the GPU: {holders}]]",
        fix="end the process that uses the GPU's memory[[: {holders}]] (`nvidia-smi` or `rocm-smi` lists processes), "
        "choose another GPU in `gpus`, or lower gpu_memory_utilization; if two models should share the GPU, set "
        "share_gpus to true on both, and set their gpu_memory_utilization to values whose sum is at most 0.95",
        source="The message comes from vLLM 0.32.0 (v1/worker/utils.py, request_memory). The failure was reproduced "
        "with vLLM 0.26.0 on an H100. Versions 0.9 to 0.12 do not name the device (v1/worker/gpu_worker.py, "
        "init_device), as in apocas/dockerode issue 811 and vllm-project/vllm issue 20305 (2025-06).",
        explain=BUDGET
        + " If two services on one GPU each need 0.92 of the GPU's memory, the second service can't start. Docker's "
        "GPU reservations are not exclusive: two services that each reserve one GPU by count both get GPU 0. "
        "stackgen places models on separate GPUs unless both models set share_gpus to true and "
        "gpu_memory_utilization. If an engine was killed, one of its processes may still use the GPU.",
        patterns=compile_patterns(
            # old versions name no device, and a fork writes no space behind it
            r"Free memory on device(?: (?P<device>[^\s(]+))? ?\((?P<free>[\d.]+)/(?P<total>(?!1[12]\d\.)[\d.]+) GiB\) "
            r"on startup is less than "
            r"(?:desired GPU memory utilization|the engine's budget.*?) \((?P<share>[\d.]+), (?P<wanted>[\d.]+) GiB\)",
        ),
        engines=("vllm",),
        change=Change("gpu_memory_utilization", "0.6", safe=False, compute=_free_share),
        shows_gpus=True,
        variants=(
            Variant(
                compile_patterns(
                    r"Free memory on device (?P<device>xpu\S*) \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup "
                    r"is less than desired GPU memory utilization \((?P<share>[\d.]+), (?P<wanted>[\d.]+) GiB\)"
                ),
                fix="end the process that uses the memory of the Intel GPU (`xpu-smi ps` lists processes; an engine "
                "that was killed may have left one behind), or choose another GPU; lower gpu_memory_utilization only "
                "if enough memory is free for the model",
            ),
        ),
    ),
    Rule(
        "SG-M003",
        title="the free GPU memory changed during the start",
        cause="another process freed GPU memory while vLLM measured its own memory: {before} GiB were free before "
        "the measurement, and {after} GiB after it",
        fix="start the service again; start models that share a GPU one after the other",
        source="The message comes from vLLM 0.32.0 (v1/worker/gpu_worker.py, determine_available_memory).",
        explain="To measure its activation peak, vLLM compares the GPU's free memory before and after a test run. If "
        "another process ends during this measurement, the result is invalid. Start services that share a GPU one "
        "after the other, or give each service its own GPU.",
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
        cause="the GPU does not have enough free memory to sample {seqs} requests at once",
        fix="lower max_num_seqs, or lower gpu_memory_utilization",
        source="The message comes from vLLM 0.32.0 (v1/worker/gpu_model_runner.py, _dummy_sampler_run).",
        explain="At startup, vLLM tries the worst case, in which it samples max_num_seqs requests at once (256 by "
        "default, 1024 on large GPUs). For each request, sampling needs one number for every token of the vocabulary. "
        "Half of the default max_num_seqs is enough for most users. max_num_seqs is the batch size. max_model_len is "
        "not the batch size.",
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
        cause="loading the weights needs more memory than is free on the GPU[[: an allocation of {wanted} failed on "
        "a GPU with {total}]][[. Processes on the GPU: {holders}]]",
        fix="if other processes use the GPU, end these processes first; otherwise use an AWQ, GPTQ or FP8 version of "
        "the model, or split the model across more `gpus` with tensor_parallel_size",
        source="The message comes from torch 2.x (c10/cuda/CUDACachingAllocator.cpp). The frames of the traceback "
        "come from vLLM 0.32.0 (gpu_worker.py, load_model). The failure was reproduced with vLLM 0.26.0 on an H100.",
        explain="In bfloat16, a model takes 2 bytes per parameter: 14 GB for 7 billion parameters, and 140 GB for 70 "
        "billion. With tensor parallelism, each GPU needs the size of the weights divided by tensor_parallel_size. "
        "Neither max_model_len nor gpu_memory_utilization changes the size of the weights.",
        find=_out_of_memory_finder(
            ("load_model", "load_weights", "from_pretrained", "create_weights"), ("capture_model",)
        ),
        engines=("vllm", "fastchat"),
        shows_gpus=True,
    ),
    Rule(
        "SG-M006",
        title="the CUDA graphs do not fit on the GPU",
        cause="capturing CUDA graphs needs more memory than is free on the GPU[[: an allocation of {wanted} failed on "
        "a GPU with {total}]]",
        fix="lower gpu_memory_utilization by 0.05, or lower max_num_seqs; or set enforce_eager to true, which turns "
        "CUDA graphs off but makes decoding slower",
        source="The message comes from torch 2.x (c10/cuda/CUDACachingAllocator.cpp). The frames of the traceback "
        "come from vLLM 0.32.0 (gpu_model_runner.py, capture_model).",
        explain="After vLLM has reserved the memory of the KV cache, it records the forward pass as CUDA graphs for "
        "many batch sizes. --enforce-eager turns CUDA graphs off, which saves memory and makes decoding slower. "
        "Continuous batching is always on, and does not depend on --enforce-eager.",
        find=_out_of_memory_finder(("capture_model", "_capture_cudagraphs", "capture_graphs")),
        engines=("vllm",),
        change=Change("gpu_memory_utilization", "0.87", safe=False, compute=_smaller_share),
        shows_gpus=True,
    ),
    Rule(
        "SG-M007",
        title="the activation peak does not fit on the GPU",
        cause="a forward pass with a full batch needs more memory than is free on the GPU[[: an allocation of "
        "{wanted} failed on a GPU with {total}]]",
        fix="lower max_num_seqs, or lower gpu_memory_utilization; to lower the peak memory for prompts, set "
        'extra_args to [--max-num-batched-tokens, "2048"]',
        source="The message comes from torch 2.x (c10/cuda/CUDACachingAllocator.cpp). The frames of the traceback "
        "come from vLLM 0.32.0 (gpu_worker.py).",
        explain="The activation peak depends on the number of tokens that are computed at once "
        "(max_num_batched_tokens), and on the memory for sampling (max_num_seqs × vocabulary). max_model_len does not "
        "change the activation peak, because max_model_len is the longest context, not the batch size.",
        find=_out_of_memory_finder(("profile_run", "_dummy_run", "determine_available_memory", "execute_model")),
        engines=("vllm",),
        shows_gpus=True,
    ),
    Rule(
        "SG-M008",
        title="the GPU's memory is exhausted",
        cause="an allocation[[ of {wanted}]] did not fit on the GPU[[, which has {total}]][[. Processes on the GPU: "
        "{holders}]]",
        fix="run `nvidia-smi` or `rocm-smi`, which shows the processes that use the GPU; lower max_num_seqs or "
        "gpu_memory_utilization, or use a quantized model",
        source="The message comes from torch 2.x (c10/cuda/CUDACachingAllocator.cpp). vllm-project/vllm issue 20581 "
        "(2025-07) quotes one of a process that fills the GPU alone.",
        explain=BUDGET
        + " If the traceback does not show in which phase the memory was exhausted, look for other signs. If the "
        "weights do not fit, vLLM fails while it loads the model. If the KV cache is too small, the message contains "
        "the needed and the free memory. If another process uses the GPU, `nvidia-smi` lists this process.",
        # a fallback, because SG-M005 to SG-M007 also know the phase
        patterns=compile_patterns(rf"{OUT_OF_MEMORY}.*?{SIZES}", OUT_OF_MEMORY),
        variants=(
            OWN_MEMORY,
            Variant(
                compile_patterns(rf"{OUT_OF_MEMORY}.*?{SIZES}.*?(?P<processes>(?:{PROCESS} )+{PROCESS})"),
                cause="an allocation of {wanted} did not fit on the GPU, which has {total}. An engine has one process "
                "on each GPU, but several processes use this GPU: {processes}",
                fix="run `nvidia-smi` or `rocm-smi` on the host, which shows what these processes are, and end those "
                "that are not needed; or choose another GPU in `gpus`; if they must stay, lower gpu_memory_utilization "
                "to the share that they leave, or use a smaller or quantized model",
            ),
        ),
        fallback=True,
        consequence_of=("SG-M013", "SG-M018"),
        shows_gpus=True,
    ),
)
