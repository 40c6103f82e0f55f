"""What a log without a known failure shows: the lines that come closest to an error, and what to look at next."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stackgen.diagnose.container_states import is_inspect_line
from stackgen.diagnose.error_lines import is_routine, select_key_lines
from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import has_certain_error, lines_since_ready, strip_prefix
from stackgen.diagnose.log_text import excerpt
from stackgen.diagnose.unknown import WIDTH
from stackgen.stack.redactor import SecretRedactor

__all__ = ["describe_refused", "describe_undecided"]

# lines of one log that are shown
LINES = 4
CLOSEST = "no line of this log is clearly an error. These lines are the most likely errors, but may be unrelated:"
CERTAIN = "the log does not show whether the program ended. Its errors:"
NO_WORDS = "no line of this log reports an error. Its last line:"
NOT_ROUTINE = "no line of this log reports an error. Its last line that is not routine:"
NEXT = "next: pass the log from its first line"
INSPECT = ", and the output of `docker inspect` (exit code, OOMKilled)"
# of a log that just stops
STOPPED = (
    "; if the process is running but its log does not grow, run `docker stats` and {tool} twice, a minute apart, to "
    "see whether the process downloads, loads or computes"
)
TRANSFER = (
    "; if a download makes no progress and logs no error, set HF_HUB_DISABLE_XET=1 as a test, because the transfer "
    "protocol Xet may be the cause; keep the files that have already been downloaded"
)
DOWNLOADS = re.compile(r"(?i)download|\bfetching\b|hf[_-]?xet|huggingface|\.safetensors|\.gguf\b")
# a state that was pasted already
STATE = re.compile(r'"OOMKilled": ?(?:true|false)')
TOOLS = {"nvidia": "`nvidia-smi`", "amd": "`rocm-smi`", "": "the GPU's tool (`nvidia-smi`, `rocm-smi`, `xpu-smi`)"}
# the last request in an access log, which the server refused because of its body
REFUSED = re.compile(r'"POST (?P<path>/\S*) HTTP/[\d.]+" (?:400|422)$')
WHY_REFUSED = (
    "next: this log does not show the reason, but the answer to the client contains it. Read the answer in the "
    "client's log, or repeat the request with `curl`"
)
# what servers most often refuse in a chat
CHAT = (
    ". Often, the client sends tools, but vLLM runs without --enable-auto-tool-choice and --tool-call-parser (in "
    "stack.yaml: tool_call_parser); as a test, turn tools off in the client. Other common reasons are a prompt that "
    "is too long, and images for a model that can't read images"
)


def describe_refused(line: str) -> str:
    """What to do next if `line`, the last error of a log, is a request that the server refused; "" otherwise."""
    found = REFUSED.search(line)
    return WHY_REFUSED + (CHAT if "/chat/completions" in found["path"] else "") if found else ""


def describe_undecided(evidence: Evidence, undecided: Sequence[str]) -> tuple[str, ...]:
    """Lines of text about the logs of the services `undecided`, which show neither a failure nor a server that works.

    Services with a state are left out, because Docker knows more about them.
    """
    redact = SecretRedactor(evidence.secrets)
    found: list[str] = []
    step = NEXT
    for service in evidence.services:
        if service.state or service.service not in undecided:
            continue
        lines = lines_since_ready(service.log)
        closest = select_key_lines(lines, LINES)
        plain = [text for line in lines if (text := strip_prefix(line).strip())]
        telling = [text for text in plain if not is_inspect_line(text) and not is_routine(text)]
        ends = tuple(telling or plain)[-1:]
        if shown := closest or ends:
            if INSPECT not in step and not STATE.search(service.log):
                step = step.replace(NEXT, f"{NEXT}{INSPECT}")
            head = NO_WORDS if ends == tuple(plain[-1:]) else NOT_ROUTINE
            if closest:
                head = CERTAIN if has_certain_error(service.log) else CLOSEST
            found += [f"{service.service}: {head}", *(f"  | {excerpt(redact(one), '', WIDTH)}" for one in shown)]
            if not closest and STOPPED not in step:
                step += STOPPED.format(tool=TOOLS[evidence.gpu_maker(service.service)])
            if TRANSFER not in step and any(DOWNLOADS.search(one) for one in shown):
                step += TRANSFER
    return (*found, step) if found else ()
