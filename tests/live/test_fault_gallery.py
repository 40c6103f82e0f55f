"""The gallery of faults before real engines: what a proxy does to a real vLLM's and a real FastChat's answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from stackgen.providers.endpoints import dialects
from tests.faults.gallery import Engine, certificates, prove, prove_together
from tests.faults.rows import ROWS, Row
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
# a machine of two cores that runs other things as well
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
    """What a real engine has a part in; memory is measured once, and is the check's own.

    Of the rest the connection and the list of models are the same for both engines.
    """
    suits = [row for row in ROWS if row.suits(dialects()[name], name == "vllm", True) and not row.heavy]
    return suits if name == "vllm" else [row for row in suits if row.to in ("chat", "stream")]


# FastChat's whole answers may differ from its streamed ones: it streams in groups and holds half a character back
@pytest.mark.parametrize(
    ("name", "row"),
    [
        pytest.param(name, row, id=f"{name}-{row.name}",
                     marks=pytest.mark.xfail(reason=row.pending, strict=True) if row.pending else ())
        for name in ("vllm", "fastchat") for row in rows(name) if not row.patient
    ],
)  # fmt: skip
def test_a_fault(
    name: str, row: Row, request: pytest.FixtureRequest, certs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    prove(row, request.getfixturevalue(name), certs, monkeypatch)


@pytest.mark.parametrize("name", ["vllm", "fastchat"])
def test_faults_that_take_a_whole_time_out(
    name: str, request: pytest.FixtureRequest, certs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = [row for row in rows(name) if row.patient]
    assert len(patient) > 10
    assert prove_together(patient, request.getfixturevalue(name), certs, monkeypatch) == []
