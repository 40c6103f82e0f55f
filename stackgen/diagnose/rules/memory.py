"""Memory: of the GPU, of the host, and /dev/shm. vLLM's texts: 0.32.0, files named in `source`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import calm, clean, since_ready, speaker
from stackgen.diagnose.rule import Change, Finder, Hit, Place, Rule, patterns
from stackgen.spec import ModelSpec

__all__ = ["RULES"]

BOTH: tuple[Place, ...] = ("compose", "docker")
GIB = 2**30
OUT = r"(?:torch\.(?:cuda\.)?OutOfMemoryError|(?:CUDA|HIP) (?:error: )?out of memory)"
SIZES = r"Tried to allocate (?P<wanted>[\d.]+ [KMG]iB).*?total capacity of (?P<total>[\d.]+ [KMG]iB)"
BUDGET = (
    "vLLM takes `gpu_memory_utilization` (0.92) of the whole card at start, weights and KV cache together, whatever "
    "the model needs. What is left after weights, activation peak and CUDA graphs is the KV cache."
)


def _out_of_memory(phases: tuple[str, ...], but: tuple[str, ...] = ()) -> Finder:
    """A finder of CUDA out of memory in a traceback that goes through one of the functions `phases`."""

    def find(evidence: Evidence) -> Iterator[Hit]:
        for service in evidence.services:
            # a request's text may hold the words, too
            said = [line for line in since_ready(service.log) if not calm(line)]
            lines = [clean(line) for line in said]
            at = [index for index, line in enumerate(lines) if re.search(OUT, line)]
            if not at:
                continue
            # the frames of the first one: what follows are processes that pass it on, and what stands between them is
            # of processes that fail at the same time
            who = speaker(said[at[0]])
            own = [line for whole, line in zip(said[: at[0]], lines, strict=False) if not who or speaker(whole) == who]
            frames = "\n".join(own[-120:])
            if phases and not any(f"in {name}" in frames for name in phases):
                continue
            if any(f"in {name}" in frames for name in but):
                continue
            match = re.search(SIZES, lines[at[0]])
            yield Hit(service.service, (lines[at[0]].strip(),), match.groupdict() if match else {})

    return find


def _size(text: str) -> int:
    """Bytes of `8g`, `64 MiB`."""
    match = re.match(r"(\d+) ?([kmg])", text.lower())
    return int(match[1]) << {"k": 10, "m": 20, "g": 30}[match[2]] if match else 0


def _more_shm(model: ModelSpec | None, values: Mapping[str, str]) -> str | None:
    """What is there and what is wanted beside it; with `ipc: host` the size is the machine's own."""
    was = _size((model and model.shm_size) or "")
    wanted = -(-(was + _size(values["needed"])) // GIB)
    return None if model and model.ipc == "host" else f"{max(1, wanted)}g"


def _nccl_shm(model: ModelSpec | None, _: Mapping[str, str]) -> str | None:
    """8 GiB where there is less; beyond that the size is hardly the cause."""
    if model and (model.ipc == "host" or _size(model.shm_size or "") >= 8 * GIB):
        return None
    return "8g"


def _smaller_share(model: ModelSpec | None, _: Mapping[str, str]) -> str | None:
    was = (model and model.gpu_memory_utilization) or 0.92
    return f"{was - 0.05:.3g}" if was >= 0.3 else None


def _free_share(_: ModelSpec | None, values: Mapping[str, str]) -> str | None:
    """What is free now as a share of the card, with a hundredth left over."""
    share = int(100 * float(values["free"]) / float(values["total"])) - 1
    return f"{share / 100:.3g}" if share >= 30 else None


def _half(_: ModelSpec | None, values: Mapping[str, str]) -> str | None:
    return str(int(values["seqs"]) // 2) if int(values["seqs"]) > 1 else None


def _killed(evidence: Evidence) -> Iterator[Hit]:
    """Docker says that the kernel killed it, or its code of exit does."""
    for service in evidence.services:
        ended = [
            line for line in map(clean, since_ready(service.log)) if re.search(r"(?:ended|exited) with code 137", line)
        ]
        # Docker's flag can be true for a child that died in a container that runs well
        if (service.oom_killed and not service.works) or (ended and not service.works):
            code = service.exit_code if service.exit_code is not None else 137
            yield Hit(service.service, (f"exit code {code}, OOMKilled {service.oom_killed}", *ended[-1:]),
                      {"code": str(code)})  # fmt: skip


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V012",
        "the KV cache is too small for the context",
        "one request of {length} tokens needs {needed} GiB of KV cache, and {free} GiB are left for it"
        "[[; {limit} tokens would fit]]",
        "lower the context to what fits, or `auto`; more cache: gpu_memory_utilization, kv_cache_dtype: fp8, "
        "or cpu_kv_cache_gib on the CPU",
        "vLLM 0.32.0, v1/core/kv_cache_utils.py, _check_enough_kv_cache_memory; provoked for real on the CPU",
        "vLLM starts only when one request of the full context fits its KV cache. max_model_len is the longest context "
        "(prompt and answer), not a batch size: lowering it costs nothing but long requests. Older advice takes it for "
        "the batch size; that is max_num_seqs and max_num_batched_tokens, and lowering those does not help here.\n\n"
        "`max_model_len: auto` takes the longest context that fits. An fp8 cache doubles it on cards that have fp8.",
        patterns(
            r"To serve at least one request with the models?'s max seq len \((?P<length>\d+)\), \((?P<needed>[\d.]+) "
            r"GiB KV cache is needed.*?KV cache memory \((?P<free>[\d.]+) GiB\)"
            r"(?:.*?estimated maximum model length is (?P<limit>\d+))?",
        ),
        engines=("vllm",),
        change=Change("max_model_len", "{limit}"),
        cards=True,
    ),
    Rule(
        "SG-M001",
        "nothing is left for the KV cache",
        "the weights and the peak of a forward pass fill vLLM's share of memory: no block of KV cache fits",
        "raise gpu_memory_utilization, quantize the model, or split it: more `gpus` with tensor_parallel_size",
        "vLLM 0.32.0, v1/core/kv_cache_utils.py, _check_enough_kv_cache_memory and auto-fit; provoked for real on the "
        "CPU, and with 0.26.0 on an H100",
        BUDGET + " Raising the share helps only where the card is free; else take a smaller or quantized model, or "
        "more cards. Lowering max_num_seqs lowers the activation peak. enforce_eager: true saves the memory of CUDA "
        "graphs and makes decoding slower; it does not turn continuous batching on, which is always on.",
        patterns(r"No available memory for the cache blocks", r"Cannot auto-fit max_model_len: not enough GPU memory"),
        engines=("vllm",),
        cards=True,
    ),
    Rule(
        "SG-M002",
        "another process holds the card",
        "{free} of {total} GiB are free on {device}, and vLLM wants {wanted} GiB ({share} of the card)"
        "[[; now held by {holders}]]",
        "end who holds it[[: {holders}]] (`nvidia-smi` lists them), choose another card with `gpus: [1]`, or lower "
        "gpu_memory_utilization; two models on one card need share_gpus: true and shares that sum below 1",
        "vLLM 0.32.0, v1/worker/utils.py, request_memory; provoked for real with 0.26.0 on an H100",
        BUDGET + " Two services on one card each want 0.92 of it: the second can't start. GPU reservations of Docker "
        "are not exclusive: two services with `count: 1` both get GPU 0. stackgen places models on cards of their own "
        "unless both say share_gpus: true with a gpu_memory_utilization each. A killed run may leave a process behind.",
        patterns(
            r"Free memory on device (?P<device>\S+) \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less than "
            r"(?:desired GPU memory utilization|the engine's budget.*?) \((?P<share>[\d.]+), (?P<wanted>[\d.]+) GiB\)",
        ),
        engines=("vllm",),
        change=Change("gpu_memory_utilization", "0.6", safe=False, adapt=_free_share),
        cards=True,
    ),
    Rule(
        "SG-M003",
        "memory of the card changed during the start",
        "another process freed GPU memory while vLLM measured its own: {before} GiB were free before, {after} after",
        "start again; start models that share a card one after the other",
        "vLLM 0.32.0, v1/worker/gpu_worker.py, determine_available_memory",
        "vLLM measures its activation peak by the free memory of the card before and after. A second process that "
        "ends meanwhile spoils that. Start services that share a card one after the other, or give each its own card.",
        patterns(
            r"Error in memory profiling\. Initial free memory (?P<before>[\d.]+) GiB, current free memory "
            r"(?P<after>[\d.]+) GiB"
        ),
        engines=("vllm",),
        cards=True,
    ),
    Rule(
        "SG-M004",
        "the sampler's warm-up does not fit the card",
        "a sampler run with {seqs} requests at once does not fit what is left of the card",
        "lower max_num_seqs, or gpu_memory_utilization",
        "vLLM 0.32.0, v1/worker/gpu_model_runner.py, _dummy_sampler_run",
        "vLLM tries the worst case at start: max_num_seqs requests (256, on large cards 1024) sampled at once, each "
        "with a row as wide as the vocabulary. Half of it is enough for most users. max_num_seqs is the batch size; "
        "max_model_len is not.",
        patterns(r"out of memory occurred when warming up (?:sampler|pooler) with (?P<seqs>\d+) dummy requests"),
        engines=("vllm",),
        change=Change("max_num_seqs", "64", safe=False, adapt=_half),
        cards=True,
    ),
    Rule(
        "SG-M005",
        "the weights don't fit the card",
        "loading the weights needs more than the card has free[[: {wanted} at once, on a card of {total}]]"
        "[[; now held by {holders}]]",
        "quantize (an AWQ, GPTQ or FP8 version of the model), or split it: more `gpus` with tensor_parallel_size; "
        "on a card that is shared, free it first",
        "torch 2.x, c10/cuda/CUDACachingAllocator.cpp; frames of vLLM 0.32.0, gpu_worker.py load_model; provoked for "
        "real with 0.26.0 on an H100",
        "A model takes 2 bytes a parameter in bfloat16: 7 B are 14 GB, 70 B are 140 GB, divided by "
        "tensor_parallel_size. Neither max_model_len nor gpu_memory_utilization changes the size of the weights.",
        find=_out_of_memory(("load_model", "load_weights", "from_pretrained", "create_weights"), ("capture_model",)),
        engines=("vllm", "fastchat"),
        cards=True,
    ),
    Rule(
        "SG-M006",
        "capturing CUDA graphs does not fit the card",
        "capturing CUDA graphs needs more than the card has free[[: {wanted} at once, on a card of {total}]]",
        "lower gpu_memory_utilization by 0.05, or max_num_seqs; enforce_eager: true does without graphs, decoding is "
        "slower then",
        "torch 2.x, c10/cuda/CUDACachingAllocator.cpp; frames of vLLM 0.32.0, gpu_model_runner.py capture_model",
        "vLLM records the forward pass as CUDA graphs for many batch sizes after the KV cache took its share. "
        "--enforce-eager turns them off: less memory, slower decoding. It has nothing to do with continuous batching, "
        "which is always on, whatever older advice says.",
        find=_out_of_memory(("capture_model", "_capture_cudagraphs", "capture_graphs")),
        engines=("vllm",),
        change=Change("gpu_memory_utilization", "0.87", safe=False, adapt=_smaller_share),
        cards=True,
    ),
    Rule(
        "SG-M007",
        "the activation peak does not fit the card",
        "a forward pass at full batch needs more than the card has free[[: {wanted} at once, on a card of {total}]]",
        'lower max_num_seqs, or gpu_memory_utilization; `extra_args: [--max-num-batched-tokens, "2048"]` lowers '
        "the peak of prompts",
        "torch 2.x, c10/cuda/CUDACachingAllocator.cpp; frames of vLLM 0.32.0, gpu_worker.py",
        "The peak comes from the tokens computed at once (max_num_batched_tokens) and from sampling "
        "(max_num_seqs × vocabulary). max_model_len does not change it: it is the context, not the batch.",
        find=_out_of_memory(("profile_run", "_dummy_run", "determine_available_memory", "execute_model")),
        engines=("vllm",),
        cards=True,
    ),
    Rule(
        "SG-M008",
        "the GPU's memory is used up",
        "an allocation did not fit the card[[: {wanted} at once, on a card of {total}]][[; now held by {holders}]]",
        "see who uses it (`nvidia-smi`); lower max_num_seqs or gpu_memory_utilization, or quantize the model",
        "torch 2.x, c10/cuda/CUDACachingAllocator.cpp",
        BUDGET + " Where the traceback names no phase: weights that don't fit fail while loading, a KV cache that is "
        "too small says so with numbers, and another process on the card shows in `nvidia-smi`.",
        patterns(rf"{OUT}.*?{SIZES}", OUT),
        fallback=True,
        cards=True,
    ),
    Rule(
        "SG-M009",
        "/dev/shm is too small",
        "{needed} of shared memory are needed, and {free} are free in /dev/shm",
        "give the container more shared memory",
        "vLLM 0.32.0, distributed/device_communicators/shm_broadcast.py; provoked for real",
        "The engine's processes talk through /dev/shm, and so does NCCL between cards. Docker gives 64 MB, which is "
        "too little for vLLM. stackgen sets shm_size by itself unless stack.yaml says otherwise; `ipc: host` shares "
        "the machine's own, which `mount -o remount,size=16g /dev/shm` makes larger.",
        patterns(r"Insufficient space in /dev/shm.*?: (?P<needed>\d+ \wiB) required, (?P<free>\d+ \wiB) free"),
        change=Change("shm_size", "1g", adapt=_more_shm),
    ),
    Rule(
        "SG-M010",
        "/dev/shm is too small for NCCL",
        "a bus error, or NCCL can't extend its file in /dev/shm: shared memory is full",
        "give the container more shared memory",
        "NCCL, misc/shmutils.cc; public reports such as vllm-project/vllm issue 11054",
        "NCCL passes data between cards through /dev/shm where they have no direct way. 4 GB a card is plenty.",
        patterns(
            r"Error while creating shared memory segment (?P<file>/dev/shm/nccl-\S+)",
            r"Call to posix_fallocate failed ?: No space left on device",
            r"[Bb]us error.*shared memory|insufficient shared memory \(shm\)",
        ),
        change=Change("shm_size", "8g", adapt=_nccl_shm),
    ),
    Rule(
        "SG-M011",
        "the machine's memory is too small for the CPU's KV cache",
        "{wanted} GiB of KV cache are asked for, and {free} of {total} GiB are free[[ on memory node {node}]]",
        "ask for less",
        "vLLM 0.32.0, v1/worker/cpu_worker.py; provoked for real",
        "On the CPU, cpu_kv_cache_gib (VLLM_CPU_KVCACHE_SPACE) is taken from the machine's memory at start, beside "
        "the weights. Without it vLLM takes half of all memory, so two servers don't fit. Whole GiB only.",
        patterns(
            r"Available memory on node (?P<node>\d+) \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\).*?less than "
            r"requested memory for kv \((?P<wanted>[\d.]+) GiB\)",
            r"(?<![\d.])(?P<free>[\d.]+)/(?P<total>[\d.]+) GiB.*less than desired CPU memory utilization "
            r"\((?P<share>[\d.]+), (?P<wanted>[\d.]+) GiB\)",
        ),
        engines=("vllm",),
        change=Change("cpu_kv_cache_gib", "1"),
    ),
    Rule(
        "SG-M012",
        "killed: the host's memory, or the container's limit, is used up",
        "the kernel killed {service} (exit code 137): its memory limit, or the machine's memory, is used up",
        "free memory or raise the limit; on the CPU lower cpu_kv_cache_gib; load a smaller or quantized model",
        "Docker: State.OOMKilled, exit code 137 = 128 + SIGKILL; provoked for real; runc 1.1 and later, "
        "libcontainer/process_linux.go",
        "No log line tells it: a killed program can't write one. It is the host's memory, not the GPU's. While loading "
        "a model needs about the size of one shard beside its weights; on the CPU all of its weights and KV cache. "
        "`docker stats` shows the use, `dmesg` names the killed process.",
        patterns(r"container init was OOM-killed"),
        find=_killed,
        places=BOTH,
    ),
)
