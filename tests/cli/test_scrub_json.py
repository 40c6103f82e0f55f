"""The fast search for secrets in a whole JSON document finds everything that a search in each text finds."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackgen.check.transport.redact import Redactor
from stackgen.cli.scrub import protect, scrub_json

# long enough to be replaced wherever they occur; JSON escapes a part of each
SECRETS = ("plainsecret", 'it\'s "quoted" \\ now', "line\nbreak\ttab", "Grüße-an-alle", "key-with-🔑-in-it")

texts = st.tuples(st.text(max_size=5), st.sampled_from(("", *SECRETS)), st.text(max_size=5)).map("".join)
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)


def contains_a_secret(data: Any) -> bool:
    redactor = Redactor(SECRETS)
    if isinstance(data, dict):
        return any(contains_a_secret(one) for pair in data.items() for one in pair)
    if isinstance(data, list):
        return any(map(contains_a_secret, data))
    return isinstance(data, str) and redactor.mask(data) != data


@given(documents)
def test_no_secret_is_overlooked_in_a_json_document(data: Any) -> None:
    assert Redactor(SECRETS).may_occur_in_json(json.dumps(data)) or not contains_a_secret(data)


@pytest.mark.parametrize("secret", ["plainsecret", 'say "hello" twice', "Grüße-an-alle", "back\\slash-key"])
def test_printed_json_contains_no_secret(tmp_path: Path, secret: str) -> None:
    (tmp_path / ".env").write_text(f"OTHER_TOKEN='{secret}'\n")
    protect(Namespace(command="status", stack=str(tmp_path)))
    data = {"a": [1, None, {"b": f"before {secret} after", f"{secret}": True}], "c": ("x", secret)}
    assert scrub_json(data) == {"a": [1, None, {"b": "before [key] after", "[key]": True}], "c": ["x", "[key]"]}
    clean = {"a": [1, None, {"b": "nothing"}]}
    assert scrub_json(clean) == clean
