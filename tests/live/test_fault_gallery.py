"""The fault gallery with real engines: a proxy alters the answers of a real vLLM and a real FastChat.

`tests/faults/test_gallery.py` proves all rows in front of recorded answers. Here are those whose fault is in an answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack

import pytest

from stackgen.providers.endpoints import dialects
from tests.faults.gallery import Engine, Gallery, parameter, selected_rows
from tests.faults.network import surroundings
from tests.faults.rows import ROWS, Row
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.xdist_group("engines"), pytest.mark.timeout(600)]
# port and model of the shared stacks
ENGINES = {"vllm": (18101, "smollm2"), "fastchat": (18111, "tiny")}
# generous, for a machine with two cores that runs other things as well
TIMEOUT, PATIENCE, SLACK = 8.0, 20.0, 27.0
# rows at a time: vLLM answers them in one batch; FastChat's worker limits its requests to five
WORKERS = {"vllm": 5, "fastchat": 3}


@pytest.fixture(scope="module")
def galleries(request: pytest.FixtureRequest, _starting: None) -> Iterator[dict[str, Gallery]]:
    """The rows of both engines, all started at once."""
    selected = selected_rows(request)
    with ExitStack() as stack:
        stack.enter_context(surroundings())
        started = {}
        for name in dict.fromkeys(name for name, _ in selected):
            live: LiveStack = request.getfixturevalue(f"_{name}").ensure_running()
            port, model = ENGINES[name]
            engine = Engine(port, live.key, model, dialects()[name], TIMEOUT, PATIENCE, SLACK, fast=True)
            rows = [row for other, row in selected if other == name]
            started[name] = (engine, rows)
        # after all engines have started, because a start leaves them little of the processor
        running: list[Future[None]] = []
        yield {name: stack.enter_context(Gallery(engine, {}, rows, WORKERS[name], running))
               for name, (engine, rows) in started.items()}  # fmt: skip


def rows_of(name: str) -> list[Row]:
    """The rows that depend on a real engine. The model list is that of vLLM alone, because both lists are alike."""
    # FastChat's plain answers may differ from its streams: it streams in groups and holds incomplete characters back
    selected = [row for row in ROWS if row.fits(dialects()[name], same=name == "vllm")]
    return selected if name == "vllm" else [row for row in selected if row.to in ("chat", "stream")]


@pytest.mark.usefixtures("vllm_stack", "fastchat_stack")
@pytest.mark.parametrize(("name", "row"), [parameter(row, name) for name in ENGINES for row in rows_of(name)])
def test_fault_is_reported(name: str, row: Row, galleries: dict[str, Gallery]) -> None:
    galleries[name].prove(row)


@pytest.mark.parametrize("name", ENGINES)
def test_faults_of_each_kind_are_proven(name: str) -> None:
    rows = rows_of(name)
    assert len([row for row in rows if row.is_slow]) > 10
    assert {row.to for row in rows} >= {"chat", "stream"}
