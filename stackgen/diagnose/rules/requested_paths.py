"""Rules for requests that a server does not know: wrong paths, fields, and answers that are no JSON.

None of these failures was reproduced. `source` names the programs and the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import has_crashed, strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns

__all__ = ["RULES"]

# access logs of uvicorn, nginx, HAProxy and Caddy; of Gin (llama-swap, Ollama); of llama-server
ACCESS = re.compile(
    r"\"(?P<method>GET|POST) (?P<path>/\S*) HTTP/[\d.]+\"[ ,]+(?P<status>[1-5]\d\d)\b|"
    r"\| (?P<status2>[1-5]\d\d) \|.{1,60}\| (?P<method2>GET|POST) +\"(?P<path2>/[^\"]*)\"|"
    r"request: (?P<method3>GET|POST) (?P<path3>/\S*) \S+ (?P<status3>[1-5]\d\d)\b|"
    r" (?P<status4>[1-5]\d\d) \d+ .{0,80}\"(?P<method4>GET|POST) (?P<path4>/\S*) HTTP/[\d.]+\""
)
CALLS = r"(?:chat/completions|completions|models|embeddings|responses|messages)"
DOUBLE = re.compile(rf"^/\S*//+(?:v1/)?{CALLS}\b|^//+v1/")
TWICE = re.compile(rf"/v1/+v1/+{CALLS}|/chat/completions/+(?:chat/completions|models)")
WITHOUT = re.compile(rf"^/{CALLS}/?$")
OLLAMA = re.compile(r"^/api/(?:chat|generate|tags|show)/?$")
KNOWN = re.compile(rf"/v1/{CALLS}/?(?:\?|$)")


def _read_access(log: str) -> Iterator[tuple[str, str, int]]:
    """The line, path and status of each logged request."""
    for line in log.splitlines():
        if found := ACCESS.search(line):
            named = {name.rstrip("234"): value for name, value in found.groupdict().items() if value}
            yield line, named["path"], int(named["status"])


def _find_path(evidence: Evidence) -> Iterator[Hit]:
    """An access log shows 404 for the path of a client whose base URL is wrong, and no answered request."""
    for service in evidence.services:
        if service.state or " 404" not in service.log or has_crashed(service.log):
            continue
        requests = list(_read_access(service.log))
        if any(status < 300 and (KNOWN.search(path) or OLLAMA.match(path)) for _, path, status in requests):
            continue
        for line, path, status in reversed(requests):
            kinds = ((TWICE, IN_TWICE), (DOUBLE, IN_DOUBLE), (WITHOUT, IN_WITHOUT), (OLLAMA, IN_OLLAMA))
            variant = next((one for pattern, one in kinds if pattern.search(path)), None)
            if variant and status in (404, 405, 307, 308):
                yield Hit(service.service, (strip_prefix(line).strip(),), {"path": path}, variant=variant)
                break


IN_DOUBLE = Variant(
    (),
    title="the client's address contains one slash too many",
    cause="the client requested {path}, with two slashes in a row. For the server, this is another path. Either the "
    "client's base URL ends with a slash, or it was joined from two parts that both contain the slash",
    fix="remove the slash at the end of the client's base URL (http://HOST:PORT/v1, not http://HOST:PORT/v1/), or the "
    "slash in the proxy's configuration that adds the second one",
    condition="the path has two slashes in a row",
)
IN_TWICE = Variant(
    (),
    title="the client's address contains a part twice",
    cause="the client requested {path}: its base URL contains a part that the client adds itself",
    fix="set the client's base URL to http://HOST:PORT/v1 (without /chat/completions); if the client adds /v1 as well, "
    "to http://HOST:PORT",
    condition="the path contains /v1 or the name of a call twice",
)
IN_WITHOUT = Variant(
    (),
    title="the client's address lacks /v1",
    cause="the client requested {path}, and the server knows this call only below /v1: the client's base URL lacks /v1",
    fix="set the client's base URL to http://HOST:PORT/v1",
    condition="the path is a call of the OpenAI API without /v1",
)
IN_OLLAMA = Variant(
    (),
    title="the client speaks Ollama's API",
    cause="the client requested {path}, a path of Ollama's own API, which this server does not have",
    fix="add the server to the client as an OpenAI-compatible connection with the base URL http://HOST:PORT/v1, not as "
    "a connection of the kind Ollama",
    condition="the path is one of Ollama's own API",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-C044",
        title="a server does not know the path of a client's request",
        cause="the server answered 404 to {path}",
        fix="set the base URL of the client to http://HOST:PORT/v1 (the client itself adds /chat/completions)",
        source="The lines are access logs of uvicorn (protocols/http), nginx, HAProxy, Gin and llama-server "
        "(tools/server/server-http.cpp); xtekky/gpt4free issue 2834 (2025-03) shows them. The failure was not "
        "reproduced.",
        explain="`curl http://HOST:PORT/v1/models` shows whether the server works. SG-C039 is the same failure in the "
        "client's words.",
        find=_find_path,
        fallback=True,
        variants=(IN_TWICE, IN_DOUBLE, IN_WITHOUT, IN_OLLAMA),
    ),
    Rule(
        "SG-C045",
        title="a client got a page or text instead of JSON",
        cause="the answer of {url} is not JSON ({type}), with status {status}. At this address, the client gets a web "
        "page instead of the API, for example the page of another program, a chat page, or a proxy's login page",
        fix="run `curl -i {url}` where the client runs, which shows the page; correct the base URL of the client "
        "(http://HOST:PORT/v1 of the engine or gateway itself), or let the proxy pass this path on without a login",
        source="The message comes from aiohttp 3 (client_reqrep.py). open-webui/open-webui issues 21257 (2026-02) and "
        "9419 (2025-02) and open-webui/docs issue 712 (2025-09) quote it. The failure was not reproduced.",
        explain="aiohttp reports the status and the address of the answer.",
        patterns=compile_patterns(
            r"(?P<status>2\d\d), message='Attempt to decode JSON with unexpected mimetype: (?P<type>text/html[^']*)', "
            r"url='(?P<url>[^']+)'",
        ),
        variants=(
            Variant(
                compile_patterns(
                    r"404, message='Attempt to decode JSON with unexpected mimetype: [^']*', "
                    r"url='(?P<url>[^']+/models)/?'",
                ),
                title="the server has no list of models at the client's address",
                cause="the server answered 404 to {url}. Either the base URL is wrong (for most servers it ends with "
                "/v1), or this server has no list of models at this address",
                fix="run `curl -i {url}` where the client runs; correct the base URL (http://HOST:PORT/v1); if the "
                "server answers chats at this base URL but has no list, enter the names of the models in the client's "
                "connection by hand (Open WebUI: Model IDs)",
            ),
            Variant(
                compile_patterns(
                    r"404, message='Attempt to decode JSON with unexpected mimetype: [^']*', url='(?P<url>[^']+)'",
                ),
                title="the client requests a path that the server does not have",
                cause="the server answered 404 to {url}: the base URL of the client is wrong. For most servers it ends "
                "with /v1",
                fix="set the base URL to http://HOST:PORT/v1 (the client itself adds /chat/completions); `curl "
                "http://HOST:PORT/v1/models` must list the models",
            ),
            Variant(
                compile_patterns(
                    r"(?P<status>40[13]|407), message='Attempt to decode JSON with unexpected mimetype: "
                    r"(?P<type>[^']*)', "
                    r"url='(?P<url>[^']+)'",
                ),
                title="a client's request was refused before it reached the API",
                cause="the answer of {url} has status {status} and is not JSON. So the engine did not refuse the "
                "request. Something in front of the engine did: a proxy, a firewall or a login page",
                fix="check whether a proxy variable (http_proxy) is set for the client, and add the server to "
                "no_proxy; `curl -i {url}` where the client runs shows who answers",
            ),
            Variant(
                compile_patterns(
                    r"(?P<status>50[234]), message='(?:Attempt to decode JSON with unexpected mimetype: [^']*|"
                    r"Bad Gateway|Service (?:Temporarily )?Unavailable|Gateway Time-?[Oo]ut)', url='(?P<url>[^']+)'",
                ),
                title="a proxy answered a client in place of the engine",
                cause="the answer of {url} has status {status} and is not JSON. So a proxy answered, because it got no "
                "answer from its server. If {url} is an address of your own machine, the cause is often a proxy "
                "variable (http_proxy) that is set for the client",
                fix="if a proxy variable is set for the client, add the server to no_proxy (as a test: `curl --noproxy "
                "'*' -i {url}` where the client runs); otherwise read the log of the proxy at this address, and the "
                "state of the engine behind it",
            ),
        ),
    ),
    Rule(
        "SG-C046",
        title="a server does not accept a field of the request",
        cause="the model's server does not know the field `{field}`, and refuses requests that contain it. The client, "
        "or a gateway in between, adds this field",
        fix="update the client or gateway that adds `{field}`, or turn off the feature that needs it; a LiteLLM proxy "
        'removes the field with `additional_drop_params: ["{field}"]` (or `drop_params: true`) in the model\'s '
        "litellm_params; or try a newer version of the server, which may accept it",
        source="The messages come from pydantic (extra_forbidden) and OpenAI's API. "
        "arbs-io/github-copilot-llm-gateway issue 68 (2026-07), BerriAI/litellm issue 26240 (2026-04) and "
        "vllm-project/vllm pull request 10463 (2024-11) quote them. The failure was not reproduced.",
        explain="vLLM since 0.6.5 ignores unknown fields.",
        patterns=compile_patterns(
            r"(?:^|[\s:\"'])(?P<field>[a-z_]\w{0,60}(?:\.\w{1,60}){0,8}): Extra inputs are not permitted",
            r"'extra_forbidden', 'loc': \('body', '(?P<field>\w+)'",
            r"(?:Unrecognized request argument supplied|Unknown parameter): '?(?P<field>[\w.\[\]]+)",
        ),
        fallback=True,
    ),
    Rule(
        "SG-C047",
        title="LiteLLM has paused all servers of a model",
        cause="LiteLLM sends no request to any server of the model `{model}` for some seconds (cooldown), because "
        "earlier requests to them failed. So this message is a consequence: the first errors show the cause",
        fix="look in LiteLLM's log for the first error of this model, before this message (connection refused, 401, "
        "404, 429, time-outs), and solve that; `curl API_BASE/models` with the model's api_base and key shows whether "
        "the server answers; cooldowns end by themselves; for a single server, `disable_cooldowns: true` in "
        "router_settings shows the server's own errors",
        source="The message comes from LiteLLM (types/router.py and router.py). microsoft/agent-lightning issue 290 "
        "(2025-11) and BerriAI/litellm issues 20867 (2026-02) and 5177 (2024-08) quote it. The failure was not "
        "reproduced.",
        explain="The status is 429, although no rate limit may be involved.",
        patterns=compile_patterns(
            r"No deployments available for selected model.{0,40}? Passed model=(?P<model>[^\s,]+?)\.? .{0,80}"
            r"cooldown_list=\[(?!\])",
        ),
        variants=(
            Variant(
                compile_patterns(r"RouterRateLimitErrorBasic: No deployments available for selected model"),
                title="LiteLLM has no server left that may take the request",
                cause="before a call, LiteLLM checks which servers of the model may take the request, and none is "
                "left. Either the limits of requests (rpm) or tokens (tpm) in LiteLLM's configuration are reached, or "
                "the prompt is longer than the servers' context",
                fix="look at rpm, tpm and max_input_tokens in the model's litellm_params and model_info, and raise "
                "them to what the server can do, or add servers; to find out which check it is, read LiteLLM's log at "
                "level DEBUG",
            ),
        ),
        consequence_of=("SG-C034",),
        fallback=True,
    ),
)
