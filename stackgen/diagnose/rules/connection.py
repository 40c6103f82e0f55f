"""Rules for refused connections and wrong answers, from Docker's states of the services and the check's results."""

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
    """No service of the stack has a container."""
    # output of Compose means that a start was tried and failed
    if evidence.services and not evidence.compose_output and all(one.state == "absent" for one in evidence.services):
        yield Hit("", tuple(_format_state(one) for one in evidence.services[:4]))


def _find_loading(evidence: Evidence) -> Iterator[Hit]:
    """Docker reports that the service is starting, and the log shows no crash."""
    for service in evidence.services:
        # waiting does not help a service that has crashed since it was ready
        if service.is_loading and not has_crashed(service.log):
            yield Hit(service.service, (_format_state(service), *find_key_lines(service.log, 1)))


def _find_paused(evidence: Evidence) -> Iterator[Hit]:
    """Docker reports that the container is paused."""
    for service in evidence.services:
        if service.state == "paused":
            yield Hit(service.service, (_format_state(service),))


def _find_unsupervised(evidence: Evidence) -> Iterator[Hit]:
    """A local process runs, but the supervisor that started it does not."""
    for service in evidence.services:
        if service.health == "unsupervised":
            yield Hit(service.service, (_format_state(service),))


def _find_wrong_address(evidence: Evidence) -> Iterator[Hit]:
    """All services work, but a check can't connect to the requested address."""
    refused = _refused_check(evidence)
    if refused and evidence.services and all(one.is_working for one in evidence.services):
        endpoints = evidence.plan.endpoints if evidence.plan else ()
        urls = ", ".join(end.base_url for end in endpoints) if evidence.plan else "the address in compose.yaml"
        yield Hit("", (refused,), {"urls": urls})


def _find_stopped(evidence: Evidence) -> Iterator[Hit]:
    """The service ended with exit code 0 or 143, and its log shows no crash."""
    for service in evidence.services:
        # for any other exit code the log has the reason, so it is at least an unknown failure
        ended = service.state in ("exited", "dead") and service.exit_code in (0, 143) and not service.is_working
        if ended and not has_crashed(service.log):
            yield Hit(service.service, (_format_state(service),), {"code": str(service.exit_code)})


def _find_foreign_server(evidence: Evidence) -> Iterator[Hit]:
    """A check received an answer that an OpenAI-compatible server does not send."""
    where = {"where": evidence.plan.endpoints[0].base_url} if evidence.plan and evidence.plan.endpoints else {}
    for check, message in evidence.checks:
        if FOREIGN_SERVER.search(f"{check}: {message}"):
            yield Hit("", (f"{check}: {message}",), where)


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-C001",
        title="the server can't listen on its configured address",
        cause="the server is configured to listen on an address that its container does not have",
        fix="remove --host from extra_args; stackgen sets 0.0.0.0 inside the container, and `bind:` in stack.yaml "
        "sets the host's address",
        source="errno 99, EADDRNOTAVAIL; vLLM 0.32.0, FastChat 0.2.36, llama-server b11434; failure reproduced with "
        "all three",
        explain="Inside a container, the server must listen on 0.0.0.0, or Docker can't reach the server. With "
        "127.0.0.1, the server starts, but connections from outside the container are refused or reset. `bind:` in "
        "stack.yaml decides which machines can reach the server.",
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
        cause="another process in the container uses the server's port",
        fix="remove --port from extra_args; with network_mode host, choose another port",
        source="errno 98, EADDRINUSE; vLLM 0.32.0, llama-server b11434; failure reproduced with both",
        explain="vLLM reserves its port early but starts to listen late. On the host's network, two servers with the "
        "same port conflict.",
        patterns=compile_patterns(
            r"\[Errno 98\]",
            r"error while attempting to bind on address.*in use",
            r"OSError:.*Address already in use",
            rf"couldn't bind HTTP server socket, hostname: {ANY_CONTAINER}",
        ),
    ),
    Rule(
        "SG-C003",
        title="a client inside a container uses the wrong address",
        cause="inside a container, 127.0.0.1 is the container itself, and service names resolve only in the stack's "
        "network",
        fix="from a container of the stack, use http://SERVICE:8000/v1; from the host, use 127.0.0.1 with the "
        "published port",
        source="stackgen check, `resolve`; getaddrinfo; aiohttp 3.13, client_exceptions.py, ClientConnectorError",
        explain="A client in a container of another stack can reach the host as host.docker.internal. The container "
        'of the client needs `extra_hosts: ["host.docker.internal:host-gateway"]`, and `bind:` must allow the '
        "connection.",
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
        cause="the key in .env differs from the key that the server was started with",
        fix="run `stackgen up` to restart the server with the key from .env; clients must send the same key",
        source="stackgen check, `models` and `auth`; failure reproduced",
        explain="A server reads its key when its container starts. If .env was rewritten after the start, .env "
        "contains a different key. The server accepts the key only as `Authorization: Bearer KEY`.",
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
        fix="stop the program that uses the port (`ss -ltnp` lists it), or set another `port:`",
        source="stackgen check, `http`, `connect` and `models`; failure reproduced with Python's http.server",
        explain="A server that was started by hand, or another stack, uses the port.",
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
        title="the client uses a different address or port than the server",
        cause="every service works, but no program listens at the requested address",
        fix="use {urls}; to change the address, set `bind:` or `port:` in stack.yaml and run `stackgen up`",
        source="stackgen check, `connect`",
        explain="A stack listens on 127.0.0.1 unless `bind:` says otherwise, so connections from other machines are "
        "refused. If a stack has several endpoints, their ports count up from `port:`. `stackgen status` shows the "
        "ports.",
        find=_find_wrong_address,
    ),
)

# states that more specific causes explain
LAST_RULES: tuple[Rule, ...] = (
    Rule(
        "SG-C010",
        title="the local processes run without a supervisor",
        cause="{service} is running, but its supervisor was killed, so nothing restarts the service or checks its "
        "health",
        fix="run `stackgen down --runtime process`, then `stackgen up --runtime process`",
        source="stackgen's supervisor: state.json contains the id of a process that no longer exists; failure "
        "reproduced",
        explain="One supervisor per stack starts, probes and restarts the local processes. If the supervisor is "
        "killed with SIGKILL, or by the kernel's out-of-memory killer, the local processes keep running.",
        find=_find_unsupervised,
        fallback=True,
    ),
    Rule(
        "SG-C007",
        title="the stack is not started",
        cause="this stack has no containers",
        fix="run `stackgen up`",
        source="Docker: no container with the project's label",
        explain="`Connection refused` means that no program listens on the port. `stackgen up` starts the stack, "
        "waits until the stack is ready and requests a completion.",
        find=_find_not_started,
    ),
    Rule(
        "SG-C008",
        title="the server is still loading",
        cause="{service} is running but not ready yet, so its port refuses connections",
        fix="wait until the server is ready: `stackgen up` and `stackgen check --wait 600` do so; for a slow start, "
        "raise start_timeout",
        source="Docker: health `starting`; vLLM 0.32.0 listens only after the engine is loaded",
        explain="Large models take minutes to load, and the first start also compiles. Until the server listens, its "
        "port refuses connections, or Docker's proxy resets them.",
        find=_find_loading,
        fallback=True,
    ),
    Rule(
        "SG-C009",
        title="the server was stopped",
        cause="{service} ended with exit code {code}: it was stopped by a user, or it ended by itself",
        fix="run `stackgen up` to start {service} again",
        source="Docker: exit code 143 = 128 + SIGTERM; vLLM exits with 0 when its engine dies",
        explain="When a vLLM engine dies while it is running, the process exits with code 0. `restart: on-failure` "
        "does not restart a process that exits with code 0, but stackgen's supervise.sh does.",
        find=_find_stopped,
        fallback=True,
    ),
)
