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

RULES: tuple[Rule, ...] = (
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
