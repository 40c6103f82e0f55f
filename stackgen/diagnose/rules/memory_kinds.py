"""Rules for memory that is not the memory of one discrete NVIDIA GPU: AMD, unified memory, shared memory, tmpfs.

None of these failures was reproduced. `source` names the reports that quote the messages.
"""

from __future__ import annotations

import re

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.rule import Change, Rule, Variant, compile_patterns

__all__ = ["OUT_OF_MEMORY", "OWN_MEMORY", "RULES", "SIZES"]

OUT_OF_MEMORY = (
    r"(?:torch\.(?:cuda\.)?OutOfMemoryError|(?:CUDA|HIP|Triton Error \[(?:CUDA|HIP)\]:) (?:error: )?out of memory)"
)
SIZES = r"Tried to allocate (?P<wanted>[\d.]+ [KMG]iB).*?total capacity of (?P<total>[\d.]+ [KMG]iB)"
# GiB of machines whose CPU and GPU share the memory (GB10, Jetson Thor); no discrete GPU has 110 to 129
UNIFIED_TOTAL = r"1[12]\d\.\d+"
NO_SPACE = r"(?:No space left on device|\[Errno 28\])"

# GiB of the GPU, and of what torch allocated in the process that failed
OWN_SHARE = r"total capacity of ([\d.]+) GiB.*?allocated memory ([\d.]+) GiB is allocated by PyTorch"


def _fills_the_gpu_alone(evidence: Evidence, service: str) -> bool:
    """The failed process itself holds at least nine tenths of the GPU's memory."""
    found = re.search(OWN_SHARE, evidence.read_log(service))
    return found is not None and float(found[2]) >= 0.9 * float(found[1])


OWN_MEMORY = Variant(
    compile_patterns(rf"{OUT_OF_MEMORY}.*?{SIZES}"),
    cause="an allocation of {wanted} did not fit on the GPU, which has {total}. The failed process itself uses nearly "
    "all of it, so other programs are not the reason[[. Processes on the GPU: {holders}]]",
    fix="if the log does not yet say how much memory the weights took, the model is too large for the GPUs: use more "
    "GPUs with a larger tensor_parallel_size, or a quantized or smaller model; if it does, the weights fit: lower "
    "gpu_memory_utilization or max_num_seqs",
    applies=_fills_the_gpu_alone,
    condition="the failed process itself uses at least nine tenths of the GPU's memory",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-M013",
        title="the memory of the AMD GPU is exhausted",
        cause="an allocation[[ of {wanted}]] did not fit on the AMD GPU[[, which may use {total}. The engine itself "
        "uses {own} of this memory]]",
        fix="use a smaller or quantized model, lower gpu_memory_utilization or max_num_seqs, or use more GPUs; on an "
        "APU (Strix Halo), raise the share of the machine's memory that the GPU may use (kernel parameter "
        "ttm.pages_limit)",
        source="The message comes from torch for ROCm, and is quoted in kyuz0/amd-strix-halo-vllm-toolboxes issue 11 "
        "(2026-01) and noamsto/nix-amd-ai issue 42 (2026-08). The failure was not reproduced.",
        explain="The GPU of an APU has little memory of its own. By default, it may use half of the machine's memory. "
        "If most of the memory belongs to the engine itself, no other process is the cause. `rocm-smi --showmeminfo "
        "vram gtt` shows the memory.",
        patterns=compile_patterns(
            r"HIP out of memory\. Tried to allocate (?P<wanted>[\d.]+ [KMG]iB)\..*?total capacity of "
            r"(?P<total>[\d.]+ [KMG]iB).*?Of the allocated memory (?P<own>[\d.]+ [KMG]iB) is allocated by PyTorch",
            r"HIP (?:error: )?out of memory",
            r"hipErrorOutOfMemory",
        ),
        fallback=True,
        shows_gpus=True,
        variants=(
            Variant(
                compile_patterns(r"HSA_STATUS_ERROR_OUT_OF_RESOURCES"),
                title="the ROCm runtime could not allocate a resource",
                cause="the ROCm runtime could not allocate a resource. Most often, GPU memory is exhausted. "
                "Sometimes, the operating system has no more threads or events",
                fix="check how much memory is free (`rocm-smi --showmeminfo vram gtt`), and which processes use the "
                "GPU (`rocm-smi --showpids`); lower gpu_memory_utilization or max_num_seqs",
            ),
        ),
    ),
    Rule(
        "SG-M014",
        title="too little unified memory is free",
        cause="CPU and GPU share the memory of this machine. Only {free} of {total} GiB are free, but vLLM needs "
        "{wanted} GiB. Either the page cache of the operating system counts as used, or another process uses the "
        "memory",
        fix="run `free -g` on the host; if `buff/cache` is large, run `sync && echo 3 | sudo tee "
        "/proc/sys/vm/drop_caches`, and start again; otherwise end the process that uses the memory, or lower "
        "gpu_memory_utilization (0.8 or less leaves memory for the operating system)",
        source="The message comes from vLLM (v1/worker/utils.py, request_memory), and is quoted for a GB10 in "
        "vllm-project/vllm issue 48140 (2026-07). NVIDIA/xr-ai pull request 440 describes the page cache. The failure "
        "was not reproduced.",
        explain="On GB10, Jetson and similar machines, CUDA counts the page cache as used memory. The page cache "
        "holds the files that the last start has read, and it belongs to no process.",
        patterns=compile_patterns(
            rf"Free memory on device(?: [^\s(]+)? ?\((?P<free>[\d.]+)/(?P<total>{UNIFIED_TOTAL}) GiB\) on startup is "
            rf"less than .*?"
            r"\([\d.]+, (?P<wanted>[\d.]+) GiB\)"
        ),
        engines=("vllm",),
        shows_gpus=True,
    ),
    Rule(
        "SG-M015",
        title="the container's shared memory is full",
        cause="/dev/shm of the container is full, so processes can't share data. The disk is not full",
        fix="give the container more shared memory",
        source="The message comes from torch (MapAllocator), and is quoted in logicalclocks/hopsworks issue 1557 "
        "(2025-11) and theroyallab/tabbyAPI issue 387 (2025-10). The failure was not reproduced.",
        explain="`</torch_…>` in the message is the name of an object in /dev/shm. Docker's default size of /dev/shm "
        "is 64 MB. With `ipc: host`, the container uses the host's /dev/shm.",
        patterns=compile_patterns(
            rf"unable to (?:write to|open|mmap|resize) (?:shared memory object|file) <?/torch_.*{NO_SPACE}",
            # not the files of NCCL, which SG-M010 explains
            rf"{NO_SPACE}.{{0,200}}/dev/shm/(?!nccl)|/dev/shm/(?!nccl)[^\s'\"]*.{{0,200}}{NO_SPACE}",
        ),
        change=Change("shm_size", "8g"),
    ),
    Rule(
        "SG-M016",
        title="a temporary folder in memory is full",
        cause="{path} can't grow. In stackgen's containers, /tmp and /run are in memory (tmpfs) and have a limited "
        "size. In other containers, the disk is full",
        fix="run `df -h` in the container, which shows the full file system; set TMPDIR in extra_env to a folder on "
        "a volume",
        source="The message is errno 28 (ENOSPC) of Linux, as Python's OSError prints it. The failure was not "
        "reproduced.",
        explain="The size of a tmpfs is set by its mount, and does not depend on the disk.",
        patterns=compile_patterns(rf"{NO_SPACE}[^/\n]{{0,40}}'(?P<path>/(?:tmp|run)/[^']+)'"),
    ),
    Rule(
        "SG-M017",
        title="the host has no memory for an allocation",
        cause="the operating system refused to allocate memory (errno 12), because the machine's memory, or a limit "
        "of the container or process, is exhausted",
        fix="end programs that use much memory on the machine (`free -g` shows how much is free), or raise the memory "
        "limit of the service; if much memory is free, check vm.overcommit_memory and the limits of the process "
        "(`ulimit -v`)",
        source="The message is errno 12 (ENOMEM) of Linux, as Python, torch (MapAllocator.cpp, alloc_cpu.cpp) and Rust "
        "print it. It is quoted in vllm-project/vllm issues 2391 and 759 (2025-06) and safetensors/safetensors issue "
        "528. The failure was not reproduced.",
        explain="The message is about the host's memory, not about the GPU's memory.",
        patterns=compile_patterns(
            # rocminfo prints the same errno for /dev/kfd: SG-G032
            r"\[Errno 12\] Cannot allocate memory|Cannot allocate memory \((?:os error )?12\)",
            r"can't allocate memory: you tried to allocate \d+ bytes\. Error code 12 \(Cannot allocate memory\)",
        ),
    ),
    Rule(
        "SG-M018",
        title="the Jetson's memory driver refused an allocation",
        cause="CPU and GPU share the memory of a Jetson. NvMap, the driver that allocates memory for the GPU, "
        "refused an allocation (error {code}). This can happen although enough memory is free in total: either "
        "the free memory is fragmented, or the page cache occupies it",
        fix="empty the page cache before the start (`sync && echo 3 | sudo tee /proc/sys/vm/drop_caches`); after a "
        "boot, start the model before other programs; use a smaller model, a shorter max_model_len, or fewer "
        "gpu_layers, so that the buffers are smaller; compare `cat /etc/nv_tegra_release` with the release notes of "
        "JetPack: according to reports, some models no longer load with L4T 36.4.7",
        source="The messages come from NVIDIA's NvMap on Jetson Linux, and are quoted in ggml-org/llama.cpp pull "
        "request 23732 (2026-05) and 0xShug0/audio.cpp issue 12 (2026-08). The failure was not reproduced.",
        explain="The message `cudaMalloc failed: out of memory` is a consequence. The model's files are not the "
        "cause, and swap does not help the GPU.",
        patterns=compile_patterns(
            r"NvMapMem(?:AllocInternalTagged|HandleAlloc): .{0,40}?error (?P<code>[1-9]\d*)",
        ),
    ),
    Rule(
        "SG-M019",
        title="NVIDIA's kernel driver has no memory left",
        cause="the NVIDIA driver in the kernel could not allocate memory of the machine. On a GPU with unified memory "
        "(DGX Spark, Jetson), the engine and the system share this memory",
        fix="lower gpu_memory_utilization and max_model_len until `free -g` shows a few GiB of available memory while "
        "the model is loaded; stop other programs that use much memory; set `max_num_seqs` to a small number",
        source="The message comes from NVIDIA's open kernel modules (nvCheckOkFailedNoLog), and is quoted in "
        "NVIDIA/dgx-spark-playbooks issue 97 (2026-08) and MiaAI-Lab/DeepSeek-v4-Flash-DSpark-2x-DGX-Spark issue 17 "
        "(2026-08). The failure was not reproduced.",
        explain="The line is in the kernel log. After many of these lines, some machines freeze or restart.",
        patterns=compile_patterns(r"NVRM: .{0,80}\[?NV_ERR_NO_MEMORY\]?"),
        fallback=True,
    ),
)
