"""Rules for states that Docker and other commands print, which users paste in place of a log.

The failures were not reproduced. `source` names the programs and the reports that quote the lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.container_states import SIGNALS, find_ended_container
from stackgen.diagnose.error_lines import CRASH_BANNER, find_error_lines
from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import has_failed, has_served, strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant

__all__ = ["LAST_RULES", "RULES"]

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


def _find_crashed(evidence: Evidence) -> Iterator[Hit]:
    """A pasted output of Docker shows that a signal ended a program which nobody stopped, and no log explains it."""
    for service in evidence.services:
        state = None if service.state else find_ended_container(service.log)
        if state is None or str(state.code) not in SIGNALS:
            continue
        errors = find_error_lines(service.log.splitlines())
        if not any(one.certain and not CRASH_BANNER.match(one.text) for one in errors):
            values = {"code": str(state.code), "signal": SIGNALS[str(state.code)],
                      "name": state.name or "the container"}  # fmt: skip
            variant = ILLEGAL if state.code == 132 else NOT_KILLED if state.oom_killed is False else None
            yield Hit(service.service, state.lines, values, variant=variant)


ILLEGAL = Variant(
    (),
    cause="Docker reports that {name} ended with exit code {code} ({signal}). Most often, a program or a library in "
    "the image was compiled for a CPU with other instructions, such as AVX2 or AVX-512",
    fix="compare the CPU's features (`lscpu`) with what the image needs; use an image for this CPU, or one that "
    "detects the CPU at run time; in a virtual machine, pass the host's CPU through; `sudo dmesg | grep -i 'invalid "
    "opcode'` names the library",
    condition="the exit code is 132",
)
NOT_KILLED = Variant(
    (),
    cause="Docker reports that {name} ended with exit code {code} ({signal}), so its program crashed in native code, "
    "such as a GPU library or a kernel of the engine. Docker also reports OOMKilled false, so the kernel did not kill "
    "it. The text shows no error before the crash",
    condition="Docker reports that OOMKilled is false",
)

LLAMA = Variant(
    (),
    cause="Docker reports {name} as running but unhealthy, because the command of the health check fails in the "
    "container. The images of llama.cpp contain a health check for port 8080, even if the server listens on another "
    "port",
    fix="run `docker inspect --format '{{json .State.Health}}' {first}`, which shows the command of the health check "
    "and its output; if the server does not listen on port 8080, set a `healthcheck:` with the server's port in the "
    "Compose file (`curl -f http://localhost:PORT/health`); or let the server listen on 8080, and publish another "
    "port",
    condition="the container runs llama.cpp",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-D030",
        title="a container runs, but its health check fails",
        cause="Docker reports {name} as running but unhealthy, because the command of the health check fails in the "
        "container. The log does not show why",
        fix="run `docker inspect --format '{{json .State.Health}}' {first}`, which shows the command of the health "
        "check and its output; compare its port and path with those of the server, and check that the image contains "
        "the program that it runs",
        source="The line is that of `docker ps`; ggml-org/llama.cpp issues 10262 (2024-11) and 15943 (2025-09), "
        "nextcloud/all-in-one issue 8386 (2026-06) and RobotecAI/agentic-mobile-manipulator issue 15 (2026-01) show "
        "it.",
        explain="A Compose service without `healthcheck:` uses the HEALTHCHECK of its image. The services that "
        "stackgen renders have their own health check. Longer start periods and restarts do not help if the health "
        "check uses the wrong port.",
        find=_find_unhealthy,
        fallback=True,
        variants=(LLAMA,),
    ),
    Rule(
        "SG-H019",
        title="a download with Xet makes no progress",
        cause="the download uses the transfer protocol Xet, and after its start the log shows neither progress nor "
        "an error. The servers of Xet can be reached: their answers ({statuses}) to a request without a file are "
        "normal, and do not mean that access or a token is missing",
        fix='as a test, set HF_HUB_DISABLE_XET to "1", which downloads with plain HTTP; keep the files that have '
        "arrived, so that they are not downloaded again; or try a newer hf_xet",
        source="The line comes from huggingface_hub (file_download.py); huggingface/xet-core issues 800 (2026-04), 850 "
        "(2026-05) and 898 (2026-07) show such downloads. The reason differs, and is not always known.",
        explain="Large files show progress late. Before you stop a download, run `du -sh` twice for the cache folder, "
        "a minute apart, and compare the sizes.",
        find=_find_xet_stall,
        fallback=True,
    ),
)

# a state of Docker is the last thing that counts: any error of a log says more
LAST_RULES: tuple[Rule, ...] = (
    Rule(
        "SG-D050",
        title="a container ended because its program crashed",
        cause="Docker reports that {name} ended with exit code {code} ({signal}), so its program crashed in native "
        "code, such as a GPU library or a kernel of the engine. The text shows no error before the crash",
        fix="read the last lines of the container's log (`docker logs`), which show what the program did; the kernel "
        "log often names the library (`sudo dmesg | grep -iE 'segfault|xid|amdgpu'`); if the log is empty, the program "
        "crashed while it loaded its libraries: in an image with PyTorch, run `python3 -c 'import torch; "
        "torch.cuda.is_available()'`; if this crashes too, the image's GPU libraries do not work with this GPU or "
        "driver; as a test, use another version of the image",
        source="The words are those of `docker ps` and `docker inspect`. kyuz0/amd-strix-halo-vllm-toolboxes issue 61 "
        "(2026-06) and ggml-org/llama.cpp issue 17060 (2025-11) report such ends. The failure was not reproduced.",
        explain="Docker reports 128 plus the number of the signal. A program that runs as the container's first "
        "process and stops itself (abort) often ends with 139 instead of 134, because the kernel does not deliver "
        "SIGABRT to the first process. An exit code of 137 is SIGKILL, which is another failure (SG-M012).",
        find=_find_crashed,
        fallback=True,
        variants=(ILLEGAL, NOT_KILLED),
    ),
)
