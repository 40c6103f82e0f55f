"""`stackgen.Client` and `stackgen.AsyncClient`, against fakes that replay real servers."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import stackgen
from stackgen import AsyncClient, Client
from stackgen.check.target import Target
from stackgen.errors import SpecError, StackgenError, StartError
from tests.check.conftest import VLLM
from tests.check.fake import (
    GOOD_STREAM,
    KEY,
    Answer,
    Fake,
    completion,
    events,
    free_port,
    json_answer,
    raw_server,
    serve,
)
from tests.conftest import ROOT

TEXT = "ier time4 usier time4 usize for), true"


@pytest.fixture
def vllm() -> Iterator[Fake]:
    with serve("vllm") as fake:
        yield fake


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TOGETHER_API_KEY", "TOGETHERAI_API_KEY", "STACKGEN_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def target(fake: Fake, key: str | None = KEY) -> Target:
    return Target("fake", fake.url, key, ("tiny",), VLLM)


class Both:
    """The two clients under one set of tests: what they do must not differ."""

    def __init__(self, kind: str) -> None:
        self.asynchronous = kind == "async"

    def run(self, of: Target, do: str, *words: Any, **more: Any) -> Any:
        if not self.asynchronous:
            with Client.from_target(of, timeout=5) as client:
                value = getattr(client, do)(*words, **more)
                return list(value) if do == "stream" else value

        async def main() -> Any:
            async with AsyncClient.from_target(of, timeout=5) as client:
                value = getattr(client, do)(*words, **more)
                return [piece async for piece in value] if do == "stream" else await value

        return asyncio.run(main())


@pytest.fixture(params=["sync", "async"])
def both(request: pytest.FixtureRequest) -> Both:
    return Both(request.param)


def test_a_question(both: Both, vllm: Fake) -> None:
    answer = both.run(target(vllm), "query", "hi", system="Be brief", temperature=0.5, max_tokens=7, seed=3, stop=None)
    assert (answer.text, answer.model, answer.provider, answer.note) == (TEXT, "tiny", "fake", "")
    assert answer.usage == {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}
    assert answer.ttft is None and answer.seconds > 0
    # None is the server's default and is not sent: FastChat loses a slot for each null
    assert vllm.seen[-1].json() == {
        "model": "tiny",
        "messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "hi"}],
        "temperature": 0.5,
        "max_tokens": 7,
        "seed": 3,
        "stream": False,
    }


def test_a_question_with_nothing_else(both: Both, vllm: Fake) -> None:
    both.run(target(vllm), "query", "hi")
    assert vllm.seen[-1].json() == {
        "model": "tiny", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.0, "stream": False,
    }  # fmt: skip


def test_a_stream_comes_in_pieces(both: Both, vllm: Fake) -> None:
    pieces = both.run(target(vllm), "stream", "hi")
    assert len(pieces) == 6 and "".join(pieces) == "ier time4 usier time"


def test_names_are_listed_and_resolved(both: Both, vllm: Fake) -> None:
    assert both.run(target(vllm), "models") == ["tiny"]
    assert "'tiny'" in both.run(target(vllm), "query", "hi", "TINY").note
    assert both.run(target(vllm), "stream", "hi", "org/Tiny")


@pytest.mark.parametrize("do", ["query", "stream"])
@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (Answer(500, KEY.encode(), "text/plain"), StartError, "fake answers HTTP 500 (text/plain): [key]"),
        (Answer(429, b"", headers=(("Retry-After", "9"),)), StartError, "fake answers HTTP 429 (application/json)"),
        (Answer(401, b"{}"), StackgenError, "fake refuses the API key"),
    ],
)
def test_errors_are_ours_and_hold_no_key(
    both: Both, vllm: Fake, do: str, answer: Answer, kind: type[StackgenError], message: str
) -> None:
    vllm.routes["POST /v1/chat/completions"] = answer
    with pytest.raises(StackgenError) as caught:
        both.run(target(vllm), do, "hi")
    error = caught.value
    assert type(error) is kind and error.message == message and error.hint
    # the SDK's exceptions hold the request with its header
    assert error.__cause__ is None and error.__context__ is None
    assert KEY not in "".join(traceback.format_exception(error))
    # no retry: a question that is sent twice may be paid for twice
    assert len([request for request in vllm.seen if request.method == "POST"]) == 1


def test_a_stream_that_breaks_off_keeps_what_came(vllm: Fake) -> None:
    vllm.stream(events(*GOOD_STREAM[:2], {"error": {"message": "EngineDeadError"}}))
    with Client.from_target(target(vllm)) as client:
        pieces = client.stream("hi")
        assert next(pieces) == "Par"
        with pytest.raises(StartError, match="EngineDeadError"):
            next(pieces)


@pytest.mark.parametrize("answer", [Answer(200, b"", "text/event-stream"), Answer(200, b"<h1>", "text/html"),
                                    events(*GOOD_STREAM[:2], done=False), events({"text": KEY, "error_code": 1}),
                                    events([])])  # fmt: skip
def test_a_broken_stream_is_no_answer(both: Both, vllm: Fake, answer: Answer) -> None:
    vllm.stream(answer)
    with pytest.raises(StartError) as caught:
        both.run(target(vllm), "stream", "hi")
    assert caught.value.hint and caught.value.__context__ is None and KEY not in caught.value.message


@pytest.mark.parametrize(
    "body", [{"choices": [{"message": {"content": [1]}}]}, {"choices": 1}, {"model": []}, [], None]
)
def test_an_odd_body_is_an_error_of_ours(both: Both, vllm: Fake, body: Any) -> None:
    vllm.chat(json_answer(completion(**body) if isinstance(body, dict) else body))
    with pytest.raises(StartError, match="has not the documented structure"):
        both.run(target(vllm), "query", "hi")


@pytest.mark.parametrize("do", ["query", "stream"])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"foo": 1}, r"the request can't be made: .*unexpected keyword argument 'foo'"),
        ({"stop": {1}}, r"the request can't be made: .*not JSON serializable"),
        ({"stream": True}, r"`stream` is no field of a question"),
        ({"messages": []}, r"`messages` is made of the prompt"),
        ({"top_p": float("nan")}, r"top-p must be a number"),
        ({"temperature": float("inf")}, r"temperature must be a number"),
    ],
)
def test_wrong_arguments_are_the_callers_mistake(
    both: Both, vllm: Fake, do: str, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(StackgenError, match=message) as caught:
        both.run(target(vllm), do, "hi", **more)
    assert type(caught.value) is StackgenError
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    assert not [request for request in vllm.seen if request.method == "POST"]


def test_a_server_that_is_away(both: Both) -> None:
    away = Target.from_url(f"http://127.0.0.1:{free_port()}", KEY, ("tiny",))
    for do in ("query", "stream"):
        with pytest.raises(StartError, match="nothing listens on"):
            both.run(away, do, "hi")


def test_a_wrong_name_is_told_with_the_nearest(both: Both, vllm: Fake) -> None:
    with pytest.raises(StackgenError, match="fake serves no model 'tinny'") as caught:
        both.run(target(vllm), "query", "hi", "tinny")
    assert caught.value.hint == "did you mean 'tiny'? (the names are alike)"


def test_nothing_of_openais_variables_reaches_another_server(
    both: Both, vllm: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("OPENAI_API_KEY", "sk-other"), ("OPENAI_ORG_ID", "org-1"), ("OPENAI_BASE_URL", "http://x/v1"),
                        ("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer sk-other")):  # fmt: skip
        monkeypatch.setenv(name, value)
    both.run(target(vllm), "query", "hi")
    vllm.key = None
    both.run(target(vllm, None), "query", "hi")
    assert [request.authorization for request in vllm.seen] == [f"Bearer {KEY}", None]


def test_custom_headers_for_openai_stay_with_openai(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[bytes] = []

    def keep(connection: socket.socket) -> None:
        heads.append(connection.recv(65536))

    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Secret: of-openai\nUser-Agent: of-openai")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    with raw_server(keep) as port, pytest.raises(StartError):
        both.run(Target.from_url(f"http://127.0.0.1:{port}", KEY, ("tiny",)), "query", "hi")
    assert b"POST /v1/chat/completions" in heads[0] and KEY.encode() in heads[0]
    assert not any(word in heads[0] for word in (b"of-openai", b"org-1"))


def test_a_name_is_looked_up_once(vllm: Fake) -> None:
    with Client.from_target(target(vllm)) as client:
        for _ in range(3):
            client.query("hi", "TINY")
    assert [request.method for request in vllm.seen] == ["GET", "POST", "POST", "POST"]


def test_many_questions_at_once(vllm: Fake) -> None:
    async def main() -> list[Any]:
        async with AsyncClient.from_target(target(vllm)) as client:
            return await asyncio.gather(*(client.query(f"{number}") for number in range(20)))

    assert [answer.text for answer in asyncio.run(main())] == [TEXT] * 20


# whom a client means


def test_a_url_and_a_key(vllm: Fake) -> None:
    with Client(base_url=vllm.url.removesuffix("/v1"), api_key=KEY) as client:
        assert client.query("hi").text == TEXT
        assert client.openai.models.list().data[0].id == "tiny"
        assert client.openai.max_retries == 0 and client.openai.timeout.connect == 10


def test_a_provider_at_another_url(vllm: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOGETHER_API_KEY", KEY)
    with Client(provider="together", base_url=vllm.url) as client:
        assert (client.target.api_key, client.query("hi", "tiny").provider) == (KEY, "together")
    with pytest.raises(StackgenError, match="is no provider"):
        Client(provider="nobody", base_url=vllm.url)


def test_a_stack_and_the_endpoint_that_serves_the_model(tmp_path: Path) -> None:
    (tmp_path / "stack.yaml").write_text("""
name: two
models:
  - {model: o/a, engine: vllm, gpus: [0], served_names: [a]}
  - {model: o/b, engine: vllm, gpus: [1], served_names: [b]}
""")
    (tmp_path / ".env").write_text(f"STACKGEN_API_KEY={KEY}\n")
    assert [Client(stack=tmp_path, model=model).target.name for model in (None, "b")] == ["vllm-a", "vllm-b"]
    assert Client(stack=tmp_path, provider="vllm-b").target.models == ("b",)
    # the current folder
    assert Client().target.api_key == KEY
    with pytest.raises(SpecError):
        Client(stack="nowhere.yaml")
    with pytest.raises(StackgenError, match="there is no provider or endpoint"):
        Client(provider="tohether")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_no_client_shows_its_key(kind: type[Client] | type[AsyncClient]) -> None:
    client = kind(base_url="http://127.0.0.1:1/v1", api_key=KEY)
    assert repr(client) == f"{kind.__name__}('127.0.0.1:1', 'http://127.0.0.1:1/v1')"
    assert KEY not in repr(vars(client))


@pytest.mark.parametrize(
    "wrong", [{"timeout": 0}, {"timeout": float("nan")}, {"timeout": float("inf")}, {"max_retries": -1}]
)
def test_values_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(StackgenError, match=r"must be above 0 and at most|must not be below 0"):
        Client(base_url="http://127.0.0.1:1/v1", **wrong)


def test_retries_are_made_where_they_are_asked_for(vllm: Fake) -> None:
    vllm.routes["POST /v1/chat/completions"] = Answer(503, b"{}", headers=(("retry-after-ms", "1"),))
    with Client.from_target(target(vllm), max_retries=2) as client, pytest.raises(StartError):
        client.query("hi")
    assert len(vllm.seen) == 3


# the package


def test_importing_the_package_loads_no_client() -> None:
    code = "import stackgen, sys; print(*[n for n in ('openai', 'httpx2', 'pydantic', 'yaml') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_what_the_package_exports_is_what_type_checkers_are_told() -> None:
    stub = (ROOT / "stackgen" / "__init__.pyi").read_text()
    for name in stackgen.__all__:
        assert getattr(stackgen, name) and name in stub
    with pytest.raises(AttributeError):
        _ = stackgen.Nothing  # type: ignore[attr-defined]


def test_a_client_that_was_never_used_closes_without_the_sdk() -> None:
    code = "import stackgen, sys\nwith stackgen.Client(base_url='http://h/v1'): pass\nprint('openai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_iterator_that_is_left_ends_the_request(vllm: Fake) -> None:
    async def main() -> str:
        async with AsyncClient.from_target(target(vllm)) as client:
            pieces: AsyncIterator[str] = client.stream("hi")
            async for piece in pieces:
                await pieces.aclose()  # type: ignore[attr-defined]
                return piece
        return ""

    assert asyncio.run(main())
    with Client.from_target(target(vllm)) as client:
        assert next(client.stream("hi"))
        # the connection is free again
        assert client.query("hi").text == TEXT


def test_engines_of_all_kinds(both: Both) -> None:
    with ExitStack() as stack:
        fake = stack.enter_context(serve("fastchat"))
        answer = both.run(Target.from_url(fake.url, KEY), "query", "hi", "tiny")
        assert answer.text and answer.usage
