"""Every fault of the gallery before a recorded vLLM: the right check fails and says why, in time and in little memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from stackgen.endpoints import dialects
from tests.check.fake import KEY
from tests.check.fake import serve as serve_fake
from tests.faults.gallery import Engine, certificates, prove
from tests.faults.rows import ROWS, Row

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with serve_fake("vllm") as fake:
        yield Engine(fake.port, KEY, "tiny", dialects()["vllm"], same=False)


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return certificates(tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=row.name, marks=pytest.mark.xfail(reason=row.pending, strict=True) if row.pending else ())
     for row in ROWS],
)  # fmt: skip
def test_a_fault(row: Row, engine: Engine, certs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    if not engine.suits(row):
        pytest.skip("the recorded answers are not the same with and without `stream`")
    prove(row, engine, certs, monkeypatch)


def test_names_of_rows_are_unique() -> None:
    assert [name for name, count in Counter(row.name for row in ROWS).items() if count > 1] == []
