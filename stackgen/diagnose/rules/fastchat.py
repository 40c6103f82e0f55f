"""FastChat: controller, workers, API server. Texts of FastChat 0.2.36 and of stackgen's launcher."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

from stackgen.diagnose.evidence import Evidence, ServiceEvidence
from stackgen.diagnose.log_lines import clean, since_ready
from stackgen.diagnose.rule import Hit, Rule, patterns

__all__ = ["RULES"]

ADDRESS = re.compile(r"Regis\w+ (?:a new|an existing) worker: (?P<url>\S+)")
UNKNOWN = re.compile(r"the controller does not know (?P<url>\S+)")
LOCAL = re.compile(r"https?://(?:localhost|127\.\S+|0\.0\.0\.0|\[::1?\])[:/]")
ARGS = re.compile(r"worker_address='(?P<url>[^']+)', controller_address='(?P<controller>[^']+)'")
BEAT = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\d [\d:]{8}) .*Send heart beat\. .*"
    r"Semaphore\(value=(?P<free>\d+), locked=(?P<locked>\w+)\)\. call_ct: (?P<calls>\d+)"
)
LOST = re.compile(r"heart beat error: HTTPConnectionPool\(host='(?P<host>[^']+)', port=(?P<port>\d+)\)")
# seconds that no call began in: three heartbeats of plain FastChat, and more than most answers take
STILL = 90


def _no_template(evidence: Evidence) -> Iterator[Hit]:
    """A name that FastChat's own table of templates lacks."""
    for service in evidence.services:
        lines = [clean(line) for line in since_ready(service.log)]
        for index, line in enumerate(lines):
            match = re.match(r"KeyError: '(?P<name>[^']+)'", line)
            known = match and service.engine == "fastchat" and match["name"] == "llama-3"
            if match and (known or any("in get_conv_template" in frame for frame in lines[max(0, index - 6) : index])):
                yield Hit(service.service, (line.strip(),), match.groupdict())
                break


def _fastchat(evidence: Evidence) -> Iterator[ServiceEvidence]:
    yield from (one for one in evidence.services if one.engine in ("fastchat", "") and not one.works)


def _localhost(evidence: Evidence) -> Iterator[Hit]:
    """A worker that told the controller an address which only itself understands."""
    for service in evidence.services:
        for line in map(clean, service.log.splitlines()):
            match = ARGS.search(line) if service.engine in ("fastchat", "") else None
            # all on one machine without containers, it is the right address
            if match and LOCAL.match(match["url"]) and not LOCAL.match(match["controller"]) and not service.works:
                yield Hit(service.service, (f"worker_address={match['url']}",), {"url": match["url"]})
                break


def _not_registered(evidence: Evidence) -> Iterator[Hit]:
    for service in _fastchat(evidence):
        match = UNKNOWN.search(service.health_log)
        if match:
            yield Hit(service.service, (match[0],), {"url": match["url"]})
    for check, message in evidence.checks:
        if re.search(r"No model is registered|no worker|models: .*(?:empty|no models?)", f"{check}: {message}"):
            yield Hit("", (f"{check}: {message}",), {"url": "any worker"})


def _lost(evidence: Evidence) -> Iterator[Hit]:
    """The last heartbeat failed; once one arrives, the worker announces the next."""
    for service in evidence.services:
        for line in reversed(service.log.splitlines()):
            if "Send heart beat." in line or "Register to controller" in line:
                break
            match = LOST.search(line)
            if match:
                yield Hit(service.service, (clean(line).strip(),), match.groupdict())
                break


def _wedged(evidence: Evidence) -> Iterator[Hit]:
    """All slots taken, and the count of calls stands still for long: nobody is being served."""
    for service in evidence.services:
        times: list[datetime] = []
        last = None
        for line in reversed(service.log.splitlines()):
            if beat := BEAT.search(line):
                last = last or beat
                if beat["free"] != "0" or beat["calls"] != last["calls"]:
                    break
                times.append(datetime.fromisoformat(beat["time"]))
        if last and times and (times[0] - times[-1]).total_seconds() >= STILL:
            yield Hit(service.service, (clean(last.string).strip(),), {"calls": last["calls"]})


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-F001",
        "the variable API_KEYS is set",
        "FastChat's API server reads API_KEYS: plain text crashes it, a JSON list is ignored and leaves it open",
        "take API_KEYS out of the environment: stackgen gives the key by STACKGEN_API_KEY",
        "FastChat 0.2.36, serve/openai_api_server.py (pydantic settings); stackgen's launch.py; provoked for real",
        "FastChat's settings object takes the variable for the list that --api-keys fills. stackgen's launcher "
        "refuses to start with it.",
        patterns(
            r"the variable API_KEYS is set",
            r"error parsing (?:env var|value for field) \"?api_keys\"?",
        ),
    ),
    Rule(
        "SG-F002",
        "there is no such conversation template",
        "FastChat knows no conversation template {name}",
        "leave conv_template out: stackgen's launcher makes one from the tokenizer's chat template",
        "stackgen's launch.py; FastChat 0.2.36, conversation.py, get_conv_template; provoked for real",
        "FastChat chooses templates by the model's path. 0.2.36 has none for Llama 3, Gemma or Phi-3: plain FastChat "
        'falls to `one_shot`, where "hi" becomes 964 tokens. stackgen\'s launcher registers one made from the '
        "tokenizer's own.",
        patterns(r"no conversation template '(?P<name>[^']+)'"),
        find=_no_template,
    ),
    Rule(
        "SG-F003",
        "the worker registered under localhost",
        "the worker told the controller to reach it at {url}, which is the controller's own container",
        "take --worker-address out of extra_args: stackgen sets http://SERVICE:21002",
        "FastChat 0.2.36, serve/base_model_worker.py; provoked for real",
        "Localhost is the default of FastChat. Heartbeats arrive, so the controller lists the worker, and every "
        "request to it fails.",
        find=_localhost,
    ),
    Rule(
        "SG-F004",
        "the worker can't reach its controller",
        "the worker found no controller at {host}:{port}, and ended",
        "start the whole stack (`stackgen up`), and look at the controller's log; the worker must be on the network "
        "`fastchat`",
        "FastChat 0.2.36, serve/base_model_worker.py, register_to_controller; provoked for real",
        "A worker asks once at its start, and ends with code 1 when nobody answers. stackgen starts it after the "
        "controller is healthy. `docker compose up WORKER --no-deps` does not.",
        patterns(
            r"ConnectionError: HTTPConnectionPool\(host='(?P<host>[^']+)', port=(?P<port>\d+)\).*"
            r"/register_worker"
        ),
    ),
    Rule(
        "SG-F005",
        "the worker lost its controller",
        "heartbeats to {host}:{port} fail: the controller is gone",
        "`stackgen status` tells why; `stackgen up` starts it again, and workers register anew within 5 s",
        "FastChat 0.2.36, serve/base_model_worker.py, send_heart_beat; provoked for real",
        "The controller keeps the list of workers in memory: after its restart the list is empty until each worker's "
        "next heartbeat (45 s by default, 5 s in stackgen).",
        find=_lost,
    ),
    Rule(
        "SG-F006",
        "the worker is wedged",
        "all slots of the worker are taken and no call ends ({calls} so far)",
        "`docker compose restart {service}`; clients must not send null parameters to plain FastChat",
        "FastChat 0.2.36, serve/model_worker.py: a failing request keeps its semaphore; provoked for real",
        'Five requests with `"temperature": null` take all five slots of plain FastChat for good. `/v1/models` and '
        "heartbeats stay green; only a probe that generates sees it. stackgen's launcher and health check know it.",
        find=_wedged,
    ),
    Rule(
        "SG-F007",
        "the worker is not registered",
        "the controller does not know {url}",
        "take --no-register and addresses out of extra_args, and see the worker's log",
        "FastChat 0.2.36, controller /receive_heart_beat; stackgen's health.py; provoked for real",
        "`/v1/models` answers 200 with an empty list when no worker is there. A worker that dies without a goodbye "
        "stays listed for 90 s (15 s in stackgen).",
        find=_not_registered,
    ),
    Rule(
        "SG-F008",
        "streaming is broken by pydantic 2",
        "FastChat 0.2.36 streams empty bodies with pydantic 2",
        "install `pydantic<2` beside FastChat, or let stackgen build its own image (leave `image:` out)",
        "FastChat 0.2.36, serve/openai_api_server.py uses .json(ensure_ascii=False); provoked for real",
        "Everything else looks well: streams answer 200 with nothing in them. pydantic 2 raises inside of the stream.",
        patterns(r"`?dumps_kwargs`? keyword arguments are no longer supported"),
        places=("log",),
    ),
)
