"""The API of FastChat 0.2.36, plain and behind stackgen's launcher. Source: recorded responses.

The launcher (`templates/images/fastchat/launch.py`) adapts requests and responses; docs/explanation/fastchat.md lists
what it changes.
"""

from __future__ import annotations

from dataclasses import replace

from stackgen.plan import CHAT_PATHS, Deviation, Dialect

__all__ = ["LAUNCHED", "PLAIN"]

_LENIENT = (
    Deviation("errors", r"messages as a string: accepted with 200", "accepts a string as messages"),
    Deviation("errors", r"max_tokens too large: accepted with 200",
              "reduces max_tokens to the context length if max_tokens is larger"),
)  # fmt: skip

PLAIN = Dialect(
    name="fastchat",
    # fastchat/serve/openai_api_server.py
    api_paths=("/v1/chat/completions", "/v1/completions", "/v1/embeddings"),
    liveness_path=None,
    open_paths=CHAT_PATHS,
    # controller and workers have no authentication
    private_ports=((21001, "/list_models"), (21002, "/worker_get_status")),
    stream_usage=False,
    unknown_model=(400, 40301),
    error_path=("message",),
    silent_hint="the worker may be stuck: in plain FastChat 0.2.36, a request that fails inside the worker"
    " can permanently lower its concurrency limit. Restart the worker",
    claims=("completions", "embeddings"),
    lacks=("tokenize",),
    ignores=("tools", "json-schema", "logprobs", "seed"),
    deviations=(
        Deviation("stream", r"(object|created): field required",
                  "sends `object` and `created` in the last chunk only"),
        Deviation("chat", r"completion_tokens is \d+, but the answer reached its limit of \d+ tokens",
                  "reports one completion token too few if max_tokens ends the answer"),
        *_LENIENT,
        Deviation("errors", r"list-style content: HTTP 500 .*", "answers list-style content with a 500"),
        Deviation("errors", r"unsupported role: HTTP 500 .*", "answers unknown roles with a 500"),
        Deviation("errors", r"(malformed JSON|temperature as a string): the error exposes server internals: .*",
                  "shows the path of a FastChat source file in validation errors"),
    ),
)  # fmt: skip

# - adds `object`, `created` and usage to streams, and counts the last token
# - reads `max_completion_tokens`, text parts, the roles `developer` and `tool`, and prompts as token ids
# - refuses tools, response_format, logprobs of chats, and seeds of sampled answers: their checks show the refusal
# - answers with JSON errors without places in source files, and has /health and /v1/models/NAME
LAUNCHED = replace(
    PLAIN, liveness_path="/health", stream_usage=True, ignores=(), refuses=PLAIN.ignores, deviations=_LENIENT
)
