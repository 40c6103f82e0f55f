"""The bodies of the gateway's errors are JSON in both formats, and each error is used by some template."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from stackgen.resolve.addons.gateway_errors import error_bodies, error_body
from tests.resolve.addons.test_gateway_clients import read_body

TEMPLATES = Path(__file__).parents[3] / "templates" / "gateway"
BODIES = error_bodies(2 * 2**20)
# Anthropic's API reference, "Errors"
ANTHROPIC_TYPES = {
    "invalid_request_error", "authentication_error", "not_found_error", "request_too_large", "rate_limit_error",
    "api_error", "overloaded_error", "timeout_error", "permission_error",
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_an_error_has_the_fields_of_both_formats(name: str) -> None:
    openai = json.loads(read_body(BODIES[name], anthropic=False))
    assert set(openai) == {"error"} and {"message", "type", "param", "code"} <= set(openai["error"])
    anthropic = json.loads(read_body(BODIES[name], anthropic=True))
    assert anthropic["type"] == "error" and anthropic["error"]["type"] in ANTHROPIC_TYPES
    assert anthropic["error"]["code"] == openai["error"]["code"]


def test_templates_use_exactly_the_errors_that_exist() -> None:
    used = {name for file in TEMPLATES.glob("*.j2") for name in re.findall(r"data\.errors\.(\w+)", file.read_text())}
    assert used == set(BODIES)


def test_a_percent_sign_in_a_message_is_no_log_format() -> None:
    assert "100%% of %[var(txn.model)" in error_body("x", "a", "a", None, "100% of MODEL")
