"""Rules for what the OpenAI SDK reports about a server that answers too late, or that refuses the client's key.

None of these failures was reproduced. `source` names the programs whose answers the rules read.
"""

from __future__ import annotations

from stackgen.diagnose.rule import Rule, Variant, compile_patterns

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-C059",
        title="a client stopped waiting for the server's answer",
        cause="the OpenAI SDK of a client ended a request, because no answer had arrived within the client's own time "
        "limit (600 seconds, if the client does not set it). The server may still work on the request",
        fix="let the client stream, so that the first tokens arrive early; raise its `timeout`, and lower max_tokens; "
        "if short requests are slow as well, look at the server: requests wait in its queue, it still loads, or it "
        "hangs (`stackgen check` and the metrics show the queue)",
        source="The message is that of the OpenAI SDK (_exceptions.py), and LiteLLM's (exceptions.py). The failure was "
        "not reproduced.",
        explain="The SDK repeats such a request twice by default, which adds to the server's load.",
        patterns=compile_patterns(r"\bAPITimeoutError(?:: |\(['\"])Request timed out"),
        variants=(
            Variant(
                compile_patterns(r"litellm\.(?:exceptions\.)?Timeout: .{0,80}Request timed out"),
                cause="LiteLLM ended a request, because the model's server had not answered within the time limit of "
                "LiteLLM. The server may still work on the request",
                fix="let clients stream; raise `timeout` (and `stream_timeout`) in the model's litellm_params, or "
                "request_timeout in litellm_settings; if short requests are slow as well, look at the server: requests "
                "wait in its queue, it still loads, or it hangs",
            ),
        ),
        consequence_of=("*", "SG-C018", "SG-C048"),
        fallback=True,
    ),
    Rule(
        "SG-C060",
        title="a server refuses the client's key",
        cause="the server works, but refused a request with status 401: the client sends no key, or another one than "
        "the server was started with",
        fix="give the client the server's key (`--api-key`, VLLM_API_KEY; in a stack, the key file), for a gateway "
        "such as LiteLLM a key of the gateway; check that the variable of the key is set where the client runs; if a "
        "proxy is in between, let it pass the header Authorization on",
        source="The answers are those of vLLM (entrypoints/openai/server_utils.py), SGLang (srt/utils), llama-server "
        "(tools/server/server-http.cpp) and OpenAI's API. The failure was not reproduced.",
        explain="/health answers without a key, so health checks don't notice a wrong key.",
        patterns=compile_patterns(
            r"Error code: 401 - \{'error': 'Unauthorized'\}",
            r"Error code: 401 - \{'error': \{.{0,120}Invalid API Key",
        ),
        variants=(
            Variant(
                compile_patterns(
                    r"Incorrect API key provided: [^\s'\"]{1,200} You can find your API key at https://platform\."
                ),
                title="a client sends its requests to OpenAI, not to your server",
                cause="the answer is that of OpenAI's own API, which refused the key. If you mean your own "
                "server, the client's base URL is not set, or not where the client reads it",
                fix="set the base URL of the client to http://HOST:PORT/v1 (OpenAI SDK: `base_url=` or the variable "
                "OPENAI_BASE_URL; LangChain: base_url; LiteLLM: api_base with the provider hosted_vllm); if you do "
                "mean OpenAI, correct the key",
            ),
        ),
        fallback=True,
    ),
    Rule(
        "SG-C061",
        title="a client got an error whose reason it does not show",
        cause="the OpenAI SDK for JavaScript got HTTP {status}, and could not read the body of the answer, so the "
        "message does not contain the reason",
        fix="read the server's log at this time, or the log of a proxy in between; repeat the request with `curl -i`, "
        "which shows the body; with 400, most often the prompt is too long, or the server does not accept a field, the "
        "tools or the images of the request; with 413, a proxy limits the size of requests",
        source="The message is that of the OpenAI SDK for JavaScript (error.ts). cline/cline issue 396 (2024-09) and "
        "Mintplex-Labs/anything-llm issue 5601 (2026-05) quote it. The failure was not reproduced.",
        explain="The server answered, so its address is right.",
        patterns=compile_patterns(r"\b(?P<status>[45]\d\d) status code \(no body\)"),
        fallback=True,
    ),
)
