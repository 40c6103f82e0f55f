"""Redaction in one pass: whole values, short keys only where a header or a field holds them, and still no key."""

from __future__ import annotations

import contextlib
import io
import json
import re
import string
from base64 import b64encode
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import stackgen
from stackgen.check import check
from stackgen.check.options import Options
from stackgen.check.report.text import as_text
from stackgen.check.target import Target
from stackgen.check.transport.redact import Redactor
from stackgen.cli import main as cli
from stackgen.cli.commands.ask import StreamRedactor

from .conftest import DIALECTS, VLLM
from .fake import Answer, json_answer, serve

SHORT_KEYS = ("k", "key", "EMPTY", "none", "token", "test", "chat", "stream", "model", "ok", "1", "http", "bearer")
# our own sentences, as the check prints them
SENTENCES = tuple(
    sorted(
        {
            " ".join(match.split())
            for path in Path(stackgen.__file__).parent.glob("check/checks/**/*.py")
            for match in re.findall(r'"([a-z`][^"{}\\]{20,})"', path.read_text())
        }
    )
)
# a key holds what a header can carry; short ones are mostly words
WORDS = st.sampled_from(sorted({word for text in SENTENCES for word in re.findall(r"\w+", text)}))
ANY_KEY = st.text(string.ascii_letters + string.digits + "-_.~+/=[]", min_size=1, max_size=24) | WORDS
# places where a header or a field holds a key
PLACES = (
    "Authorization: Bearer {}", "authorization: bearer {}\n", "x-api-key: {}", '"api_key": "{}"', "'api_key': '{}'",
    r"{{\"api_key\": \"{}\"}}", "api_key={}", "token = {}", "HF_TOKEN={} x", "--api-key {}", "--api-key={}",
    '["--api-key", "{}"]', "password: {}", "?token={}&a=1", "(b'authorization', b'Bearer {}')",
    "Incorrect API key provided: {}.", "('api_key', '{}')",
)  # fmt: skip


def test_sentences_were_found() -> None:
    assert len(SENTENCES) > 50


@pytest.mark.parametrize("key", SHORT_KEYS)
def test_a_short_key_leaves_our_own_sentences_alone(key: str) -> None:
    redact = Redactor(key)
    for text in SENTENCES:
        assert redact(text) == text


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("key", SHORT_KEYS)
def test_a_short_key_is_masked_in_headers_and_fields(key: str, place: str) -> None:
    text = f"the answer: {place.format(key)} and the rest"
    assert Redactor(key)(text) == f"the answer: {place.format('[key]')} and the rest"


@pytest.mark.parametrize("key", SHORT_KEYS)
def test_a_short_key_is_masked_as_basic_auth(key: str) -> None:
    credentials = b64encode(f":{key}".encode()).decode()
    assert credentials not in Redactor(key)(f"you sent Authorization: Basic {credentials}")


@given(st.text(string.ascii_letters + string.digits + "-_.", min_size=8, max_size=30) | WORDS, st.data())
def test_replacing_the_mask_gives_the_text_back(key: str, data: st.DataObject) -> None:
    """Holds only if no replacement is replaced again, and if nothing but whole keys is replaced."""
    parts = data.draw(st.lists(st.sampled_from([key, " ", "x", "\n", *SENTENCES]), max_size=8))
    text = "".join(parts)
    assert Redactor(key)(text).replace("[key]", key) == text


@given(st.lists(ANY_KEY, min_size=1, max_size=4), st.data())
def test_no_key_of_several_gets_through(keys: list[str], data: st.DataObject) -> None:
    """Keys may contain each other, overlap, and be words of the text around them."""
    texts = st.sampled_from([*keys, *SENTENCES, " ", ", "]) | st.sampled_from(PLACES).map(
        lambda place: place.format(data.draw(st.sampled_from(keys)))
    )
    text = " ".join(data.draw(st.lists(texts, max_size=6)))
    redact = Redactor(keys)
    for shown in (redact(text), redact.mask(text), redact(redact(text))):
        for key in keys:
            if len(key) >= 8 and key not in "[key]":
                assert key not in shown
    for key in keys:
        # the boundary that ends a value: a key inside a longer word is another value
        assert not re.search(rf"(?i:Bearer ){re.escape(key)}(?![\w\-.~+/=\[\]])", redact(f"Bearer {key} {text}")[:80])
    assert "[[key]" not in redact(text) or "[[key]" in text or any("[" in key for key in keys)


def test_overlapping_keys_leave_no_part() -> None:
    assert Redactor(["xabcdefg", "abcdefghSECRETREST"])("a xabcdefghSECRETREST b") == "a [key] b"
    assert Redactor(["sk-long-secret", "sk-long-secret-2"])("sk-long-secret-2 sk-long-secret") == "[key] [key]"


@pytest.mark.parametrize("key", ["k", "token", "EMPTY", "test", "completion", "password"])
def test_a_report_stays_readable_with_a_key_that_is_a_word(key: str) -> None:
    """The same server checked with an ordinary key gives the same report, except for the mask."""
    texts = []
    for one in (key, "sk-0123456789abcdef"):
        with serve("vllm", one) as fake:
            fake.routes["POST /v1/chat/completions"] = json_answer({"error": {"message": f"bad api_key: {one}"}}, 500)
            report = check([Target("it", fake.url, one, ("tiny",), VLLM)], Options(timeout=5), dialects=DIALECTS)
        text = as_text(report, verbose=True).replace(fake.url, "URL").replace(str(fake.port), "PORT")
        assert f"api_key: {one}" not in text and "bad api_key: [key]" in text
        # times differ from run to run
        texts.append(re.sub(r"\d+(\.\d+)?( ?m?s\b)", "N", text))
    assert texts[0].replace("[key]", key) == texts[1].replace("[key]", key)
    assert "[[" not in texts[0]
    # a longer key is masked wherever it is, also in `completions`
    assert len(key) >= 8 or not re.search(r"\w\[key\]|\[key\]\w", texts[0])


@example("bearer", "authorization: bearer {}\n", [27])
@given(st.sampled_from(SHORT_KEYS), st.sampled_from(PLACES), st.lists(st.integers(0, 60), max_size=8))
def test_a_short_key_in_chunks_is_masked_as_in_one_piece(key: str, place: str, cuts: list[int]) -> None:
    text = f"it is {place.format(key)} and the rest of the answer"
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    redactor = StreamRedactor(key)
    shown = [redactor.feed(text[start:end]) for start, end in pairwise(places)]
    assert "".join([*shown, redactor.flush()]) == Redactor(key)(text)


@pytest.mark.parametrize("key", ["k", "test"])
def test_ask_shows_an_answer_unchanged_with_a_short_key(key: str) -> None:
    with serve("vllm", key) as fake, contextlib.redirect_stdout(io.StringIO()) as out:
        arguments = ["ask", "hi", "--base-url", fake.url, "--api-key", key, "--timeout", "5"]
        assert cli.main([*arguments, "--json"]) == 0
    answer = json.loads(out.getvalue())
    assert "[key]" not in answer["answer"] and answer["answer"]


def test_a_refusal_that_repeats_a_short_key_is_masked() -> None:
    with serve("vllm", "k") as fake:
        fake.routes["GET /v1/models"] = Answer(401, b'{"detail": "Incorrect API key provided: k"}')
        report = check([Target("it", fake.url, "k", ("tiny",), VLLM)], Options(timeout=5), dialects=DIALECTS)
    assert "provided: [key]" in json.dumps(report.to_json())
