"""Tests that mostly wait for seconds run beside the next ones of their module: mark `side_by_side`.

Such a test has no other arguments than `tmp_path` and its parameters, and may not depend on what another test left.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

# more would compete for two cores while they start, and tests here look at who uses the processor
AT_ONCE = 4
RESULTS: dict[str, Future[None]] = {}


@pytest.fixture(scope="module", autouse=True)
def _side_by_side(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Starts the selected tests of the module that have the mark, in their order."""
    pool = ThreadPoolExecutor(AT_ONCE)
    for item in request.session.items:
        if item.path == request.path and isinstance(item, pytest.Function) and item.get_closest_marker("side_by_side"):
            arguments = dict(item.callspec.params) if hasattr(item, "callspec") else {}
            folder = tmp_path_factory.mktemp("beside")
            RESULTS[item.nodeid] = pool.submit(item.obj, **arguments, tmp_path=folder)
    yield
    # after Ctrl-C or with -x, those that have not begun don't
    pool.shutdown(cancel_futures=True)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """The result of a test is that of its run in the pool."""
    if (result := RESULTS.pop(pyfuncitem.nodeid, None)) is None:
        return None
    result.result()
    return True
