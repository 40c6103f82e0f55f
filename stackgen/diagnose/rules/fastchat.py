"""Rules for FastChat's controller, workers and API server. Texts of FastChat 0.2.36 and stackgen's launcher."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

from stackgen.diagnose.evidence import Evidence, ServiceEvidence
from stackgen.diagnose.log_lines import lines_since_ready, strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns

__all__ = ["RULES"]

UNKNOWN_WORKER = re.compile(r"the controller does not know (?P<url>\S+)")
LOCALHOST_URL = re.compile(r"https?://(?:localhost|127\.\S+|0\.0\.0\.0|\[::1?\])[:/]")
WORKER_ARGUMENTS = re.compile(r"worker_address='(?P<url>[^']+)', controller_address='(?P<controller>[^']+)'")
HEARTBEAT = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\d [\d:]{8}) .*Send heart beat\. .*"
    r"Semaphore\(value=(?P<free>\d+), locked=(?P<locked>\w+)\)\. call_ct: (?P<calls>\d+)"
)
FAILED_HEARTBEAT = re.compile(r"heart beat error: HTTPConnectionPool\(host='(?P<host>[^']+)', port=(?P<port>\d+)\)")
# seconds without a new call: three heartbeats of plain FastChat, and longer than most answers take
STUCK_SECONDS = 90


def _find_missing_template(evidence: Evidence) -> Iterator[Hit]:
    """FastChat raises a KeyError for a name that is not in its table of conversation templates."""
    for service in evidence.services:
        lines = [strip_prefix(line) for line in lines_since_ready(service.log)]
        for index, line in enumerate(lines):
            match = re.match(r"KeyError: '(?P<name>[^']+)'", line)
            is_llama_3 = match and service.engine == "fastchat" and match["name"] == "llama-3"
            # any other KeyError counts only if its traceback goes through FastChat's template lookup
            frames = lines[max(0, index - 6) : index]
            if match and (is_llama_3 or any("in get_conv_template" in frame for frame in frames)):
                yield Hit(service.service, (line.strip(),), match.groupdict())
                break


def _failed_workers(evidence: Evidence) -> Iterator[ServiceEvidence]:
    # "" is a pasted log whose engine is unknown
    yield from (one for one in evidence.services if one.engine in ("fastchat", "") and not one.is_working)


def _find_localhost_worker(evidence: Evidence) -> Iterator[Hit]:
    """A worker registered a localhost address, but its controller is not on localhost."""
    for service in evidence.services:
        for line in map(strip_prefix, service.log.splitlines()):
            match = WORKER_ARGUMENTS.search(line) if service.engine in ("fastchat", "") else None
            # without containers everything is on one machine, and localhost is right
            is_remote = match and LOCALHOST_URL.match(match["url"]) and not LOCALHOST_URL.match(match["controller"])
            if match and is_remote and not service.is_working:
                yield Hit(service.service, (f"worker_address={match['url']}",), {"url": match["url"]})
                break


def _find_unregistered_worker(evidence: Evidence) -> Iterator[Hit]:
    """The health check reports that the controller does not know the worker, or a check finds no model."""
    for service in _failed_workers(evidence):
        match = UNKNOWN_WORKER.search(service.health_log)
        if match:
            yield Hit(service.service, (match[0],), {"url": match["url"]})
    # in a stack of another engine, a gateway without a replica lists no models either
    engines = {service.engine for service in evidence.services} - {""}
    if engines and "fastchat" not in engines:
        return
    for check, message in evidence.checks:
        if re.search(r"No model is registered|no worker|models: .*(?:empty|no models?)", f"{check}: {message}"):
            # the check sees only the list of models, not which worker is missing
            yield Hit("", (f"{check}: {message}",), {"url": "any worker"})


def _find_lost_controller(evidence: Evidence) -> Iterator[Hit]:
    """The last heartbeat of the worker failed."""
    for service in evidence.services:
        for line in reversed(service.log.splitlines()):
            # a heartbeat arrived after the failure: the controller came back
            if "Send heart beat." in line or "Register to controller" in line:
                break
            match = FAILED_HEARTBEAT.search(line)
            if match:
                yield Hit(service.service, (strip_prefix(line).strip(),), match.groupdict())
                break


def _find_stuck_worker(evidence: Evidence) -> Iterator[Hit]:
    """The worker has reached its concurrency limit, and its number of calls has not changed for at least 90 s."""
    for service in evidence.services:
        times: list[datetime] = []
        last = None
        for line in reversed(service.log.splitlines()):
            if heartbeat := HEARTBEAT.search(line):
                last = last or heartbeat
                if heartbeat["free"] != "0" or heartbeat["calls"] != last["calls"]:
                    break
                times.append(datetime.fromisoformat(heartbeat["time"]))
        if last and times and (times[0] - times[-1]).total_seconds() >= STUCK_SECONDS:
            yield Hit(service.service, (strip_prefix(last.string).strip(),), {"calls": last["calls"]})


def _find_old_pydantic(evidence: Evidence) -> Iterator[Hit]:
    """A traceback through pydantic 1 ends with `issubclass() arg 1 must be a class`."""
    for service in evidence.services:
        for line in service.log.splitlines() if "pydantic.fields.ModelField" in service.log else ():
            if found := NO_CLASS.search(line):
                yield Hit(service.service, (strip_prefix(line).strip(),), {}, found[0], variant=OLD_PYDANTIC)
                break


NO_CLASS = re.compile(r"TypeError: issubclass\(\) arg 1 must be a class")
OLD_PYDANTIC = Variant(
    (),
    title="the installed pydantic 1 is too old for typing_extensions",
    cause="pydantic before 1.10.8 can't read types such as Literal of newer versions of typing_extensions",
    fix="install a newer pydantic 1 in the environment of the program: `pip install 'pydantic>=1.10.13,<2'`",
    condition="the traceback goes through pydantic 1",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-F010",
        title="Gradio can't open its own page",
        cause="at startup, Gradio, the library of the web page, requests its own page on localhost. This request "
        "failed, most often because the installed versions of Gradio and pydantic are not compatible",
        fix="look for the first traceback above, which shows why the page fails; if it contains `argument of type "
        "'bool' is not iterable`, pydantic is too new for Gradio 4: build the image with pydantic before 2.11; if "
        "HTTP_PROXY is set in this container, add localhost and 127.0.0.1 to NO_PROXY; don't share the page as the "
        "message advises, because this opens a public tunnel to this server",
        source="The message comes from Gradio 4 (blocks.py, launch), and is quoted for FastChat in "
        "Sage-Bionetworks/sage-monorepo pull request 3297 (2025-07). Plachtaa/seed-vc issue 154 and gradio-app/gradio "
        "issue 10662 confirm the versions. The failure was not reproduced.",
        explain="FastChat's own web servers use Gradio, and FastChat does not pin the versions of its packages. "
        "stackgen's chat page is a different program.",
        patterns=compile_patterns(r"When localhost is not accessible, a shareable link must be created"),
    ),
    Rule(
        "SG-F001",
        title="the variable API_KEYS is set",
        cause="FastChat's API server does not work with the variable API_KEYS: it does not start, or it does not "
        "check keys",
        fix="remove API_KEYS from the environment; stackgen passes the key in STACKGEN_API_KEY instead",
        source="The messages come from FastChat 0.2.36 (serve/openai_api_server.py, pydantic settings) and from "
        "stackgen's launch.py. The failure was reproduced.",
        explain="FastChat has one setting for both the variable API_KEYS and the flag `--api-keys`, but only the "
        "flag works. stackgen's launcher refuses to start if API_KEYS is set.",
        patterns=compile_patterns(
            r"the variable API_KEYS is set",
            # `env var` is pydantic 1, `value for field` is pydantic-settings 2
            r"error parsing (?:env var|value for field) \"?api_keys\"?",
        ),
    ),
    Rule(
        "SG-F002",
        title="the conversation template does not exist",
        cause="FastChat has no conversation template {name}",
        fix="remove conv_template; stackgen's launcher then builds a template from the tokenizer's chat template",
        source="The messages come from stackgen's launch.py and from FastChat 0.2.36 (conversation.py, "
        "get_conv_template). The failure was reproduced.",
        explain="FastChat chooses a conversation template by the model's path. FastChat 0.2.36 has no template for "
        "Llama 3, Gemma or Phi-3. For these models, plain FastChat uses the template `one_shot`, which turns the "
        "prompt \"hi\" into 964 tokens. stackgen's launcher builds a template from the tokenizer's chat template and "
        "registers this template.",
        # stackgen's launcher prints this line; `find` is for plain FastChat, which raises a KeyError
        patterns=compile_patterns(r"no conversation template '(?P<name>[^']+)'"),
        find=_find_missing_template,
    ),
    Rule(
        "SG-F003",
        title="the worker registered with a localhost address",
        cause="the worker registered as {url}, but in the controller's container this address leads to the "
        "controller itself",
        fix="[[?extra_args.--worker-address|remove --worker-address from extra_args; ]]run `stackgen render`, "
        "because stackgen sets --worker-address to http://SERVICE:21002",
        source="The arguments in the log come from FastChat 0.2.36 (serve/base_model_worker.py). The failure was "
        "reproduced.",
        explain="localhost is FastChat's default worker address. The worker's heartbeats arrive, so the controller "
        "lists the worker, but every request to the worker fails.",
        find=_find_localhost_worker,
    ),
    Rule(
        "SG-F004",
        title="the worker can't reach its controller",
        cause="the worker found no controller at {host}:{port} and exited",
        fix="start the whole stack (`stackgen up`); if the stack is already running, read the controller's log, and "
        "check that the worker's container is in the network `fastchat`",
        source="The message comes from FastChat 0.2.36 (serve/base_model_worker.py, register_to_controller). The "
        "failure was reproduced.",
        explain="A worker registers once at startup, and exits with code 1 if the controller does not answer. "
        "stackgen starts the worker after the controller is healthy. `docker compose up WORKER --no-deps` does not "
        "wait for the controller.",
        patterns=compile_patterns(
            r"ConnectionError: HTTPConnectionPool\(host='(?P<host>[^']+)', port=(?P<port>\d+)\).*"
            r"/register_worker"
        ),
    ),
    Rule(
        "SG-F005",
        title="the worker lost its controller",
        cause="the worker's heartbeats to {host}:{port} fail, because the controller is gone",
        fix="run `stackgen status` to see why the controller is gone, and `stackgen up` to start the controller "
        "again; workers register again within 5 s",
        source="The message comes from FastChat 0.2.36 (serve/base_model_worker.py, send_heart_beat). The failure was "
        "reproduced.",
        explain="The controller keeps the list of workers in memory. After a restart of the controller, the list is "
        "empty until the workers send their next heartbeat. A worker sends a heartbeat every 45 s by default, and "
        "every 5 s in stackgen.",
        find=_find_lost_controller,
    ),
    Rule(
        "SG-F006",
        title="the worker is stuck",
        cause="the worker has reached its limit of concurrent requests, and no request finishes ({calls} calls since "
        "its start)",
        fix="run `docker compose restart {service}`; to prevent this failure, serve the model from a stack that "
        "stackgen rendered, because stackgen's launcher prevents it",
        source="The heartbeat lines come from FastChat 0.2.36 (serve/model_worker.py). The failure was reproduced.",
        explain="In plain FastChat, the worker can count a failed request as running forever. When such requests "
        "have used up the whole concurrency limit, every further request hangs. `/v1/models` and heartbeats still "
        "work, so only a probe that generates text detects this failure. stackgen's launcher prevents this "
        "failure, and stackgen's health check detects it.",
        find=_find_stuck_worker,
    ),
    Rule(
        "SG-F011",
        title="an address has no http://",
        cause="a program uses {url} as an address, but it begins with neither http:// nor https://",
        fix="write the address with http:// or https:// in the setting that contains it",
        source="The message comes from requests 2 (models.py, prepare_url). lm-sys/FastChat issue 3694 (2025-03) "
        "quotes it in the log of a controller.",
        explain="FastChat's controller calls each worker at the address under which it registered. If this address is "
        "not a URL, the controller still lists the worker, but every call to it fails.",
        patterns=compile_patterns(
            r"Invalid URL '(?P<url>[^']{1,300})': No (?:scheme|schema|host) supplied",
        ),
        variants=(
            Variant(
                compile_patterns(
                    r"Get status fails: (?P<worker>[^,]+), Invalid URL '[^']{1,300}': No schem[ea] supplied"
                ),
                title="a worker registered under a name that is not a URL",
                cause="a worker registered at the controller as {worker}. The controller uses this name as the "
                "worker's address, but the name does not begin with http://",
                fix="start the worker with `--worker-address http://HOST:PORT`, an address that the controller can "
                "reach (in a worker of your own, set the field worker_name of its registration to this URL)",
            ),
        ),
    ),
    Rule(
        "SG-F007",
        title="the worker is not registered",
        cause="the controller does not know {url}",
        fix="read the worker's log; [[?extra_args.--no-register|remove `--no-register` from extra_args; ]]if "
        "extra_args contains flags that set an address, remove these flags, because they keep the controller from "
        "finding the worker",
        source="The messages come from FastChat 0.2.36 (controller, /receive_heart_beat) and from stackgen's "
        "health.py. The failure was reproduced.",
        explain="If no worker is registered, `/v1/models` answers 200 with an empty list. A worker that dies without "
        "deregistering stays in the controller's list for 90 s in plain FastChat, and for 15 s in stackgen.",
        find=_find_unregistered_worker,
    ),
    Rule(
        "SG-F008",
        title="pydantic 2 breaks streaming",
        cause="with pydantic 2, FastChat 0.2.36 sends streams with empty bodies",
        fix="install `pydantic<2` in FastChat's environment[[?image|, or let stackgen build its own image "
        "(remove `image:`)]]",
        source="FastChat 0.2.36 (serve/openai_api_server.py) calls `.json(ensure_ascii=False)`, which pydantic 2 "
        "does not support. The failure was reproduced.",
        explain="Streaming requests get status 200 and an empty body, because pydantic 2 raises an exception inside "
        "the stream. All other requests work as usual.",
        patterns=compile_patterns(r"`?dumps_kwargs`? keyword arguments are no longer supported"),
        inputs=("log",),
    ),
    Rule(
        "SG-F012",
        title="the program was written for pydantic 1",
        cause="the program imports BaseSettings from pydantic, which pydantic 2 no longer contains",
        fix="install pydantic 1 in the environment of the program (`pip install 'pydantic>=1.10.13,<2'`), or a newer "
        "version of the program[[?image|; for FastChat, stackgen builds an image that fits (remove `image:`)]]",
        source="The messages come from pydantic 1.10 and 2 (_migration.py). lm-sys/FastChat issues 1908 (2023-07) and "
        "2542 (2023-10) and dstackai/dstack issue 803 (2023-12) quote them. The failure was not reproduced.",
        explain="Only FastChat's API server fails in this way; its controller and workers do not need these settings.",
        patterns=compile_patterns(r"PydanticImportError: `BaseSettings` has been moved to the `pydantic-settings`"),
        find=_find_old_pydantic,
        variants=(OLD_PYDANTIC,),
    ),
)
