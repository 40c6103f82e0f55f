"""Rules for refused connections and wrong answers, from Docker's states of the services and the check's results."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence, ServiceEvidence
from stackgen.diagnose.log_lines import find_key_lines, has_crashed
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns

__all__ = ["LAST_RULES", "RULES"]

REFUSED = re.compile(r"nothing listens on (?P<where>\S+)|[Cc]onnection refused|accepted the connection and dropped")
FOREIGN_SERVER = re.compile(
    r"does not speak HTTP|answers with something that is no HTTP|http: .*(?:404|no OpenAI)"
    r"|models: /models is not found|speaks TLS"
)
# addresses that every container has: if llama.cpp can't bind one of these, the port is taken
ANY_CONTAINER = r"(?:0\.0\.0\.0|127\.|localhost|::)"
# clients print the same errno, if a connection to another server fails
BINDING = r"^(?!.*(?:new connection|ConnectionError|Max retries|[Cc]onnect(?:ion)? (?:call |to )|connect\(\))).*?"


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
        # all lines say `absent`, so a few are enough
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
    # a service that does not work is itself the reason for a refused connection
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
        fix="[[?extra_args.--host|remove --host from extra_args, because stackgen sets the address inside the "
        "container; ]]"
        "to choose the address for clients, set `bind:` in stack.yaml",
        source="The messages for errno 99 (EADDRNOTAVAIL) come from vLLM 0.32.0, FastChat 0.2.36 and llama-server "
        "b11434. The failure was reproduced with all three engines. The message of ZMQ is quoted in vllm-project/vllm "
        "issue 31884 (2026-01) and was not reproduced.",
        explain="Inside a container, the server must listen on 0.0.0.0, or Docker can't reach the server. A server "
        "that listens on 127.0.0.1 starts, but connections from outside its container are refused or reset. `bind:` "
        "in stack.yaml decides which machines can reach the server.",
        patterns=compile_patterns(
            rf"{BINDING}\[[Ee]rrno 99\]",
            rf"{BINDING}[Cc]annot assign requested address",
            # llama.cpp prints the same message for a port that is taken: see SG-C002
            rf"couldn't bind HTTP server socket, hostname: (?!{ANY_CONTAINER})",
        ),
        # Podman's own DNS server: SG-D044
        unless=compile_patterns(r"aardvark-dns failed to start"),
        variants=(
            Variant(
                compile_patterns(r"ZMQError: Cannot assign requested address \(addr='tcp://(?P<address>[^']+)'"),
                title="the processes of vLLM can't listen on the configured address",
                cause="the processes of vLLM connect to each other at {address}, but the container does not have "
                "this address",
                fix="[[?extra_env.VLLM_HOST_IP|correct VLLM_HOST_IP in extra_env, or remove it; ]]with "
                "`--data-parallel-address` or several machines, use an address of this container, or use the host's "
                "network",
            ),
        ),
    ),
    Rule(
        "SG-C002",
        title="the port is already in use inside the container",
        cause="another process in the container uses the server's port",
        fix="[[?extra_args.--port|remove `--port` from extra_args; ]]if the container uses the host's network "
        "(network mode `host`), choose another port; on the host, `ss -ltnp` shows which process uses the port",
        source="The messages for errno 98 (EADDRINUSE) come from vLLM 0.32.0 and llama-server b11434. The failure was "
        "reproduced with both engines.",
        explain="vLLM reserves its port early in its start, but listens on the port only after the engine is loaded. "
        "On the host's network, two servers can't use the same port.",
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
        cause="{name} means the client's own container, where no server listens",
        fix="from a container of the stack, use http://SERVICE:8000/v1; from the host, use 127.0.0.1 with the "
        "published port",
        source="The messages come from `stackgen check` (check `resolve`), from getaddrinfo, and from aiohttp 3.13 "
        "(client_exceptions.py, ClientConnectorError).",
        explain="A client in a container of another stack can reach the host as host.docker.internal. The container "
        'of the client needs "host.docker.internal:host-gateway" in `extra_hosts`, and `bind:` of the server\'s '
        "stack must allow the connection.",
        patterns=compile_patterns(
            r"Cannot connect to host (?P<name>localhost|127\.0\.0\.1):\d+ ",
        ),
        inputs=("check", "log"),
        variants=(
            Variant(
                # anchored to the check's own lines, because this rule reads logs as well
                compile_patterns(
                    r"^resolve: .*the name '(?P<name>[^']+)' can't be resolved",
                    r"^resolve: .*Could not resolve host: (?P<name>\S+)",
                ),
                cause="the name {name} can't be resolved, because service names exist only in the stack's network",
            ),
        ),
    ),
    Rule(
        "SG-C011",
        title="the server's key differs from the key in .env",
        cause="the client's key differs from the key that the server was started with",
        fix="run `stackgen up`, which restarts the server with the key from .env; then let clients send the key from "
        ".env",
        source="The messages come from `stackgen check` (checks `models` and `auth`). The failure was reproduced.",
        explain="A server reads its key when its container starts. If .env is rewritten later, the server still "
        "expects the old key. The server accepts the key only as a bearer token in the header Authorization.",
        patterns=compile_patterns(
            r"the server refuses the key",
        ),
        inputs=("check",),
        variants=(
            Variant(
                # the second wording is that of older versions, whose reports can be pasted
                compile_patterns(r"the server (?:requires a key, but none was given|wants a key, and none is given)"),
                title="the client sent no key",
                cause="the server requires a key, but the client sent none",
                fix="send the key from .env in the header Authorization; stackgen's commands read it from the "
                ".env next "
                "to compose.yaml",
            ),
        ),
    ),
    Rule(
        "SG-C004",
        title="another program answers on the port",
        cause="the program that answers[[ at {where}]] is not this stack's server",
        fix="stop the program that uses the port (`ss -ltnp` lists it), or set another `port:`",
        source="The messages come from `stackgen check` (checks `http`, `connect` and `models`). The failure was "
        "reproduced with Python's http.server.",
        explain="The program that answers may be a server that was started by hand, or another stack.",
        find=_find_foreign_server,
    ),
    Rule(
        "SG-C005",
        title="the container is paused",
        cause="{service} is paused, so connections to it hang",
        fix="run `docker compose unpause`",
        source="Docker reports `paused` in State.Status.",
        explain="`docker pause` freezes all processes of a container.",
        find=_find_paused,
    ),
    Rule(
        "SG-C006",
        title="the client uses a different address or port than the server",
        cause="every service works, but no program listens at the address that the client requested",
        fix="connect to {urls}; to change the address, set `bind:` or `port:` in stack.yaml and run `stackgen up`",
        source="The messages come from `stackgen check` (check `connect`).",
        explain="Unless `bind:` sets another address, a stack listens on 127.0.0.1, so connections from other "
        "machines are refused. If a stack has several endpoints, the first endpoint gets the port `port:`, and "
        "the other endpoints get the ports after it. `stackgen status` shows the ports.",
        find=_find_wrong_address,
    ),
)

# states that more specific causes explain
LAST_RULES: tuple[Rule, ...] = (
    Rule(
        "SG-C010",
        title="the local processes run without a supervisor",
        cause="{service} is running, but its supervisor was killed. So nothing restarts the service, and nothing "
        "checks its health",
        fix="run `stackgen down --runtime process`, then `stackgen up --runtime process`",
        source="The file state.json of stackgen's supervisor contains the id of a process that no longer exists. The "
        "failure was reproduced.",
        explain="Each stack of local processes has one supervisor, which starts, probes and restarts the processes. "
        "If the supervisor is killed with SIGKILL, or by the kernel's out-of-memory killer, the local processes keep "
        "running.",
        find=_find_unsupervised,
        fallback=True,
    ),
    Rule(
        "SG-C007",
        title="the stack is not started",
        cause="this stack has no containers",
        fix="run `stackgen up`",
        source="Docker lists no container with the project's label (`docker ps`).",
        explain="`Connection refused` means that no program listens on the port. `stackgen up` starts the stack, "
        "waits until the stack is ready, and then requests a completion as a test.",
        find=_find_not_started,
    ),
    Rule(
        "SG-C008",
        title="the server is still loading",
        cause="{service} is running but not ready yet, so its port refuses connections",
        fix="wait until the server is ready (run `stackgen up` or `stackgen check --wait 600`); if the start takes "
        "longer than start_timeout, raise start_timeout",
        source="Docker reports the health `starting`. vLLM 0.32.0 listens only after the engine is loaded.",
        explain="Large models take minutes to load. At the first start, the engine also compiles the model. Until the "
        "server listens, connections to its port are refused, or Docker's proxy resets the connections.",
        find=_find_loading,
        fallback=True,
    ),
    Rule(
        "SG-C009",
        title="the server ended, or somebody stopped it",
        cause="{service} ended with exit code {code}. Either somebody stopped the service, or it ended by itself",
        fix="run `stackgen up` to start {service} again",
        source="Docker reports the exit code. Exit code 143 is 128 + SIGTERM. vLLM exits with code 0 when its engine "
        "dies.",
        explain="If vLLM's engine dies after a successful start, the process exits with code 0. The restart policy "
        "`on-failure` does not restart a process that exits with code 0. stackgen's supervise.sh restarts such a "
        "process.",
        find=_find_stopped,
        fallback=True,
    ),
)
