"""Pulling images for a bundle, with a fake `docker`."""

from __future__ import annotations

from pathlib import Path

import pytest

from stackgen.errors import StackgenError
from stackgen.runtimes.compose.image_archive import pull_image


@pytest.mark.parametrize(("message", "code"), [
    ("Error response from daemon: manifest for example.com/a:1 not found: manifest unknown", 2),
    ("Error response from daemon: pull access denied for a, repository does not exist", 2),
    ('Error response from daemon: failed to resolve reference "example.com/a:1": example.com/a:1: not found', 2),
    ("Error response from daemon: Get https://example.com/v2/: dial tcp: lookup example.com: no such host", 3),
    ("Get https://example.com/v2/: net/http: request canceled (Client.Timeout exceeded)", 3),
    ("no space left on device", 3),
])  # fmt: skip
def test_a_registry_that_does_not_answer_is_no_wrong_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str, code: int
) -> None:
    program = tmp_path / "docker"
    program.write_text(f"#!/bin/sh\necho '{message}' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(StackgenError) as caught:
        pull_image("example.com/a:1", "linux/amd64")
    assert caught.value.exit_code == code and "docker pull example.com/a:1" in caught.value.message
