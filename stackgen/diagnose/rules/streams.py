"""Rules for answers that end too early or come from the wrong path, as clients and small proxies print them.

None of these failures was reproduced. `source` names the programs and the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.error_lines import find_root_lines
from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import is_below_error, lines_since_ready, strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns

__all__ = ["RULES"]

# of servers outside of the stack, which have proxies as well
OUTSIDE = re.compile(
    r"(?i)\b(?:pull|manifest|registry|hugging ?face|hf\.co|github|apt|pypi|api\.openai\.com)\b|HTTP/[\d.]+\" \d"
)
ANSWER = re.compile(r"\b(?:(?P<slow>504)[ :(]{1,3}[Gg]ateway [Tt]ime-?out|(?P<bad>502)[ :(]{1,3}[Bb]ad [Gg]ateway)\b")
# how clients report such an answer: any other error in the text is nearer to the cause
OF_CLIENT = re.compile(r"\b(?:APIStatus|InternalServer|HTTPStatus|Response|ServiceUnavailable|API)Error\b|\b50[24]\b")


def _find_answer(evidence: Evidence) -> Iterator[Hit]:
    """A text shows the page or status line with which a proxy answers HTTP 502 or 504, and no other error."""
    for service in evidence.services:
        if service.state or not ANSWER.search(service.log):
            continue
        lines = lines_since_ready(service.log)
        if any(not OF_CLIENT.search(one.text) for one in find_root_lines(lines)):
            continue
        for line in reversed(lines):
            if not OUTSIDE.search(line) and not is_below_error(line) and (found := ANSWER.search(line)):
                yield Hit(service.service, (strip_prefix(line).strip(),), {}, found[0],
                          variant=BAD_GATEWAY if found["bad"] else None)  # fmt: skip
                break


BAD_GATEWAY = Variant(
    (),
    title="a proxy got no valid answer from its server",
    cause="the client got HTTP 502 (Bad Gateway). This is the answer of a proxy or load balancer in front of the "
    "engine: it could not connect to the engine, or the engine closed the connection before a complete answer",
    fix="look at the state and log of the engine at this time (`docker compose ps`, `kubectl get pods`): it may be "
    "loading, have restarted, or have ended; read the log of the proxy, which names the reason; compare the proxy's "
    "address and port with those on which the engine listens; for an address of your own machine, check whether a "
    "proxy variable (http_proxy) is set for the client",
    condition="the status is 502",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-C038",
        title="something cut a stream before its end",
        cause="the client had received a part of the answer when the connection was closed. Either a proxy or gateway "
        "between the client and the engine has a time limit for whole requests, or the engine ended",
        fix="note after how many seconds the stream ends; if the time is always the same (often 15, 30, 60 or 300), a "
        "proxy's time limit is the cause: raise the limit, or set it to 0 (Gateway API: timeouts.request, Envoy: "
        "timeout of the route, nginx: proxy_read_timeout, HAProxy: timeout server); if the time differs, look at the "
        "engine's log and state at that time",
        source="The messages come from httpx with h11, aiohttp and Go's net/http. modelplaneai/modelplane pull request "
        "174 (2026-06), defilantech/LLMKube issue 734 (2026-06) and NVIDIA/nvcf pull request 1064 (2026-08) quote "
        "them, and their limits were 15 and 60 seconds. The failure was not reproduced.",
        explain="Gateways that are built on Envoy limit a whole request to 15 or 60 seconds by default, even if it "
        "streams.",
        patterns=compile_patterns(
            r"peer closed connection without sending complete message body \(incomplete chunked read\)",
            r"read SSE stream: unexpected EOF|stream disconnected before completion",
            r"ClientPayloadError: Response payload is not completed: .{0,40}(?:TransferEncodingError|Not enough data)",
        ),
        variants=(
            Variant(
                compile_patterns(r"proxy error: net/http: timeout awaiting response headers"),
                title="a proxy stopped waiting for the engine's answer",
                cause="a proxy that is written in Go closed the request, because the engine did not begin its answer "
                "within the proxy's time limit for response headers. The engine may still work on the request",
                fix="raise this limit of the proxy (for example `responseHeader` of the timeouts in llama-swap); let "
                "clients stream, so that the answer begins earlier; shorter prompts and less load shorten the time "
                "to the first token",
            ),
        ),
        consequence_of=("*", "SG-C018", "SG-C012"),
        fallback=True,
    ),
    Rule(
        "SG-C039",
        title="the client requests a path that the server does not have",
        cause="the server answered 404 without naming a model, so it does not know the path of the request. Often, "
        "the base URL of the client lacks /v1, or has it twice, or a proxy removes a part of the path",
        fix="set the base URL to http://HOST:PORT/v1 (the client itself adds /chat/completions); `curl "
        "http://HOST:PORT/v1/models` must list the models; to see the path that arrived, read the engine's access log",
        source="The bodies are FastAPI's for an unknown path (starlette, routing.py), which vLLM, SGLang and FastChat "
        "use, llama-server's (tools/server/server-http.cpp), and the one of Go's net/http (server.go); the exception "
        "is that of the OpenAI SDK 2 (_exceptions.py). skye-harris/hass_local_openai_llm issue 15 (2026-01) quotes "
        "the answer of a Go program. The failure was not reproduced.",
        explain="For an unknown model, vLLM answers 404 as well, but with a message about the model.",
        patterns=compile_patterns(
            r"Error code: 404 - \{'detail': 'Not Found'\}",
            r"Error code: 404 - \{'error': \{.{0,80}'message': 'File Not Found'",
        ),
        variants=(
            Variant(
                compile_patterns(
                    r"(?:\bNotFoundError|\bOpenAIException|\bOpenAI(?: API)? [Ee]rror)(?:: | - )404 page not found"
                ),
                cause="a program that is written in Go answered `404 page not found`, so it does not know the path of "
                "the request. Such programs are Ollama, llama-swap and the proxy Traefik. Often, the "
                "base URL of the client lacks /v1, or has it twice; or the address is that of another program, or of "
                "a proxy without a route for this path",
                fix="set the base URL to http://HOST:PORT/v1 (the client itself adds /chat/completions or /models); "
                "`curl http://HOST:PORT/v1/models` must list the models; if it prints `404 page not found` too, "
                "check the address and port, and the routes of the proxy",
            ),
        ),
    ),
    Rule(
        "SG-C048",
        title="a proxy gave up waiting for its server",
        cause="the client got HTTP 504 (Gateway Time-out). This is the answer of a proxy or load balancer in front of "
        "the engine: it waited for the engine's answer until its time limit ended. The engine may still work on the "
        "request",
        fix="let clients stream, so that the first bytes arrive early; raise the limit of the proxy (nginx: "
        "proxy_read_timeout, 60 s by default; HAProxy: timeout server; AWS load balancers: idle timeout, 60 s; "
        "Cloudflare: 100 s, fixed in most plans); if short requests fail as well, look at the state and log of the "
        "engine: it may be loading or stuck; if there are several proxies in a row, check the limit of each one",
        source="RFC 9110 defines the status 504; the page is that of nginx (ngx_http_special_response.c) and HAProxy "
        "(src/http.c). oasm-platform/open-asm issue 451 (2026-06) reports this status. The failure was not reproduced.",
        explain="The engine itself never sends this page. The body of the page often names the program that sent it.",
        find=_find_answer,
        consequence_of=("SG-C012", "SG-C018", "SG-C019", "SG-C020", "SG-C032", "SG-C045"),
        fallback=True,
        variants=(BAD_GATEWAY,),
    ),
)
