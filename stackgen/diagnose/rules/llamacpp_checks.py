"""Rules for checks of llama.cpp that fail while it runs, after which it stops itself and prints a backtrace.

None of these failures was reproduced. `source` names the files and the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.error_lines import find_error_lines
from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import lines_since_ready, strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns

__all__ = ["LAST_RULES", "RULES"]

ABORT = re.compile(r"\(ggml_abort\+0x")
FRAME = re.compile(r"\(\S*\+0x[0-9a-f]+\) ?\[0x")
# what ggml_abort prints above the backtrace
CHECK = re.compile(r"^\S+\.(?:cpp|cuh?|c|h|hpp|m|mm):\d+: (?P<check>\S.*)")


def _find_abort(evidence: Evidence) -> Iterator[Hit]:
    """The log has a backtrace of ggml_abort, and no error that explains it."""
    for service in evidence.services:
        lines = lines_since_ready(service.log) if "(ggml_abort+0x" in service.log else []
        place = next((index for index, line in enumerate(lines) if ABORT.search(line)), None)
        if place is None or any(one.certain for one in find_error_lines(lines[: place + 1])):
            continue
        plain = [text for line in lines[:place] if (text := strip_prefix(line).strip())]
        check = next((found for line in reversed(plain[-80:]) if (found := CHECK.match(line))), None)
        last = [line for line in plain if not FRAME.search(line)][-1:]
        shown = (check[0],) if check else tuple(last)
        yield Hit(service.service, (*shown, strip_prefix(lines[place]).strip()), check.groupdict() if check else {},
                  variant=None if check else CUT)  # fmt: skip


CUT = Variant(
    (),
    cause="llama.cpp aborted (ggml_abort), because one of its internal checks failed. The line with the check is above "
    "the backtrace, and is not in this log",
    fix="look for the line above the backtrace in the whole log (`docker logs`), which has the form FILE:LINE: TEXT; "
    "run `stackgen diagnose` again with this line; if you can't find the line, use a newer build of llama.cpp as a "
    "test",
    condition="the line above the backtrace is missing",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-A050",
        title="llama-server aborted while it reused a prompt",
        cause="a check of llama-server failed: its slot has a prompt with tokens to reuse, but the memory of this "
        "sequence is empty (pos_min is -1). The server's records contradict each other, which is a bug of this build",
        fix="use a newer build of llama.cpp (a newer image); until then, as a test, start with one slot (--parallel "
        "1); if the newest build fails too, report it with the lines of the slot above the backtrace",
        source="The messages come from llama.cpp (tools/server/server.cpp; later server-context.cpp), and are quoted "
        "in ggml-org/llama.cpp issues 17060, 17118 and 17253 (2025-11), all with gpt-oss. The failure was not "
        "reproduced.",
        explain="llama-server keeps the tokens of the last prompt of each slot. If a new prompt starts with the same "
        "tokens, it computes only the rest. The last line before the check has the numbers of the slot.",
        patterns=compile_patterns(
            r"pos_min == -1, but n_past > 0 - should not happen",
            # printed just before the check; another line with more fields is printed by healthy servers
            r"n_past = \d+, slot\.prompt\.tokens\.size\(\) = \d+, seq_id = \d+, pos_min = -1\s*$",
        ),
    ),
)

# an error in the log says more than the backtrace
LAST_RULES: tuple[Rule, ...] = (
    Rule(
        "SG-A051",
        title="llama.cpp aborted because an internal check failed",
        cause="llama.cpp aborted (ggml_abort), because one of its internal checks failed: {check}",
        fix="search the issues of llama.cpp for this check with its file; as a test, use a newer build of llama.cpp, "
        "and start once with fewer options",
        source="The function is in llama.cpp (ggml/src/ggml.c), and prints FILE:LINE: TEXT before the backtrace. "
        "ggml-org/llama.cpp issue 17060 (2025-11) quotes a backtrace. The failure was not reproduced.",
        explain="Such a check protects against wrong results. The exit code is 134, or 139 if llama-server is the "
        "first process of its container.",
        find=_find_abort,
        fallback=True,
        variants=(CUT,),
    ),
)
