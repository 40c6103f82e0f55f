"""Connection refused, in all its kinds; judged by what Docker says of the services, and by what the check met."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence, ServiceEvidence
from stackgen.diagnose.log_lines import died, telling
from stackgen.diagnose.rule import Hit, Rule, patterns

__all__ = ["LAST", "RULES"]

REFUSED = re.compile(r"nothing listens on (?P<where>\S+)|[Cc]onnection refused|accepted the connection and dropped")
FOREIGN = re.compile(
    r"answers with something that is no HTTP|http: .*(?:404|no OpenAI)|models: /models is not found|speaks TLS"
)
# addresses that every container has: where llama.cpp can't bind one of these, the port is taken
EVERY = r"(?:0\.0\.0\.0|127\.|localhost|::)"


def _refused(evidence: Evidence) -> str:
    return next((f"{check}: {said}" for check, said in evidence.checks if REFUSED.search(said)), "")


def _line(service: ServiceEvidence) -> str:
    code = f", exit code {service.exit_code}" if service.exit_code is not None else ""
    health = f", {service.health}" if service.health else ""
    return f"{service.service}: {service.state}{code}{health}"


def _not_started(evidence: Evidence) -> Iterator[Hit]:
    if evidence.services and not evidence.compose_output and all(one.state == "absent" for one in evidence.services):
        yield Hit("", tuple(_line(one) for one in evidence.services[:4]))


def _loading(evidence: Evidence) -> Iterator[Hit]:
    for service in evidence.services:
        # what died after it was ready does not get better by waiting
        if service.loads and not died(service.log):
            yield Hit(service.service, (_line(service), *telling(service.log, 1)))


def _paused(evidence: Evidence) -> Iterator[Hit]:
    for service in evidence.services:
        if service.state == "paused":
            yield Hit(service.service, (_line(service),))


def _unsupervised(evidence: Evidence) -> Iterator[Hit]:
    """Local processes that run on without the supervisor that started them."""
    for service in evidence.services:
        if service.health == "unsupervised":
            yield Hit(service.service, (_line(service),))


def _elsewhere(evidence: Evidence) -> Iterator[Hit]:
    """All services work and the port refuses: what is asked is not what is published."""
    said = _refused(evidence)
    if said and evidence.services and all(one.works for one in evidence.services):
        urls = ", ".join(end.base_url for end in evidence.plan.endpoints) if evidence.plan else "(see compose.yaml)"
        yield Hit("", (said,), {"urls": urls})


def _ended(evidence: Evidence) -> Iterator[Hit]:
    for service in evidence.services:
        # a code of failure has a reason in the log, which is `unknown` at worst
        ended = service.state in ("exited", "dead") and service.exit_code in (0, 143) and not service.works
        if ended and not died(service.log):
            yield Hit(service.service, (_line(service),), {"code": str(service.exit_code)})


def _foreign(evidence: Evidence) -> Iterator[Hit]:
    where = {"where": evidence.plan.endpoints[0].base_url} if evidence.plan and evidence.plan.endpoints else {}
    for check, said in evidence.checks:
        if FOREIGN.search(f"{check}: {said}"):
            yield Hit("", (f"{check}: {said}",), where)


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-C001",
        "the server's address is not one of its container",
        "the server shall bind an address that its container does not have",
        "take --host out of extra_args: stackgen binds 0.0.0.0 inside, and `bind:` chooses the machine's address",
        "errno 99, EADDRNOTAVAIL; vLLM 0.32.0, FastChat 0.2.36, llama-server b11434; provoked for real with all",
        "Inside a container the server must listen on 0.0.0.0, or Docker can't reach it. With 127.0.0.1 it starts, and "
        "connections from outside are refused or reset. Who may reach it is decided by `bind:` in stack.yaml.",
        patterns(
            r"\[Errno 99\]",
            r"[Cc]annot assign requested address",
            rf"couldn't bind HTTP server socket, hostname: (?!{EVERY})",
        ),
    ),
    Rule(
        "SG-C002",
        "the port is taken inside the container",
        "another process in the container holds the server's port",
        "take --port out of extra_args; with network_mode host: choose another port",
        "errno 98, EADDRINUSE; vLLM 0.32.0, llama-server b11434; provoked for real with both",
        "vLLM binds early and listens late. On the machine's own network, two servers with the same port meet.",
        patterns(
            r"\[Errno 98\]",
            r"error while attempting to bind on address.*in use",
            r"OSError:.*Address already in use",
            rf"couldn't bind HTTP server socket, hostname: {EVERY}",
        ),
    ),
    Rule(
        "SG-C003",
        "asked from inside a container",
        "127.0.0.1 inside a container is that container, and names of services are known only inside the stack",
        "from a container of the stack ask http://SERVICE:8000/v1; from the machine ask 127.0.0.1 with the published "
        "port",
        "stackgen check, `resolve`; getaddrinfo; aiohttp 3.13, client_exceptions.py, ClientConnectorError",
        "A client in another stack's container reaches the machine as host.docker.internal (with `extra_hosts: "
        '["host.docker.internal:host-gateway"]`), and only if `bind:` allows it.',
        patterns(
            r"^resolve: .*the name '(?P<name>[^']+)' can't be resolved",
            r"^resolve: .*Could not resolve host: (?P<name>\S+)",
            r"Cannot connect to host (?P<name>localhost|127\.0\.0\.1):\d+ ",
        ),
        places=("check", "log"),
    ),
    Rule(
        "SG-C011",
        "the server has another key than .env",
        "the key that stands in .env is not the one that the server was started with",
        "`stackgen up` starts it again with the key of .env; a client needs that very key as well",
        "stackgen check, `models` and `auth`; provoked for real",
        "Keys are read when a container starts. A .env that was written anew since then holds another one. Only "
        "`Authorization: Bearer KEY` counts.",
        patterns(r"the server refuses the key", r"the server wants a key, and none is given"),
        places=("check",),
    ),
    Rule(
        "SG-C004",
        "another program answers on the port",
        "what answers[[ at {where}]] is not this stack's server",
        "stop who holds the port (`ss -ltnp`), or set another `port:`",
        "stackgen check, `http`, `connect` and `models`; provoked for real with Python's http.server",
        "A server that was started by hand, or another stack, has the port.",
        find=_foreign,
    ),
    Rule(
        "SG-C005",
        "the container is paused",
        "{service} is paused: connections hang",
        "`docker compose unpause`",
        "Docker: State.Status",
        "`docker pause` freezes all processes of a container.",
        find=_paused,
    ),
    Rule(
        "SG-C006",
        "asked at another address or port than the server has",
        "every service works, and nothing listens where it was asked",
        "ask {urls}; `bind:` and `port:` in stack.yaml set it, then `stackgen up`",
        "stackgen check, `connect`",
        "A stack binds 127.0.0.1 unless `bind:` says otherwise: other machines are "
        "refused. Several endpoints count up from `port:`. `stackgen status` shows the ports.",
        find=_elsewhere,
    ),
)

LAST: tuple[Rule, ...] = (
    Rule(
        "SG-C010",
        "nobody looks after the local processes",
        "{service} runs, and its supervisor was killed: nothing starts it again, and nothing watches its health",
        "`stackgen down --runtime process`, then `stackgen up --runtime process`",
        "stackgen's supervisor: state.json names a process that is gone; provoked for real",
        "One supervisor a stack starts, probes and restarts local processes. Killed with SIGKILL, or by the kernel for "
        "want of memory, it leaves them behind.",
        find=_unsupervised,
        fallback=True,
    ),
    Rule(
        "SG-C007",
        "the stack is not started",
        "there is no container of this stack",
        "`stackgen up`",
        "Docker: no container with the project's label",
        "Connection refused means that nothing listens. `stackgen up` starts, waits and asks for a completion.",
        find=_not_started,
    ),
    Rule(
        "SG-C008",
        "the server is still loading",
        "{service} runs and is not ready: until then its port refuses",
        "wait: `stackgen up` and `stackgen check --wait 600` do; start_timeout gives a slow start longer",
        "Docker: health `starting`; vLLM 0.32.0 listens only when the engine is loaded",
        "Large models load for minutes, and the first start compiles. The port refuses, or Docker's proxy resets, "
        "until the server listens.",
        find=_loading,
        fallback=True,
    ),
    Rule(
        "SG-C009",
        "the server was stopped",
        "{service} ended with code {code}: somebody stopped it, or it ended by itself",
        "`stackgen up` starts it again",
        "Docker: exit code 143 = 128 + SIGTERM; vLLM ends with 0 when its engine dies",
        "An engine of vLLM that dies while running makes the process end with 0, which `restart: on-failure` does not "
        "bring back; stackgen's supervise.sh does.",
        find=_ended,
        fallback=True,
    ),
)
