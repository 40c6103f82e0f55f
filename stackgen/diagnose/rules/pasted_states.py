"""Rules for states that Docker and other commands print, which users paste in place of a log.

The failures were not reproduced. `source` names the programs and the reports that quote the lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import has_failed, has_served, strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant

__all__ = ["RULES"]

# a row of `docker ps`
UNHEALTHY = re.compile(r"\bUp (?:\d+|About|Less) [\w ]{1,30} \(unhealthy\)(?:\s.*?)?\s(?P<name>[\w.-]+)\s*$")
XET_STARTED = re.compile(r"Downloading file from Xet Storage")
XET_PROBE = re.compile(r"curl .{0,60}https://(?:[\w.-]+\.)?xethub\.hf\.co/?\s*$")
# a probe with an answer shows that the address is reachable
ANSWER = re.compile(r"^HTTP/[\d.]+ (?P<status>\d{3})\b")


def _find_unhealthy(evidence: Evidence) -> Iterator[Hit]:
    """A pasted output of `docker ps` shows a container that runs and is unhealthy, and no log explains it."""
    for service in evidence.services:
        if service.state or "(unhealthy)" not in service.log or has_served(service.log) or has_failed(service.log):
            continue
        rows = [(line.strip(), found) for line in service.log.splitlines() if (found := UNHEALTHY.search(line))]
        if rows:
            is_llama = any("llama" in line for line, _ in rows)
            names = ", ".join(dict.fromkeys(found["name"] for _, found in rows[:4]))
            shown = tuple(line for line, _ in rows[:4])
            yield Hit(service.service, shown, {"name": names, "first": rows[0][1]["name"]},
                      variant=LLAMA if is_llama else None)  # fmt: skip


def _find_xet_stall(evidence: Evidence) -> Iterator[Hit]:
    """A download with Xet began, nothing follows in the log, and the addresses of Xet answer."""
    for service in evidence.services:
        if service.state or not XET_STARTED.search(service.log) or has_served(service.log):
            continue
        lines = [strip_prefix(line).strip() for line in service.log.splitlines()]
        started = next(line for line in reversed(lines) if XET_STARTED.search(line))
        probes = [index for index, line in enumerate(lines) if XET_PROBE.search(line)]
        answers = [line for index in probes for line in lines[index + 1 : index + 2] if ANSWER.match(line)]
        if answers:
            statuses = ", ".join(sorted({found["status"] for line in answers if (found := ANSWER.match(line))}))
            yield Hit(service.service, (started, *dict.fromkeys(answers)), {"statuses": statuses})


LLAMA = Variant(
    (),
    cause="Docker reports {name} as running but unhealthy: the command of the health check fails in the container. The "
    "images of llama.cpp contain a health check that asks port 8080, also if the server listens on another port",
    fix="`docker inspect --format '{{json .State.Health}}' {first}` shows what the check asks and its answer; if the "
    "server listens on another port than 8080, set a `healthcheck:` with this port in the Compose file (`curl -f "
    "http://localhost:PORT/health`), or let the server listen on 8080 and publish another port",
    condition="the container runs llama.cpp",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-D030",
        title="the health check of a container fails while the container runs",
        cause="Docker reports {name} as running but unhealthy: the command of the health check fails in the container, "
        "and the log does not show why",
        fix="`docker inspect --format '{{json .State.Health}}' {first}` shows what the check asks and its answer; "
        "compare its port and path with those of the server, and look whether the image contains the check's program",
        source="The line is that of `docker ps`; ggml-org/llama.cpp issues 10262 (2024-11) and 15943 (2025-09), "
        "nextcloud/all-in-one issue 8386 (2026-06) and RobotecAI/agentic-mobile-manipulator issue 15 (2026-01) show "
        "it.",
        explain="A Compose service without `healthcheck:` uses the HEALTHCHECK of its image. The services that "
        "stackgen renders have their own check. Longer start periods and restarts do not help if the check "
        "asks a wrong port.",
        find=_find_unhealthy,
        fallback=True,
        variants=(LLAMA,),
    ),
    Rule(
        "SG-H019",
        title="a download with Xet does not go on",
        cause="the download uses the transfer protocol Xet and the log shows no progress and no error after its start; "
        "the addresses of Xet can be reached: their answers ({statuses}) to a request without a file are normal, and "
        "say nothing about access or a token",
        fix='as a test, set HF_HUB_DISABLE_XET to "1", which downloads with plain HTTP; keep the files that have '
        "arrived, because they are not downloaded again; a newer hf_xet may also help",
        source="The line comes from huggingface_hub (file_download.py); huggingface/xet-core issues 800 (2026-04), 850 "
        "(2026-05) and 898 (2026-07) show such downloads. The reason differs, and is not always known.",
        explain="Compare two outputs of `du -sh` on the cache a minute apart before you stop a download: large files "
        "show progress late.",
        find=_find_xet_stall,
        fallback=True,
    ),
)
