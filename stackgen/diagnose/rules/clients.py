"""Rules for clients of OpenAI-compatible servers that can't send a request: LiteLLM, the OpenAI SDK, web pages.

None of these failures was reproduced. `source` names the programs and the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import has_certain_error, has_crashed, strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns

__all__ = ["RULES"]

HOST = r"host\.(?:docker|containers)\.internal"
# aiohttp, requests and urllib3, curl, Go and Node, each with the reason
TO_HOST = re.compile(
    rf"(?P<name>{HOST})(?::|', port=|\" port \"? ?| port )(?P<port>\d+)\b.{{0,300}}?(?P<why>Name or service not known|"
    rf"Temporary failure in name resolution|nodename nor servname|No address associated|Failed to resolve|"
    rf"Connect call failed|Connection refused|Couldn't connect to server|ECONNREFUSED|timed out)|"
    rf"(?P<why2>Could not resolve host: |getaddrinfo (?:ENOTFOUND|EAI_AGAIN) |lookup )(?P<name2>{HOST})\b"
)
UNKNOWN_NAME = re.compile(r"not known|resolution|nodename|No address|resolve|getaddrinfo|lookup")
# LiteLLM's words for a server that it can't reach
LITELLM = re.compile(r"litellm\.\w+Error: (?:\w+Error: )?(?P<provider>\w+?)(?:_chat)?Exception - Connection error")
# an engine in the same text, whose own error is a better answer
ENGINE = re.compile(r"\((?:EngineCore|APIServer|Worker|VllmWorker)\w*(?: rank=\d+)? pid=\d+\)")
ADDRESS = re.compile(r"['\"]?(?:api_base|base_url)['\"]?\s*[:=]\s*['\"]?(?P<url>https?://[^\s'\",}]+)")
OWN = re.compile(r"//(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1?\])[:/]")


def _find_host(evidence: Evidence) -> Iterator[Hit]:
    """A client in a container can't connect to a server on the host by the name host.docker.internal."""
    for service in evidence.services:
        for line in service.log.splitlines() if ".internal" in service.log else ():
            if found := TO_HOST.search(line):
                why = found["why"] or found["why2"]
                values = {"name": found["name"] or found["name2"], **({"port": found["port"]} if found["port"] else {})}
                variant = NO_NAME if UNKNOWN_NAME.search(why) else None
                yield Hit(service.service, (strip_prefix(line).strip(),), values, found[0][:200], variant=variant)
                break


def _find_litellm(evidence: Evidence) -> Iterator[Hit]:
    """LiteLLM reports a connection error of a model, and no server's log in the same text shows a failure."""
    if any(one.has_failed or has_crashed(one.log) for one in evidence.services):
        return
    for service in evidence.services:
        if ENGINE.search(service.log) and has_certain_error(service.log):
            continue
        for line in service.log.splitlines() if "Connection error" in service.log else ():
            if found := LITELLM.search(line):
                address = ADDRESS.search(service.log)
                url = address["url"] if address else ""
                yield Hit(service.service, (strip_prefix(line).strip(),), {"url": url} if url else {}, found[0],
                          variant=OWN_ADDRESS if OWN.search(f"{url}/") else None)  # fmt: skip
                break


NO_NAME = Variant(
    (),
    title="a container does not know the host's name",
    cause="the container can't resolve {name}. On Linux, Docker sets this name only for containers that ask for it",
    fix='add `extra_hosts: ["{name}:host-gateway"]` to the client in the Compose file (with `docker run`: '
    "`--add-host={name}:host-gateway`); in Podman, you can also use Podman's own name, host.containers.internal; if "
    "the server is a container as well, use its service name and a common network instead",
    condition="the name can't be resolved",
)
OWN_ADDRESS = Variant(
    (),
    cause="LiteLLM can't connect to the server of this model at {url}. In a container, this address means LiteLLM's "
    "own container, where no engine listens",
    fix="if the engine runs in a container, set api_base to the engine's service name and the port inside this "
    "container (http://SERVICE:8000/v1), and connect LiteLLM and the engine to the same network; if the engine runs on "
    "the host, use http://host.docker.internal:PORT/v1 with "
    '`extra_hosts: ["host.docker.internal:host-gateway"]`; if LiteLLM runs on the host itself, check that the engine '
    "listens there (`curl {url}/models`)",
    condition="the text shows an api_base with localhost, 127.0.0.1 or 0.0.0.0",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-C033",
        title="LiteLLM does not know which kind of server a model has",
        cause="LiteLLM got the model `{model}` without the prefix of a provider, so it does not know how to call it",
        fix="write the provider before the model's name: in `litellm_params.model` of LiteLLM's proxy, or as the model "
        "of the call, use hosted_vllm/{model} for vLLM, or openai/{model} for any other OpenAI-compatible server "
        "(SGLang, llama-server, FastChat); set api_base to http://SERVER:PORT/v1; if the name in the message is random "
        "text, LITELLM_SALT_KEY was changed after the proxy had encrypted its stored values: set the old key again",
        source="The message comes from LiteLLM (litellm_core_utils/get_llm_provider_logic.py). BerriAI/litellm issues "
        "6343 (2024-10) and 18632 (2026-01) and SWE-agent/SWE-agent issue 958 (2025-02) quote it. The failure was not "
        "reproduced.",
        explain="Clients of a LiteLLM proxy use the name in `model_name`, without a provider.",
        patterns=compile_patterns(r"LLM Provider NOT provided\. .{0,120}?You passed model=(?P<model>[^\s'\"]+)"),
    ),
    Rule(
        "SG-C034",
        title="LiteLLM can't connect to the server of a model",
        cause="LiteLLM can't connect to the address in api_base[[ ({url})]] of this model. Either no server listens "
        "there (yet), or the address does not work where LiteLLM runs: in a container, localhost and 0.0.0.0 mean "
        "LiteLLM's own container",
        fix="run `curl -i API_BASE/models` where LiteLLM runs (`docker exec`), which shows whether the address works; "
        "between containers, use the service name and the port inside the engine's container (http://SERVICE:8000/v1) "
        "and a common network; if `curl` works, check that api_key is not empty, and that no proxy variable "
        "(http_proxy) is set in LiteLLM's container",
        source="The message comes from LiteLLM (litellm_core_utils/exception_mapping_utils.py). BerriAI/litellm issues "
        "11044 (2025-05), 7937 (2025-01) and 7291 (2024-12) quote it; in the last one, the key was empty. The failure "
        "was not reproduced.",
        explain="LiteLLM's message does not name the address. Start LiteLLM with `--detailed_debug` to see it.",
        find=_find_litellm,
        fallback=True,
        variants=(OWN_ADDRESS,),
    ),
    Rule(
        "SG-C035",
        title="a client can't reach a server on the host from its container",
        cause="the client's container knows the address of the host ({name}), but nothing answers there[[ on port "
        "{port}]]. Most often, the server on the host listens only on 127.0.0.1, or a firewall of the host blocks "
        "connections from containers",
        fix="let the server listen on an address that containers reach: 0.0.0.0, or the address of Docker's bridge "
        "(`ip -4 address show docker0`, often 172.17.0.1); with 0.0.0.0, keep the port closed for other machines; then "
        "allow the port from Docker's networks in the host's firewall (with ufw: `sudo ufw allow from 172.16.0.0/12 to "
        "any port[[ {port}]]`); `curl` from the client's container shows whether it works",
        source="The messages come from aiohttp 3.13 (client_exceptions.py), urllib3 and curl. open-webui/open-webui "
        "issues 7189 (2024-11), 10833 (2025-02) and 21468 (2026-02), its issue 209 with the fix, and "
        "docker/genai-stack issue 42 (2023-10) quote them. The failure was not reproduced.",
        explain="127.0.0.1 of the host is not reachable from containers, except in the host's network.",
        find=_find_host,
        fallback=True,
        variants=(NO_NAME,),
    ),
    Rule(
        "SG-C036",
        title="a client's key is empty",
        cause="the HTTP client refuses to send the header Authorization, because the key after `Bearer` is empty",
        fix="give the client any key that is not empty (for a server without keys, for example `EMPTY` or `none`); "
        "check that the variable of the key (such as OPENAI_API_KEY) is set in the client's environment",
        source="The message comes from h11 and httpcore; BerriAI/litellm issue 7291 (2024-12) quotes it. The failure "
        "was not reproduced.",
        explain="The message is often followed by `Connection error`, although no connection was tried.",
        patterns=compile_patterns(r"Illegal header value b'Bearer ?'"),
    ),
    Rule(
        "SG-C037",
        title="a client's address has no protocol",
        cause="the client's base URL does not begin with http:// or https://, or the protocol is misspelled",
        fix="correct the base URL of the client, for example http://127.0.0.1:8000/v1 (mind the colon after http); "
        "check that the variable of the address (such as OPENAI_BASE_URL) is not empty",
        source="The messages come from httpx (_transports and _exceptions.py) and requests (models.py); "
        "FoundationAgents/OpenManus issue 770 (2025-03) shows such an address. The failure was not reproduced.",
        explain="The OpenAI SDK then reports only `Connection error`; the cause is in the traceback above.",
        patterns=compile_patterns(
            r"UnsupportedProtocol: Request URL (?:is missing an 'http://' or 'https://' protocol|has an unsupported "
            r"protocol)",
        ),
    ),
)
