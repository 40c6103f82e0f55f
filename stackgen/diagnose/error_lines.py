"""Which lines of a failed log are causes, and which are consequences of other lines.

The cause is usually the earliest specific error of the deepest process: a worker's error ends the engine core, and the
engine core's end ends the API server, which logs the last and most general error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from stackgen.diagnose.prefixes import error_letter, is_below_error, is_error_level, process_depth, strip_prefix
from stackgen.diagnose.tracebacks import find_literal_raises

__all__ = ["CRASH_BANNER", "ErrorLine", "find_error_lines", "find_root_lines", "is_consequence", "is_error",
           "is_routine", "select_key_lines"]  # fmt: skip

RAISED = re.compile(
    r"^(?:[\w.]+(?:Error|Exception|Interrupt|Exit|OutOfResources|Unavailable)(?:\(\w+\))?\b(?![\w/-]).*|"
    r"Exception: .*|\S+: error while loading shared libraries: .*|\S+:\d+: ERROR: .*|"
    r"services\.\S+ (?:.{0,100} )?(?:must|unexpected|required|invalid)\b.*|"
    r"\S*: (?:\w+ )?error: .*|error(?:: | while handling ).*|ERROR:\s+\S.*|Value error, .*|stackgen: .*|"
    r"(?:[Ee]rror|fatal): .*|Error response from daemon: .*|invalid spec: .*|"
    # native libraries and programs, which know no exceptions
    r"Failed: Cuda error .*|"
    r"(?:rocBLAS|hipBLAS\w*|MIOpen\w*|ROCm|CUDA|HIP|HSA) [Ee]rror: .*|Memory (?:critical error|access fault) by .*|"
    r"ptxas (?:fatal|/\S+, line \d+; error) .*|nvcc fatal .*|NCCL WARN .*|Failed to initialize NVML.*|"
    r"(?:gguf|ggml|llama|clip|mtmd|common|srv|get|load)\w*(?: +\w+)?: (?:error|failed to|unable to|E )\b.*|"
    r"GGML_ASSERT.*|\S+:\d+: GGML_ASSERT.*|got exception: .*|exec \S+: .+|\S*python\S*: can't .*|"
    r"\S+: (?:cannot|can't|could not) \S.*|"
    # of the kernel: WSL's GPU, and NVIDIA's driver
    r"(?:\[ *[\d.]+\] )?(?:(?:misc dxg: )?(?:dxgk: )?dxgkio_make_resident: Ioctl failed: .*|NVRM: (?:.{1,40} )?Xid .*)|"
    # of Go
    r"panic: \S.*|"
    # of Python's OSError, printed without its name
    r"\[Errno \d+\] .*|"
    # of a shell that starts a program
    r"(?:/bin/)?(?:ba|da)?sh: (?:line )?\d+: \S+: .*|"
    # of vLLM, pasted without the level
    r"\[[\w/]{1,60}\.py:\d+\] (?:Unexpected: |Failed to |Error |Request \S+ failed with ).*|"
    # of SGLang, whose lines have no level
    r"Health check failed\. Server couldn't .*|"
    # of Python, passed on without the name of the exception
    r".{0,200}?\b[a-z_]\w{3,60}\(\) (?:takes (?:from \d+ to )?\d+ positional arguments? but \d+ (?:was|were) given|"
    r"missing \d+ required positional arguments?: |got an unexpected keyword argument ').*|"
    # of NVSHMEM, and of llama-server about the chat template
    r"\S*nvshmem\S*:\d+: (?:non-zero status|NULL value).*|(?:srv +)?init: (?:init: )?chat template parsing error: .*|"
    # of C++, after `terminate called`
    r"what\(\): +\S.*|"
    # the body of a refused request, which people paste below the log
    r'\{\s*"(?:error"\s*:\s*[{"]|object"\s*:\s*"error").*|'
    # a request that llama-server refused
    r"(?:srv +)?send_error: task id = \d+, error: .*|"
    # llama.cpp without timestamps
    r"E (?:srv|slot|main|que|res|(?:common|llama|clip|mtmd|ggml|gguf)_\w+)[ :].*)$"
)
# what a program, its libraries or its shell print when native code crashes; no exception follows
CRASH_BANNER = re.compile(
    r"^(?:\S+: line \d+:\s+\d+\s+)?(?:Segmentation fault|Illegal instruction|Bus error|Floating point exception)\b|"
    r"^!+ Segfault encountered|^Fatal Python error: (?:Segmentation fault|Illegal instruction|Bus error)"
)
# errors that follow from another error: every failed start ends with them, and they never show the reason
CONSEQUENCES = re.compile(
    r"See root cause above|Engine core initialization failed|"
    # vLLM quotes the error of a worker before these words, and it may be all that was pasted
    r"(?<![^']', please )(?:[Ss]ee|check the) stack trace .*for (?:the )?r(?:oot cause|eason)|and was never "
    r"healthy|EngineDeadError|"
    # of pydantic, without a field and its message: with them, `multiline` joins the lines
    r"validation errors? for \S+$|"
    r"exiting due to model loading error|llama_model_load_from_file_impl: failed to load model|"
    r"(?:common_fit_params|llama_params_fit): encountered an error|common_init\w*: failed to load model|"
    r"load_model: failed to load (?:\w+ )?model, |Failed to load CLIP model from|Worker proc \S+ died unexpectedly|"
    # torch, after the ImportError of a library
    r"Failed to load the backend extension: |the service was healthy and ended|the service was never healthy and ended|"
    r"^stackgen: ended with code .*: it stays down|"
    # raised by the subprocess that inspects the model's class, whose own exception is above
    r"\] failed to be inspected|returned non-zero exit status|^RuntimeError: Error raised in subprocess|"
    r"SubprocException: An exception occurred in a subprocess|Ptx assembly aborted due to errors|"
    r"(?:EngineCore|WorkerProc) (?:failed to start|hit an exception|encountered a fatal error)|"
    # SGLang after an exception of a scheduler, which ends with SIGQUIT
    r"scheduler died during initialization \(exit code: -?[13]\)|Rank \d+ scheduler is dead\. Please check|"
    r"Request failed after \d+ retries|gguf_init_from_\w+: failed to read tensor data|"
    r"llama_model_loader: failed to load model from|failed to get memory usage of mmproj|"
    # the compiler's own error is in the lines between
    r"Ninja build failed\. Ninja output|^ninja: build stopped|"
    # raised by the tokenizer's caller for every reason
    r"^RuntimeError: Failed to load the tokenizer"
)
# what a process of vLLM logs before the traceback that ends it
ENDING = re.compile(r"(?:EngineCore|WorkerProc) (?:failed to start|hit an exception|encountered a fatal error)")
NOISE = re.compile(
    r"Found ulimit of|was never retrieved|might be asynchronously reported|For debugging consider passing|"
    r"^Compile with `TORCH_|^Search for `(?:cuda|hip)|destroy_process_group\(\) was not called|Repro command: |"
    r"resource_tracker: There appear|^Set TORCH\w+=|another exception occurred:$|direct cause of the following|"
    r"^Exception in thread .*_report_usage|^For further information visit|"
    # vLLM on a CPU without the capability SYS_NICE, vLLM without NIXL, and vLLM's search for the platform, in which all
    # platforms but one are not available
    r"^[gs]et_mempolicy: Operation not permitted|Warning: numa_migrate_pages failed|"
    r"^NIXL (?:agent config )?is not available$|^(?:ROCm|TPU|XPU) platform is not available because"
)
# words of messages without the form of an error
HINTS = re.compile(
    r"(?i)\b(?:errors?|fatal|fail(?:ed|ure|s)|cannot|can't|could not|couldn't|unable to|unknown|unsupported|"
    r"not (?:supported|found|permitted|allowed|compatible|available)|only supports?|invalid|mismatch|denied|refused|"
    r"no (?:compatible|suitable|matching|valid|usable)|no such|missing|critical|abort\w*|assert\w*|timed ?out|"
    r"killed|incompatible|does(?: not|n't)|unauthorized|unhealthy|untolerated|insufficient|unschedulable|unbound|"
    r"requires?|must (?:be|not|match)|not implemented|still waiting|"
    r"forbidden|hanging|no available|exceed\w*|too (?:small|large|old|many|new))\b"
)
# a message that says what the reader must change. SGLang's lines have no level, so theirs may be a warning
OWN_REMEDY = re.compile(
    r"^(?!\[\d{4}-\d\d-\d\d [\d:]{8}[ \]]).*(?:\b[Yy]ou (?:may |might |will )?(?:need|have) to (?:pass|set|add|use|"
    r"specify|increase|raise)\b|\b[Pp]lease (?:set|pass|specify|increase|raise)\b)"
)
# an exception without a message
BARE = re.compile(r"^[\w.]+(?:Error|Exception)$")
# events of Kubernetes are indented as well
FRAME = re.compile(r'^\s+(?!(?:\S+\s+)?Warning\s+\w)(?:File "|\S)|^\s*[\^~]+\s*$|^Traceback \(most recent')
# warnings that state a cause, however long before the error that follows from it
STATED = re.compile(
    r"(?i)failed to import|undefined symbol|cannot open shared object|variable is not set\. Defaulting|"
    r"not locate lib(?:cuda|dxcore|nvidia-ml)\.so"
)
# what Python draws below a line of code
MARKS = re.compile(r"^\s*[\^~]+\s*$")
ACCESS_LOG = re.compile(r'HTTP/1\.[01]" \d\d\d|log_server_r: request|non-default args|Avg prompt throughput')
# what a healthy server logs all the time: answered requests, and statistics of vLLM and SGLang
ROUTINE = re.compile(
    r'HTTP/1\.[01]" [123]\d\d|log_server_r: request: \w+ /\S* \S+ [123]\d\d|non-default args|Avg prompt throughput|'
    r"(?:Prefill|Decode) batch\W{1,3}(?:\[\d+\]\W{1,3})?#"
)


@dataclass(frozen=True, slots=True)
class ErrorLine:
    """A line that reports an error.

    `depth` is that of its process (`prefixes.process_depth`). `certain` is False if only its words, or a level below
    error, suggest an error.
    """

    index: int
    text: str
    depth: int
    certain: bool
    below_error: bool


def is_error(line: str) -> bool:
    """Whether `line`, with its prefix, is an error: by its level or by the form of its message."""
    return is_error_level(line) or bool(RAISED.match(strip_prefix(line).strip()) and not is_below_error(line))


def is_consequence(text: str) -> bool:
    """Whether `text`, without prefix, is an error that other errors cause, and that never shows the reason."""
    return bool(CONSEQUENCES.search(text))


def is_routine(text: str) -> bool:
    """Whether `text`, without prefix, says nothing about a failure: healthy servers log it as well."""
    return bool(ROUTINE.search(text) or NOISE.search(text))


def find_error_lines(lines: Sequence[str]) -> list[ErrorLine]:
    """The errors in `lines`, which have their prefixes, in the order of the log; no consequences."""
    classified = ((index, _classify(line)) for index, line in enumerate(lines))
    found = [ErrorLine(index, *one) for index, one in classified if one]
    # an exception whose own line is missing, but not its text
    raised = [ErrorLine(index, strip_prefix(lines[index]).strip(), process_depth(lines[index]), True, False)
              for index in find_literal_raises(lines) if not is_consequence(lines[index])]  # fmt: skip
    return sorted((*found, *raised), key=lambda one: one.index) if raised else found


# cached because a diagnosis classifies the same lines several times
@lru_cache(maxsize=8192)
def _classify(line: str) -> tuple[str, int, bool, bool] | None:
    """Text, depth, certainty and level of an error as in `ErrorLine`; None for any other line."""
    text = strip_prefix(line)
    plain = text.strip()
    if not plain or NOISE.search(plain) or is_consequence(plain):
        return None
    below = is_below_error(line)
    # llama.cpp marks an error only in its prefix
    certain = not below and bool(error_letter(line) or RAISED.match(plain) or CRASH_BANNER.match(plain))
    # the frames of a traceback are indented, and quote code that contains the words of errors
    hint = not certain and not ACCESS_LOG.search(plain) and not FRAME.match(text) and bool(HINTS.search(plain))
    certain = certain or (hint and not below and bool(OWN_REMEDY.match(line)))
    return (plain, process_depth(line), certain, below) if certain or hint else None


def find_root_lines(lines: Sequence[str]) -> list[ErrorLine]:
    """The certain errors of the deepest process that has any; lines without a process count as any process.

    If that process logs that it ends, only the errors after this line: it has survived its earlier errors.
    """
    certain = [one for one in find_error_lines(lines) if one.certain]
    deepest = max((one.depth for one in certain), default=-1)
    ends = [i for i, line in enumerate(lines) if ENDING.search(line) and process_depth(line) == deepest]
    roots = [one for one in certain if one.depth in (deepest, -1)]
    last = [one for one in roots if one.depth == deepest and ends and one.index > ends[0]]
    # native libraries log before their process notices
    return [one for one in roots if one in last or one.depth == -1] if last and deepest >= 0 else roots


def select_key_lines(lines: Sequence[str], limit: int) -> tuple[str, ...]:
    """The lines that most likely show the reason, in the order of the log; () if no line reports an error."""
    errors = find_error_lines(lines)
    certain = [one for one in errors if one.certain]
    hints = [one for one in errors if not one.certain and not _is_routine(one)]
    if not certain:
        return tuple(dict.fromkeys(one.text for one in hints))[-limit:]
    roots = {one.index for one in find_root_lines(lines)}
    # every attempt, and every process that passes an exception on, prints the same lines again
    first: dict[str, ErrorLine] = {}
    for one in certain[-40:]:
        first.setdefault(one.text, one)
    ranked = sorted(first.values(), key=lambda one: (one.index not in roots, -one.index))[:limit]
    # what a library prints before the exception, such as "This kernel only supports sm120."
    start = min(one.index for one in ranked)
    near = [one for one in hints if start - 12 <= one.index < start]
    # a program that goes on after a failed import ends much later, at the first use of what is missing
    stated = [one for one in errors if one.index < start and STATED.search(one.text)]
    chosen = {one.index: one.text for one in (*stated[:1], *ranked[: limit - len(stated[:1])], *near[-2:])}
    for one in ranked:
        if CRASH_BANNER.match(one.text):
            # what was loaded last, and the first native frames, name the library
            near_crash = [one.index - 1, *range(one.index + 1, one.index + 3)]
            chosen.update((i, strip_prefix(lines[i]).strip()) for i in near_crash if 0 <= i < len(lines)
                          and (i < one.index or strip_prefix(lines[i]).startswith("  ")))  # fmt: skip
        # an exception without a text: the line of code above it shows what failed
        above = [i for i in range(max(0, one.index - 6), one.index) if not MARKS.match(strip_prefix(lines[i]))]
        if BARE.match(one.text) and above:
            chosen[above[-1]] = strip_prefix(lines[above[-1]]).strip()
            # its file often names the feature
            chosen.update((i, strip_prefix(lines[i]).strip()) for i in above[-2:-1]
                          if strip_prefix(lines[i]).lstrip().startswith("File "))  # fmt: skip
    shown = tuple(dict.fromkeys(text for _, text in sorted(chosen.items()) if text))
    return shown if len(shown) <= limit else (*shown[: len(stated[:1])], *shown[len(stated[:1]) - limit :])


def _is_routine(error: ErrorLine) -> bool:
    # engines log much at level INFO that contains words of errors; JSON warnings of hf-xet are an exception
    return error.below_error and not re.search(r"(?i)\berror\b|timed ?out|refused|certificate|hanging", error.text)
