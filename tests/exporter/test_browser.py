"""Both pages in a real Chromium: nothing from elsewhere, live without losing the reader's place, for everybody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stackgen.check.options import Options
from stackgen.check.report import EndpointReport, Report, Result
from stackgen.check.report.page import as_html
from stackgen.exporter import Exporter
from tests.check.fake import Answer, Fake, vllm_routes
from tests.check.test_page import BAD, EVIL, GOOD, IMAGE, STARTED

from .conftest import Watched, checked, target, until

pytestmark = pytest.mark.browser
Visit = Callable[..., Watched]
# what a reader sees: an element that is scrolled out of a box of its own widens nothing
# a name that is squeezed to a letter a line fits, and nobody can read it
SQUEEZED = """[...document.querySelectorAll('tbody th')].filter(one => {
    const words = document.createRange();
    words.selectNodeContents(one);
    return words.getClientRects().length > 6 && one.offsetWidth < 90;
}).length"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
FOCUSED = "document.activeElement.innerText || document.activeElement.id"


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., str]:
    """`report(endpoints…)` writes a page; its file:// address."""

    def write(*endpoints: EndpointReport) -> str:
        path = tmp_path / "report.html"
        path.write_text(as_html(Report(endpoints, STARTED, "deep", 2.5)), "utf-8")
        return path.as_uri()

    return write


@pytest.fixture
def exporter(export: Callable[..., Exporter], fake: Fake) -> Exporter:
    one = export([target(fake, "gpu box"), target(fake, "second")], Options(profile="default", timeout=5.0))
    until(lambda: checked(one))
    return one


def break_it(fake: Fake) -> None:
    fake.routes["POST /v1/chat/completions"] = Answer(500, b'{"error": {"message": "the engine died"}}')


def test_a_report_from_a_file_needs_nothing_else(visit: Visit, report: Callable[..., str]) -> None:
    url = report(GOOD, BAD)
    seen = visit(url)
    assert seen.page.title() == "NOT healthy · stackgen check"
    assert seen.strangers(url) == [] and seen.complaints == []
    # the style's hash in the policy is right: without it the page would be black on white
    assert seen.page.locator(".verdict").evaluate("one => getComputedStyle(one).display") == "flex"


def test_what_servers_say_runs_nowhere(visit: Visit, report: Callable[..., str]) -> None:
    results = (Result("models", "fail", 0.1, EVIL, IMAGE, EVIL + IMAGE, IMAGE),)
    url = report(EndpointReport(IMAGE, "http://x/v1", EVIL, results, EVIL))
    seen = visit(url)
    seen.page.wait_for_timeout(200)
    assert seen.strangers(url) == [] and seen.complaints == []
    assert seen.page.get_by_text(EVIL).count() >= 2
    # a second wall: were a script in the page, the policy would stop it
    seen.page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'alert(1)'}))")
    assert any("Content Security Policy" in one for one in seen.complaints)
    assert not any(one == "1" for one in seen.complaints)


@pytest.mark.parametrize("width", [320, 360, 768, 1200])
def test_a_report_fits_any_screen(visit: Visit, report: Callable[..., str], width: int) -> None:
    long = replace(BAD, name="n" * 120, base_url="https://" + "h" * 200, results=(
        *BAD.results, Result("chat", "fail", 1.0, "m" * 500, "h" * 300, "e" * 900, "model/" + "x" * 200)))  # fmt: skip
    page = visit(report(GOOD, long), width).page
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate(OVERFLOW) == 0
    assert page.evaluate(SQUEEZED) == 0


@pytest.mark.parametrize("width", [360, 400, 1200])
def test_what_wraps_in_the_head_of_an_endpoint_begins_under_its_name(
    visit: Visit, report: Callable[..., str], width: int
) -> None:
    page = visit(report(replace(BAD, name="llama-3-8b", base_url="http://127.0.0.1:42123/v1")), width).page
    left = page.locator(".line > *").evaluate_all("all => all.map(one => Math.round(one.getBoundingClientRect().left))")
    assert len(left) > 2 and min(left) == left[0]


def test_a_report_by_keyboard(visit: Visit, report: Callable[..., str]) -> None:
    page = visit(report(GOOD, BAD)).page
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the endpoints")
    assert skip.evaluate("one => one === document.activeElement")
    assert skip.bounding_box()["y"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "endpoints"
    # the failing one first, then the folded one
    page.keyboard.press("Tab")
    assert page.evaluate(FOCUSED).startswith("bad")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    good = page.locator("details.endpoint").nth(1)
    while not page.evaluate(FOCUSED).startswith("good"):
        page.keyboard.press("Tab")
    assert good.get_attribute("open") is None
    page.keyboard.press("Enter")
    assert good.get_attribute("open") is not None
    assert page.get_by_role("heading", name="Latency").is_visible()


def test_a_report_for_screen_readers(visit: Visit, report: Callable[..., str]) -> None:
    page = visit(report(GOOD, BAD), width=360).page
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.get_by_role("main").count() == 1
    assert page.get_by_role("heading", name="Failing (1)", level=2).is_visible()
    assert page.get_by_role("img", name="Time to first token").count() == 1
    table = page.get_by_role("table", name="Layers").first
    # a narrow screen shows rows as blocks, and they stay rows for those who listen
    assert table.get_by_role("row").count() == 5
    told = table.aria_snapshot()
    for words in ('rowheader "models"', 'cell "fail"', 'cell "not listed"', 'columnheader "Status"'):
        assert words in told, told


def test_a_page_of_a_thousand_endpoints_opens(visit: Visit, report: Callable[..., str]) -> None:
    many = [replace(BAD if n % 10 == 0 else GOOD, name=f"endpoint-{n}") for n in range(1000)]
    page = visit(report(*many), width=360).page
    assert page.locator("details.endpoint").count() == 1000
    assert page.locator("details.endpoint[open]").count() == 12
    page.locator("summary", has_text="endpoint-999").click()
    assert page.locator("details.endpoint[open]").count() == 13
    assert page.evaluate(OVERFLOW) == 0


def test_the_status_page_needs_nothing_else(visit: Visit, exporter: Exporter) -> None:
    seen = visit(exporter.url)
    # a poll or two
    seen.page.wait_for_timeout(4000)
    assert len(seen.requests) >= 2
    assert seen.strangers(exporter.url) == [] and seen.complaints == []


def test_changes_appear_without_a_reload_and_keep_focus_and_place(visit: Visit, exporter: Exporter, fake: Fake) -> None:
    seen = visit(exporter.url, width=360)
    page: Any = seen.page
    page.set_viewport_size({"width": 360, "height": 320})
    page.evaluate("window.mark = 1")
    link = page.get_by_role("link", name="gpu box")
    link.focus()
    page.evaluate("scrollTo(0, 120)")
    place = page.evaluate("scrollY")
    assert place > 0
    row = page.locator('tr[data-name="gpu box"]')
    assert row.get_by_text("up", exact=True).is_visible()
    break_it(fake)
    row.get_by_text("down", exact=True).wait_for(timeout=15_000)
    until(lambda: page.title() == "(2 down) stackgen")
    assert "the engine died" in row.inner_text()
    assert page.get_by_text("2 of 2 endpoints down").is_visible()
    # screen readers hear it from the live region
    live = page.get_by_role("status")
    assert live.get_attribute("aria-live") == "polite"
    assert "gpu box is down: chat (tiny)" in live.inner_text()
    assert " down" in row.get_by_role("img").get_attribute("aria-label")
    fake.routes.update(vllm_routes())
    row.get_by_text("up", exact=True).wait_for(timeout=15_000)
    until(lambda: "gpu box is up again" in live.inner_text() or "second is up again" in live.inner_text())
    assert page.evaluate("window.mark") == 1
    assert link.evaluate("one => one === document.activeElement")
    assert page.evaluate("scrollY") == place
    assert seen.complaints == []


def test_an_exporter_that_is_gone_is_told(visit: Visit, exporter: Exporter) -> None:
    page = visit(exporter.url).page
    exporter.stop()
    page.get_by_text("The exporter does not answer").wait_for(timeout=15_000)


@pytest.mark.parametrize("width", [320, 360, 768, 1200])
def test_the_status_page_fits_any_screen(visit: Visit, export: Callable[..., Exporter], fake: Fake, width: int) -> None:
    exporter = export(
        [target(fake, "n" * 100), target(fake, "llamacpp-smollm2")], Options(select=("chat", "stream"), timeout=5.0)
    )
    until(lambda: checked(exporter))
    page = visit(exporter.url, width).page
    assert page.evaluate(OVERFLOW) == 0
    # beside nothing but figures, where it was squeezed once
    assert page.locator("#rows th").last.evaluate("one => one.offsetWidth") >= 160
    break_it(fake)
    page.get_by_text("2 of 2 endpoints down").wait_for(timeout=15_000)
    assert page.evaluate(OVERFLOW) == 0
    assert page.evaluate(SQUEEZED) == 0


def test_the_status_page_by_keyboard(visit: Visit, exporter: Exporter) -> None:
    page = visit(exporter.url).page
    names = []
    for _ in range(6):
        page.keyboard.press("Tab")
        names.append(page.evaluate(FOCUSED))
    assert names == ["Skip to the endpoints", "Metrics", "JSON", "only-failing", "gpu box", "second"]
    page.keyboard.press("Enter")
    page.wait_for_url("**/endpoint/second")
    assert page.get_by_role("heading", name="second").is_visible()
    page.get_by_role("link", name="All endpoints").click()
    page.wait_for_url(exporter.url)


def test_healthy_rows_can_be_left_out(visit: Visit, exporter: Exporter) -> None:
    page = visit(exporter.url).page
    page.get_by_label("Only what is not up").check()
    assert page.locator("#rows tr:visible").count() == 0


def test_the_status_page_for_screen_readers(visit: Visit, exporter: Exporter) -> None:
    page = visit(exporter.url, width=360).page
    table = page.get_by_role("table", name="Watched endpoints as their latest round found them")
    assert table.get_by_role("row").count() == 3
    assert table.get_by_role("rowheader").first.inner_text().startswith("gpu box")
    assert table.get_by_role("img").first.get_attribute("aria-label").startswith("last ")
    told = page.locator("body").aria_snapshot()
    for words in ("All 2 endpoints are up", 'checkbox "Only what is not up"', 'columnheader "First token"'):
        assert words in told, told


def test_without_scripts_the_table_is_there_and_comes_again(visit: Visit, exporter: Exporter) -> None:
    page = visit(exporter.url, java_script_enabled=False).page
    assert page.locator("#rows tr").count() == 2
    assert page.get_by_text("All 2 endpoints are up").is_visible()
    assert '<noscript><meta http-equiv="refresh" content="20"></noscript>' in page.content()


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_both_schemes(visit: Visit, exporter: Exporter, report: Callable[..., str], scheme: str, dark: bool) -> None:
    for url in (exporter.url, report(GOOD)):
        page = visit(url, color_scheme=scheme).page
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        bright = sum(int(part) for part in colour[4:-1].split(","))
        assert (bright < 200) is dark


def test_the_picture_is_the_same_from_the_server_and_from_the_script(
    visit: Visit, exporter: Exporter, fake: Fake
) -> None:
    """Two programs draw it, so they are compared: the drawing of a poll, and the one after a reload."""
    seen = visit(exporter.url)
    page: Any = seen.page
    drawing = (
        "[...document.querySelectorAll('svg rect')].map(one => [...one.attributes].map(a => a.value).join()).sort()"
    )
    first = page.evaluate(drawing)
    until(lambda: page.evaluate(drawing) != first)
    assert exporter.checker.stop(15.0)
    whole = visit(exporter.url).page.evaluate(drawing)
    # the last poll brings what the last rounds found
    until(lambda: page.evaluate(drawing) == whole)
    assert len(whole) >= 4
    for one in exporter.state.snapshot():
        assert one.report
        # one round more that ends in the second of the one before
        exporter.state.record(one.report, one.checked)
    longer = visit(exporter.url).page.evaluate(drawing)
    assert len(longer) > len(whole)
    until(lambda: page.evaluate(drawing) == longer)
