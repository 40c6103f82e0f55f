"""The bodies of the gateway's own errors: in Anthropic's format for Anthropic's API, and in OpenAI's format otherwise.

Formats: OpenAI's API reference ("Error codes"), Anthropic's API reference ("Errors"). Both formats have the field
`error.code`, because the type alone doesn't distinguish the gateway's errors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache

__all__ = ["error_bodies", "error_body", "path_error_body"]

# empty for OpenAI's API, the first field of the body for Anthropic's (shape.cfg.j2)
SHAPE = "%[var(txn.shape)]"
INVALID, SERVER, LIMIT = "invalid_request_error", "server_error", "rate_limit_error"
TOO_LARGE = "set by max_body under gateway in stack.yaml"
# name -> (code, OpenAI's type, Anthropic's type, param, message)
ERRORS: dict[str, tuple[str, str, str, str | None, str]] = {
    "no_host": ("bad_request", INVALID, INVALID, None, "A redirect to HTTPS needs a Host header"),
    "bad_request": ("bad_request", INVALID, INVALID, None, "The request is not valid HTTP"),
    "request_timeout": ("request_timeout", INVALID, INVALID, None, "The request took too long to arrive"),
    "invalid_api_key": (
        "invalid_api_key", INVALID, "authentication_error", None,
        "The API key is missing or unknown. Send Authorization: Bearer <key>, or x-api-key: <key>",
    ),
    "concurrency_limit": (
        "concurrency_limit_exceeded", LIMIT, LIMIT, None, "The key has reached its limit of concurrent requests",
    ),
    "rate_limit": (
        "rate_limit_exceeded", LIMIT, LIMIT, None, "The key has reached its limit of requests per minute",
    ),
    "key_expired": (
        "key_expired", INVALID, "authentication_error", None, "The API key has expired. Ask the operator of the "
                                                              "gateway to extend it",
    ),
    "token_budget": (
        "token_budget_exceeded", LIMIT, LIMIT, None,
        "The key has used up its tokens for today. The next day begins at midnight UTC",
    ),
    "not_found": (
        "not_found", INVALID, "not_found_error", None,
        "Unknown path: the gateway allows the OpenAI API, the Anthropic API, and the paths in gateway.allow of "
        "stack.yaml",
    ),
    "post_only": ("method_not_allowed", INVALID, INVALID, None, "This path accepts only POST"),
    "get_only": ("method_not_allowed", INVALID, INVALID, None, "This path accepts only GET"),
    "model_duplicate": (
        "model_duplicate", INVALID, INVALID, "model", "The body contains several fields named model. Send one model",
    ),
    "model_no_string": ("model_not_found", INVALID, "not_found_error", "model", "The model must be a string"),
    "model_missing": (
        "model_missing", INVALID, INVALID, "model", 'The body must be JSON with a model: {"model": …}',
    ),
    "model_missing_form": (
        "model_missing", INVALID, INVALID, "model",
        "The body must be multipart/form-data with a field named model and a field named file",
    ),
    "model_missing_fallback": (
        "model_missing", INVALID, INVALID, "model",
        'The body must be one JSON object with the model as a string: {"model": …}',
    ),
    "model_unavailable": (
        "model_unavailable", SERVER, "overloaded_error", "model",
        "No replica of MODEL is up: it is loading, or it failed",
    ),
    "queue_full": ("queue_full", LIMIT, LIMIT, None, "All replicas are busy and the queue is full"),
    "internal_error": ("internal_error", SERVER, "api_error", None, "The gateway failed"),
    "bad_gateway": ("bad_gateway", SERVER, "api_error", None, "The model closed the connection before it answered"),
    "unavailable": (
        "unavailable", SERVER, "overloaded_error", None, "No replica of the model could take the request",
    ),
    "timeout": ("timeout", SERVER, "timeout_error", None, "The model did not answer in time"),
    "fallback_bad_gateway": (
        "bad_gateway", SERVER, "api_error", None,
        "No replica of the model can take the request, and its fallback closed the connection before it answered",
    ),
    "fallback_unavailable": (
        "unavailable", SERVER, "overloaded_error", None,
        "No replica of the model can take the request, and its fallback cannot be reached",
    ),
    "fallback_timeout": (
        "timeout", SERVER, "timeout_error", None,
        "No replica of the model can take the request, and its fallback did not answer in time",
    ),
}  # fmt: skip


def error_body(code: str, openai: str, anthropic: str, param: str | None, message: str, more: str = "") -> str:
    """The body of an error as a HAProxy log format. `openai` and `anthropic` are the error's type in the two formats.

    In `message`, MODEL stands for the requested model and PATH for the requested path. `more` is JSON that follows the
    last field.
    """
    kind = openai
    if openai != anthropic:
        kind = f"%[var(txn.anthropic),iif({anthropic},{openai})]"
    fields = {"message": message, "type": "TYPE", "param": param, "code": code}
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).replace("%", "%%")
    for name, value in (
        ("TYPE", kind),
        ("MODEL", "%[var(txn.model),json(utf8ps)]"),
        ("PATH", "%[var(txn.path),json(utf8ps)]"),
    ):
        text = text.replace(name, value)
    return f'{{{SHAPE}"error":{text[:-1]}{more}}}}}'


def path_error_body(message: str) -> str:
    """The body of a 404 for a path that a model lacks: in Anthropic's format, which contains OpenAI's."""
    body = error_body("path_not_served", "not_found_error", "not_found_error", None, message)
    # clients of both APIs can read it, so it is the same for all paths
    return body.replace(SHAPE, '"type":"error",')


@cache
def error_bodies(max_body: int) -> Mapping[str, str]:
    """The bodies of all errors by name. `max_body` is in bytes."""
    bodies = {name: error_body(*error) for name, error in ERRORS.items()}
    large = f"The request is too large: {max_body // 2**20} MiB at most, {TOO_LARGE}"
    bodies["too_large"] = error_body("request_too_large", INVALID, "request_too_large", None, large)
    bodies["model_not_found"] = error_body(
        "model_not_found", INVALID, "not_found_error", "model", "The model MODEL does not exist",
        ',"models":[%[var(txn.entries)]]',
    )  # fmt: skip
    bodies["model_not_allowed"] = error_body(
        "model_not_allowed", INVALID, "permission_error", "model", "The key may not use the model MODEL",
        ',"models":[%[var(txn.grants)]]',
    )  # fmt: skip
    return bodies
