"""Every fault of the gallery in front of a recorded vLLM: the right check fails, in time and with little memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager

import pytest

from stackgen.providers.endpoints import dialects
from tests.check.fake import KEY, Answer, Request, completion, json_answer
from tests.check.fake import serve as serve_fake
from tests.faults.gallery import Engine, Gallery, parameter, selected_rows
from tests.faults.network import certificates, surroundings
from tests.faults.rows import ROWS, Row

pytestmark = [
    pytest.mark.timeout(120),
    # Python's ssl.wrap_socket leaves its socket to the garbage collector if the server has already reset the connection
    pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning"),
]


@contextmanager
def vllm() -> Iterator[Engine]:
    with serve_fake("vllm") as fake:
        # the recorded answers have different lengths, but rows compare the whole answer with the streamed one
        answer = completion()
        answer["choices"][0]["message"]["content"] = "ier time4 usier time"
        answer["usage"] = {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15}
        fake.chat(json_answer(answer))
        asked = fake.routes["POST /v1/chat/completions"]

        def obedient(request: Request) -> Answer:
            """Repeats a word as instructed, for the check `load`."""
            prompt = request.json()["messages"][0]["content"]
            if "Repeat" not in prompt:
                return asked(request) if callable(asked) else asked
            repeated = json.loads(json.dumps(answer))
            repeated["choices"][0]["message"]["content"] = prompt.split()[-1]
            return json_answer(repeated)

        fake.routes["POST /v1/chat/completions"] = obedient
        yield Engine(fake.port, KEY, "tiny", dialects()["vllm"])


@contextmanager
def fastchat() -> Iterator[Engine]:
    with serve_fake("fastchat") as fake:
        yield Engine(fake.port, KEY, "tiny", dialects()["fastchat"])


ENGINES = {"vllm": vllm, "fastchat": fastchat}
# tests/live/test_fault_gallery.py has the other rows with a real FastChat
CASES = [("vllm", row) for row in ROWS] + [("fastchat", row) for row in ROWS if not row.real]


@pytest.fixture(scope="module")
def galleries(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Gallery]]:
    certs, selected = certificates(tmp_path_factory.mktemp("certificates")), selected_rows(request)
    with surroundings(certs["trusted"]), ExitStack() as stack:
        running: list[Future[None]] = []
        yield {
            name: stack.enter_context(Gallery(stack.enter_context(engine()), certs, rows, 1, running))
            for name, engine in ENGINES.items()
            if (rows := [row for other, row in selected if other == name])
        }


@pytest.mark.parametrize(("name", "row"), [parameter(row, name) for name, row in CASES])
def test_a_fault_gets_the_right_verdict(name: str, row: Row, galleries: dict[str, Gallery]) -> None:
    galleries[name].prove(row)


def test_row_names_are_unique() -> None:
    assert [name for name, count in Counter(row.name for row in ROWS).items() if count > 1] == []


def test_rows_of_each_kind_exist() -> None:
    assert len([row for row in ROWS if row.is_slow]) > 10
    assert {row.to for row in ROWS} >= {"connection", "all", "models", "chat", "stream"}
