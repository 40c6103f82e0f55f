"""Every fault of the gallery in front of a recorded vLLM: the right check fails, in time and with little memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from stackgen.providers.endpoints import dialects
from tests.check.fake import KEY, Answer, Request, completion, json_answer
from tests.check.fake import serve as serve_fake
from tests.faults.gallery import Engine, certificates, prove, prove_together
from tests.faults.rows import ROWS, Row

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
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


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return certificates(tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=row.name, marks=pytest.mark.xfail(reason=row.pending, strict=True) if row.pending else ())
     for row in ROWS if not row.is_slow],
)  # fmt: skip
def test_a_fault_gets_the_right_verdict(
    row: Row, engine: Engine, certs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    prove(row, engine, certs, monkeypatch)


def test_slow_faults_get_the_right_verdict(
    engine: Engine, certs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for row in ROWS if row.is_slow]
    assert len(rows) > 10
    assert prove_together(rows, engine, certs, monkeypatch) == []


def test_row_names_are_unique() -> None:
    assert [name for name, count in Counter(row.name for row in ROWS).items() if count > 1] == []
