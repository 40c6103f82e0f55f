"""Rules for host memory and /dev/shm. The texts are those of vLLM 0.32.0 and NCCL; `source` names the files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from stackgen.diagnose.container_states import find_ended_container
from stackgen.diagnose.error_lines import find_error_lines
from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import lines_since_ready, strip_prefix
from stackgen.diagnose.rule import Change, Hit, Rule, Variant, compile_patterns
from stackgen.spec import ModelSpec

__all__ = ["RULES"]

GIB = 2**30
# without OOMKilled, only the signal is known
KILLED = Variant(
    (),
    title="a service was killed, most often because memory was exhausted",
    cause="SIGKILL ended {service}[[ (exit code {code})]]. Most often, the kernel sends this signal because the "
    "memory limit of the service or the machine's memory is exhausted. `docker stop` and Ctrl-C also send SIGKILL, if "
    "a service does not stop in time",
    fix="if nobody stopped the service, look for `killed process` in the kernel log (`sudo dmesg`); if the kernel "
    "killed it, free memory on the machine, raise the memory limit of the service, or load a smaller or quantized "
    "model; on the CPU, you can also lower cpu_kv_cache_gib",
    condition="Docker does not report OOMKilled",
)
KERNEL_KILL = re.compile(
    r"killed by the OOM killer|Failed with result 'oom-kill'|[Oo]ut of memory: Killed process \d+|invoked oom-killer|"
    r"\boom-kill:constraint=|oom_reaper: reaped process"
)
KILLED_NAME = re.compile(r"Killed process \d+ \((?P<program>[^)]+)\)")
# the kernel shows at most 15 characters of the name of a thread
ENGINE_PROGRAM = re.compile(r"(?i)python|vllm|llama|server|worker|engine|\bray|uvicorn|fschat|pt_main")
SAVED_STATE = re.compile(r"saving prompt with length \d+, total state size = (?P<size>[\d.]+) MiB")
EXIT_CODE = re.compile(r"(?:ended|exited) with code (\d+)")


def _parse_size(text: str) -> int:
    """The bytes of `8g` or `64 MiB`; 0 for anything else."""
    match = re.match(r"(\d+) ?([kmg])", text.lower())
    return int(match[1]) << {"k": 10, "m": 20, "g": 30}[match[2]] if match else 0


def _larger_shm(model: ModelSpec | None, values: Mapping[str, str]) -> str | None:
    """The current size plus the needed size, in whole GiB; None with `ipc: host`."""
    was = _parse_size((model and model.shm_size) or "")
    # Ray leaves a tenth of /dev/shm free
    needed = int(values["bytes"]) * 10 // 9 if "bytes" in values else _parse_size(values.get("needed", "8g"))
    wanted = -(-(was + needed) // GIB)
    # with `ipc: host` the size is the host's own, so shm_size has no effect
    return None if model and model.ipc == "host" else f"{max(1, wanted)}g"


def _nccl_shm(model: ModelSpec | None, _: Mapping[str, str]) -> str | None:
    """8 GiB if shm_size is smaller; None otherwise, and with `ipc: host`."""
    # with 8 GiB or more, the size is hardly the cause
    if model and (model.ipc == "host" or _parse_size(model.shm_size or "") >= 8 * GIB):
        return None
    return "8g"


def _find_killed(evidence: Evidence) -> Iterator[Hit]:
    """Docker reports that the kernel killed the service, or the log shows exit code 137 or a message of the kernel."""
    yield from _find_kernel_messages(evidence)
    yield from _find_pasted_state(evidence)
    for service in evidence.services:
        lines = map(strip_prefix, lines_since_ready(service.log))
        exits = [(match[1], line) for line in lines if (match := EXIT_CODE.search(line))]
        ended = [line for code, line in exits if code == "137"]
        # OOMKilled is also true if a child process died in a container that runs well
        if (service.oom_killed and not service.is_working) or (ended and not service.is_working):
            # Docker reports no exit code of a container that it restarts, but the log contains one
            code = str(service.exit_code) if service.exit_code is not None else exits[-1][0] if exits else ""
            known = f"exit code {code}, " if code else ""
            yield Hit(service.service, (f"{known}OOMKilled {service.oom_killed}", *ended[-1:]),
                      {"code": code} if code else {}, variant=None if service.oom_killed else KILLED)  # fmt: skip


def _find_pasted_state(evidence: Evidence) -> Iterator[Hit]:
    """A pasted output of `docker ps` or `docker inspect` has exit code 137 or OOMKilled, and no log explains it."""
    for service in evidence.services:
        state = None if service.state else find_ended_container(service.log)
        if state is None or not (state.oom_killed or state.code == 137):
            continue
        if not any(one.certain for one in find_error_lines(service.log.splitlines())):
            values = {"code": str(state.code), "service": state.name or "the container"}
            yield Hit(service.service, state.lines, values, variant=None if state.oom_killed else KILLED)


def _find_kernel_messages(evidence: Evidence) -> Iterator[Hit]:
    """The log contains what the kernel or systemd logs when the OOM killer ends a process."""
    for service in evidence.services:
        # an engine can't print such a line about itself, so a service with a state has another log
        lines = [] if service.state else [strip_prefix(one).strip() for one in lines_since_ready(service.log)]
        hits = [index for index, line in enumerate(lines) if KERNEL_KILL.search(line)]
        # a kernel log also has the kills of other programs, and an engine's own error says more
        if not hits or any(one.certain for one in find_error_lines(lines[: hits[0]])):
            continue
        shown = [lines[index] for index in hits][:3]
        # what llama-server did last
        saved = [line for line in lines[: hits[0]] if line][-3:]
        state = next((line for line in saved if SAVED_STATE.search(line)), "")
        found = SAVED_STATE.search(state)
        values = {"size": found["size"]} if found else {}
        named = next((match["program"] for line in shown if (match := KILLED_NAME.search(line))), "")
        values |= {"program": named} if named else {}
        # the victim is another program, which shows only that the machine had no memory left
        if named and not ENGINE_PROGRAM.search(named):
            continue
        yield Hit(service.service, (*([state] if state else []), *shown), values,
                  variant=LARGE_STATE if found else KILLED_BY_KERNEL)  # fmt: skip


KILLED_BY_KERNEL = Variant(
    (),
    cause="the log contains a message of the kernel's OOM killer. The machine's memory or the memory limit of the "
    "service was exhausted, so the kernel killed a process[[: {program}]]",
    fix="check whether the killed process is the engine, and how much memory is free while the engine starts (`free "
    "-g`); then free memory on the machine, raise the memory limit of the service, or load a smaller or quantized "
    "model",
    condition="the log contains a message of the kernel or of systemd",
)
LARGE_STATE = Variant(
    (),
    title="llama-server's prompt cache does not fit in the host's memory",
    cause="the kernel's OOM killer ended the server while it saved the state of a prompt ({size} MiB) in its prompt "
    "cache. The prompt cache is in the host's memory, not on the GPU",
    fix='turn the prompt cache off (set extra_args to [--cache-ram, "0"][[?extra_args.--cache-ram| instead of the '
    "current value: some versions check this limit only after they have stored a state]]); or make the state smaller "
    "with a shorter max_model_len, or with a quantized KV cache (--cache-type-k and --cache-type-v with q8_0); or give "
    "the host or the service more memory; don't lower gpu_layers, because this needs more of the host's memory",
    condition="llama-server had just saved a prompt when it was killed",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-M009",
        title="/dev/shm is too small",
        cause="{needed} of shared memory are needed, but only {free} are free in /dev/shm",
        fix="give the container more shared memory",
        source="The message comes from vLLM 0.32.0 (distributed/device_communicators/shm_broadcast.py). The failure "
        "was reproduced. Ray's message (object_manager/plasma/store_runner.cc) is quoted in gpustack/gpustack issue "
        "5014 (2026-03), and was not reproduced.",
        explain="The engine's processes communicate through /dev/shm, and NCCL also uses /dev/shm between GPUs. "
        "Docker's default size of 64 MB is too small for vLLM. stackgen sets shm_size to a larger value unless you "
        "set shm_size in stack.yaml. If `ipc` is `host`, the container shares the host's /dev/shm. To enlarge the "
        "host's /dev/shm, run `mount -o remount,size=16g /dev/shm`.",
        patterns=compile_patterns(
            r"Insufficient space in /dev/shm.*?: (?P<needed>\d+ \wiB) required, (?P<free>\d+ \wiB) free"
        ),
        change=Change("shm_size", "1g", compute=_larger_shm),
        variants=(
            Variant(
                compile_patterns(
                    r"System memory request exceeds memory available in /dev/shm\. The request is for (?P<bytes>\d+) "
                    r"bytes, and the amount available is (?P<available>\d+) bytes"
                ),
                title="/dev/shm is too small for Ray's object store",
                cause="Ray's object store needs {bytes} bytes of shared memory, but only {available} bytes of /dev/shm "
                "are available to it",
                fix="give the container more shared memory, or start Ray with a smaller --object-store-memory; don't "
                "delete files in /dev/shm while programs run, because they use them",
            ),
            Variant(
                # whatever program prints it, unless it goes on with another folder
                compile_patterns(
                    r"(?i)\b(?:exceed(?:s|ed)|insufficient(?! space in /dev/shm)|not enough|too "
                    r"small)\b.{0,80}?(?<![\w/])/dev/shm\b(?!/)(?!.{0,300}(?:fall|instead))",
                    r"(?i)(?<![\w/])/dev/shm\b(?!/).{0,40}?\b(?:is too small|(?:is |are )?insufficient|not (?:large|"
                    r"big) enough)\b(?!.{0,300}(?:fall|instead))",
                ),
                cause="a program needs more shared memory than /dev/shm of its container has",
            ),
        ),
    ),
    Rule(
        "SG-M010",
        title="/dev/shm is too small for NCCL",
        cause="/dev/shm is full, so a process got a bus error, or NCCL can't extend its file there",
        fix="give the container more shared memory",
        source="The messages come from NCCL (misc/shmutils.cc; src/os/linux.cc in 2.30), and are quoted in "
        "vllm-project/vllm issue 11054.",
        explain="If GPUs have no direct connection, NCCL passes data between the GPUs through /dev/shm. 4 GB of "
        "shared memory per GPU are more than enough.",
        patterns=compile_patterns(
            # older versions print no errno; another errno than 28 has another cause
            r"(?:Error while creating shared memory segment|failed to extend) (?P<file>/dev/shm/nccl-\S+)"
            r"(?!.{0,80}error: (?!No space left))",
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
        source="The messages come from vLLM 0.32.0 (v1/worker/cpu_worker.py). The failure was reproduced.",
        explain="On the CPU, vLLM takes cpu_kv_cache_gib (VLLM_CPU_KVCACHE_SPACE) from the machine's memory at "
        "startup, in addition to the weights. Without cpu_kv_cache_gib, vLLM takes half of all memory, so two servers "
        "do not fit on one machine. cpu_kv_cache_gib must be a whole number of GiB.",
        patterns=compile_patterns(
            r"Available memory on node (?P<node>\d+) \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\).*?less than "
            r"requested memory for kv \((?P<wanted>[\d.]+) GiB\)",
        ),
        engines=("vllm",),
        # the smallest value that the field accepts
        change=Change("cpu_kv_cache_gib", "1"),
        variants=(
            Variant(
                compile_patterns(
                    r"(?<![\d.])(?P<free>[\d.]+)/(?P<total>[\d.]+) GiB.*less than desired CPU memory utilization "
                    r"\((?P<share>[\d.]+), (?P<wanted>[\d.]+) GiB\)"
                ),
                cause="on the CPU, vLLM takes {share} of the machine's memory ({wanted} GiB), but only {free} of "
                "{total} GiB are free",
                fix="set cpu_kv_cache_gib to the memory that the KV cache may use, or lower gpu_memory_utilization, "
                "which sets the share of the memory",
            ),
        ),
    ),
    Rule(
        "SG-M012",
        title="the kernel killed the service because memory was exhausted",
        # the exit code is 1 if the kernel killed a child process and the main process then exited
        cause="the kernel killed {service}[[ (exit code {code})]], because the memory limit of the service or the "
        "machine's memory was exhausted",
        fix="free memory on the machine, raise the memory limit of the service, or load a smaller or quantized "
        "model; on the CPU, you can also lower cpu_kv_cache_gib",
        source="Docker reports State.OOMKilled, and exit code 137, which is 128 + SIGKILL. The failure was "
        "reproduced. The message `container init was OOM-killed` comes from runc 1.1 and later "
        "(libcontainer/process_linux.go). The messages of the kernel (mm/oom_kill.c) and of systemd are quoted in "
        "ggml-org/llama.cpp issues 20509 (2026-04) and 22629 (2026-05), which also describe the prompt cache.",
        explain="The program's own log does not report this failure, because a killed program can't write to it. The "
        "exhausted memory is the host's memory, not the GPU's memory. To load a model, the host needs memory for "
        "about one shard in addition to the model's weights. On the CPU, the host needs memory for all weights and "
        "the KV cache. `docker stats` shows the memory usage. `dmesg` shows the name of the killed process.",
        patterns=compile_patterns(r"container init was OOM-killed"),
        variants=(KILLED, KILLED_BY_KERNEL, LARGE_STATE),
        find=_find_killed,
        inputs=("compose", "docker"),
    ),
)
