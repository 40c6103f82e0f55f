"""Each mistake that a rule finds, in front of a real API server: which ones it refuses, and with which message.

`recorded/mistakes.json` has the answers; with STACKGEN_GOLDEN=write, the tests write it. Kubernetes 1.20 has no
resource claims, no policy/v1 and no Pod Security; budgets are sent as policy/v1beta1, which had the same fields. The
webhooks of LeaderWorkerSet and KEDA don't run here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.conftest import kubectl
from tests.kubernetes.planted import MISTAKES, NOT_SENT, TWINS, valid

RECORDED = Path(__file__).with_name("recorded") / "mistakes.json"
ACCEPTED = "accepted"


def answer(objects: list[dict[str, Any]], namespace: str) -> str:
    """What the server answers to `kubectl apply --server-side` of `objects`: `accepted`, or its first message."""
    sent = []
    for one in objects:
        if one["kind"] in ("Namespace", "ResourceClaimTemplate"):
            continue
        if one["apiVersion"] == "policy/v1":
            one["apiVersion"] = "policy/v1beta1"
        template = one.get("spec", {}).get("template", {})
        template.get("spec", {}).pop("resourceClaims", None)
        one["metadata"]["namespace"] = namespace
        sent.append(one)
    done = kubectl(
        "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-",
        stdin=yaml.safe_dump_all(sent), check=False,
    )  # fmt: skip
    if done.returncode == 0:
        assert len(done.stdout.splitlines()) == len(sent)
        return ACCEPTED
    return _shorten(done.stderr.replace(namespace, "NAMESPACE"))


def _shorten(text: str) -> str:
    """The first message, without the name of the object and the file."""
    lines = [line.strip() for line in text.splitlines() if line and not line.startswith("Warning:")]
    # a list of errors begins in the next line
    line = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    line = re.sub(r"^(Error from server( \(\w+\))?|error): ", "", line)
    line = re.sub(r'error validating "STDIN": error validating data: |; if you choose to ignore.*$', "", line)
    # Go's own form of a number
    line = re.sub(r'resource\.Quantity\{.*?Format:"\w+"\}', "…", line)
    return line if len(line) <= 240 else f"{line[:239]}…"


@pytest.fixture(scope="module")
def recorded() -> Iterator[dict[str, str]]:
    """The answers by mistake. A test that writes them keeps those of other tests."""
    found = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    before = dict(found)
    yield found
    if found != before:
        RECORDED.parent.mkdir(exist_ok=True)
        RECORDED.write_text(json.dumps(dict(sorted(found.items())), indent=1, ensure_ascii=False) + "\n")


def test_the_server_accepts_the_objects_without_a_mistake(namespace: str) -> None:
    assert answer(valid()[0], namespace) == ACCEPTED


@pytest.mark.parametrize("name", [*(one for one in MISTAKES if one not in NOT_SENT), TWINS])
def test_the_server_answers_as_recorded(name: str, namespace: str, recorded: dict[str, str]) -> None:
    made, by = valid()
    change: Callable[[Any], Any] = MISTAKES[name][1] if name in MISTAKES else lambda by: made.append(dict(by["Secret"]))
    change(by)
    found = answer(made, namespace)
    if os.environ.get("STACKGEN_GOLDEN") == "write":
        recorded[name] = found
    assert found == recorded.get(name), "if the change is right: STACKGEN_GOLDEN=write, then scripts/generate_docs.py"
