"""Reads what an engine printed about its memory when it started, and compares it with the estimate.

Messages: vllm/v1/worker/gpu_worker.py, vllm/v1/worker/gpu/model_runner.py and vllm/v1/core/kv_cache_utils.py of vLLM
0.32.0, and their wording in 0.10 to 0.31 (the logs in benchmarks/fit_data/rows.tsv); `common_memory_breakdown_print`
and `llama_kv_cache: size` of llama.cpp b11434.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from stackgen.fit.estimate import Estimate
from stackgen.fit.gpus import GIB

__all__ = ["Observation", "compare", "read_start"]

_NUMBER = r"(-?\d+(?:\.\d+)?)"
# name -> pattern of a number in GiB
SIZES = {
    "weights": (rf"Model loading took {_NUMBER} Gi?B", rf"Actual usage is {_NUMBER} GiB for weight\b",
                rf"weights memory: {_NUMBER}\s?GiB"),
    "activations": (rf"torch peak memory increase: {_NUMBER}\s?GiB", rf"{_NUMBER} GiB for peak activation"),
    "CUDA graphs": (rf"CUDA graph pool memory: {_NUMBER} GiB \(actual\)", rf"{_NUMBER} GiB for CUDAGraph memory",
                    rf"Graph capturing finished in \d+ secs, took {_NUMBER} GiB"),
    "CUDA and NCCL": (rf"{_NUMBER} GiB for non-torch memory", rf"non-torch forward increase memory: {_NUMBER}\s?GiB"),
    "consumed": (rf"{_NUMBER} GiB for consumed memory \(weights \+ non-torch\)",),
    "kv_cache": (rf"Available KV cache memory: {_NUMBER} GiB",),
    "gpu": (rf"Free memory on device(?: \S+)? \([\d.]+/{_NUMBER} GiB\) on startup",
            rf"Free memory on device \([\d.]+/{_NUMBER} GiB\)"),
}  # fmt: skip
TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")
CONCURRENCY = re.compile(r"Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x")
VERSION = re.compile(r"(?:LLM engine \(v|vLLM API server version |\bversion )(\d+\.\d+\.\d+)")
PIN = re.compile(r"--kv-cache-memory(?:-bytes)?=(\d+)`?(?: \([\d.]+ GiB\))? to fit into requested memory")
UTILIZATION = re.compile(r"Desired GPU memory utilization is \(([\d.]+), ([\d.]+) GiB\)")
# a compile with an empty cache: its work is counted as activations (vllm-project/vllm issues 54122 and 54383)
COLD = re.compile(
    r"Compiling a graph for (?:general shape|compile range|dynamic shape)|Cache the graph of (?:shape|compile range)"
)
LLAMA_CACHE = re.compile(r"llama_kv_cache: size =\s*([\d.]+) MiB")
LLAMA_MODEL = re.compile(r"(?:CPU_Mapped|CUDA\d+|CPU) model buffer size =\s*([\d.]+) MiB")
LLAMA_COMPUTE = re.compile(r"(?:sched_reserve|graph_reserve|llama_context):\s+\S+ compute buffer size =\s*([\d.]+) MiB")


@dataclass(frozen=True, slots=True)
class Observation:
    """One start of an engine. Sizes are bytes; 0: not printed.

    - `terms`: measured parts by name, as in `Estimate.terms`. `kv_cache`, `kv_tokens`, `context`, `concurrency`: of
      the KV cache. `gpu`: memory of the GPU. `pin`: the value of `--kv-cache-memory-bytes` that repeats this start.
    - `cold`: whether code was compiled in this start, whose memory is counted as activations.
    """

    version: str
    terms: dict[str, int]
    kv_cache: int = 0
    kv_tokens: int = 0
    context: int = 0
    concurrency: float = 0.0
    gpu: int = 0
    utilization: float = 0.0
    pin: int = 0
    cold: bool = False

    def to_json(self) -> dict[str, Any]:
        """The content of the file that `fit --observe` stores."""
        return asdict(self)


def read_start(log: str) -> Observation | None:
    """The last start in the log of an engine; None if the log has no line about memory."""
    # a restart begins with the version again
    starts = [
        match.start() for match in re.finditer(r"Initializing a V1 LLM engine|llama_model_loader: loaded meta", log)
    ]
    text = log[starts[-1] :] if starts else log
    terms: dict[str, int] = {}
    for name, patterns in SIZES.items():
        for pattern in patterns:
            if found := re.findall(pattern, text):
                # ranks print the same lines: the one with the most memory decides
                terms[name] = int(max(map(float, found)) * GIB)
                break
    kv_cache, gpu = terms.pop("kv_cache", 0), terms.pop("gpu", 0)
    if available := re.findall(SIZES["kv_cache"][0], text):
        # the rank with the least room limits all
        kv_cache = int(min(map(float, available)) * GIB)
    if (consumed := terms.pop("consumed", 0)) and "weights" in terms and "CUDA and NCCL" not in terms:
        terms["CUDA and NCCL"] = max(0, consumed - terms["weights"])
    if cache := LLAMA_CACHE.findall(text):
        kv_cache = int(float(cache[-1]) * 2**20)
        terms["weights"] = int(float((LLAMA_MODEL.findall(text) or ["0"])[-1]) * 2**20)
        terms["compute buffer"] = int(float((LLAMA_COMPUTE.findall(text) or ["0"])[-1]) * 2**20)
    tokens, several, share = TOKENS.findall(text), CONCURRENCY.findall(text), UTILIZATION.search(text)
    if not tokens and not kv_cache and "weights" not in terms:
        return None
    pins, version = PIN.findall(text), VERSION.search(text) or VERSION.search(log)
    return Observation(
        version=version[1] if version else "", terms=terms, kv_cache=kv_cache,
        kv_tokens=int(tokens[-1].replace(",", "")) if tokens else 0,
        context=int(several[-1][0].replace(",", "")) if several else 0,
        concurrency=float(several[-1][1]) if several else 0.0, gpu=gpu,
        utilization=float(share[1]) if share else 0.0,
        # ranks may differ: the smallest works on all
        pin=min(map(int, pins)) if pins else max(0, kv_cache - GIB // 100), cold=bool(COLD.search(text)),
    )  # fmt: skip


def compare(found: Estimate, seen: Observation) -> list[dict[str, Any]]:
    """Predicted and measured bytes by term, and whether the measured value is inside the predicted bounds."""
    rows = []
    for term in found.terms:
        if (measured := seen.terms.get(term.name)) is not None:
            rows.append({"term": term.name, "predicted": term.bytes, "measured": measured,
                         "inside": term.low <= measured <= term.high})  # fmt: skip
    if seen.kv_cache:
        low, middle, high = found.cache
        rows.append({"term": "room for the KV cache", "predicted": middle, "measured": seen.kv_cache,
                     "inside": low <= seen.kv_cache <= high})  # fmt: skip
    if seen.kv_tokens:
        length = seen.context or found.length
        exact = found.plan.tokens(seen.kv_cache or found.cache[1], length)
        rows.append({"term": "tokens in that room", "predicted": exact, "measured": seen.kv_tokens,
                     "inside": abs(exact - seen.kv_tokens) <= max(1, 0.001 * seen.kv_tokens)})  # fmt: skip
    return rows
