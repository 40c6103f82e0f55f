"""The API of FastChat 0.2.36, plain and behind stackgen's launcher. Source: recorded responses.

The launcher (`templates/images/fastchat/launch.py`) adapts requests and responses; docs/explanation/fastchat.md lists
what it changes.
"""

from __future__ import annotations

from dataclasses import replace

from stackgen.engines._dialects import dialect_of
from stackgen.plan import CHAT_PATHS, Dialect

__all__ = ["PLAIN", "launched_dialect"]

_PLAIN = Dialect(
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
)  # fmt: skip

PLAIN = dialect_of(_PLAIN)

# - adds `object`, `created` and usage to streams, and counts the last token
# - reads `max_completion_tokens`, text parts, the roles `developer` and `tool`, and prompts as token ids
# - refuses tools, response_format, logprobs of chats, and seeds of sampled answers: their checks show the refusal
# - answers with JSON errors without places in source files, and has /health and /v1/models/NAME
_LAUNCHED = replace(_PLAIN, liveness_path="/health", stream_usage=True, ignores=(), refuses=_PLAIN.ignores)


def launched_dialect(version: str | None = None) -> Dialect:
    """The API of a version of FastChat behind stackgen's launcher."""
    return dialect_of(_LAUNCHED, version, plain=False)
