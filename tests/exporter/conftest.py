"""Fixtures: an exporter on a free port, and a real Chromium that records every request."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPMessage
from typing import Any

import pytest

from stackgen.check.options import Options
from stackgen.check.target import Target
from stackgen.exporter import Exporter, monitoring_options
from tests.check.conftest import VLLM
from tests.check.fake import KEY, Fake, serve

CHROMIUM = shutil.which("chromium")
# no background traffic of the browser: it would only fail on a machine without a network
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def fake() -> Iterator[Fake]:
    with serve("vllm") as one:
        yield one


def target(fake: Fake, name: str = "fake", key: str | None = KEY) -> Target:
    return Target(name, base_url=fake.url, api_key=key, models=("tiny",), dialect=VLLM)


@pytest.fixture
def export() -> Iterator[Callable[..., Exporter]]:
    """`export(targets, **kwargs)` runs an exporter until the test ends; its interval is half a second."""
    with ExitStack() as stack:

        def run(targets: list[Target], options: Options | None = None, **kwargs: Any) -> Exporter:
            kwargs = {"listen": "127.0.0.1:0", "interval": 0.5, **kwargs}
            return stack.enter_context(Exporter(targets, options or monitoring_options(5.0), **kwargs))

        yield run


def wait_until(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    """Polls `condition` and returns its first truthy value; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"the condition was not met within {seconds} s")


def all_checked(exporter: Exporter) -> bool:
    return all(one.report for one in exporter.state.snapshot())


@dataclass
class Response:
    status: int
    headers: HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


def get(exporter: Exporter, path: str, method: str = "GET", **headers: str) -> Response:
    connection = HTTPConnection("127.0.0.1", exporter.port, timeout=10)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return Response(response.status, response.headers, response.read())
    finally:
        connection.close()


# module scope: Playwright keeps an event loop in this thread, so no test beside it can run its own
@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, headless."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        # with STACKGEN_STRICT=1 the root conftest.py turns this skip into a failure
        pytest.skip("chromium is missing (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class RecordedPage:
    """A page with its requests, console messages, errors and dialogs."""

    page: Any
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def foreign_requests(self, own: str) -> list[str]:
        """Requests to any other URL than `own`."""
        return [url for url in self.requests if not url.startswith((own, "data:"))]


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., RecordedPage]]:
    """`visit(url, width, **context)` opens a page and records what it does."""
    with ExitStack() as stack:

        def run(url: str, width: int = 1200, **kwargs: Any) -> RecordedPage:
            context = chromium.new_context(viewport={"width": width, "height": 800}, **kwargs)
            stack.callback(context.close)
            page = context.new_page()
            recorded = RecordedPage(page)
            page.on("request", lambda request: recorded.requests.append(request.url))
            page.on("console", lambda message: recorded.messages.append(message.text))
            page.on("pageerror", lambda error: recorded.messages.append(str(error)))
            page.on("dialog", lambda dialog: (recorded.messages.append(dialog.message), dialog.dismiss()))
            page.goto(url)
            return recorded

        yield run
