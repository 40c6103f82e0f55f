"""Rules for host memory and /dev/shm. The texts are those of vLLM 0.32.0 and NCCL; `source` names the files."""

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
    """8 GiB if shm_size is smaller; None otherwise, and with `ipc: host`."""
    # with 8 GiB or more, the size is hardly the cause
    if model and (model.ipc == "host" or _parse_size(model.shm_size or "") >= 8 * GIB):
        return None
    return "8g"


def _find_killed(evidence: Evidence) -> Iterator[Hit]:
    """Docker reports that the kernel killed the service, or the log shows exit code 137."""
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
        source="vLLM 0.32.0, distributed/device_communicators/shm_broadcast.py; failure reproduced",
        explain="The engine's processes communicate through /dev/shm, and NCCL also uses /dev/shm between GPUs. "
        "Docker's default size of 64 MB is too small for vLLM. stackgen sets shm_size unless stack.yaml says "
        "otherwise. With `ipc: host`, the container shares the host's /dev/shm. To enlarge the host's /dev/shm, run "
        "`mount -o remount,size=16g /dev/shm`.",
        patterns=compile_patterns(
            r"Insufficient space in /dev/shm.*?: (?P<needed>\d+ \wiB) required, (?P<free>\d+ \wiB) free"
        ),
        change=Change("shm_size", "1g", compute=_larger_shm),
    ),
    Rule(
        "SG-M010",
        title="/dev/shm is too small for NCCL",
        cause="/dev/shm is full: a process got a bus error, or NCCL can't extend its file in /dev/shm",
        fix="give the container more shared memory",
        source="NCCL, misc/shmutils.cc; public reports such as vllm-project/vllm issue 11054",
        explain="If GPUs have no direct connection, NCCL passes data between them through /dev/shm. 4 GB of shared "
        "memory per GPU are more than enough.",
        patterns=compile_patterns(
            r"Error while creating shared memory segment (?P<file>/dev/shm/nccl-\S+)",
            r"Call to posix_fallocate failed ?: No space left on device",
            r"[Bb]us error.*shared memory|insufficient shared memory \(shm\)",
        ),
        change=Change("shm_size", "8g", compute=_nccl_shm),
    ),
    Rule(
        "SG-M011",
        title="the machine's memory is too small for the KV cache on the CPU",
        cause="{wanted} GiB of KV cache are requested, but only {free} of {total} GiB of memory are free[[ on NUMA "
        "node {node}]]",
        fix="lower cpu_kv_cache_gib",
        source="vLLM 0.32.0, v1/worker/cpu_worker.py; failure reproduced",
        explain="On the CPU, vLLM takes cpu_kv_cache_gib (VLLM_CPU_KVCACHE_SPACE) from the machine's memory at "
        "startup, in addition to the weights. Without cpu_kv_cache_gib, vLLM takes half of all memory, so two servers "
        "do not fit. cpu_kv_cache_gib must be a whole number of GiB.",
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
        title="the kernel killed the service: the host's memory, or the container's limit, is exhausted",
        cause="the kernel killed {service} (exit code 137): its memory limit, or the machine's memory, is exhausted",
        fix="free memory or raise the memory limit; on the CPU, lower cpu_kv_cache_gib; or load a smaller or "
        "quantized model",
        source="Docker: State.OOMKilled, exit code 137 = 128 + SIGKILL; failure reproduced; runc 1.1 and later, "
        "libcontainer/process_linux.go",
        explain="No log line reports this failure, because a killed program can't write to its log. The host's memory "
        "is exhausted, not the GPU's memory. To load a model, the host needs memory for about one shard in addition "
        "to the model's weights. On the CPU, the host needs memory for all weights and the KV cache. `docker stats` "
        "shows the memory usage. `dmesg` shows the name of the killed process.",
        patterns=compile_patterns(r"container init was OOM-killed"),
        find=_find_killed,
        inputs=("compose", "docker"),
    ),
)
