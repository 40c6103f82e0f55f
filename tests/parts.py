"""The parts of a test run: which tests run one after another, which side by side, and what each part took.

With `--dist loadgroup`, a group is run by one worker, and groups run side by side:

    engines, front     modules with the mark `engine`: they start real engines, which would starve each other
    FILE               every other module by itself

Groups are sorted so that the longest begin first: real engines, then containers that mostly wait, then the tests that
need no container and keep a core busy. scripts/test runs the tests without containers in a run of their own.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

__all__ = [
    "pytest_collection_modifyitems", "pytest_configure", "pytest_ignore_collect", "pytest_itemcollected",
    "pytest_runtest_logreport",
    "pytest_sessionfinish", "pytest_terminal_summary", "pytest_xdist_make_scheduler",
]  # fmt: skip

ROOT = Path(__file__).parents[1]
# groups of real engines, the longest first
ENGINE_GROUPS = ("engines", "front")
PARTS = (*ENGINE_GROUPS, "containers", "no containers")
SLOWEST = 10
# characters of a failure's message, for the list at the end of a run
REASON = 400
# value of -m → the mark that a file must name to have a test in this run
MARK_OF_RUN = {"docker": "docker", "docker and not engine": "docker", "engine": "engine"}

_started = time.monotonic()
_seconds: Counter[str] = Counter()
_tests: Counter[str] = Counter()
_slowest: defaultdict[str, Counter[str]] = defaultdict(Counter)


@cache
def _text_of(file: str) -> str:
    try:
        return (ROOT / file).read_text()
    except OSError:
        return ""


def group_of(file: str) -> str:
    """The group of a test file (path from the repository's root): that of its mark `xdist_group`, else the file."""
    found = re.search(r'xdist_group\("([^"]+)"\)', _text_of(file))
    return found[1] if found else file


class GroupScheduling(LoadScopeScheduling):
    """Sends a group to one worker. Under pytest 9.2, xdist 3.8 itself ignores groups, and spreads their tests."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid.partition("::")[0])


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling | None:
    return GroupScheduling(config, log) if config.getvalue("dist") == "loadgroup" else None


def part_of(item: pytest.Item) -> str:
    """The part of the run, as the table at the end lists it."""
    group = group_of(item.nodeid.partition("::")[0])
    if group in ENGINE_GROUPS:
        return group
    return "containers" if item.get_closest_marker("docker") else "no containers"


def _order(item: pytest.Item) -> int:
    return PARTS.index(part_of(item))


def pytest_configure(config: pytest.Config) -> None:
    global _started
    _started = time.monotonic()
    # a shell without job control starts background jobs with SIGINT ignored, and tests of Ctrl-C would inherit that
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skips the files without the mark that scripts/test selects: importing them takes each worker 10 s."""
    mark = MARK_OF_RUN.get(config.getoption("markexpr"))
    if mark and collection_path.name.startswith("test_") and collection_path.suffix == ".py":
        return f"mark.{mark}" not in _text_of(str(collection_path)) or None
    return None


def pytest_itemcollected(item: pytest.Item) -> None:
    for mark in {mark.name for mark in item.iter_markers()} & {*MARK_OF_RUN.values()}:
        if f"mark.{mark}" not in _text_of(item.nodeid.partition("::")[0]):
            raise pytest.UsageError(f'{item.nodeid} has the mark "{mark}", but its file does not name the mark')
    item.user_properties.append(("part", part_of(item)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # stable: within a part, files and tests keep their order
    items.sort(key=_order)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    part = dict(report.user_properties).get("part", "no containers")
    _seconds[part] += report.duration
    _tests[part] += report.when == "call"
    _slowest[part][report.nodeid] += report.duration
    failures = os.environ.get("STACKGEN_TEST_FAILURES")
    if report.failed and failures and not os.environ.get("PYTEST_XDIST_WORKER"):
        _append(failures, f"{report.nodeid} ({report.when}, {report.duration:.0f} s): {_reason(report)}")
        # what scripts/test runs again
        _append(f"{failures}.ids", report.nodeid)


def _append(path: str, line: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{line}\n")


def _reason(report: pytest.TestReport) -> str:
    """The message of a failure in one line: the end of a CI log must suffice to begin with."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return " ".join(str(crash.message if crash else report.longrepr).split())[:REASON]


def _table() -> Iterator[str]:
    yield f"{'part':<16}{'tests':>7}{'seconds':>9}"
    for part, seconds in _seconds.most_common():
        yield f"{part:<16}{_tests[part]:>7}{seconds:>9.0f}"
    yield f"{'all, elapsed':<16}{sum(_tests.values()):>7}{time.monotonic() - _started:>9.0f}"
    yield ""
    yield f"the {SLOWEST} slowest tests, with setup and teardown:"
    everything: Counter[str] = Counter()
    for tests in _slowest.values():
        everything.update(tests)
    for name, seconds in everything.most_common(SLOWEST):
        yield f"{seconds:>7.1f}  {name}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not _seconds or os.environ.get("PYTEST_XDIST_WORKER"):
        return
    terminalreporter.section("parts")
    for line in _table():
        terminalreporter.write_line(line)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails a run that took longer than STACKGEN_TEST_BUDGET (seconds) and names its slowest part."""
    budget = float(os.environ.get("STACKGEN_TEST_BUDGET") or 0)
    started = float(os.environ.get("STACKGEN_TEST_STARTED") or time.time())
    took = time.time() - started
    if not budget or took <= budget or os.environ.get("PYTEST_XDIST_WORKER") or not _seconds:
        return
    part, seconds = _seconds.most_common(1)[0]
    name, slowest = _slowest[part].most_common(1)[0]
    if failures := os.environ.get("STACKGEN_TEST_FAILURES"):
        # no test that could run again
        _append(f"{failures}.ids", "the budget")
    print(
        f"\nThe tests took {took / 60:.1f} minutes; the budget is {budget / 60:.0f}. The slowest part is "
        f'"{part}" ({seconds / 60:.1f} minutes of tests), and its slowest test is {name} ({slowest:.0f} s).'
    )
    session.exitstatus = pytest.ExitCode.TESTS_FAILED
