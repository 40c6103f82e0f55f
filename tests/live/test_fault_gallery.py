"""The gallery of faults before real engines: what a proxy does to a real vLLM's and a real FastChat's answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stackgen.endpoints import dialects
from tests.faults.gallery import Engine, certificates, prove
from tests.faults.rows import ROWS, Row
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
# a machine of two cores that runs other tests as well
TIMEOUT, SLACK = 8.0, 30.0


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def vllm(vllm_image: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    model = {
        "model": str(tiny_model), "engine": "vllm", "image": vllm_image, "served_names": ["tiny"],
        "max_model_len": 512, "cpu_kv_cache_gib": 1, "enforce_eager": True,
    }  # fmt: skip
    with LiveStack(
        tmp_path_factory.mktemp("vllm"), {"name": "sgtest-gallery-vllm", "port": 18131, "models": [model]}
    ) as one:
        one.up()
        yield Engine(18131, one.key, "tiny", dialects()["vllm"], TIMEOUT, SLACK, fast=True)


@pytest.fixture(scope="module")
def fastchat(fastchat_image: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    model = {"model": str(tiny_model), "engine": "fastchat", "served_names": ["tiny"]}
    data = {"name": "sgtest-gallery-fc", "port": 18132, "models": [model]}
    with LiveStack(tmp_path_factory.mktemp("fastchat"), data) as one:
        assert fastchat_image in (one.folder / "compose.yaml").read_text()
        one.up()
        yield Engine(18132, one.key, "tiny", dialects()["fastchat"], TIMEOUT, SLACK, fast=True)


# FastChat's whole answers may differ from its streamed ones: it streams in groups and holds half a character back
@pytest.mark.parametrize(
    ("name", "row"),
    [
        pytest.param(name, row, id=f"{name}-{row.name}",
                     marks=pytest.mark.xfail(reason=row.pending, strict=True) if row.pending else ())
        for name in ("vllm", "fastchat") for row in ROWS if row.suits(dialects()[name], name == "vllm", True)
    ],
)  # fmt: skip
def test_a_fault(
    name: str, row: Row, request: pytest.FixtureRequest, certs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    prove(row, request.getfixturevalue(name), certs, monkeypatch)
