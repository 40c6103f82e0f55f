"""Fixtures: an exporter on a free port, and a real Chromium that reports every request it makes."""

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
from stackgen.exporter import Exporter, monitoring
from tests.check.conftest import VLLM
from tests.check.fake import KEY, Fake, serve

CHROMIUM = shutil.which("chromium")
# the browser's own traffic would be noise in a machine without a network
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
    return Target(name, fake.url, key, ("tiny",), VLLM)


@pytest.fixture
def export() -> Iterator[Callable[..., Exporter]]:
    """`export(targets, **how)` runs an exporter until the test ends; it looks twice a second."""
    with ExitStack() as stack:

        def run(targets: list[Target], options: Options | None = None, **how: Any) -> Exporter:
            how = {"listen": "127.0.0.1:0", "interval": 0.5, **how}
            return stack.enter_context(Exporter(targets, options or monitoring(5.0), **how))

        yield run


def until(true: Callable[[], Any], seconds: float = 15.0) -> Any:
    """What `true` returns as soon as it is truthy."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := true():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come true")


def checked(exporter: Exporter) -> bool:
    return all(one.report for one in exporter.state.snapshot())


@dataclass
class Answered:
    status: int
    headers: HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


def get(exporter: Exporter, path: str, method: str = "GET", **headers: str) -> Answered:
    connection = HTTPConnection("127.0.0.1", exporter.port, timeout=10)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return Answered(response.status, response.headers, response.read())
    finally:
        connection.close()


# for the module only: Playwright keeps an event loop in this thread, beside which no test can run its own
@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, without a window."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        # conftest.py of the root makes a failure of this where STACKGEN_STRICT=1
        pytest.skip("chromium is missing (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Watched:
    """A page, and all that it asked for and complained of."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def strangers(self, own: str) -> list[str]:
        """Requests to anywhere but `own`."""
        return [url for url in self.requests if not url.startswith((own, "data:"))]


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Watched]]:
    """`visit(url, width, **context)` opens a page; it counts as failed when the page logs an error."""
    with ExitStack() as stack:

        def run(url: str, width: int = 1200, **how: Any) -> Watched:
            context = chromium.new_context(viewport={"width": width, "height": 800}, **how)
            stack.callback(context.close)
            page = context.new_page()
            watched = Watched(page)
            page.on("request", lambda request: watched.requests.append(request.url))
            page.on("console", lambda message: watched.complaints.append(message.text))
            page.on("pageerror", lambda error: watched.complaints.append(str(error)))
            page.on("dialog", lambda dialog: (watched.complaints.append(dialog.message), dialog.dismiss()))
            page.goto(url)
            return watched

        yield run
