"""Whatever bytes or JSON a server sends, the parsers of the check raise only their own errors and stay small."""

from __future__ import annotations

import contextlib
import json
import math
import re
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stackgen.check.checks.chat import is_unknown_model
from stackgen.check.checks.features.schemas import (
    CityAnswer,
    Embeddings,
    LogprobCompletion,
    PlainCompletion,
    TextCompletion,
    Tokens,
    ToolCompletion,
)
from stackgen.check.checks.model_names import did_you_mean, nearest
from stackgen.check.checks.table import CHECKS, list_models, models
from stackgen.check.checks.verdict import Check, Context
from stackgen.check.checks.wrong_requests import context_length, length_from_error
from stackgen.check.dialects import BUILTIN, FINISH_REASONS, OPENAI, dialect_from_models
from stackgen.check.huggingface import look_up_model
from stackgen.check.options import Options
from stackgen.check.report import EndpointReport, Report, Result
from stackgen.check.report.text import as_text
from stackgen.check.target import Target, normalize_url
from stackgen.check.transport.faults import Fault
from stackgen.check.transport.openai_schema import BareChunk, Chunk, Completion, ModelCard, ModelList, Usage, parse
from stackgen.check.transport.redact import Redactor
from stackgen.check.transport.session import Reply, Session, error_message
from stackgen.check.transport.stream import MAX_EVENTS, StrictUtf8, Transcript, collect_events
from stackgen.client import ask
from stackgen.client.sdk import fetch_models, pick_model
from stackgen.errors import StackgenError
from stackgen.providers.endpoints import dialects

from .fake import Answer as Sent
from .fake import Fake, serve

settings.register_profile("parsers", max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SOME = settings(settings.get_profile("parsers"))
FEW = settings(SOME, max_examples=60)

# including half characters and NUL, as JSON can contain both
TEXT = st.text(st.characters(exclude_categories=()), max_size=30)
NUMBERS = st.integers() | st.integers(min_value=10**300, max_value=10**301) | st.floats()
LEAVES = st.none() | st.booleans() | NUMBERS | TEXT
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
                    max_leaves=12)  # fmt: skip


def shaped(*names: str) -> st.SearchStrategy[Any]:
    """JSON objects with the field names that parsers expect, so that they get beyond the first field."""
    return st.recursive(
        LEAVES | st.sampled_from(["stop", "assistant", "chat.completion.chunk", "list", "model"]),
        lambda inner: st.dictionaries(st.sampled_from(names), inner, max_size=5) | st.lists(inner, max_size=3),
        max_leaves=15,
    )


BODIES = JSON | shaped("id", "object", "created", "model", "choices", "index", "message", "delta", "role", "content",
                       "finish_reason", "usage", "prompt_tokens", "completion_tokens", "total_tokens", "data",
                       "owned_by", "error", "message", "code", "detail", "text", "error_code", "aliases")  # fmt: skip
OFFERED = BODIES | shaped("id", "aliases", "max_model_len", "context_length", "meta", "n_ctx", "choices", "message",
                         "tool_calls", "function", "name", "arguments", "logprobs", "content", "top_logprobs",
                         "embedding", "tokens", "count", "prompt", "usage", "prompt_tokens", "completion_tokens",
                         "total_tokens", "siblings", "rfilename", "size", "prompts", "contextLength", "data", "type",
                         "error", "code", "finish_reason", "index", "text", "role")  # fmt: skip
KEYS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=8, max_size=40)
TARGET = Target("it", "http://127.0.0.1:1/v1", "key-of-the-test-0123", ("wanted",))


def dumped(data: Any) -> bytes:
    return json.dumps(data).encode()


def reply(body: bytes, status: int = 200) -> Reply:
    return Reply(status, "application/json", body)


@SOME
@given(BODIES, st.sampled_from([Completion, Chunk, BareChunk, ModelList, ModelCard, Usage]))
def test_the_schema_accepts_or_rejects_any_json(data: Any, model: Any) -> None:
    parsed, problems = parse(model, data)
    assert (parsed is None) is bool(problems)
    assert all(problem and len(problem) < 500 for problem in problems)


@pytest.mark.parametrize("wrong", [None, 0, {}, [], {"index": "0"}])
def test_a_long_list_of_wrong_entries_gives_few_problems(wrong: Any) -> None:
    completion = {"choices": [wrong] * 50_000}
    for model, data in ((Completion, completion), (Chunk, completion), (ModelList, {"data": [wrong] * 50_000})):
        assert len(parse(model, data)[1]) < 20


def read(body: bytes, kind: str = "text/event-stream") -> Transcript:
    """The transcript of a response with this body, split into pieces as by a network."""
    pieces = [body[place : place + 7] for place in range(0, len(body), 7)]
    response = httpx2.Response(200, headers={"content-type": kind}, content=iter(pieces),
                               request=httpx2.Request("POST", "http://127.0.0.1/"))  # fmt: skip
    into, now = Transcript(), time.monotonic()
    events: Any = StrictUtf8(response, "127.0.0.1:1")
    # for invalid UTF-8; what came before it stays
    with contextlib.suppress(Fault):
        collect_events(httpx2.EventSource(events), into, list, now, now + 5)
    return into


def judge(into: Transcript) -> None:
    """Every method of a transcript works, and no value is nonsense."""
    assert all(isinstance(problem, str) for problem in into.problems(FINISH_REASONS))
    assert into.events <= MAX_EVENTS
    assert len(into.stream_problems) <= 20
    assert into.deltas == len(into.inter_token_latencies()) + (1 if into.arrivals else 0)
    assert all(value >= 0 for value in (*into.inter_token_latencies(), *into.figures().values()))
    json.dumps(into.figures(), allow_nan=False)
    into.format_speed(), into.describe_buffering()


LINES = st.sampled_from([b"data: ", b"data:", b"event: error\n", b": x\n", b"id: 1\n", b"[DONE]", b"\n", b"\n\n",
                         b"\r\n", b"\r", b"\xef\xbb\xbf", b"\0", b"{", b"}", b"null", b"[]"])  # fmt: skip


@SOME
@given(st.lists(LINES | st.binary(max_size=20), max_size=40).map(b"".join))
def test_any_bytes_can_be_read_as_a_stream(body: bytes) -> None:
    judge(read(body))


@SOME
@given(st.lists(BODIES.map(dumped), max_size=6))
def test_any_json_can_be_read_as_events(data: list[bytes]) -> None:
    into = read(b"".join(b"data: " + one + b"\n\n" for one in data) + b"data: [DONE]\n\n")
    judge(into)
    assert into.done


@given(st.binary(max_size=200) | BODIES.map(dumped))
@SOME
@example(b"\xff\xfe{\x00}\x00")
@example(b"1" * 5000)
@example(b'{"error": {"error": {"error": {"error": 1}}}}')
def test_any_body_can_be_parsed_for_json_and_errors(body: bytes) -> None:
    one = reply(body)
    one.json()
    assert isinstance(error_message(one), str)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_constants_that_only_python_accepts_are_not_json(word: str) -> None:
    assert reply(b'{"id": %s}' % word.encode()).json() is None


def test_deep_nesting_breaks_no_parser() -> None:
    """Python can parse some depths that it can no longer print, so many depths are tried."""
    for depth in (*range(100, 1100, 3), 3000, 100_000):
        for shape in (b'{"error": %s}', b'{"data": [{"id": "m", "owned_by": %s}]}', b'{"choices": %s}'):
            body = shape % (b"[" * depth + b"]" * depth)
            data = reply(body).json()
            error_message(reply(body))
            dialect_from_models(data)
            parse(Completion, data)
            parse(ModelList, data)
            judge(read(b"data: " + body + b"\n\n"))


@SOME
@given(BODIES)
def test_any_json_gives_a_dialect_or_none(data: Any) -> None:
    assert dialect_from_models(data) in (None, "vllm", "fastchat", "llamacpp", "together")


@FEW
@given(st.binary(max_size=100) | BODIES.map(dumped), st.sampled_from([200, 204, 401, 404, 500]),
       st.sampled_from([(), ("wanted",)]))  # fmt: skip
def test_any_list_of_models_gets_a_verdict(body: bytes, status: int, wanted: tuple[str, ...]) -> None:
    with pytest.MonkeyPatch.context() as patch, Session(Target("it", TARGET.base_url, None, wanted), 1.0) as session:
        patch.setattr(Session, "get", lambda *_: reply(body, status))
        context = Context(session, Options(timeout=1.0), OPENAI)
        assert list_models(context).status == status
        assert context.listed is None or all(isinstance(name, str) for name in context.listed)
        verdict = models(context, "")
    assert verdict.status in ("pass", "warn", "fail")
    # without a listed model the check must fail
    assert context.listed or verdict.status == "fail"
    assert len(verdict.message) < 2000


@pytest.fixture(scope="module")
def answering() -> Iterator[Fake]:
    with serve("vllm", TARGET.api_key) as fake:
        yield fake


def asked(fake: Fake, models: tuple[str, ...] = ("tiny",), stream: bool = False) -> None:
    """One question gives an answer of the documented types, or an error of ours without another one inside."""
    answer, problem = None, None
    try:
        answer = ask(Target("it", fake.url, TARGET.api_key, models), "hi", stream=stream, timeout=5)
    except StackgenError as error:
        problem = error
    if answer is None:
        assert problem and problem.message and problem.__cause__ is None and problem.__context__ is None
        return
    assert isinstance(answer.text, str) and isinstance(answer.model, str) and isinstance(answer.note, str)
    assert answer.usage is None or all(type(count) is int for count in answer.usage.values())
    assert answer.text or answer.note


@FEW
@given(body=st.binary(max_size=100) | BODIES.map(dumped), status=st.sampled_from([200, 200, 204, 400, 404, 429, 500]))
@example(body=b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": 1e999}}', status=200)
@example(body=b"[" * 5000, status=200)
def test_any_body_is_an_answer_or_an_error(answering: Fake, body: bytes, status: int) -> None:
    answering.routes["POST /v1/chat/completions"] = Sent(status, body if status != 204 else b"")
    asked(answering)


@FEW
@given(parts=st.lists(BODIES.map(lambda one: b"data: " + dumped(one) + b"\n\n") | LINES | st.binary(max_size=20),
                      max_size=8))  # fmt: skip
@example(parts=[b'data: {"choices": [{"delta": {"content": []}, "finish_reason": "stop"}]}\n\n'])
@example(parts=[b'data: {"choices": [{"delta": {"content": "a"}, "finish_reason": {}}]}\n\n'])
def test_any_stream_is_an_answer_or_an_error(answering: Fake, parts: list[bytes]) -> None:
    answering.routes["POST /v1/chat/completions"] = Sent(200, b"".join(parts), "text/event-stream")
    asked(answering, stream=True)


@FEW
@given(body=st.binary(max_size=100) | BODIES.map(dumped), wanted=st.sampled_from([None, "tiny", "TINY"]))
@example(body=b'{"data": [{"id": {}}, {"id": []}, {"id": "tiny"}]}', wanted=None)
def test_any_model_list_gives_a_name_or_an_error(body: bytes, wanted: str | None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "get", lambda *_: reply(body))
        listed = fetch_models(TARGET, 1.0)
        assert listed is None or all(isinstance(name, str) for name in (*listed.names, *listed.chat))
        with contextlib.suppress(StackgenError):
            name, note = pick_model(TARGET, wanted, listed)
            assert isinstance(name, str) and isinstance(note, str)


@SOME
@given(KEYS, TEXT, TEXT, st.sampled_from(["plain", "json", "url", "path", "repr", "folded"]))
def test_no_key_gets_past_the_redactor(key: str, head: str, tail: str, form: str) -> None:
    redact = Redactor(key)
    shown = {"plain": key, "json": json.dumps(key), "url": quote(key, safe=""), "path": quote(key), "repr": repr(key),
             "folded": "\x00".join(key)}[form]  # fmt: skip
    # a key that is part of the surrounding text is no leak
    if key in redact("") or key in "[key]":
        return
    for text in (redact(head + shown + tail), redact.excerpt(head + shown + tail),
                 redact.excerpt((head + shown + tail).encode("utf-8", "replace"), 50)):  # fmt: skip
        assert key not in text
        text.encode()
    assert len(redact.excerpt(head + shown * 20 + tail, 50)) <= 50
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", redact(head + shown + tail))


@SOME
@given(KEYS, st.integers(min_value=0, max_value=60))
def test_cutting_leaves_no_part_of_a_key(key: str, before: int) -> None:
    cut = Redactor(key).excerpt("x" * before + key, 40)
    kept = cut.rstrip("…").lstrip("x")
    assert kept in ("", "[key]") or "[key]".startswith(kept) or set(key) <= set("x")


@SOME
@given(TEXT, st.lists(TEXT, max_size=8))
def test_any_name_has_a_nearest_name_or_none(wanted: str, known: list[str]) -> None:
    near = nearest(wanted, known)
    assert near is None or (near[0] in known and near[1])
    assert isinstance(did_you_mean(wanted, known), str)


def test_many_names_are_compared_in_time() -> None:
    names = [f"organization/some-model-{number}-instruct" for number in range(30_000)]
    started = time.monotonic()
    assert "in all" in did_you_mean("some-modl-x", names) or "did you mean" in did_you_mean("some-modl-x", names)
    assert time.monotonic() - started < 10


URLS = st.text(max_size=40) | st.from_regex(
    r"\A *(https?|ftp|)(:|://)?([a-z.]{0,8}|\[[0-9a-f:.%]{0,12}\]|[0-9.]{0,12})(:[0-9]{0,6})?(/[a-z/%. ]{0,9})?[ \n]*\Z"
)


@SOME
@given(URLS)
@example("http://[::1")
@example("http://[v1.x]:1")
@example("http://a:99999")
@example("http://\ud800")
@example("http://a/\x00")
@example("http://127.0.0.1:8000/v1//")
@example("http://a#")
@example("http://a?")
def test_any_url_is_normalized_or_rejected(url: str) -> None:
    try:
        normal = normalize_url(url)
    except StackgenError as error:
        str(error)
        return
    assert normalize_url(normal) == normal
    target = Target("it", normal)
    assert target.host
    assert 0 < target.port < 65536
    assert target.root
    assert not normal.endswith("/")
    assert target.loopback in (True, False)
    # the client may still reject it, with the exception that becomes a Fault
    with contextlib.suppress(httpx2.InvalidURL):
        httpx2.URL(f"{normal}/models")


RESULTS = st.builds(Result, TEXT, st.sampled_from(["pass", "warn", "fail", "skip"]), st.none() | st.floats(0, 1e6),
                    TEXT, TEXT, TEXT, TEXT, st.tuples(TEXT))  # fmt: skip


@FEW
@given(st.lists(st.builds(EndpointReport, TEXT, TEXT, TEXT, st.lists(RESULTS, max_size=4).map(tuple), st.none() | TEXT),
                max_size=3).map(tuple), st.booleans(), st.booleans())  # fmt: skip
def test_any_report_can_be_printed(endpoints: tuple[EndpointReport, ...], color: bool, verbose: bool) -> None:
    report = Report(endpoints, "2026-11-22T22:14:31+00:00")
    text = as_text(report, color=color, verbose=verbose)
    assert isinstance(text, str)
    assert ("\x1b[3" in text) <= (color or "\x1b[3" in repr(endpoints).encode().decode("unicode_escape", "replace"))
    assert json.loads(json.dumps(report.to_json()))["ok"] is report.ok


class Replies:
    """Answers the requests of a session with `replies` in turn."""

    def __init__(self, replies: list[Reply]) -> None:
        self.replies, self.place, self.lock = replies, 0, threading.Lock()

    def __call__(self, *_: Any, **__: Any) -> Reply:
        with self.lock:
            self.place += 1
            return self.replies[self.place % len(self.replies)]


REPLIES = st.lists(
    st.builds(Reply, st.sampled_from([200, 200, 200, 204, 302, 400, 401, 404, 405, 422, 429, 500]),
              st.sampled_from(["application/json", "", "text/html"]), st.binary(max_size=80) | OFFERED.map(dumped),
              TEXT, TEXT),
    min_size=1, max_size=6,
)  # fmt: skip
CHECKED = [one for one in CHECKS if one.name not in ("containers", "resolve", "connect", "tls", "stream", "topology")]


@FEW
@given(REPLIES, st.sampled_from(CHECKED), st.sampled_from(["vllm", "fastchat", "llamacpp", "openai", "together"]),
       st.sampled_from([None, "key-of-the-test-0123"]))  # fmt: skip
def test_any_replies_get_a_verdict_from_every_check(
    replies: list[Reply], one: Check, dialect: str, key: str | None
) -> None:
    target = Target("it", TARGET.base_url, key)
    with pytest.MonkeyPatch.context() as patch, Session(target, 1.0) as session:
        source = Replies(replies)
        patch.setattr(Session, "get", source)
        patch.setattr(Session, "post", source)
        context = Context(session, Options("deep", timeout=1.0, load=2), {**BUILTIN, **dialects()}[dialect])
        with contextlib.suppress(Fault):
            list_models(context)
        verdict = one.run(context, context.any_model)
    assert verdict.status in ("pass", "warn", "fail", "skip")
    assert all(math.isfinite(value) for value in verdict.figures.values())
    json.dumps([verdict.message, verdict.hint, verdict.evidence, *verdict.notes])


@SOME
@given(OFFERED, st.sampled_from([CityAnswer, Embeddings, LogprobCompletion, PlainCompletion, TextCompletion, Tokens,
                                 ToolCompletion]))  # fmt: skip
def test_bodies_of_features_are_accepted_or_rejected(data: Any, model: Any) -> None:
    parsed, problems = parse(model, data)
    assert (parsed is None) is bool(problems)


@SOME
@given(st.lists(OFFERED, max_size=4), TEXT | st.just("wanted"))
@example([{"id": "wanted", "aliases": True}], "wanted")
@example([{"id": {}, "aliases": ["wanted"], "max_model_len": 10**400}], "wanted")
@example([{"id": "wanted", "max_model_len": True}], "wanted")
def test_any_model_entry_gives_a_context_length_or_none(cards: list[Any], name: str) -> None:
    with pytest.MonkeyPatch.context() as patch, Session(TARGET, 1.0) as session:
        patch.setattr(Session, "get", lambda *_, **__: reply(dumped({"data": cards})))
        context = Context(session, Options(timeout=1.0), OPENAI)
        list_models(context)
        length = context_length(context, name)
    assert length is None or (length > 0 and str(length))


@SOME
@given(st.binary(max_size=100) | TEXT.map(lambda text: text.encode("utf-8", "replace")))
@example(b"maximum context length is " + b"9" * 5000)
@example(b"max_model_len=" + b"1" * 5000)
def test_any_error_gives_a_context_length_or_none(body: bytes) -> None:
    length = length_from_error(reply(body, 400))
    assert length is None or length < 10**12


@SOME
@given(st.binary(max_size=80) | OFFERED.map(dumped), st.sampled_from(["vllm", "fastchat", "openai"]),
       st.sampled_from([200, 400, 404]))  # fmt: skip
def test_any_error_can_be_tested_for_an_unknown_model(body: bytes, dialect: str, status: int) -> None:
    assert is_unknown_model({**BUILTIN, **dialects()}[dialect], reply(body, status)) in (True, False)


@FEW
@given(st.binary(max_size=80) | OFFERED.map(dumped), st.sampled_from([200, 302, 401, 404, 429, 500]))
def test_any_hub_response_gives_a_state(body: bytes, status: int) -> None:
    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, content=body)

    with pytest.MonkeyPatch.context() as patch:
        client = httpx2.Client
        patch.setattr(httpx2, "Client", lambda **kwargs: client(**kwargs, transport=httpx2.MockTransport(answer)))
        assert look_up_model("org/name").state
