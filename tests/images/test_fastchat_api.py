"""What FastChat's launcher changes in requests and answers, without FastChat: tests/live/test_fastchat.py has it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

CONTEXT = Path(__file__).parents[2] / "templates/images/fastchat"
NAMES = ("api_requests", "api_answers", "api_server", "token_ids")
CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
USER = {"role": "user", "content": "hi"}
KEY = "token-abc-123"


@pytest.fixture(scope="module")
def modules() -> Iterator[SimpleNamespace]:
    """The launcher's modules, which import each other from their own folder."""
    # compiled files in the build context would be rendered
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(CONTEXT))
    found = SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    sys.dont_write_bytecode = writes
    yield found
    sys.path.remove(str(CONTEXT))
    for name in NAMES:
        del sys.modules[name]


@pytest.fixture
def requests(modules: SimpleNamespace) -> Any:
    return modules.api_requests


@pytest.fixture
def answers(modules: SimpleNamespace) -> Any:
    return modules.api_answers


# --- requests


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [USER]} | fields


HARMLESS: list[dict[str, Any]] = [
    {}, {"tools": []}, {"tool_choice": "none"}, {"tools": [{}], "tool_choice": "none"}, {"tool_choice": "auto"},
    {"response_format": {"type": "text"}}, {"logit_bias": {}}, {"seed": 1, "temperature": 0}, {"seed": 1, "top_p": 0},
    {"n": 2, "stream": True}, {"logprobs": False}, {"modalities": ["text"]}, {"user": "me", "metadata": {"a": "b"}},
    {"messages": [{"role": "system", "content": "be"}, USER, {"role": "assistant", "content": "ho"}, USER]},
    {"messages": "hi"}, {"stream_options": {"include_usage": True}, "stream": True},
]  # fmt: skip


@pytest.mark.parametrize("fields", HARMLESS, ids=json.dumps)
def test_a_request_that_fastchat_understands_stays_as_it_is(requests: Any, fields: dict[str, Any]) -> None:
    body = json.dumps(chat(**fields), indent=3).encode()
    assert requests.adapt_body(CHAT, body) == (json.loads(body), None)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"tools": [{"type": "function"}]}, "tools"),
    (CHAT, {"tools": [{}], "tool_choice": "auto"}, "tools"),
    (CHAT, {"tool_choice": "required"}, "tool_choice"),
    (CHAT, {"tool_choice": {"type": "function"}}, "tool_choice"),
    (CHAT, {"functions": [{}]}, "functions"),
    (CHAT, {"response_format": {"type": "json_object"}}, "response_format"),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
    (CHAT, {"guided_json": {"type": "object"}}, "guided_json"),
    (CHAT, {"seed": 0}, "seed"),
    (CHAT, {"seed": 1, "temperature": 0.5}, "seed"),
    (CHAT, {"logit_bias": {"5": 100}}, "logit_bias"),
    (CHAT, {"logprobs": True}, "logprobs"),
    (CHAT, {"modalities": ["text", "audio"]}, "modalities"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role"),
    (CHAT, {"messages": [USER, {"role": "user"}]}, "messages[1].content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
     "messages[0].content[0]"),
    (TEXT, {"prompt": []}, "prompt"),
    (TEXT, {"prompt": [1, "a"]}, "prompt"),
    (TEXT, {"prompt": [[1], []]}, "prompt"),
    (TEXT, {"prompt": [-1]}, "prompt"),
    (TEXT, {"prompt": [True]}, "prompt"),
    (TEXT, {"prompt": ["a", "b"], "stream": True}, "prompt"),
    (TEXT, {"prompt": "a", "suffix": "b"}, "suffix"),
    (TEXT, {"prompt": "a", "best_of": 2}, "best_of"),
    (TEXT, {"prompt": "a", "use_beam_search": True}, "use_beam_search"),
    (TEXT, {"prompt": "a", "seed": 1}, "seed"),
    (EMBED, {"input": [1, 2]}, "input"),
    (EMBED, {"input": [[1, 2]]}, "input"),
    (EMBED, {"input": []}, "input"),
    (EMBED, {"input": "a", "dimensions": 8}, "dimensions"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "fields", "param"), REFUSED, ids=str)
def test_a_request_whose_answer_would_be_wrong_is_refused(
    requests: Any, path: str, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(requests.Refused) as refused:
        requests.adapt_body(path, json.dumps({"model": "tiny"} | fields).encode())
    assert (refused.value.param, refused.value.status) == (param, 400)
    assert param.split(".")[0] in str(refused.value)


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b'{"a": ' + b"[" * 100_000, b"1" * 5000])
def test_a_body_that_is_no_json_object_is_refused(requests: Any, body: bytes) -> None:
    with pytest.raises(requests.Refused, match="the body"):
        requests.adapt_body(CHAT, body)


def test_null_means_the_default(requests: Any) -> None:
    assert requests.adapt(CHAT, chat(stop=None, n=None, tools=None, response_format=None)) == chat()


@pytest.mark.parametrize("more", [{}, {"max_tokens": None}, {"max_tokens": 9}])
def test_the_limit_of_tokens_has_one_name(requests: Any, more: dict[str, Any]) -> None:
    assert requests.adapt(CHAT, chat(max_completion_tokens=5, **more)) == chat(max_tokens=5)


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[tuple[str, str]]]] = {
    "parts": ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
              [("user", "a\nb")]),
    "developer": ([{"role": "developer", "content": "be"}, USER], [("system", "be"), ("user", "hi")]),
    "two system messages": ([{"role": "system", "content": "a"}, USER, {"role": "developer", "content": "b"}],
                            [("system", "a\n\nb"), ("user", "hi")]),
    "neighbours": ([USER, {"role": "user", "content": "ho"}], [("user", "hi\n\nho")]),
    "an SDK's answer": ([USER, {"role": "assistant", "content": "ho", "refusal": None, "audio": None}, USER],
                        [("user", "hi"), ("assistant", "ho"), ("user", "hi")]),
    "a refusal": ([USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, USER],
                  [("user", "hi"), ("assistant", "no"), ("user", "hi")]),
    "an empty answer": ([USER, {"role": "assistant", "content": None}, USER], [("user", "hi\n\nhi")]),
    "tools": ([USER, {"role": "assistant", "content": None, "tool_calls": [CALL]},
               {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "Rain"}]}],
              [("user", "hi"), ("assistant", '{"name": "weather", "arguments": {"city": "Köln"}}'),
               ("user", "Result of weather: Rain")]),
    "functions": ([USER, {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "x"}},
                   {"role": "function", "name": "f", "content": "1"}],
                  [("user", "hi"), ("assistant", '{"name": "f", "arguments": "x"}'), ("user", "Result of f: 1")]),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_messages_become_texts_of_three_roles(requests: Any, name: str) -> None:
    messages, expected = CONVERSATIONS[name]
    made = requests.adapt(CHAT, chat(messages=messages))["messages"]
    assert [(one["role"], one["content"]) for one in made] == expected
    assert all(set(one) == {"role", "content"} for one in made)


def test_token_ids_travel_as_marked_text(modules: SimpleNamespace) -> None:
    adapt, read = modules.api_requests.adapt, modules.token_ids.read
    (one,) = adapt(TEXT, {"prompt": [3, 1, 2]})["prompt"]
    assert read(one) == [3, 1, 2]
    text, ids = adapt(TEXT, {"prompt": ["hi", [7]]})["prompt"]
    assert (read(text), text, read(ids)) == (None, "hi", [7])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["role", "content", "type", "text", "tool_calls", "function", "id", "name"]), inner, max_size=4
    ),
    max_leaves=8,
)  # fmt: skip
FIELDS = ("messages", "tools", "tool_choice", "functions", "function_call", "response_format", "seed", "temperature",
          "top_p", "logit_bias", "logprobs", "modalities", "prompt", "suffix", "best_of", "n", "stream",
          "stream_options", "input", "dimensions", "max_tokens", "max_completion_tokens", "model")  # fmt: skip


@given(st.sampled_from([CHAT, TEXT, EMBED]), st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
def test_no_body_crashes_the_launcher(modules: SimpleNamespace, path: str, fields: dict[str, Any]) -> None:
    with contextlib.suppress(modules.api_requests.Refused):
        data, changed = modules.api_requests.adapt_body(path, json.dumps(fields).encode())
        modules.api_requests.asks_for_usage(data)
        # what has been adapted needs no more changes
        assert changed is None or modules.api_requests.adapt_body(path, changed)[1] is None


# --- answers


def chunk(**fields: Any) -> bytes:
    return b"data: " + json.dumps({"id": "x", "model": "tiny", "choices": []} | fields).encode() + b"\n\n"


def events(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(one[6:]) for one in data.split(b"\n\n") if one.startswith(b"data: {")]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_every_chunk_is_complete_and_leaves_as_soon_as_it_has_arrived(answers: Any, size: int) -> None:
    sent = (
        chunk(choices=[{"index": 0, "delta": {"content": "ä\n"}}]) + chunk(object="y", created=1) + b"data: [DONE]\n\n"
    )
    stream, got, ready = answers.Stream("chat.completion.chunk"), b"", 0
    for start in range(0, len(sent), size):
        got += stream.feed(sent[start : start + size])
        ready = sent[: start + size].count(b"\n\n")
        assert got.count(b"\n\n") == ready
    assert got.endswith(b"data: [DONE]\n\n") and stream.close() == b""
    first, last = events(got)
    assert (first["object"], last["object"], first["id"]) == ("chat.completion.chunk", "y", "x")
    assert first["created"] == last["created"] > 1
    assert first["choices"][0]["delta"]["content"] == "ä\n"


def test_usage_is_the_last_chunk_and_counts_a_shared_prompt_once(answers: Any) -> None:
    usage = answers.Usage()

    async def worker(payload: dict[str, Any], address: str) -> AsyncIterator[dict[str, Any]]:
        for tokens in (1, payload["tokens"]):
            yield {"text": "", "usage": {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 9}}
        yield {"text": "no usage"}

    async def run() -> None:
        answers.CURRENT.set(usage)
        module = SimpleNamespace(generate_completion_stream=worker, generate_completion=None)
        answers.record_usage(module)
        for tokens in (2, 3):
            assert len([one async for one in module.generate_completion_stream({"tokens": tokens}, "")]) == 3

    asyncio.run(run())
    *_, last = events(answers.Stream("chat.completion.chunk", usage).feed(chunk() + b"data: [DONE]\n\n"))
    assert last["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
    assert (last["choices"], last["id"], last["model"]) == ([], "x", "tiny")


def test_answers_to_one_prompt_count_it_once_and_equal_prompts_count_each(answers: Any) -> None:
    async def worker(payload: dict[str, Any], address: str) -> dict[str, Any]:
        return {"text": "", "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}}

    async def run() -> list[dict[str, Any]]:
        answers.CURRENT.set(answers.Usage())
        module = SimpleNamespace(generate_completion_stream=None, generate_completion=worker)
        answers.record_usage(module)
        # FastChat passes one object for all answers to a prompt
        first, second = {"prompt": "a"}, {"prompt": "a"}
        payloads = (first, first, second, second)
        return await asyncio.gather(*(module.generate_completion(payload, "") for payload in payloads))

    found = [one["usage"] for one in asyncio.run(run())]
    assert [one["prompt_tokens"] for one in found] == [5, 0, 5, 0]
    assert [one["total_tokens"] for one in found] == [7, 2, 7, 2]


def test_an_error_in_a_stream_has_openais_form(answers: Any) -> None:
    (event,) = events(answers.Stream("x").feed(b'data: {"text": "boom", "error_code": 50001}\n\n'))
    assert (event["error"]["message"], event["error"]["type"]) == ("boom", "server_error")


@pytest.mark.parametrize(
    ("status", "body", "expected", "message"),
    [
        (400, {"object": "error", "message": "m", "code": 40303}, 400, "m"),
        (400, {"object": "error", "message": "m", "code": 50001}, 500, "m"),
        (400, {"object": "error", "message": "m", "code": 42903}, 429, "m"),
        (400, {"object": "error", "message": 'm\n\n  File "/opt/x.py", line 1', "code": 40001}, 400, "m"),
        (400, {"object": "error", "message": "Only a allowed now", "code": 40301}, 503, "no worker serves tiny now"),
        (404, {"detail": "Not Found"}, 404, "FastChat does not have POST /x"),
        (401, {"detail": {"error": {"message": "m"}}}, 401, "m"),
        (500, "Internal Server Error", 500, "Internal Server Error"),
        (502, "", 502, "HTTP status 502"),
    ],
)  # fmt: skip
def test_every_error_has_fastchats_and_openais_fields(
    answers: Any, status: int, body: Any, expected: int, message: str
) -> None:
    raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    got, data = answers.convert_error(status, raw, "POST", "/x", "tiny")
    assert got == expected
    assert data["error"]["message"].startswith(message)
    assert "/opt" not in json.dumps(data)


def test_only_the_last_chunk_at_the_limit_is_recounted(answers: Any) -> None:
    def worker_chunk(**fields: Any) -> bytes:
        usage = {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}
        return json.dumps({"text": 'it says "finish_reason": "length"', "usage": usage} | fields).encode() + b"\0"

    done = json.loads(answers.count_last_token(worker_chunk(finish_reason="length"))[:-1])
    assert (done["usage"]["completion_tokens"], done["usage"]["total_tokens"]) == (5, 7)
    for reason in (None, "stop"):
        same = answers.count_last_token(worker_chunk(finish_reason=reason))
        assert json.loads(same[:-1])["usage"]["completion_tokens"] == 4


# --- the ASGI server


Handler = Callable[[Any, Any, Any], Any]


def call(
    modules: SimpleNamespace, handler: Handler, *, path: str = CHAT, method: str = "POST", key: str | None = KEY,
    body: bytes = b"{}", listed: Any = ("tiny",), **options: Any,
) -> tuple[int, list[bytes], BaseException | None]:  # fmt: skip
    """Status, the pieces of the body, and the exception that the server would log."""
    sent: list[dict[str, Any]] = []
    pieces = [body[start : start + 4] for start in range(0, len(body), 4)] or [b""]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def list_models() -> Any:
        if isinstance(listed, Exception):
            raise listed
        return listed

    async def run() -> None:
        app = modules.api_server.Adapter(handler, list_models, **options)
        headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
        scope = {"type": "http", "method": method, "path": path, "headers": headers}
        await modules.api_server.Guard(app, [KEY])(scope, receive, send)

    error = None
    try:
        asyncio.run(run())
    except Exception as caught:
        error = caught
    return sent[0]["status"], [one.get("body", b"") for one in sent[1:]], error


def replying(status: int, body: bytes, kind: bytes = b"application/json", seen: list[bytes] | None = None) -> Handler:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if seen is not None:
            seen.append((await receive())["body"])
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": body})

    return app


def raising(error: Exception) -> Handler:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise error

    return app


def test_a_body_reaches_fastchat_byte_for_byte_or_adapted(modules: SimpleNamespace) -> None:
    seen: list[bytes] = []
    for body in (json.dumps(chat(), indent=2).encode(), json.dumps(chat(max_completion_tokens=5)).encode()):
        status, pieces, _ = call(modules, replying(200, b" {} ", seen=seen), body=body)
        assert (status, pieces) == (200, [b" {} "])
    assert seen[0] == json.dumps(chat(), indent=2).encode()
    assert json.loads(seen[1]) == chat(max_tokens=5)


def test_a_disconnect_reaches_fastchat(modules: SimpleNamespace) -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([(await receive())["type"], (await receive())["type"]])

    async def run() -> None:
        messages = iter(["http.request", "http.disconnect"])

        async def receive() -> dict[str, Any]:
            return {"type": next(messages), "body": json.dumps(chat()).encode()}

        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
        await modules.api_server.Adapter(app, None)(scope, receive, None)

    asyncio.run(run())
    assert seen == ["http.request", "http.disconnect"]


def test_bodies_are_read_up_to_a_limit_and_only_with_the_key(modules: SimpleNamespace) -> None:
    untouched = raising(AssertionError("reached FastChat"))
    assert call(modules, untouched, body=b"x" * 100, max_body=64)[0] == 413
    assert call(modules, untouched, body=b"{", key=None)[0] == 401
    status, pieces, _ = call(modules, untouched, body=b"{")
    assert status == 400 and json.loads(pieces[0])["error"]["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("No available worker for tiny"), 503), (ConnectionRefusedError("/opt/secret"), 503),
     (TypeError("/opt/secret"), 500)],
)  # fmt: skip
def test_an_exception_becomes_a_json_error_and_is_logged(
    modules: SimpleNamespace, error: Exception, status: int
) -> None:
    got, pieces, raised = call(modules, raising(error), body=json.dumps(chat()).encode())
    assert (got, raised) == (status, error)
    assert json.loads(pieces[0])["error"]["type"] == "server_error" and b"/opt" not in pieces[0]


def test_a_stream_that_fails_ends_with_an_error_and_is_cut(modules: SimpleNamespace) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": chunk(), "more_body": True})
        raise ConnectionResetError

    status, pieces, raised = call(modules, app, body=json.dumps(chat(stream=True)).encode())
    assert status == 200 and isinstance(raised, ConnectionResetError)
    first, last = events(b"".join(pieces))
    assert first["object"] == "chat.completion.chunk" and last["error"]["type"] == "server_error"
    assert b"[DONE]" not in b"".join(pieces)


def test_a_missing_worker_is_no_wrong_model_name(modules: SimpleNamespace) -> None:
    unknown = replying(400, b'{"object": "error", "message": "Only a allowed now", "code": 40301}')
    body = json.dumps(chat()).encode()
    assert call(modules, unknown, body=body, expected=("tiny",))[0] == 503
    assert call(modules, unknown, body=body, expected=("other",))[0] == 400


@pytest.mark.parametrize(("listed", "status"), [(["tiny"], 200), ([], 503), (OSError(), 503)])
def test_health_needs_no_key_and_a_served_model(modules: SimpleNamespace, listed: Any, status: int) -> None:
    untouched = raising(AssertionError("reached FastChat"))
    assert call(modules, untouched, path="/health", method="GET", key=None, listed=listed)[0] == status
    assert call(modules, untouched, path="/health", method="POST", key=None)[0] == 401


def test_one_model_is_found_by_its_name(modules: SimpleNamespace) -> None:
    listing = replying(200, json.dumps({"data": [{"id": "org/tiny"}, {"id": "b"}]}).encode())
    assert call(modules, listing, path="/v1/models/org/tiny", method="GET")[:2] == (200, [b'{"id": "org/tiny"}'])
    status, pieces, _ = call(modules, listing, path="/v1/models/c", method="GET")
    assert (status, json.loads(pieces[0])["error"]["code"]) == (404, "model_not_found")
    assert call(modules, listing, path="/v1/models/b", method="GET", key=None)[0] == 401
    assert call(modules, raising(OSError()), path="/v1/models/b", method="GET")[0] == 503


# --- the worker


class Tokenizer:
    """Each character is a token."""

    def __call__(self, text: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[ord(one) for one in text])

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(map(chr, ids))


def test_a_worker_uses_token_ids_as_they_are(modules: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = ModuleType("transformers")
    transformers.BatchEncoding = lambda data: SimpleNamespace(**data)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    ids, tokenizer = modules.token_ids, Tokenizer()
    model = SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(num_embeddings=128))
    with pytest.raises(ids.IdsRefused, match="reads only text"):
        ids.to_prompt(ids.mark([104]), tokenizer, model)
    ids.accept_ids(tokenizer)
    prompt = ids.to_prompt(ids.mark([104, 105]), tokenizer, model)
    # the text has the length of the echo; the ids are those that were sent
    assert prompt == "hi" and tokenizer(prompt).input_ids == [104, 105]
    assert tokenizer(ids.mark([104, 105])).input_ids == [104, 105]
    assert isinstance(tokenizer, Tokenizer) and tokenizer("a").input_ids == [97]
    assert ids.to_prompt("a text", tokenizer, model) == "a text"
    for wrong in (128, 10**9):
        with pytest.raises(ids.IdsRefused, match=f"{wrong} is not below"):
            ids.to_prompt(ids.mark([wrong]), tokenizer, model)
    with pytest.raises(ids.IdsRefused, match="reads only text"):
        tokenizer([prompt], return_tensors="pt")  # type: ignore[arg-type]
    with pytest.raises(ids.IdsRefused, match="reads only text"):
        ids.to_prompt(ids.mark([1]), tokenizer, SimpleNamespace())


def test_the_image_has_every_module_of_the_launcher() -> None:
    copied = next(one for one in (CONTEXT / "Dockerfile").read_text().splitlines() if one.startswith("COPY launch.py"))
    assert set(copied.split()[1:-1]) == {one.name for one in CONTEXT.glob("*.py")}
