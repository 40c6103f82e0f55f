"""Lines that a terminal or a chat has broken are read as the program wrote them; other logs stay as they are."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

import pytest

from stackgen.diagnose import diagnose
from stackgen.diagnose.unwrap import find_unwrapped, join_cut_lines
from stackgen.runtimes.observation.evidence import collect_from_log
from tests.diagnose.reports import Report, load_reports

NAMES = ("91-free-memory-below-share", "fifth-kv-cache-wrapped", "48-awq-group-tensor-parallel",
         "second-marlin-slice", "fourteenth-rank-at-a-docker-address", "58-tokenizers-backend-finetune")  # fmt: skip
REPORTS = [one for one in load_reports() if one.name in NAMES]
KV_CACHE = (
    "(EngineCore pid=86) ERROR 05-16 04:02:07 [core.py:1159] ValueError: To serve at least one request with the "
    "models's max seq len (131072), (16.00 GiB KV cache is needed, which is larger than the available KV cache memory "
    "(9.58 GiB). Based on the available memory, the estimated maximum model length is 78480. Try increasing "
    "`gpu_memory_utilization` or decreasing `max_model_len` when initializing the engine."
)


def cut(text: str, width: int) -> str:
    parts = (line[at : at + width] for line in text.splitlines() for at in range(0, max(1, len(line)), width))
    return "\n".join(parts) + "\n"


def wrap(text: str, width: int) -> str:
    lines: Iterable[str] = text.splitlines()
    return "\n".join("\n".join(textwrap.wrap(one, width, break_on_hyphens=False)) or one for one in lines) + "\n"


@pytest.mark.parametrize("width", [80, 100, 120, 158])
@pytest.mark.parametrize("report", REPORTS, ids=lambda one: one.name)
def test_a_log_that_a_terminal_cut_gets_the_same_cause(report: Report, width: int) -> None:
    found = diagnose(collect_from_log(cut(report.text, width)))
    assert found[0].id == report.rule, [(one.id, one.evidence) for one in found]


@pytest.mark.parametrize("width", [72, 90, 120])
@pytest.mark.parametrize("broken", [cut, wrap])
def test_a_message_of_several_lines_shows_its_numbers(broken: object, width: int) -> None:
    assert callable(broken)
    found = diagnose(collect_from_log(broken(KV_CACHE, width)))
    assert found[0].id == "SG-V012" and "78480" in found[0].fix + found[0].cause + str(found[0].edit), found[0]


def test_logs_that_nobody_broke_stay_as_they_are() -> None:
    # a restart loop prints lines of the same width again and again
    log = "load_backend: loaded CPU backend from /app/libggml-cpu-alderlake.so\nerror: invalid argument: 0.0.0.0\n" * 3
    assert join_cut_lines(log) == log
    log = "(EngineCore pid=86) INFO 05-16 04:02:07 [core.py:1159] one line of the log that is long\n" * 3
    assert join_cut_lines(log) == log and not list(find_unwrapped(log))
