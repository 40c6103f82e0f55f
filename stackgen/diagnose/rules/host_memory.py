"""Host memory and /dev/shm. Texts of vLLM 0.32.0 and NCCL; `source` names the files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import lines_since_ready, strip_prefix
from stackgen.diagnose.rule import Change, Hit, Rule, compile_patterns
from stackgen.spec import ModelSpec

__all__ = ["RULES"]

GIB = 2**30


def _parse_size(text: str) -> int:
    """The bytes of `8g` or `64 MiB`; 0 for anything else."""
    match = re.match(r"(\d+) ?([kmg])", text.lower())
    return int(match[1]) << {"k": 10, "m": 20, "g": 30}[match[2]] if match else 0


def _larger_shm(model: ModelSpec | None, values: Mapping[str, str]) -> str | None:
    """The current size plus the needed size, in whole GiB; None with `ipc: host`."""
    was = _parse_size((model and model.shm_size) or "")
    wanted = -(-(was + _parse_size(values["needed"])) // GIB)
    # with `ipc: host` the size is the host's own, so shm_size has no effect
    return None if model and model.ipc == "host" else f"{max(1, wanted)}g"


def _nccl_shm(model: ModelSpec | None, _: Mapping[str, str]) -> str | None:
    """8 GiB if there is less; None with `ipc: host`."""
    # with 8 GiB or more, the size is hardly the cause
    if model and (model.ipc == "host" or _parse_size(model.shm_size or "") >= 8 * GIB):
        return None
    return "8g"


def _find_killed(evidence: Evidence) -> Iterator[Hit]:
    """Docker reports that the kernel killed it, or its exit code shows it."""
    for service in evidence.services:
        lines = map(strip_prefix, lines_since_ready(service.log))
        ended = [line for line in lines if re.search(r"(?:ended|exited) with code 137", line)]
        # OOMKilled is also true if a child process died in a container that runs well
        if (service.oom_killed and not service.is_working) or (ended and not service.is_working):
            code = service.exit_code if service.exit_code is not None else 137
            yield Hit(service.service, (f"exit code {code}, OOMKilled {service.oom_killed}", *ended[-1:]),
                      {"code": str(code)})  # fmt: skip


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-M009",
        title="/dev/shm is too small",
        cause="{needed} of shared memory are needed, but only {free} are free in /dev/shm",
        fix="give the container more shared memory",
        source="vLLM 0.32.0, distributed/device_communicators/shm_broadcast.py; reproduced",
        explain="The engine's processes communicate through /dev/shm, and so does NCCL between GPUs. Docker gives 64 "
        "MB, which is too little for vLLM. stackgen sets shm_size itself unless stack.yaml says otherwise. `ipc: "
        "host` shares the host's /dev/shm, which `mount -o remount,size=16g /dev/shm` enlarges.",
        patterns=compile_patterns(
            r"Insufficient space in /dev/shm.*?: (?P<needed>\d+ \wiB) required, (?P<free>\d+ \wiB) free"
        ),
        change=Change("shm_size", "1g", compute=_larger_shm),
    ),
    Rule(
        "SG-M010",
        title="/dev/shm is too small for NCCL",
        cause="a bus error, or NCCL can't extend its file in /dev/shm: shared memory is full",
        fix="give the container more shared memory",
        source="NCCL, misc/shmutils.cc; public reports such as vllm-project/vllm issue 11054",
        explain="NCCL passes data between GPUs through /dev/shm if they have no direct connection. 4 GB per GPU is "
        "plenty.",
        patterns=compile_patterns(
            r"Error while creating shared memory segment (?P<file>/dev/shm/nccl-\S+)",
            r"Call to posix_fallocate failed ?: No space left on device",
            r"[Bb]us error.*shared memory|insufficient shared memory \(shm\)",
        ),
        change=Change("shm_size", "8g", compute=_nccl_shm),
    ),
    Rule(
        "SG-M011",
        title="the machine's memory is too small for the CPU's KV cache",
        cause="{wanted} GiB of KV cache are requested, but {free} of {total} GiB are free[[ on NUMA node {node}]]",
        fix="request less",
        source="vLLM 0.32.0, v1/worker/cpu_worker.py; reproduced",
        explain="On the CPU, cpu_kv_cache_gib (VLLM_CPU_KVCACHE_SPACE) is taken from the machine's memory at startup, "
        "in addition to the weights. Without it vLLM takes half of all memory, so two servers do not fit. Whole GiB "
        "only.",
        patterns=compile_patterns(
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
        title="killed: the host's memory, or the container's limit, is exhausted",
        cause="the kernel killed {service} (exit code 137): its memory limit, or the machine's memory, is exhausted",
        fix="free memory or raise the limit; on the CPU lower cpu_kv_cache_gib; load a smaller or quantized model",
        source="Docker: State.OOMKilled, exit code 137 = 128 + SIGKILL; reproduced; runc 1.1 and later, "
        "libcontainer/process_linux.go",
        explain="No log line reports it: a killed program can't write one. It is the host's memory, not the GPU's. "
        "Loading a model needs about the size of one shard in addition to its weights; on the CPU, all of its weights "
        "and its KV cache. `docker stats` shows the usage, `dmesg` names the killed process.",
        patterns=compile_patterns(r"container init was OOM-killed"),
        find=_find_killed,
        inputs=("compose", "docker"),
    ),
)
