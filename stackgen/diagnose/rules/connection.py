"""Connection refused, and wrong answers, by what Docker reports about the services and what the check received."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence, ServiceEvidence
from stackgen.diagnose.log_lines import find_key_lines, has_crashed
from stackgen.diagnose.rule import Hit, Rule, compile_patterns

__all__ = ["LAST_RULES", "RULES"]

REFUSED = re.compile(r"nothing listens on (?P<where>\S+)|[Cc]onnection refused|accepted the connection and dropped")
FOREIGN_SERVER = re.compile(
    r"does not speak HTTP|answers with something that is no HTTP|http: .*(?:404|no OpenAI)"
    r"|models: /models is not found|speaks TLS"
)
# addresses that every container has: if llama.cpp can't bind one of these, the port is taken
ANY_CONTAINER = r"(?:0\.0\.0\.0|127\.|localhost|::)"


def _refused_check(evidence: Evidence) -> str:
    return next((f"{check}: {message}" for check, message in evidence.checks if REFUSED.search(message)), "")


def _format_state(service: ServiceEvidence) -> str:
    code = f", exit code {service.exit_code}" if service.exit_code is not None else ""
    health = f", {service.health}" if service.health else ""
    return f"{service.service}: {service.state}{code}{health}"


def _find_not_started(evidence: Evidence) -> Iterator[Hit]:
    # output of Compose means that a start was tried and failed
    if evidence.services and not evidence.compose_output and all(one.state == "absent" for one in evidence.services):
        yield Hit("", tuple(_format_state(one) for one in evidence.services[:4]))


def _find_loading(evidence: Evidence) -> Iterator[Hit]:
    for service in evidence.services:
        # waiting does not help a service that has crashed since it was ready
        if service.is_loading and not has_crashed(service.log):
            yield Hit(service.service, (_format_state(service), *find_key_lines(service.log, 1)))


def _find_paused(evidence: Evidence) -> Iterator[Hit]:
    for service in evidence.services:
        if service.state == "paused":
            yield Hit(service.service, (_format_state(service),))


def _find_unsupervised(evidence: Evidence) -> Iterator[Hit]:
    """Local processes that outlive the supervisor that started them."""
    for service in evidence.services:
        if service.health == "unsupervised":
            yield Hit(service.service, (_format_state(service),))


def _find_wrong_address(evidence: Evidence) -> Iterator[Hit]:
    """All services work, but the port refuses: the requested address is not the published one."""
    refused = _refused_check(evidence)
    if refused and evidence.services and all(one.is_working for one in evidence.services):
        endpoints = evidence.plan.endpoints if evidence.plan else ()
        urls = ", ".join(end.base_url for end in endpoints) if evidence.plan else "the address in compose.yaml"
        yield Hit("", (refused,), {"urls": urls})


def _find_stopped(evidence: Evidence) -> Iterator[Hit]:
    for service in evidence.services:
        # any other exit code has its reason in the log, and is at least an unknown failure
        ended = service.state in ("exited", "dead") and service.exit_code in (0, 143) and not service.is_working
        if ended and not has_crashed(service.log):
            yield Hit(service.service, (_format_state(service),), {"code": str(service.exit_code)})


def _find_foreign_server(evidence: Evidence) -> Iterator[Hit]:
    where = {"where": evidence.plan.endpoints[0].base_url} if evidence.plan and evidence.plan.endpoints else {}
    for check, message in evidence.checks:
        if FOREIGN_SERVER.search(f"{check}: {message}"):
            yield Hit("", (f"{check}: {message}",), where)


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-C001",
        title="the server binds an address that its container does not have",
        cause="the server is configured to bind an address that its container does not have",
        fix="remove --host from extra_args: stackgen binds 0.0.0.0 inside the container, and `bind:` chooses the "
        "host's address",
        source="errno 99, EADDRNOTAVAIL; vLLM 0.32.0, FastChat 0.2.36, llama-server b11434; reproduced with all three",
        explain="Inside a container the server must listen on 0.0.0.0, or Docker can't reach it. With 127.0.0.1 the "
        "server starts, but connections from outside are refused or reset. `bind:` in stack.yaml decides who can "
        "reach it.",
        patterns=compile_patterns(
            r"\[Errno 99\]",
            r"[Cc]annot assign requested address",
            # llama.cpp prints the same message for a port that is taken: see SG-C002
            rf"couldn't bind HTTP server socket, hostname: (?!{ANY_CONTAINER})",
        ),
    ),
    Rule(
        "SG-C002",
        title="the port is already in use inside the container",
        cause="another process in the container holds the server's port",
        fix="remove --port from extra_args; with network_mode host, choose another port",
        source="errno 98, EADDRINUSE; vLLM 0.32.0, llama-server b11434; reproduced with both",
        explain="vLLM binds its port early and listens late. On the host's network, two servers with the same port "
        "collide.",
        patterns=compile_patterns(
            r"\[Errno 98\]",
            r"error while attempting to bind on address.*in use",
            r"OSError:.*Address already in use",
            rf"couldn't bind HTTP server socket, hostname: {ANY_CONTAINER}",
        ),
    ),
    Rule(
        "SG-C003",
        title="the wrong address for a client inside a container",
        cause="127.0.0.1 inside a container is that container, and service names resolve only inside the stack's "
        "network",
        fix="from a container of the stack, use http://SERVICE:8000/v1; from the host, use 127.0.0.1 with the "
        "published port",
        source="stackgen check, `resolve`; getaddrinfo; aiohttp 3.13, client_exceptions.py, ClientConnectorError",
        explain="A client in another stack's container reaches the host as host.docker.internal (with `extra_hosts: "
        '["host.docker.internal:host-gateway"]`), and only if `bind:` allows it.',
        patterns=compile_patterns(
            # anchored to the check's own lines, because this rule reads logs as well
            r"^resolve: .*the name '(?P<name>[^']+)' can't be resolved",
            r"^resolve: .*Could not resolve host: (?P<name>\S+)",
            r"Cannot connect to host (?P<name>localhost|127\.0\.0\.1):\d+ ",
        ),
        inputs=("check", "log"),
    ),
    Rule(
        "SG-C011",
        title="the server uses a different key than .env",
        cause="the key in .env is not the one that the server was started with",
        fix="`stackgen up` restarts it with the key from .env; clients must send that same key",
        source="stackgen check, `models` and `auth`; reproduced",
        explain="Keys are read when a container starts. If .env was rewritten since then, it holds a different key. "
        "Only `Authorization: Bearer KEY` counts.",
        patterns=compile_patterns(
            r"the server refuses the key",
            r"the server (?:requires a key, but none was given|wants a key, and none is given)",
        ),
        inputs=("check",),
    ),
    Rule(
        "SG-C004",
        title="another program answers on the port",
        cause="the program that answers[[ at {where}]] is not this stack's server",
        fix="stop the program that holds the port (`ss -ltnp` lists it), or set another `port:`",
        source="stackgen check, `http`, `connect` and `models`; reproduced with Python's http.server",
        explain="A server that was started by hand, or another stack, holds the port.",
        find=_find_foreign_server,
    ),
    Rule(
        "SG-C005",
        title="the container is paused",
        cause="{service} is paused, so connections hang",
        fix="run `docker compose unpause`",
        source="Docker: State.Status",
        explain="`docker pause` freezes all processes of a container.",
        find=_find_paused,
    ),
    Rule(
        "SG-C006",
        title="the request goes to a different address or port than the server's",
        cause="every service works, but nothing listens at the requested address",
        fix="use {urls}; `bind:` and `port:` in stack.yaml set the address, then run `stackgen up`",
        source="stackgen check, `connect`",
        explain="A stack binds 127.0.0.1 unless `bind:` says otherwise, so other machines are refused. If there are "
        "several endpoints, their ports count up from `port:`. `stackgen status` shows the ports.",
        find=_find_wrong_address,
    ),
)

# states that more specific causes explain
LAST_RULES: tuple[Rule, ...] = (
    Rule(
        "SG-C010",
        title="the local processes have no supervisor",
        cause="{service} is running, but its supervisor was killed: nothing restarts the service or watches its health",
        fix="run `stackgen down --runtime process`, then `stackgen up --runtime process`",
        source="stackgen's supervisor: state.json names a process that no longer exists; reproduced",
        explain="One supervisor per stack starts, probes and restarts the local processes. If it is killed with "
        "SIGKILL, or by the kernel's out-of-memory killer, the processes keep running without it.",
        find=_find_unsupervised,
        fallback=True,
    ),
    Rule(
        "SG-C007",
        title="the stack is not started",
        cause="this stack has no containers",
        fix="run `stackgen up`",
        source="Docker: no container with the project's label",
        explain="Connection refused means that nothing listens. `stackgen up` starts the stack, waits for it and "
        "requests a completion.",
        find=_find_not_started,
    ),
    Rule(
        "SG-C008",
        title="the server is still loading",
        cause="{service} is running but not ready; until then its port refuses connections",
        fix="wait: `stackgen up` and `stackgen check --wait 600` do so; start_timeout gives a slow start more time",
        source="Docker: health `starting`; vLLM 0.32.0 listens only after the engine is loaded",
        explain="Large models load for minutes, and the first start compiles. Until the server listens, the port "
        "refuses connections, or Docker's proxy resets them.",
        find=_find_loading,
        fallback=True,
    ),
    Rule(
        "SG-C009",
        title="the server was stopped",
        cause="{service} ended with exit code {code}: somebody stopped it, or it ended by itself",
        fix="`stackgen up` starts it again",
        source="Docker: exit code 143 = 128 + SIGTERM; vLLM exits with 0 when its engine dies",
        explain="When a vLLM engine dies while it is running, the process exits with code 0. `restart: on-failure` "
        "does not restart it then; stackgen's supervise.sh does.",
        find=_find_stopped,
        fallback=True,
    ),
)
