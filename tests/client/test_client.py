"""`stackgen.Client` and `stackgen.AsyncClient` against fake servers that replay real ones."""

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
    return Target("fake", base_url=fake.url, api_key=key, models=("tiny",), dialect=VLLM)


class EitherClient:
    """Runs a test on one of the two clients: both must behave in the same way."""

    def __init__(self, kind: str) -> None:
        self.asynchronous = kind == "async"

    def run(self, on: Target, method: str, *args: Any, **kwargs: Any) -> Any:
        if not self.asynchronous:
            with Client.from_target(on, timeout=5) as client:
                value = getattr(client, method)(*args, **kwargs)
                return list(value) if method == "stream" else value

        async def main() -> Any:
            async with AsyncClient.from_target(on, timeout=5) as client:
                value = getattr(client, method)(*args, **kwargs)
                return [piece async for piece in value] if method == "stream" else await value

        return asyncio.run(main())


@pytest.fixture(params=["sync", "async"])
def either(request: pytest.FixtureRequest) -> EitherClient:
    return EitherClient(request.param)


def test_a_query_sends_the_given_fields_and_returns_the_answer(either: EitherClient, vllm: Fake) -> None:
    answer = either.run(
        target(vllm), "query", "hi", system="Be brief", temperature=0.5, max_tokens=7, seed=3, stop=None
    )
    assert (answer.text, answer.model, answer.provider, answer.note) == (TEXT, "tiny", "fake", "")
    assert answer.usage == {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}
    assert answer.ttft is None and answer.seconds > 0
    # None is not sent as null: not every server reads null as absent
    assert vllm.seen[-1].json() == {
        "model": "tiny",
        "messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "hi"}],
        "temperature": 0.5,
        "max_tokens": 7,
        "seed": 3,
        "stream": False,
    }


def test_a_query_without_options_sends_only_the_defaults(either: EitherClient, vllm: Fake) -> None:
    either.run(target(vllm), "query", "hi")
    assert vllm.seen[-1].json() == {
        "model": "tiny", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.0, "stream": False,
    }  # fmt: skip


def test_a_stream_yields_text_as_it_arrives(either: EitherClient, vllm: Fake) -> None:
    pieces = either.run(target(vllm), "stream", "hi")
    assert len(pieces) == 6 and "".join(pieces) == "ier time4 usier time"


def test_models_are_listed_and_close_names_resolved(either: EitherClient, vllm: Fake) -> None:
    assert either.run(target(vllm), "models") == ["tiny"]
    assert "'tiny'" in either.run(target(vllm), "query", "hi", "TINY").note
    assert either.run(target(vllm), "stream", "hi", "org/Tiny")


@pytest.mark.parametrize("method", ["query", "stream"])
@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (Answer(500, KEY.encode(), "text/plain"), StartError, "fake returned HTTP 500 (text/plain): [key]"),
        (Answer(429, b"", headers=(("Retry-After", "9"),)), StartError, "fake returned HTTP 429 (application/json)"),
        (Answer(401, b"{}"), StackgenError, "fake rejected the API key"),
    ],
)
def test_errors_are_stackgen_errors_without_the_key(
    either: EitherClient, vllm: Fake, method: str, answer: Answer, kind: type[StackgenError], message: str
) -> None:
    vllm.routes["POST /v1/chat/completions"] = answer
    with pytest.raises(StackgenError) as caught:
        either.run(target(vllm), method, "hi")
    error = caught.value
    assert type(error) is kind and error.message == message and error.hint
    # the SDK's exceptions hold the request with its header
    assert error.__cause__ is None and error.__context__ is None
    assert KEY not in "".join(traceback.format_exception(error))
    # no retry: a request that is sent twice may be paid for twice
    assert len([request for request in vllm.seen if request.method == "POST"]) == 1


def test_an_aborted_stream_yields_its_text_before_the_error(vllm: Fake) -> None:
    vllm.stream(events(*GOOD_STREAM[:2], {"error": {"message": "EngineDeadError"}}))
    with Client.from_target(target(vllm)) as client:
        pieces = client.stream("hi")
        assert next(pieces) == "Par"
        with pytest.raises(StartError, match="EngineDeadError"):
            next(pieces)


@pytest.mark.parametrize("answer", [Answer(200, b"", "text/event-stream"), Answer(200, b"<h1>", "text/html"),
                                    events(*GOOD_STREAM[:2], done=False), events({"text": KEY, "error_code": 1}),
                                    events([])])  # fmt: skip
def test_a_broken_stream_raises(either: EitherClient, vllm: Fake, answer: Answer) -> None:
    vllm.stream(answer)
    with pytest.raises(StartError) as caught:
        either.run(target(vllm), "stream", "hi")
    assert caught.value.hint and caught.value.__context__ is None and KEY not in caught.value.message


@pytest.mark.parametrize(
    "body", [{"choices": [{"message": {"content": [1]}}]}, {"choices": 1}, {"model": []}, [], None]
)
def test_a_malformed_body_is_a_server_error(either: EitherClient, vllm: Fake, body: Any) -> None:
    vllm.chat(json_answer(completion(**body) if isinstance(body, dict) else body))
    with pytest.raises(StartError, match="is not a valid chat completion"):
        either.run(target(vllm), "query", "hi")


@pytest.mark.parametrize("method", ["query", "stream"])
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"foo": 1}, r"invalid request: .*unexpected keyword argument 'foo'"),
        ({"stop": {1}}, r"invalid request: .*not JSON serializable"),
        ({"stream": True}, r"you can't pass the field `stream`"),
        ({"messages": []}, r"you can't pass the field `messages`: stackgen builds `messages` from the prompt"),
        ({"top_p": float("nan")}, r"top-p must be a finite number"),
        ({"temperature": float("inf")}, r"temperature must be a finite number"),
    ],
)
def test_invalid_arguments_raise_before_anything_is_sent(
    either: EitherClient, vllm: Fake, method: str, extra: dict[str, Any], message: str
) -> None:
    with pytest.raises(StackgenError, match=message) as caught:
        either.run(target(vllm), method, "hi", **extra)
    assert type(caught.value) is StackgenError
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    assert not [request for request in vllm.seen if request.method == "POST"]


def test_an_unreachable_server_raises(either: EitherClient) -> None:
    unreachable = Target.from_url(f"http://127.0.0.1:{free_port()}", KEY, ("tiny",))
    for method in ("query", "stream"):
        with pytest.raises(StartError, match="nothing listens on"):
            either.run(unreachable, method, "hi")


def test_an_unknown_model_raises_with_the_closest_name(either: EitherClient, vllm: Fake) -> None:
    with pytest.raises(StackgenError, match="fake does not serve the model 'tinny'") as caught:
        either.run(target(vllm), "query", "hi", "tinny")
    assert caught.value.hint == "did you mean 'tiny'? (the names are similar)"


def test_openai_variables_do_not_reach_other_servers(
    either: EitherClient, vllm: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("OPENAI_API_KEY", "sk-other"), ("OPENAI_ORG_ID", "org-1"), ("OPENAI_BASE_URL", "http://x/v1"),
                        ("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer sk-other")):  # fmt: skip
        monkeypatch.setenv(name, value)
    either.run(target(vllm), "query", "hi")
    vllm.key = None
    either.run(target(vllm, None), "query", "hi")
    assert [request.authorization for request in vllm.seen] == [f"Bearer {KEY}", None]


def test_openai_custom_headers_do_not_reach_other_servers(
    either: EitherClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[bytes] = []

    def record(connection: socket.socket) -> None:
        heads.append(connection.recv(65536))

    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Secret: of-openai\nUser-Agent: of-openai")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    with raw_server(record) as port, pytest.raises(StartError):
        either.run(Target.from_url(f"http://127.0.0.1:{port}", KEY, ("tiny",)), "query", "hi")
    assert b"POST /v1/chat/completions" in heads[0] and KEY.encode() in heads[0]
    assert not any(word in heads[0] for word in (b"of-openai", b"org-1"))


def test_a_model_name_is_resolved_once(vllm: Fake) -> None:
    with Client.from_target(target(vllm)) as client:
        for _ in range(3):
            client.query("hi", "TINY")
    assert [request.method for request in vllm.seen] == ["GET", "POST", "POST", "POST"]


def test_concurrent_queries_get_their_own_answers(vllm: Fake) -> None:
    async def main() -> list[Any]:
        async with AsyncClient.from_target(target(vllm)) as client:
            return await asyncio.gather(*(client.query(f"{number}") for number in range(20)))

    assert [answer.text for answer in asyncio.run(main())] == [TEXT] * 20


# which endpoint a client uses


def test_a_client_for_a_url_and_key(vllm: Fake) -> None:
    with Client(base_url=vllm.url.removesuffix("/v1"), api_key=KEY) as client:
        assert client.query("hi").text == TEXT
        assert client.openai.models.list().data[0].id == "tiny"
        assert client.openai.max_retries == 0 and client.openai.timeout.connect == 10


def test_a_client_for_a_provider_at_another_url(vllm: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOGETHER_API_KEY", KEY)
    with Client(provider="together", base_url=vllm.url) as client:
        assert (client.target.api_key, client.query("hi", "tiny").provider) == (KEY, "together")
    with pytest.raises(StackgenError, match="unknown provider 'nobody'"):
        Client(provider="nobody", base_url=vllm.url)


def test_a_client_for_a_stack_uses_the_endpoint_that_serves_the_model(tmp_path: Path) -> None:
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
    with pytest.raises(StackgenError, match="unknown provider or endpoint"):
        Client(provider="tohether")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_repr_hides_the_key(kind: type[Client] | type[AsyncClient]) -> None:
    client = kind(base_url="http://127.0.0.1:1/v1", api_key=KEY)
    assert repr(client) == f"{kind.__name__}('127.0.0.1:1', 'http://127.0.0.1:1/v1')"
    assert KEY not in repr(vars(client))


@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"timeout": float("nan")}, {"timeout": float("inf")}, {"max_retries": -1}]
)
def test_invalid_timeouts_and_retries_raise(options: dict[str, Any]) -> None:
    with pytest.raises(StackgenError, match=r"must be above 0 and at most|must be 0 or more"):
        Client(base_url="http://127.0.0.1:1/v1", **options)


def test_max_retries_enables_retries(vllm: Fake) -> None:
    vllm.routes["POST /v1/chat/completions"] = Answer(503, b"{}", headers=(("retry-after-ms", "1"),))
    with Client.from_target(target(vllm), max_retries=2) as client, pytest.raises(StartError):
        client.query("hi")
    assert len(vllm.seen) == 3


# the package


def test_importing_the_package_imports_no_heavy_library() -> None:
    code = "import stackgen, sys; print(*[n for n in ('openai', 'httpx2', 'pydantic', 'yaml') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_stub_lists_every_export() -> None:
    stub = (ROOT / "stackgen" / "__init__.pyi").read_text()
    for name in stackgen.__all__:
        assert getattr(stackgen, name) and name in stub
    with pytest.raises(AttributeError):
        _ = stackgen.Nothing  # type: ignore[attr-defined]


def test_closing_an_unused_client_does_not_import_the_sdk() -> None:
    code = "import stackgen, sys\nwith stackgen.Client(base_url='http://h/v1'): pass\nprint('openai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_closing_the_iterator_ends_the_request(vllm: Fake) -> None:
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


def test_fastchat_answers(either: EitherClient) -> None:
    with ExitStack() as stack:
        fake = stack.enter_context(serve("fastchat"))
        answer = either.run(Target.from_url(fake.url, KEY), "query", "hi", "tiny")
        assert answer.text and answer.usage
