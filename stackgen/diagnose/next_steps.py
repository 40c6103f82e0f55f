"""What to do next if no rule explains a failure: what the shown lines are about, and commands that show more."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stackgen.diagnose.messages import find_advice

__all__ = ["describe_next_steps"]

REACH = (
    "in the same container, run `curl -v` with the address from the line: this shows whether the container can reach "
    "the address"
)
# an address with which a process reaches only its own machine; another process there did not listen
LOOPBACK = re.compile(r"\b127\.\d+\.\d+\.\d+\b|\[?::1\]|\blocalhost\b")
# where the program's own words point, and what shows more; at most two places are named. A single word decides nothing
PLACES: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (place, re.compile(pattern), look)
    for place, pattern, look in (
        ("the {maker}GPU driver",
         r"(?i)(?-i:\b(?:hip|cuda)[A-Z]\w+)|"
         r"\bNVML\b|\bnvidia-smi\b|\bxid\b|device lost|\b(?:cuda|hip|nvidia|amdgpu|gpu) driver|libcuda\.so|"
         r"/dev/(?:kfd|nvidia)|fallen off the bus|cuda unknown error", "{gpu}"),
        ("the container runtime or the Docker daemon",
         r"(?i)\b(?:error response from daemon|oci runtime|runc|crun|containerd|shim task|podman|cdi devices?|iptables|"
         r"nftables)\b",
         "run `docker info` and `sudo journalctl -u docker --since -10min` (Podman: `podman info`), which show the "
         "daemon's state"),
        ("the network or a server outside of the stack",
         r"(?i)\bconnection (?:refused|reset|timed out|aborted|error)|max retries exceeded|name resolution|"
         r"proxy ?error|(?:by|from|to|through|via) (?:the |a )?proxy\b|tunnel connection failed|"
         r"certificate verify|\bupstream\b|(?:status(?: code)?|HTTP) 50[234]\b|no route to host",
         REACH),
        ("files, folders or their permissions",
         r"(?i)no such file|permission denied|read-only file system|(?:is|not) a directory|no space left|"
         r"stale file handle|i/o error|input/output error|\block file\b",
         "run `ls -ln` with the path from the line (it shows owner and size), and `df -h` (it shows the free space)"),
        ("the model's files or their format",
         # not the address of a request that the Hub answered with an error
         r"^(?!.*\b[45]\d\d .{1,60}for url).*?(?:"
         r"\b[\w-]+\.(?:safetensors|gguf)\b|\b(?:config|tokenizer(?:_config)?)\.json\b|SafetensorError|invalid magic|"
         r"(?:missing|wrong shape|wrong type) .{0,20}tensor|tensor '[^']+')",
         "compare `model`, `revision` and `file` with the model's page, which names the engine versions that can run "
         "it"),
        ("memory", r"(?i)out of memory|cannot allocate|(?:unable|failed) to allocate|bad_alloc|MemoryError|oom.kill",
         "run `free -g`, `{memory}` and `docker stats --no-stream`, which show which programs use the memory"),
        ("Python packages in the image",
         r"\b(?:ImportError|ModuleNotFoundError)\b|undefined symbol|unexpected keyword",
         "look at the frames above the line in the full log, which name both packages; use an official image, whose "
         "packages match"),
    )
)  # fmt: skip
# only of a server that has served
REQUEST = (
    "a client's request",
    re.compile(r"(?i)\b(?:request|prompt|messages|chat template|tool_calls?)\b"),
    "repeat the request with `curl`, and remove parts of the request until it works",
)
# errno 24, 28, 62 and 116 of Linux, which libraries quote inside of their own messages
ERRNO = re.compile(r"\((?:os error|errno:?) (?P<rust>\d+)\)|\[Errno (?P<python>\d+)\]|\berrno[ =:]+(?P<c>\d+)", re.I)
SYSTEM_ERRORS = {
    24: (r"too many open files", "the process has reached its limit of open files (`ulimit -n` in the container): "
                                 "raise the limit (`ulimits: nofile` in a Compose file, `default-ulimits` in "
                                 "daemon.json), or run fewer transfers at the same time"),
    28: (r"no space left on device", "the file system of the path is full, or its inodes or a quota are used up: run "
                                     "`df -h` and `df -i` with the path, which show the reason; note that /dev/shm "
                                     "and tmpfs are separate file systems"),
    62: (r"timer expired", "the kernel ended an operation that took too long, most often because of the storage or "
                           "the network below the path: check the file system (`df -hT`) and the kernel log (`sudo "
                           "dmesg`), and try again"),
    116: (r"stale file handle", "the file server (usually NFS) no longer has this file, because it was replaced or "
                                "because the export changed: mount the share again, and check that the file exists "
                                "there"),
}  # fmt: skip
INTEL = re.compile(r"\bxpu\b|\bXPU\b|Level[ _-]?Zero|\bUR_RESULT_ERROR")
XET = re.compile(r"CAS service|\bxet")
COMMANDS = {
    "nvidia": (
        "NVIDIA ",
        "run `nvidia-smi` and `sudo dmesg | grep -iE 'nvrm|xid'`, which show the driver's state",
        "nvidia-smi",
    ),
    "amd": (
        "AMD ",
        "run `rocm-smi`, `rocminfo` and `sudo dmesg | grep -i amdgpu`, which show the driver's state",
        "rocm-smi",
    ),
    "intel": (
        "Intel ",
        "run `xpu-smi discovery` and `sudo dmesg | grep -iE 'i915|xe '`, which show the driver's state",
        "xpu-smi",
    ),
    "": (
        "",
        "run `sudo dmesg | grep -iE 'nvrm|xid|amdgpu'`, which shows the driver's state",
        "nvidia-smi` or `rocm-smi",
    ),
}
SIGNAL = re.compile(
    r"exit(?:ed with)? code (?:13[2-689])|Segmentation fault|Segfault encountered|Illegal instruction|core dumped|"
    r"terminate called|\bSIG(?:ILL|ABRT|BUS|FPE|SEGV)\b"
)
# an exception that checks the program's own state
INTERNAL = re.compile(
    r"^(?:\w+\.)*(?:AssertionError|KeyError|IndexError|NotImplementedError|TypeError|UnboundLocalError|NameError|"
    r"ZeroDivisionError)"
    r"(?:$|: )|GGML_ASSERT|^assert ", re.M
)  # fmt: skip
# a value that pydantic rejects
REJECTED = re.compile(r"validation errors? for \S+ \S.* ?[\[(]type=\w")
FIELD = (
    "the line names a field and the values that it accepts; if the field is a setting, correct its value; if the field "
    "is part of a request or of an answer, the client and the server expect different formats: compare their versions"
)
# of a request that failed with status 500 or above, and left no error in the log
BODY = "send the failed request again with `curl -i`: the body of the answer contains the server's message"
MEDIA = (
    "if the request names images, audio or video by URL, vLLM must download them in time (images: 5 seconds by "
    "default): as a test, send them as base64 data, or raise VLLM_IMAGE_FETCH_TIMEOUT (VLLM_AUDIO_FETCH_TIMEOUT, "
    "VLLM_VIDEO_FETCH_TIMEOUT)"
)
COMMON = (
    "search the issues of {project} for this message and the program's version (at the start of the log); if nobody "
    "has reported the message, report it: `stackgen diagnose --bundle FILE` writes everything that a report needs, "
    "without secrets"
)
SHORT = (
    "if this does not help, search the issues of {project} for the message, or report it with `stackgen "
    "diagnose --bundle FILE`"
)
SILENT = (
    "the log names no reason: run `docker inspect`, which shows the exit code and OOMKilled, and read the whole "
    "log (`docker logs`)"
)
PLACEHOLDER = re.compile(r"\{(maker|gpu|memory|project)\}")


def describe_next_steps(
    lines: Sequence[str],
    maker: str,
    engine: str,
    settings: Sequence[str] = (),
    *,
    advice: str = "",
    certain: bool = True,
    served: bool = False,
    component: str = "",
    features: str = "",
    refused: bool = False,
) -> str:
    """The next steps for a failure that shows `lines`, without prefixes.

    `maker` is `Evidence.gpu_maker`, `settings` are those of `settings.find_touched_settings`, `advice` is text of the
    log that may advise something. Without `certain`, no line is an error, so no place is named. `served` says whether
    the server has answered a request. `component` is a program around the engines that wrote the log, `features` are
    those of `features.describe_test`. `refused` says that the server answered a request with status 500 or above,
    and logged no error.
    """
    text = "\n".join(lines)
    name, gpu, memory = COMMANDS["intel" if not maker and INTEL.search(text) else maker]
    places = (*PLACES, *([REQUEST] if served else []))
    found = [
        (place, look)
        for place, pattern, look in places
        if certain and any(pattern.search(line) for line in lines if look != REACH or not LOOPBACK.search(line))
    ][:2]
    said = next(filter(None, map(find_advice, (*lines, *advice.splitlines()))), "")
    steps = [f"the message advises: {said}"] if said else []
    steps += explain_system_errors(text)
    if refused:
        steps += [BODY, *([MEDIA] if engine == "vllm" else ())]
    if REJECTED.search(text):
        steps.append(FIELD)
    if found and not explain_system_errors(text):
        named = " and ".join(place for place, _ in found)
        steps.append(f"the lines point to {named}: {'; '.join((look for _, look in found))}")  # fmt: skip
    elif not lines and not refused:
        steps.append(SILENT)
    if settings:
        these, their, them = ("these settings", "their values", "them") if settings[1:] else (
            "this setting", "its value", "it")  # fmt: skip
        steps.append(
            f"the lines concern {these}: {', '.join(settings[:4])}; compare {their} with the model's page and the "
            f"engine's `--help`; as a test, start once without {them}"
        )
    elif features and certain:
        steps.append(
            f"the failing code belongs to {features}; if the failure is then gone, search the release notes of newer "
            "versions for this feature"
        )
    if engine and lines and not steps and not INTERNAL.search(text) and not SIGNAL.search(text):
        steps.append(
            "read the model's page, which often names the version and the flags that the model needs; as a test, "
            "start with another version of the image"
        )
    if INTERNAL.search(text):
        steps.append(
            "the exception comes from the engine's own code and has no explanation, so it may be a bug of this "
            "version: read the release notes of newer versions; as a test, start with another version of the image"
        )
    if SIGNAL.search(text):
        steps.append(
            "native code crashed: the lines around the crash and `sudo dmesg` name the library; as a test, start "
            "with another version of the image"
        )
    steps.append(SHORT if steps else COMMON)
    values = {"maker": name, "gpu": gpu, "memory": memory, "project": component or "the engine's project"}
    # not format(): a quoted message may contain braces
    return PLACEHOLDER.sub(lambda found: values[found[1]], "; ".join(steps))


def explain_system_errors(text: str) -> list[str]:
    """What the errors of the operating system that `text` quotes mean, with what to do; most are Linux's errno."""
    numbers = {int(next(filter(None, found.groups()))) for found in ERRNO.finditer(text)}
    steps = [meaning for number, (words, meaning) in SYSTEM_ERRORS.items()
             if number in numbers or re.search(words, text, re.I)]  # fmt: skip
    if steps and XET.search(text):
        steps.append("as a test, set HF_HUB_DISABLE_XET=1, which downloads with plain HTTP instead of Xet")
    return steps
