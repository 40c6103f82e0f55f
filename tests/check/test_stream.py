"""Streams: recorded ones pass, and each kind of broken one gets its own message."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from stackgen.check.checks.verdict import Context
from stackgen.check.dialects import OPENAI, allowed_finish_reasons
from stackgen.check.options import Options
from stackgen.check.target import Target
from stackgen.check.transport.session import Session
from stackgen.check.transport.stream import StrictUtf8, Transcript, collect_events, percentile
from stackgen.plan import Dialect

from .conftest import FASTCHAT, VLLM
from .fake import GOOD_STREAM, USAGE_CHUNK, Answer, chunk, events, recorded, with_usage_so_far

PLAIN = allowed_finish_reasons(VLLM)


def transcript(answer: Answer, dialect: Dialect = VLLM) -> Transcript:
    response = httpx2.Response(
        200,
        headers={"content-type": "text/event-stream"},
        content=b"".join(answer.pieces or ()),
        request=httpx2.Request("POST", "http://h/v1"),
    )
    into, now = Transcript(), time.monotonic()
    collect_events(httpx2.EventSource(response), into, allowed(dialect), now, now + 60)
    return into


def allowed(dialect: Dialect) -> Callable[[list[str]], list[str]]:
    """Drops the known deviations of a dialect, as a check does."""
    url = Target("it", "http://h/v1")
    return lambda found: Context(Session(url, 1.0), Options(), dialect).drop_deviations("stream", found, [])


@pytest.mark.parametrize(
    ("engine", "name", "dialect", "deltas", "usage"),
    [
        ("vllm-0.32.0", "chat_stream", VLLM, 6, True),
        ("vllm-0.32.0", "chat_stream_nousage", VLLM, 4, False),
        ("fastchat-0.2.36", "stream", FASTCHAT, 9, False),
        ("fastchat-0.2.36", "stream-usage", FASTCHAT, 9, False),
        ("fastchat-0.2.36", "stream-max1", FASTCHAT, 1, False),
    ],
)
def test_recorded_streams_are_complete(engine: str, name: str, dialect: Dialect, deltas: int, usage: bool) -> None:
    found = transcript(recorded(engine, name), dialect)
    assert found.problems(PLAIN) == []
    assert (found.deltas, found.usage is not None, found.finish_reasons, found.model) == (
        deltas,
        usage,
        ["length"],
        "tiny",
    )
    assert found.text
    assert found.arrivals


def test_chunks_without_object_are_a_deviation_of_fastchat_only() -> None:
    found = transcript(recorded("fastchat-0.2.36", "stream"), OPENAI).problems(PLAIN)
    assert "event 1: object: field required" in found


ROLE, TEXT, END = GOOD_STREAM[0], GOOD_STREAM[1], GOOD_STREAM[2]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (events(ROLE, TEXT, END, done=False), "the stream was cut: it ends without [DONE]"),
        (events(ROLE, TEXT, END, END), "the stream has 2 finish reasons instead of one (stop, stop)"),
        (events(ROLE, TEXT), "the stream has no finish_reason"),
        (events(chunk("a"), END), "the first chunk has no role"),
        (events(chunk("", role="user"), TEXT, END), "event 1: the role is 'user', not 'assistant'"),
        (events(ROLE, TEXT, {**TEXT, "id": "chatcmpl-2"}, END),
         "the id in the stream changes from 'chatcmpl-1' to 'chatcmpl-2': chunks of another answer are mixed in"),
        (events(ROLE, TEXT, {**TEXT, "choices": [{**TEXT["choices"][0], "index": 1}]}, END),
         "event 3: the event is for choice 1, but only one choice was requested"),
        (events(ROLE, TEXT, END, TEXT), "event 4: there is text after the finish_reason"),
        (events(ROLE, TEXT, END, USAGE_CHUNK | {"usage": {"prompt_tokens": 9, "completion_tokens": 0,
                                                          "total_tokens": 9}}),
         "`usage` counts no completion tokens, but the answer has text"),
        (events(ROLE, chunk(finish="stop")), "no chunk has content"),
        (events(ROLE, TEXT, chunk(finish="eos")), "finish_reason 'eos' is not documented"),
        (events(ROLE, TEXT, chunk(finish="tool_calls")), "finish_reason 'tool_calls' is wrong for a text answer"),
        (events(ROLE, TEXT, END, "[DONE]"), "the stream has 1 event after [DONE]"),
        (events(ROLE, TEXT, END, "{broken"), "event 4 is not JSON"),
        (events(ROLE, {**TEXT, "created": "1"}, TEXT, END), "event 2: created: input should be a valid integer"),
        (events(ROLE, TEXT, END, USAGE_CHUNK | {"usage": {"prompt_tokens": 9, "completion_tokens": 2,
                                                          "total_tokens": 9}}),
         "usage: 9 prompt tokens + 2 completion tokens is not the total 9"),
        (events(ROLE, TEXT, {"error": {"message": "the engine died", "code": 500}}, END),
         "the stream has an error event despite status 200: the engine died"),
        (events(ROLE, TEXT, {"error": "boom"}, END), "the stream has an error event despite status 200: boom"),
        (events(ROLE, TEXT, {"text": "NETWORK ERROR", "error_code": 50004}, END),
         "the stream has an error event despite status 200: NETWORK ERROR"),
    ],
)  # fmt: skip
def test_each_fault_of_a_stream_is_the_only_reported_problem(answer: Answer, problem: str) -> None:
    assert transcript(answer).problems(PLAIN) == [problem]


def test_an_event_named_error_is_an_error() -> None:
    data = json.dumps({"detail": "died"})
    broken = Answer(pieces=(f"event: error\ndata: {data}\n\n".encode(), *(events(*GOOD_STREAM).pieces or ())))
    assert transcript(broken).error == "{'detail': 'died'}"


def test_an_event_cut_in_the_middle_does_not_count() -> None:
    pieces = events(*GOOD_STREAM).pieces or ()
    found = transcript(Answer(pieces=(*pieces[:-1], b"data: [DO")))
    assert found.problems(PLAIN) == ["the stream was cut: it ends without [DONE]"]


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_counts_as_content(field: str) -> None:
    thought: dict[str, Any] = chunk()
    thought["choices"][0]["delta"][field] = "hm"
    found = transcript(events(ROLE, thought, chunk(finish="length")))
    assert found.problems(PLAIN) == []
    assert (found.reasoning, found.text, found.deltas) == (True, "", 1)


def test_speed_is_in_tokens_with_usage_and_in_chunks_without() -> None:
    found = transcript(events(*GOOD_STREAM))
    found.arrivals = [0.25, 0.75]
    assert found.format_speed() == "TTFT 0.250 s, 2.0 tokens/s"
    found.usage = None
    assert found.format_speed() == "TTFT 0.250 s, 2.0 chunks/s"
    found.arrivals = [0.25, 0.25]
    assert found.format_speed() == "TTFT 0.250 s"
    assert Transcript().format_speed() == ""


def test_a_usage_in_every_chunk_counts_once() -> None:
    """vLLM with `--enable-force-include-usage`: findings/vllm-forced-usage-inflates-counts.sh."""
    found = transcript(events(*with_usage_so_far(GOOD_STREAM)))
    usual = transcript(events(*GOOD_STREAM))
    assert found.problems(PLAIN) == usual.problems(PLAIN) == []
    assert found.usage == usual.usage
    found.arrivals = usual.arrivals = [0.25, 0.75]
    assert found.format_speed() == usual.format_speed()


def test_an_endless_stream_ends_at_the_deadline() -> None:
    def endless() -> Any:
        while True:
            yield httpx2.ServerSentEvent(data=json.dumps(TEXT))

    into, now = Transcript(), time.monotonic()
    collect_events(endless(), into, list, now, now + 0.05)
    assert any(
        "the stream is too slow (" in problem and " events/s): it did not end after" in problem
        for problem in into.problems(PLAIN)
    )


def test_arrival_times_are_those_of_the_read_and_not_of_the_parser() -> None:
    """A busy machine is no proxy, and its pauses are no latency."""
    pieces = [b"".join(events(*[chunk(f"w{number} ") for number in range(4)], done=False).pieces or ())] * 2
    response = httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=iter(pieces),
                               request=httpx2.Request("POST", "http://h/v1"))  # fmt: skip
    into, now = Transcript(), time.monotonic()
    read: Any = StrictUtf8(response, "h:1")
    collect_events(httpx2.EventSource(read), into, list, now, now + 60, lambda: time.sleep(0.003), lambda: read.arrived)
    assert [gap > 0.003 for gap in into.inter_token_latencies()] == [False, False, False, True, False, False, False]
    assert sum(gap == 0 for gap in into.inter_token_latencies()) == 6


def arrived(*times: float) -> Transcript:
    into = Transcript()
    into.arrivals = list(times)
    return into


def test_figures_of_a_stream() -> None:
    found = arrived(0.5, 0.51, 0.53, 0.56).figures()
    assert found["ttft_seconds"] == 0.5
    assert found["inter_token_p50_seconds"] == pytest.approx(0.02)
    assert found["inter_token_p99_seconds"] == pytest.approx(0.03)
    assert found["chunks_per_second"] == pytest.approx(50.0)
    assert arrived().figures() == {}
    assert arrived(0.5).figures() == {"ttft_seconds": 0.5}


@pytest.mark.parametrize(
    ("times", "buffering"),
    [
        # a group of eight every 100 ms: buffered
        (
            [0.1 * group + 0.0001 * one for group in range(1, 5) for one in range(8)],
            "the stream is buffered: 32 chunks arrived in 4 reads",
        ),
        # all at the end, after a long silence
        ([1.0 + 0.0001 * one for one in range(20)], "the stream is buffered: 20 chunks arrived in 1 read"),
        # one by one, also if some were late
        ([0.02 * one for one in range(1, 33)], ""),
        ([0.02 * (one + 1) if one % 4 == 2 else 0.02 * one for one in range(1, 33)], ""),
        # pairs from start to end
        (
            [0.02 * one if one % 2 else 0.02 * (one + 1) for one in range(1, 33)],
            "the stream is buffered: 32 chunks arrived in 17 reads",
        ),
        # a tiny model with a thousand tokens a second
        ([0.02 + 0.0005 * one for one in range(32)], ""),
        # few chunks, but held back for a second
        ([1.0] * 7, "the stream is buffered: 7 chunks arrived in 1 read"),
        # too few chunks, or held back for too short a time
        ([1.0] * 3, ""),
        ([0.1] * 7, ""),
        ([0.5, 0.5, 1.0, 1.0], ""),
    ],
)
def test_buffered_tokens_are_detected(times: list[float], buffering: str) -> None:
    assert arrived(*times).describe_buffering() == buffering


def test_percentiles_are_values_that_occurred() -> None:
    values = [0.1, 0.2, 0.3, 0.4]
    assert [percentile(values, one) for one in (1, 25, 50, 51, 99, 100)] == [0.1, 0.1, 0.2, 0.3, 0.4, 0.4]
    assert percentile([7.0], 99) == 7.0
