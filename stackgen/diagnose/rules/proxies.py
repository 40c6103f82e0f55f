"""Rules for proxies in front of an engine that find no server, or lose it: nginx, Envoy, Traefik, HAProxy, Caddy.

None of these failures was reproduced. `source` names the files of the programs and the reports that quote them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import has_crashed, strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant

__all__ = ["RULES"]

NO_HOST = re.compile(r'host not found in upstream "(?P<name>[^"]+)"')
RESET = re.compile(
    r"upstream connect error or disconnect/reset before headers\.(?: retried and the latest)? ?reset reason: "
    r"(?P<reason>[a-z_ ]*[a-z](?: with CONNECT request)?)"
)
TIMEOUT = re.compile(r"(?P<reason>upstream request timeout)\s*(?:\"?\}?)$")
# the bodies that proxies send if they have no server for a request
NO_SERVER = re.compile(
    # registries and other servers outside of the stack have proxies as well
    r"^(?!.*(?:\bpull|manifest|registry|https://)).*?(?P<text>no[ _]healthy[ _]upstream|"
    r"No server is available to handle this request|(?<![\w ])no available server)\b"
)
# Caddy's error when it connects to an upstream
CADDY = re.compile(r'"logger":"http\.log\.error[^"]*".{0,200}?"msg":"(?P<text>dial tcp:? (?P<where>[^"]{1,120}))"')
# Traefik's, at level debug
TRAEFIK = re.compile(r'502 Bad Gateway"? error="(?P<text>dial tcp:? (?P<where>[^"]{1,120}))"')


LOCAL = r"(?P<url>https?://(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\])(?::\d+)?[^\s'\"<>]*)"
# the answer in the line of the request: httpx, then requests and httpx's exception
LOCAL_ANSWER = re.compile(
    rf"{LOCAL} \"HTTP/[\d.]+ (?P<status>50[24])\b|"
    rf"\b(?P<other>50[24]) [\w ]{{1,30}}'?:? (?:[\w ]{{1,30}} )?for url:? '?{LOCAL.replace('url', 'to')}"
)
LOCAL_REQUEST = re.compile(rf"(?i)\b(?:request|POST|GET|calling|connecting)\b.{{0,40}}?{LOCAL}")
STATUS = re.compile(r"(?i)\b(?:error|status|status[ _]code|code|HTTP)\b[^\w\n]{0,4}(?P<status>50[24])\b")
PROXY_SET = re.compile(
    r"(?i)\b(?P<variable>https?_proxy|all_proxy)['\"]?[=:] ?['\"]?(?P<proxy>\w[\w+.-]*://[^\s'\",]+|[\w.-]+:\d+)"
)
NOT_PROXIED = re.compile(r"(?i)\bno_proxy['\"]?[=:][^\n]{0,80}?(?:localhost|127\.0\.0\.1|\*)")
# a server that logs the status itself has answered itself
OWN_ANSWER = re.compile(r"\"(?:GET|POST) \S+ HTTP/[\d.]+\" 50[24]\b")
# the answer follows the request after at most so many lines
NEAR = 5


def _find_proxied_request(evidence: Evidence) -> Iterator[Hit]:
    """A client got HTTP 502 or 504 for a request to its own machine, and no server logged this status."""
    for service in evidence.services:
        log = service.log
        if service.state or not ("502" in log or "504" in log) or OWN_ANSWER.search(log):
            continue
        lines = [strip_prefix(line).strip() for line in log.splitlines()]
        hit: tuple[tuple[str, ...], str, str] | None = None
        for index, line in enumerate(lines):
            if found := LOCAL_ANSWER.search(line):
                hit = ((line,), found["url"] or found["to"], found["status"] or found["other"])
            elif asked := LOCAL_REQUEST.search(line):
                later = lines[index + 1 : index + 1 + NEAR]
                answer = next(((one, got) for one in later if (got := STATUS.search(one))), None)
                hit = ((line, answer[0]), asked["url"], answer[1]["status"]) if answer else hit
        if hit:
            shown, url, status = hit
            proxy = None if NOT_PROXIED.search(log) else PROXY_SET.search(log)
            values = {"url": url, "status": status, **(proxy.groupdict() if proxy else {})}
            own = (proxy.string[proxy.start() : proxy.end()],) if proxy else ()
            yield Hit(service.service, (*shown, *own), values, status, variant=WITH_PROXY if proxy else None)


def _find_host(evidence: Evidence) -> Iterator[Hit]:
    """The name of an upstream can't be resolved when nginx starts."""
    for service in evidence.services:
        for line in service.log.splitlines() if "host not found in upstream" in service.log else ():
            if (found := NO_HOST.search(line)) and not service.is_working:
                name = found["name"].partition(":")[0]
                yield Hit(service.service, (strip_prefix(line).strip(),), {"name": name}, found[0])
                break


def _find_reset(evidence: Evidence) -> Iterator[Hit]:
    """Envoy, or a gateway that is built on it, reports why it has no answer from the engine."""
    if any(one.has_failed or has_crashed(one.log) for one in evidence.services):
        return
    for service in evidence.services:
        for line in reversed(service.log.splitlines()) if "upstream " in service.log else ():
            if found := RESET.search(line) or TIMEOUT.search(line):
                reason = found["reason"].strip().replace("_", " ")
                variant = next((one for words, one in REASONS if words.search(reason)), None)
                yield Hit(service.service, (strip_prefix(line).strip(),), {"reason": reason}, found[0], variant=variant)
                break


def _find_no_server(evidence: Evidence) -> Iterator[Hit]:
    """A proxy answers that it has no server for the request, or can't connect to it."""
    if any(one.has_failed or has_crashed(one.log) for one in evidence.services):
        return
    for service in evidence.services:
        for line in reversed(service.log.splitlines()):
            if found := NO_SERVER.search(strip_prefix(line).strip()):
                yield Hit(service.service, (strip_prefix(line).strip(),), {"text": found["text"]}, found[0])
                break
            if "dial tcp" in line and (found := CADDY.search(line) or TRAEFIK.search(line)):
                values = {**found.groupdict(), "program": "Caddy" if found.re is CADDY else "Traefik"}
                yield Hit(service.service, (strip_prefix(line).strip(),), values, variant=REFUSED)
                break


REFUSED = Variant(
    (),
    title="a proxy can't connect to the engine",
    cause="{program} can't connect to the engine: {text}. For `no such host`, the name is unknown in its network; for "
    "`connection refused`, nothing listens at this address and port (yet); for `i/o timeout`, no network connects the "
    "two containers",
    fix="compare the address with `docker compose ps` and the engine's port inside its container (not the published "
    "port); connect both containers to the same network; `docker exec PROXY wget -qO- http://NAME:PORT/health` shows "
    "whether the engine can be reached",
    condition="Caddy or Traefik logs that a connection failed",
)
NOT_REACHED = Variant(
    (),
    title="a proxy can't connect to the engine",
    cause="Envoy could not connect to the engine: {reason}. There are three possible causes: the engine is not ready "
    "yet or has ended, the address or the port is wrong, or a network policy blocks the connection",
    fix="look at the state of the engine's pods or containers, and read their log; compare the port in the proxy's "
    "configuration (Kubernetes: targetPort of the Service) with the port on which the engine listens; test the "
    "address with `curl` from a container next to the proxy",
    condition="the connection itself failed",
)
CLOSED = Variant(
    (),
    title="the connection between a proxy and the engine was closed before an answer",
    cause="Envoy had a connection to the engine, but it was closed before an answer began: {reason}. Either the "
    "engine ended or closed an idle connection, or a time limit of the gateway for idle connections is shorter than "
    "the time to the first token",
    fix="check whether the engine restarted at this time (`docker compose ps`, `kubectl get pods`), and read its log; "
    "if the engine did not restart, and the requests always fail after the same number of seconds, raise the gateway's "
    "idle timeout for upstreams above the time to the first token (Higress: upstream.idleTimeout, 10 s by default; "
    "Envoy: idle_timeout); if only single requests after a pause fail, set the gateway's idle timeout below the "
    "engine's keep-alive (5 s in uvicorn), or let the gateway retry on `reset-before-request`",
    condition="the connection was closed or reset",
)
OVERFLOW = Variant(
    (),
    title="a proxy has reached its limit of requests to the engine",
    cause="Envoy did not send the request, because one of its limits for this engine is reached: {reason}. The engine "
    "is not the cause",
    fix="raise the limits of the gateway (Envoy: circuit_breakers with max_connections, max_pending_requests and "
    "max_requests, 1024 by default; Istio: connectionPool of the DestinationRule), or add replicas",
    condition="the reason is `overflow`",
)
PROTOCOL = Variant(
    (),
    title="a proxy and the engine use different protocols",
    cause="Envoy could not parse the answer of the other side ({reason}). Most often, Envoy uses HTTP/2 or TLS, and "
    "the server uses HTTP/1.1 without TLS, or the reverse",
    fix="let the gateway use HTTP/1.1 without TLS for this engine (in Istio, the name or `appProtocol` of the "
    "Service's port decides); if a filter such as an external processor is in between, check its protocol too",
    condition="the reason is `protocol error`",
)
SLOW = Variant(
    (),
    title="a proxy stopped waiting for the engine's answer",
    cause="Envoy ended the request ({reason}), because the answer was not complete within its time limit for the route "
    "(15 seconds by default)",
    fix="raise the limit (Envoy: `timeout` of the route; Gateway API: timeouts.request; Istio: timeout of the "
    "VirtualService), or set it to 0 for streams; don't restart the engine, because it works",
    condition="the answer is `upstream request timeout`",
)
WITH_PROXY = Variant(
    (),
    cause="the request to {url} got HTTP {status}. The text shows that {variable} is set ({proxy}). Most programs "
    "then send even requests to localhost to this proxy, which can't reach the client's own machine",
    fix="add the addresses of your own machines to no_proxy of the client (`no_proxy=localhost,127.0.0.1`, also as "
    "NO_PROXY, and the names of the services in a Compose stack); as a test, run `curl --noproxy '*' {url}`",
    condition="the text shows a variable that names a proxy",
)

REASONS = tuple(
    (re.compile(words), variant)
    for words, variant in (
        ("connection failure|connection timeout|connect error|CONNECT request", NOT_REACHED),
        ("termination|remote reset|refused stream", CLOSED),
        ("overflow|overload", OVERFLOW),
        ("protocol error", PROTOCOL),
        ("upstream request timeout", SLOW),
    )
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-C017",
        title="nginx does not know the name of the engine",
        cause="nginx ended, because it can't resolve {name} when it starts: no running container in its networks has "
        "this name",
        fix="compare {name} in nginx's configuration with the service names of `docker compose ps`; connect both "
        "services to the same network; let nginx start after the engine (`depends_on`), because nginx resolves the "
        "name only at startup; or let nginx resolve the name for each request (`resolver 127.0.0.11;` and a variable "
        "in proxy_pass)",
        source="The message comes from nginx (ngx_upstream.c), and is quoted in NoFxAiOS/nofx pull request 82 "
        "(2025-10), TeamPiped/Piped issue 3679 (2024-06) and langgenius/dify issue 17004 (2025-03). The failure was "
        "not reproduced.",
        explain="If the container with this name has ended with an error, its own log names the cause. Docker's DNS "
        "server for containers is 127.0.0.11.",
        find=_find_host,
    ),
    Rule(
        "SG-C018",
        title="a proxy lost the engine before its answer",
        cause="Envoy, or a gateway that is built on it (Istio, Envoy Gateway, Higress), reports why it has no answer "
        "from the engine: {reason}",
        fix="read the engine's log at the time of the request; Envoy's access log shows the reason as a response flag "
        "(%RESPONSE_FLAGS%)",
        source="The reasons come from Envoy (source/common/http/utility.cc, resetReasonToString) and the texts from "
        "its router (source/common/router/router.cc); gpustack/gpustack issue 4725 (2026-03), vllm-project/aibrix "
        "issues 750 (2025-02) and 1103 (2025-05) and istio/istio issue 49480 (2024-02) quote them. The failure was not "
        "reproduced.",
        explain="The text is the body of the proxy's own answer, usually with status 503. Gateways may send another "
        "status, for example 403.",
        find=_find_reset,
        consequence_of=("*",),
        variants=(NOT_REACHED, CLOSED, OVERFLOW, PROTOCOL, SLOW),
    ),
    Rule(
        "SG-C019",
        title="a proxy has no server for the request",
        cause="a proxy in front of the engine answers `{text}`: it knows no healthy server for this request. Either "
        "the engine is still loading or has ended, or the proxy's own health check of the engine fails",
        fix="look at the state of the engine (`docker compose ps`, `kubectl get pods`) and its log; if the engine is "
        "ready, compare the path and port of the proxy's health check with those of the engine (vLLM, SGLang and "
        "llama-server: /health); check that Docker reports the container as healthy, because Traefik ignores unhealthy "
        "containers",
        source="The texts come from Envoy (source/common/router/router.cc), HAProxy (the page of status 503) and "
        "Traefik (pkg/server/service/loadbalancer/wrr/wrr.go); Caddy's lines are those of "
        "lucaslorentz/caddy-docker-proxy issue 348 (2022-04). The failure was not reproduced.",
        explain="Such an answer does not come from the engine.",
        find=_find_no_server,
        consequence_of=("*", "SG-C018"),
        fallback=True,
        variants=(REFUSED,),
    ),
    Rule(
        "SG-C020",
        title="a proxy or gateway answered a request to the client's own machine",
        cause="the request to {url} got HTTP {status}. This is the answer of a proxy or gateway that got no answer "
        "from its own server. Either the client sends the request to a proxy, because http_proxy or https_proxy is "
        "set, or a gateway listens at this address and can't reach its server",
        fix="run `curl --noproxy '*' -i {url}` where the client runs; if the answer is different (even 404 or 405), a "
        "proxy is the cause: add the address to no_proxy of the client (`no_proxy=localhost,127.0.0.1`, also as "
        "NO_PROXY); if the answer is the same, read the log of the gateway at this address",
        source="The messages come from httpx (_client.py and _models.py), requests (models.py) and scripts; RFC 9110 "
        "defines status 502. microsoft/VibeVoice issue 248 (2026-02) and heshengtao/comfyui_LLM_party issue 160 "
        "(2025-03) quote them, and the replies in both issues name the proxy as the cause. The failure was not "
        "reproduced.",
        explain="Most programs read http_proxy, https_proxy and no_proxy from the environment, also for localhost. "
        "Docker copies the proxies of ~/.docker/config.json into the environment of every new container, and health "
        "checks in the container see them too.",
        find=_find_proxied_request,
        fallback=True,
        variants=(WITH_PROXY,),
    ),
)
