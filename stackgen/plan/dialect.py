"""The differences between a server's API and the OpenAI API. Each engine declares them, and the check uses them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CHAT_PATHS", "Deviation", "Dialect"]

# Paths outside /v1 that public APIs use for chats, for example SageMaker (/invocations) and OpenRouter (/api/v1). A
# server that has one of them may require the key under /v1 only, so the check tries them on unknown servers.
CHAT_PATHS = ("/invocations", "/api/v1/chat/completions", "/completions", "/chat/completions")


@dataclass(frozen=True, slots=True)
class Deviation:
    """A known, harmless deviation of a server from the OpenAI API.

    If the check named `check` reports a problem and `pattern` (a regular expression) matches its whole text, the check
    doesn't fail; `note` is reported once instead.
    """

    check: str
    pattern: str
    note: str


@dataclass(frozen=True, slots=True)
class Dialect:
    """How to call a server's OpenAI-compatible API, and how the API deviates. Source: recorded responses.

    - `api_paths`: paths for POST that need the key and have the `model` in the body: JSON, or a form for audio.
      Default: those of vLLM 0.32, although a model of another kind (for example embeddings) has only some of them.
    - `liveness_path`: path of the liveness probe; None if the server has none.
    - `open_paths`: paths that may answer without a key although a key is set. Source: the server's own security guide;
      if the server has none, `CHAT_PATHS`.
    - `private_ports`: (port, path) pairs of services in the same stack that have no authentication and must not be
      reachable from outside.
    - `stream_usage`: whether the server honors `stream_options.include_usage`.
    - `reports_first_name`: whether the server reports its first served name when a request uses another one.
    - `auth_statuses`: HTTP statuses for a request without a key.
    - `unknown_model`: (HTTP status, error code) for an unknown model name.
    - `error_path`: keys that lead to the error message in the body of an error.
    - `claims`, `lacks`, `ignores`: names of checks, for features that the server supports, doesn't support, or accepts
      without effect. `depends`: features that depend on the model or on the server's flags. The check tries all other
      features.
    - `refuses`: names of checks, for features whose requests get a clear error. The check tries them nevertheless.
    - `tokenize`: (path under the root, name of the text field), if the server has such a path.
    - `silent_hint`: hint with the likely reason, if the server lists its models but doesn't answer.
    - `tools_flags`: flags of which the server needs one for requests with the field `tools`; empty if it needs none.
    - `context_flags`: flags that set the context length in tokens. The number in `slots_flags` divides it.
    """

    name: str
    liveness_path: str | None = None
    open_paths: tuple[str, ...] = ()
    private_ports: tuple[tuple[int, str], ...] = ()
    stream_usage: bool = True
    reports_first_name: bool = False
    auth_statuses: tuple[int, ...] = (401,)
    unknown_model: tuple[int, int | str | None] = (404, None)
    error_path: tuple[str, ...] = ("error", "message")
    claims: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()
    depends: tuple[str, ...] = ()
    tokenize: tuple[str, str] | None = None
    deviations: tuple[Deviation, ...] = ()
    silent_hint: str = ""
    refuses: tuple[str, ...] = ()
    tools_flags: tuple[str, ...] = ()
    context_flags: tuple[str, ...] = ()
    slots_flags: tuple[str, ...] = ()
    api_paths: tuple[str, ...] = (
        "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages",
        "/v1/messages/count_tokens", "/v1/rerank", "/v1/score", "/v1/audio/transcriptions", "/v1/audio/translations",
    )  # fmt: skip

    @property
    def accepts_large_max_tokens(self) -> bool:
        """Whether the server accepts a `max_tokens` above its context length; others refuse the request."""
        return any(one.pattern.startswith("max_tokens too large: accepted") for one in self.deviations)
