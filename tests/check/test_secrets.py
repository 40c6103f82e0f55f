"""A planted key appears in no output of the package, whatever the server does with it."""

from __future__ import annotations

import contextlib
import html
import io
import itertools
import json
import string
import traceback
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stackgen.check import check
from stackgen.check.options import Options
from stackgen.check.report.text import as_text
from stackgen.check.target import Target
from stackgen.check.transport.redact import Redactor
from stackgen.cli import main as cli
from stackgen.cli.commands.ask import StreamRedactor
from stackgen.client import ask
from stackgen.errors import StackgenError

from .conftest import DIALECTS, VLLM
from .fake import GOOD_STREAM, Answer, Fake, chunk, completion, events, json_answer, model_list, serve

# a prefix that no report contains otherwise, then anything that a header can carry
KEYS = st.text(string.ascii_letters + string.digits + string.punctuation, min_size=8, max_size=40).map("sk-Zq7".__add__)


def echoes(key: str, padding: int) -> dict[str, Answer]:
    """Responses of a server that repeats the key everywhere; the padding moves it across the end of every excerpt."""
    pad = "x" * padding
    return {
        "error": json_answer({"error": {"message": f"{pad}bad key {key}", "type": key}}, 500),
        "refusal": json_answer({"detail": f"{pad}{key}"}, 401),
        "text": Answer(500, f"{pad}{key}".encode(), f"text/{key}"),
        "html": Answer(200, f"<p>{pad}{html.escape(key)} {quote(key)}</p>".encode(), "text/html"),
        "split": Answer(502, f"{pad}{key[:9]}\x00\x1b{key[9:]}".encode(), "text/plain"),
        "answer": json_answer(completion(model=key, choices=[{
            "index": 0, "message": {"role": "assistant", "content": f"{pad}{key}"}, "finish_reason": key}])),
        "pass": json_answer(completion(choices=[{
            "index": 0, "message": {"role": "assistant", "content": f"{pad}{key}"}, "finish_reason": "stop"}])),
        "models": json_answer(model_list(key, f"{pad}{key}")),
        "stream": events(chunk(key, role="assistant"), chunk(f"{pad}{key}", finish=key), GOOD_STREAM[3]),
        "stream error": events(chunk("", role="assistant"), {"error": {"message": f"{pad}{key}"}}),
        "stream junk": events(f"{pad}{key}", json.dumps(key), done=False),
        "stream tail": events(chunk("", role="assistant"), chunk("a"), f"{pad}{key}{pad}", done=False),
        "redirect": Answer(307, headers=(("Location", f"http://h/{quote(key, safe='')}"),)),
    }  # fmt: skip


def outputs(fake: Fake, key: str, models: tuple[str, ...], repeat: str) -> Iterator[str]:
    """Everything that a caller of the package can see about one target."""
    one = Target("it", fake.url, key, models, VLLM)
    progress: list[str] = []
    report = check(
        [one], Options(timeout=5), on_progress=lambda *update: progress.append(" ".join(update)), dialects=DIALECTS
    )
    yield from progress
    yield repr(one)
    yield repr(report)
    yield json.dumps(report.to_json(), ensure_ascii=False)
    yield as_text(report, color=True, verbose=True)
    for stream in (False, True):
        error: BaseException | None = None
        try:
            ask(one, "hi", stream=stream, timeout=5)
        except StackgenError as caught:
            error = caught
        if error is not None:
            yield "".join(traceback.format_exception(error))
            yield repr(error) + getattr(error, "hint", "")
            # the SDK's exceptions contain the headers of the request, so ours must not refer to them
            assert error.__cause__ is None, repeat
            assert error.__context__ is None, repeat
    yield from asked(fake, key, "tiny")


def asked(fake: Fake, key: str, model: str) -> Iterator[str]:
    """What `stackgen ask` prints, for answers and for errors."""
    arguments = ["ask", "hi", "--base-url", fake.url, f"--api-key={key}", f"--model={model}", "--timeout", "5"]
    for more in ([], ["--stream"], ["--json"], ["--json", "--stream"], ["--base-url", f"{fake.url}/"]):
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            cli.main([*arguments, *more])
        yield out.getvalue() + err.getvalue()


def plant(fake: Fake, answer: Answer) -> None:
    """Puts the answer on the routes that receive the key; a redirect also on the response without a key."""
    fake.routes |= {"GET /v1/models": answer, "POST /v1/chat/completions": answer, "GET /health": answer}
    if answer.status == 307:
        fake.refusal = answer


def forms(key: str) -> set[str]:
    return {key, json.dumps(key)[1:-1], quote(key), quote(key, safe=""), html.escape(key), repr(key)[1:-1]}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(key=KEYS, padding=st.integers(0, 330), data=st.data())
def test_a_planted_key_appears_nowhere(key: str, padding: int, data: st.DataObject) -> None:
    answers = echoes(key, padding)
    kind = data.draw(st.sampled_from(sorted(answers)))
    with serve("vllm", key) as fake:
        for route in ("GET /v1/models", "POST /v1/chat/completions", "GET /health", "POST /invocations"):
            if data.draw(st.booleans()):
                fake.routes[route] = answers[kind]
        if data.draw(st.booleans()):
            fake.refusal = answers[kind]
        models = data.draw(st.sampled_from([(), ("tiny",), ("gone",)]))
        found = list(outputs(fake, key, models, kind))
    # the server did receive the key, so it could leak
    assert any(request.authorization == f"Bearer {key}" for request in fake.seen)
    assert len(found) > 5
    for text in found:
        for form in forms(key):
            assert form.lower() not in text.lower(), (kind, text)


@pytest.mark.parametrize("kind", sorted(echoes("k", 0)))
@pytest.mark.parametrize("padding", [0, 50, 110, 280, 292])
def test_each_way_to_repeat_the_key_is_redacted(kind: str, padding: int) -> None:
    key = "sk-Zq7\"'<&>\\%planted"
    with serve("vllm", key) as fake:
        answer = echoes(key, padding)[kind]
        plant(fake, answer)
        # without an expected model, the first listed one is checked and named in the results
        found = "\n".join(outputs(fake, key, () if kind == "models" else ("tiny",), kind))
    assert all(form not in found for form in forms(key)), found
    # half a key at the end of an excerpt would be a leak too
    assert "zq7" not in found.lower()


def test_without_the_redactor_the_same_servers_would_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-Zq7-planted"
    monkeypatch.setattr(Redactor, "__init__", lambda self, _: setattr(self, "_encodings", ()))
    leaking = set()
    for kind, answer in echoes(key, 0).items():
        with serve("vllm", key) as fake:
            plant(fake, answer)
            if key in "\n".join(outputs(fake, key, ("tiny",), kind)):
                leaking.add(kind)
    # removing the control characters joins the split key again, so it leaks everywhere
    assert leaking == set(echoes(key, 0))


@given(key=KEYS, before=st.text(max_size=400), after=st.text(max_size=400), limit=st.integers(2, 300))
def test_an_excerpt_is_one_bounded_line_without_the_key(key: str, before: str, after: str, limit: int) -> None:
    line = Redactor(key).excerpt(f"{before}{key}{after}", limit)
    assert len(line) <= limit
    assert key not in line
    assert len(line.splitlines()) <= 1
    assert not any(character in line for character in "\x1b\x00\x07\u202e")


PLANTED = "sk-Zq7\"'<&>\\%planted"


def said(message: dict[str, str | None], model: str) -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    return json_answer(completion(model=model, choices=[choice]))


# responses with the key in what a user sees of a successful answer
SUCCESSES = {
    "whole": said({"content": f"it is\t{PLANTED}\x1b[2J\n"}, model=f"\x1b]0;{PLANTED}\x07"),
    "no text": said({"content": None, "reasoning": PLANTED}, model=PLANTED),
    "halves": events(chunk(f"it is\t{PLANTED[:9]}", model=f"\x1b]0;{PLANTED}\x07"),
                     chunk(f"\x1b{PLANTED[9:]}\n", finish="stop")),
    "letters": events(*(chunk(letter, model="\x1b]0;m\x07") for letter in f"it is\t{PLANTED}\x1b[2J\n"),
                      chunk("", finish="stop")),
}  # fmt: skip


@pytest.mark.parametrize("kind", SUCCESSES)
def test_an_answer_contains_neither_key_nor_terminal_controls(kind: str) -> None:
    with serve("vllm", PLANTED) as fake:
        fake.routes["POST /v1/chat/completions"] = SUCCESSES[kind]
        found = list(asked(fake, PLANTED, "tiny"))
    assert all("zq7" not in text.lower() and "planted" not in text for text in found), found
    assert not any(set(text) & set("\x00\x07\x1b") or "\\u001b" in text for text in found), found
    if kind != "no text":
        assert sum("it is\t[key]" in text or "it is\\t[key]" in text for text in found) >= 2


def test_a_model_name_equal_to_the_key_is_not_shown() -> None:
    with serve("vllm", PLANTED) as fake:
        fake.routes["GET /v1/models"] = json_answer(model_list(PLANTED, "other"))
        found = "".join(asked(fake, PLANTED, f"{PLANTED}s"))
    assert "did you mean" in found and "other" not in found
    assert "zq7" not in found.lower()


@given(
    key=KEYS, before=st.text(max_size=40), after=st.text(max_size=40), cuts=st.lists(st.integers(0, 130), max_size=8)
)
def test_a_key_split_over_chunks_is_never_shown(key: str, before: str, after: str, cuts: list[int]) -> None:
    text, redactor = f"{before}{key}{after}", StreamRedactor(key)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    shown = [redactor.feed(text[start:end]) for start, end in itertools.pairwise(places)]
    assert key not in "".join([*shown, redactor.flush()])
    assert not redactor.flush()


def test_only_a_possible_start_of_the_key_is_held_back() -> None:
    redactor = StreamRedactor("sk-Zq7-planted")
    shown = [redactor.feed(text) for text in ("Paris", " is", " a", " des", "k-", "sk-Zq", "x")]
    assert shown == ["Pari", "s i", "s a", " de", "", "sk-", "sk-Zqx"]
    assert StreamRedactor(None).feed("anything\x1b[2J") == "anything[2J"


def test_a_redactor_without_a_key_only_removes_controls() -> None:
    assert Redactor(None)("a\x1b[31mb\nc") == "a[31mb\nc"
    assert Redactor("sk-1").excerpt(b"a  sk-1\n\xff b") == "a [key] \ufffd b"
    assert repr(Redactor("sk-1")) == "Redactor([key])"
