"""The rule for programs that Windows has ended: their exit code is a status of Windows, and no message follows.

The failures were not reproduced. `source` names the list of the codes and the reports that quote them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import strip_prefix
from stackgen.diagnose.rule import Hit, Rule

__all__ = ["RULES"]

CODE = re.compile(
    r"(?i)exit(?:ed)?(?: with)?(?: (?:status|code):?){1,2} (?P<code>0xc[0-9a-f]{7}|-10737\d{5}|32212\d{5})\b"
)
REPLACE = "use another build of the program (for another CPU or GPU), or an older or newer one"
DLLS = (
    "install the libraries that the program's page names (most often the Microsoft Visual C++ Redistributable, or the "
    "CUDA runtime of the same version), and run the program in a terminal of its own folder, where Windows names the "
    "missing file"
)
# status of Windows -> its meaning, and what to do
STATUSES = {
    0xC0000135: ("a DLL that the program needs was not found", DLLS),
    0xC0000139: ("a DLL that the program needs has a different version from what the program expects", DLLS),
    0xC0000142: ("a DLL of the program could not be initialized", DLLS),
    0xC000007B: ("the program or one of its DLLs is not for this kind of Windows (32 or 64 bits)", DLLS),
    0xC000001D: ("the program uses an instruction that this CPU does not have", REPLACE),
    0xC0000005: ("the program has read or written memory that is not its own (an access violation)",
                 f"{REPLACE}; as a test, start with a smaller model and without the flags for the GPU"),
    0xC0000409: ("the program has aborted after a failed internal check",
                 f"read the lines above, which often name the check; {REPLACE}"),
    0xC0000374: ("the program has damaged its own memory (heap corruption)", REPLACE),
    0xC00000FD: ("the program's stack is full", REPLACE),
    0xC0000017: ("Windows has no memory left", "close other programs, use a smaller model or a shorter context, or "
                 "let Windows enlarge its page file"),
}  # fmt: skip


def _find_status(evidence: Evidence) -> Iterator[Hit]:
    """The exit code of a program is an error status of Windows."""
    for service in evidence.services:
        for line in reversed(service.log.splitlines()) if re.search("(?i)0xc0|-10737|32212", service.log) else ():
            if not (found := CODE.search(strip_prefix(line))):
                continue
            code = int(found["code"], 0) % 2**32
            if code in STATUSES:
                meaning, step = STATUSES[code]
                yield Hit(service.service, (strip_prefix(line).strip(),),
                          {"code": f"0x{code:X}", "meaning": meaning, "step": step}, highlight=found[0])  # fmt: skip
                break


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-D032",
        title="Windows ended a program",
        cause="Windows ended the program with the status {code}: {meaning}",
        fix="{step}",
        page_fix="follow what the finding says about the status: install the missing libraries, or use another build "
        "of the program",
        source="The statuses come from Microsoft's document [MS-ERREF], section 2.3.1. docker/model-runner issue 608 "
        "(2026-02) and lemonade-sdk/lemonade issue 941 (2026-01) quote them. The failure was not reproduced.",
        explain="These statuses were known to this version of stackgen:\n\n"
        + "\n".join(f"- `0x{code:X}`: {meaning}" for code, (meaning, _) in STATUSES.items()),
        find=_find_status,
        fallback=True,
    ),
)
