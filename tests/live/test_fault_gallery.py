"""The fault gallery with real engines: a proxy alters the answers of a real vLLM and a real FastChat."""

from __future__ import annotations

from pathlib import Path

import pytest

from stackgen.providers.endpoints import dialects
from tests.faults.gallery import Engine, certificates, prove, prove_together
from tests.faults.rows import ROWS, Row
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
# generous, for a machine with two cores that runs other things as well
TIMEOUT, SLACK = 4.0, 30.0


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def vllm(vllm_stack: LiveStack) -> Engine:
    return Engine(18101, vllm_stack.key, "smollm2", dialects()["vllm"], TIMEOUT, SLACK, fast=True)


@pytest.fixture
def fastchat(fastchat_stack: LiveStack) -> Engine:
    return Engine(18111, fastchat_stack.key, "tiny", dialects()["fastchat"], TIMEOUT, SLACK, fast=True)


def rows(name: str) -> list[Row]:
    """Returns the rows that depend on a real engine. Memory rows don't: they measure the check itself, once.

    Connection and model list behave the same for both engines, so only one of them is tested with these.
    """
    selected = [row for row in ROWS if row.fits(dialects()[name], name == "vllm", True) and not row.heavy]
    return selected if name == "vllm" else [row for row in selected if row.to in ("chat", "stream")]


# FastChat's plain answers may differ from its streams: it streams in groups and holds incomplete characters back
@pytest.mark.parametrize(
    ("name", "row"),
    [
        pytest.param(name, row, id=f"{name}-{row.name}",
                     marks=pytest.mark.xfail(reason=row.pending, strict=True) if row.pending else ())
        for name in ("vllm", "fastchat") for row in rows(name) if not row.is_slow
    ],
)  # fmt: skip
def test_fault_is_reported(
    name: str, row: Row, request: pytest.FixtureRequest, certs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    prove(row, request.getfixturevalue(name), certs, monkeypatch)


@pytest.mark.parametrize("name", ["vllm", "fastchat"])
def test_faults_that_take_a_full_timeout_are_reported(
    name: str, request: pytest.FixtureRequest, certs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = [row for row in rows(name) if row.is_slow]
    assert len(slow) > 10
    assert prove_together(slow, request.getfixturevalue(name), certs, monkeypatch) == []
