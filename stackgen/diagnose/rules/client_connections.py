"""Rules for clients and gateways that can't connect to a server of a stack, or speak TLS to a server without it.

None of these failures was reproduced. `source` names the programs and the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import has_certain_error, has_crashed, strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns

__all__ = ["RULES"]

# a name of a container, a Service, or of a private network: not a name of the Internet, and not the own machine
PRIVATE = (
    r"(?P<{}>(?!localhost\b)[a-z][\w-]*(?:\.[\w-]+){{0,3}}\.svc(?:\.cluster\.local)?|(?!localhost\b)[a-z][\w-]*|"
    r"[\w.-]+\.(?:local|lan|internal|ts\.net))"
)
NAMES = tuple(PRIVATE.format(name) for name in ("a", "b", "c", "d"))
FAILED = re.compile(
    # aiohttp
    rf"Cannot connect to host {NAMES[0]}:(?P<port_a>\d+) ssl:\S+ \[(?P<why_a>[^\]\n]{{3,120}})|"
    # requests and urllib3
    rf"HTTPS?ConnectionPool\(host='{NAMES[1]}', port=(?P<port_b>\d+)\): Max retries exceeded.{{0,300}}?(?P<why_b>"
    r"Connection refused|Name or service not known|Temporary failure in name resolution|Failed to resolve|timed out)|"
    # Node
    rf"getaddrinfo (?P<why_c>ENOTFOUND|EAI_AGAIN) {NAMES[2]}\b|"
    # Go
    rf"\"https?://{NAMES[3]}(?::(?P<port_d>\d+))?/[^\"]*\": dial tcp[ :].{{0,60}}(?P<why_d>no such host|server "
    r"misbehaving|connection refused|i/o timeout)"
)
NO_NAME = re.compile(r"not known|name resolution|resolve|nodename|ENOTFOUND|EAI_AGAIN|no such host|misbehaving|address")
# an engine in the same text, whose own error is a better answer
ENGINE = re.compile(r"\((?:EngineCore|APIServer|Worker|VllmWorker)\w*(?: rank=\d+)? pid=\d+\)")
OTHER_RULES = re.compile(
    r"\.docker\.internal|\.containers\.internal|registry|manifest|/admission|webhook|\bhuggingface"
)


# the OpenAI SDK's words, in Python, in JavaScript and as agents print them; LiteLLM's are those of SG-C034
SDK_ERROR = re.compile(
    r"APIConnectionError(?:: |\(['\"])Connection error\.|\bOpenAI(?: API)? error: Connection error\b|"
    r"^(?:\[?ERROR\b.{0,60} )?(?:API )?[Ee]rror: Connection error\.$"
)
REASON = re.compile(
    r"(?P<refused>\[Errno 111\] Connection refused|ECONNREFUSED|All connection attempts failed)|"
    r"(?P<name>Name or service not known|[Nn]ame resolution|nodename nor servname|ENOTFOUND|EAI_AGAIN)"
)
# the exception of httpx below the SDK's
WHY = re.compile(r"^(?:httpx|httpcore|h11)\.[\w.]{3,60}: (?P<why>.{4,200})")
SET_URL = re.compile(r"(?i)\b(?:\w+_)?(?:base_?url|api_base)['\"]?\s{0,4}[:=]\s{0,4}['\"]?(?P<url>[^\s'\",;)}]{4,200})")
NO_PROTOCOL = re.compile(r"(?i)^(?:https?(?:/|:/?(?!/))|localhost\b|(?:\d{1,3}\.){3}\d{1,3}\b|[\w.-]+:\d+)")


def _find_sdk_error(evidence: Evidence) -> Iterator[Hit]:
    """The OpenAI SDK reports a connection error, and no server's log in the same text shows a failure."""
    if any((one.state and one.has_failed) or has_crashed(one.log) for one in evidence.services):
        return
    for service in evidence.services:
        log = service.log
        if service.state or "Connection error" not in log or ENGINE.search(log) or "litellm" in log:
            continue
        for line in log.splitlines():
            if found := SDK_ERROR.search(strip_prefix(line).strip()):
                url = next((one["url"] for one in SET_URL.finditer(log)), "")
                reason = next(REASON.finditer(log), None)
                bad = bool(url and NO_PROTOCOL.match(url))
                shown = (WHY.match(strip_prefix(one).strip()) for one in log.splitlines())
                why = next((one for one in shown if one), None)
                other = why if why and not REASON.search(why["why"]) else None
                variant = NO_SCHEME if bad else SDK_OTHER if other else SDK_NAME if reason and reason["name"] else None
                lines = (strip_prefix(line).strip(), *((why[0],) if why and not bad else ()))
                values = {**({"url": url} if url else {}), **({"why": other["why"]} if other else {})}
                yield Hit(service.service, lines, values, found[0], variant=variant)
                break


def _find_connection(evidence: Evidence) -> Iterator[Hit]:
    """A client names a private server to which it can't connect, and no server's log in the text shows a failure."""
    if any(one.has_failed or has_crashed(one.log) for one in evidence.services):
        return
    for service in evidence.services:
        if service.state or (ENGINE.search(service.log) and has_certain_error(service.log)):
            continue
        for line in reversed(service.log.splitlines()):
            found = None if OTHER_RULES.search(line) else FAILED.search(line)
            if found:
                values = {name.partition("_")[0]: value for name, value in found.groupdict().items() if value}
                host = next(values[one] for one in ("a", "b", "c", "d") if one in values)
                shown = {"host": host, **({"port": values["port"]} if "port" in values else {})}
                yield Hit(service.service, (strip_prefix(line).strip(),), shown, found[0][:200],
                          variant=UNKNOWN_NAME if NO_NAME.search(values["why"]) else None)  # fmt: skip
                break


UNKNOWN_NAME = Variant(
    (),
    title="a client does not know the name of a server",
    cause="the client can't resolve the name {host}: no running container in its networks (or, in a cluster, no "
    "Service in this namespace) has this name",
    fix="check that the server's container is running (`docker compose ps -a`), and read its log if it has ended; "
    "compare {host} with the server's service name; connect client and server to the same network (two Compose "
    "projects need an external network in both); in a cluster, use NAME.NAMESPACE.svc for a Service of another "
    "namespace (`kubectl get svc -A`)",
    condition="the name can't be resolved",
)

NO_SCHEME = Variant(
    (),
    title="a client's address has no protocol",
    cause="the client's base URL is {url}, which does not begin with http:// or https://, so the client could not send "
    "its request",
    fix="correct the base URL of the client, for example http://127.0.0.1:8000/v1 (mind the colon after http)",
    condition="the text shows a base URL without a protocol",
)
SDK_OTHER = Variant(
    (),
    title="an OpenAI client can't send its request",
    cause="the OpenAI SDK of a client could not send its request[[ to {url}]]: {why}",
    fix="read this reason, which comes from the client's HTTP library: a certificate must be trusted where the client "
    "runs, or the server has no TLS (then use http://); a reset or closed connection means that the server or a proxy "
    "ended it: look at its log; run `curl -v BASE_URL/models` where the client runs, which shows the same failure",
    condition="the traceback shows another reason",
)
SDK_NAME = Variant(
    (),
    title="an OpenAI client does not know the name of its server",
    cause="the OpenAI SDK of a client can't resolve the name of the server in its base URL[[ ({url})]]. Names of "
    "containers and Services are known only inside their own network or cluster",
    fix="correct the name; between containers, connect the client and the server to the same network, and use the "
    "service name; outside, use the address of the machine and the published port; for names of the Internet, check "
    "DNS and the proxy",
    condition="the name can't be resolved",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-C056",
        title="an OpenAI client can't connect to its server",
        cause="the OpenAI SDK of a client can't connect to the address in its base URL[[ ({url})]]. Either no server "
        "listens there (yet), or the address does not work where the client runs: in a container, localhost means the "
        "container itself",
        fix="run `curl -i BASE_URL/models` where the client runs (`docker exec`), with the base URL of the client; if "
        "nothing answers, look at the server's state and log; between containers, use the service name and the port "
        "inside the engine's container (http://SERVICE:8000/v1) and a common network; if `curl` works, look in the "
        "client's whole traceback for the reason (a certificate, a proxy variable, an empty key)",
        source="The message is that of the OpenAI SDK (_exceptions.py). FoundationAgents/OpenManus issue 770 (2025-03) "
        "quotes it. The failure was not reproduced.",
        explain="The SDK's message does not name the address or the reason. The exception above it in the traceback, "
        "from httpx, names the reason.",
        find=_find_sdk_error,
        consequence_of=("SG-C003", "SG-C020", "SG-C034", "SG-C035", "SG-C036", "SG-C037", "SG-C049", "SG-C050"),
        fallback=True,
        variants=(NO_SCHEME, SDK_OTHER, SDK_NAME),
    ),
    Rule(
        "SG-C049",
        title="a client can't connect to a server",
        cause="the client knows the address of {host}, but nothing accepts its connection[[ on port {port}]]. Either "
        "the server still loads its model or has ended, or it listens on another port or only on 127.0.0.1",
        fix="look at the state and log of {host} (`docker compose ps -a`, `kubectl get pods`); if the server still "
        "loads, wait until it is healthy (`depends_on` with `condition: service_healthy`); if the server has ended, "
        "its log has the cause; otherwise use the port inside the server's container (not the published port), and "
        "make the server listen on 0.0.0.0",
        source="The messages come from aiohttp 3 (client_exceptions.py), urllib3, Node and Go (net/dial.go); "
        "BerriAI/litellm passes them on as `Hosted_vllmException` (issues 7937 (2025-01) and 11044 (2025-05)). The "
        "failure was not reproduced.",
        explain="Names of containers are known only in Docker's own networks, not in the default bridge.",
        find=_find_connection,
        consequence_of=("SG-C035", "SG-C003", "SG-C033", "SG-C034"),
        fallback=True,
        variants=(UNKNOWN_NAME,),
    ),
    Rule(
        "SG-C050",
        title="a client speaks TLS to a server without TLS",
        cause="the client opened a TLS connection, but the server answered with plain HTTP. The client's address "
        "begins with https://, but the server does not use TLS on this port",
        fix="use http:// in the client's address (for addresses of your own machines), or turn on TLS in the server; "
        "if the message appears for addresses on the Internet, a proxy is in between: in https_proxy too, write the "
        "proxy's own address with http:// (`https_proxy=http://PROXY:PORT`)",
        source="The messages come from OpenSSL (WRONG_VERSION_NUMBER), Go (crypto/tls/conn.go and "
        "net/http/client.go) and Node. huggingface/chat-ui issue 387 (2023-08), openinterpreter/openinterpreter issue "
        "1016 (2024-02) and nginx-proxy/nginx-proxy issue 1879 (2022-01) quote them. The failure was not reproduced.",
        explain="The OpenAI SDK then reports only `Connection error`.",
        patterns=compile_patterns(
            r"\[SSL: (?:WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE)\]|ERR_SSL_WRONG_VERSION_NUMBER|"
            r"ssl3_get_record:wrong version number|routines:\w*:?(?:packet length too long|wrong version number)",
            r"(?<!probe failed: )(?:tls: first record does not look like a TLS handshake|"
            r"http: server gave HTTP response to HTTPS client)",
        ),
        variants=(
            Variant(
                compile_patterns(r"SSL_do_handshake\(\) failed \(.{0,120}wrong version number.{0,40} to upstream"),
                title="nginx speaks TLS to a server without TLS",
                cause="nginx opened a TLS connection, but the engine answered with plain HTTP. `proxy_pass` (or "
                "VIRTUAL_PROTO) is set to https, but the engine does not use TLS on this port",
                fix="write `proxy_pass http://…` in nginx's configuration (nginx-proxy: remove VIRTUAL_PROTO=https); "
                "clients still use https to nginx itself",
            ),
        ),
        consequence_of=("SG-D002", "SG-K015", "SG-K010", "SG-H012", "SG-H013"),
        fallback=True,
    ),
)
