"""Both pages in a real Chromium: self-contained, updated in place, accessible, on any screen width."""

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

from .conftest import RecordedPage, all_checked, target, wait_until

pytestmark = pytest.mark.browser
Visit = Callable[..., RecordedPage]
# row headers squeezed to a few letters per line: they fit, but nobody can read them
SQUEEZED = """[...document.querySelectorAll('tbody th')].filter(one => {
    const text = document.createRange();
    text.selectNodeContents(one);
    return text.getClientRects().length > 6 && one.offsetWidth < 90;
}).length"""
# measured on the document: an element that scrolls in a box of its own doesn't widen the page
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
FOCUSED = "document.activeElement.innerText || document.activeElement.id"


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., str]:
    """`report(*endpoints)` writes an HTML report and returns its file:// URL."""

    def write(*endpoints: EndpointReport) -> str:
        path = tmp_path / "report.html"
        path.write_text(as_html(Report(endpoints, STARTED, "deep", 2.5)), "utf-8")
        return path.as_uri()

    return write


@pytest.fixture
def exporter(export: Callable[..., Exporter], fake: Fake) -> Exporter:
    one = export([target(fake, "gpu box"), target(fake, "second")], Options(profile="default", timeout=5.0))
    wait_until(lambda: all_checked(one))
    return one


def break_chat(fake: Fake) -> None:
    fake.routes["POST /v1/chat/completions"] = Answer(500, b'{"error": {"message": "the engine died"}}')


def test_a_report_file_is_self_contained(visit: Visit, report: Callable[..., str]) -> None:
    url = report(GOOD, BAD)
    recorded = visit(url)
    assert recorded.page.title() == "NOT healthy · stackgen check"
    assert recorded.foreign_requests(url) == [] and recorded.messages == []
    # the CSS was applied, so its hash in the policy is right
    assert recorded.page.locator(".verdict").evaluate("one => getComputedStyle(one).display") == "flex"


def test_scripts_in_server_responses_do_not_run(visit: Visit, report: Callable[..., str]) -> None:
    results = (
        Result("models", status="fail", seconds=0.1, message=EVIL, hint=IMAGE, evidence=EVIL + IMAGE, model=IMAGE),
    )
    url = report(EndpointReport(IMAGE, base_url="http://x/v1", dialect=EVIL, results=results, answer=EVIL))
    recorded = visit(url)
    recorded.page.wait_for_timeout(200)
    assert recorded.foreign_requests(url) == [] and recorded.messages == []
    assert recorded.page.get_by_text(EVIL).count() >= 2
    # second line of defence: the policy blocks a script that is in the page
    recorded.page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'alert(1)'}))")
    assert any("Content Security Policy" in one for one in recorded.messages)
    assert not any(one == "1" for one in recorded.messages)


@pytest.mark.parametrize("width", [320, 360, 768, 1200])
def test_a_report_fits_any_screen(visit: Visit, report: Callable[..., str], width: int) -> None:
    long = replace(
        BAD,
        name="n" * 120,
        base_url="https://" + "h" * 200,
        results=(
            *BAD.results,
            Result(
                "chat",
                status="fail",
                seconds=1.0,
                message="m" * 500,
                hint="h" * 300,
                evidence="e" * 900,
                model="model/" + "x" * 200,
            ),
        ),
    )
    page = visit(report(GOOD, long), width).page
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate(OVERFLOW) == 0
    assert page.evaluate(SQUEEZED) == 0


@pytest.mark.parametrize("width", [360, 400, 1200])
def test_wrapped_summary_lines_are_aligned_with_the_name(visit: Visit, report: Callable[..., str], width: int) -> None:
    page = visit(report(replace(BAD, name="llama-3-8b", base_url="http://127.0.0.1:42123/v1")), width).page
    left = page.locator(".line > *").evaluate_all("all => all.map(one => Math.round(one.getBoundingClientRect().left))")
    assert len(left) > 2 and min(left) == left[0]


def test_a_report_can_be_used_by_keyboard(visit: Visit, report: Callable[..., str]) -> None:
    page = visit(report(GOOD, BAD)).page
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the endpoints")
    assert skip.evaluate("one => one === document.activeElement")
    assert skip.bounding_box()["y"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "endpoints"
    # the failing endpoint first, then the collapsed one
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


def test_a_report_is_readable_by_screen_readers(visit: Visit, report: Callable[..., str]) -> None:
    page = visit(report(GOOD, BAD), width=360).page
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.get_by_role("main").count() == 1
    assert page.get_by_role("heading", name="Failing (1)", level=2).is_visible()
    assert page.get_by_role("img", name="Time to first token").count() == 1
    table = page.get_by_role("table", name="Checks").first
    # on a narrow screen rows are displayed as blocks but remain rows for screen readers
    assert table.get_by_role("row").count() == 5
    snapshot = table.aria_snapshot()
    for text in ('rowheader "models"', 'cell "fail"', 'cell "not listed"', 'columnheader "Status"'):
        assert text in snapshot, snapshot


def test_a_report_of_a_thousand_endpoints_opens(visit: Visit, report: Callable[..., str]) -> None:
    many = [replace(BAD if n % 10 == 0 else GOOD, name=f"endpoint-{n}") for n in range(1000)]
    page = visit(report(*many), width=360).page
    assert page.locator("details.endpoint").count() == 1000
    assert page.locator("details.endpoint[open]").count() == 12
    page.locator("summary", has_text="endpoint-999").click()
    assert page.locator("details.endpoint[open]").count() == 13
    assert page.evaluate(OVERFLOW) == 0


def test_the_status_page_is_self_contained(visit: Visit, exporter: Exporter) -> None:
    recorded = visit(exporter.url)
    # a poll or two
    recorded.page.wait_for_timeout(4000)
    assert len(recorded.requests) >= 2
    assert recorded.foreign_requests(exporter.url) == [] and recorded.messages == []


def test_changes_appear_without_a_reload_and_keep_focus_and_scroll_position(
    visit: Visit, exporter: Exporter, fake: Fake
) -> None:
    recorded = visit(exporter.url, width=360)
    page: Any = recorded.page
    page.set_viewport_size({"width": 360, "height": 320})
    page.evaluate("window.mark = 1")
    link = page.get_by_role("link", name="gpu box")
    link.focus()
    page.evaluate("scrollTo(0, 120)")
    scroll_position = page.evaluate("scrollY")
    assert scroll_position > 0
    row = page.locator('tr[data-name="gpu box"]')
    assert row.get_by_text("up", exact=True).is_visible()
    break_chat(fake)
    row.get_by_text("down", exact=True).wait_for(timeout=15_000)
    wait_until(lambda: page.title() == "(2 down) stackgen")
    assert "the engine died" in row.inner_text()
    assert page.get_by_text("2 of 2 endpoints are down").is_visible()
    # screen readers announce the live region
    live = page.get_by_role("status")
    assert live.get_attribute("aria-live") == "polite"
    assert "gpu box is down: chat (tiny)" in live.inner_text()
    assert " down" in row.get_by_role("img").get_attribute("aria-label")
    fake.routes.update(vllm_routes())
    row.get_by_text("up", exact=True).wait_for(timeout=15_000)
    wait_until(lambda: "gpu box is up again" in live.inner_text() or "second is up again" in live.inner_text())
    assert page.evaluate("window.mark") == 1
    assert link.evaluate("one => one === document.activeElement")
    assert page.evaluate("scrollY") == scroll_position
    assert recorded.messages == []


def test_the_page_says_when_the_exporter_is_unreachable(visit: Visit, exporter: Exporter) -> None:
    page = visit(exporter.url).page
    exporter.stop()
    page.get_by_text("The exporter does not respond").wait_for(timeout=15_000)


@pytest.mark.parametrize("width", [320, 360, 768, 1200])
def test_the_status_page_fits_any_screen(visit: Visit, export: Callable[..., Exporter], fake: Fake, width: int) -> None:
    exporter = export(
        [target(fake, "n" * 100), target(fake, "llamacpp-smollm2")], Options(select=("chat", "stream"), timeout=5.0)
    )
    wait_until(lambda: all_checked(exporter))
    page = visit(exporter.url, width).page
    assert page.evaluate(OVERFLOW) == 0
    # regression: next to columns of numbers the name was squeezed
    assert page.locator("#rows th").last.evaluate("one => one.offsetWidth") >= 160
    break_chat(fake)
    page.get_by_text("2 of 2 endpoints are down").wait_for(timeout=15_000)
    assert page.evaluate(OVERFLOW) == 0
    assert page.evaluate(SQUEEZED) == 0


def test_the_status_page_can_be_used_by_keyboard(visit: Visit, exporter: Exporter) -> None:
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


def test_healthy_rows_can_be_hidden(visit: Visit, exporter: Exporter) -> None:
    page = visit(exporter.url).page
    page.get_by_label("Hide endpoints that are up").check()
    assert page.locator("#rows tr:visible").count() == 0


def test_the_status_page_is_readable_by_screen_readers(visit: Visit, exporter: Exporter) -> None:
    page = visit(exporter.url, width=360).page
    table = page.get_by_role("table", name="Monitored endpoints and the results of their latest round")
    assert table.get_by_role("row").count() == 3
    assert table.get_by_role("rowheader").first.inner_text().startswith("gpu box")
    assert table.get_by_role("img").first.get_attribute("aria-label").startswith("endpoint down in none of the last ")
    snapshot = page.locator("body").aria_snapshot()
    for text in ("All 2 endpoints are up", 'checkbox "Hide endpoints that are up"', 'columnheader "TTFT"'):
        assert text in snapshot, snapshot


def test_without_javascript_the_table_is_shown_and_reloaded(visit: Visit, exporter: Exporter) -> None:
    page = visit(exporter.url, java_script_enabled=False).page
    assert page.locator("#rows tr").count() == 2
    assert page.get_by_text("All 2 endpoints are up").is_visible()
    assert '<noscript><meta http-equiv="refresh" content="20"></noscript>' in page.content()


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_light_and_dark_color_schemes(
    visit: Visit, exporter: Exporter, report: Callable[..., str], scheme: str, dark: bool
) -> None:
    for url in (exporter.url, report(GOOD)):
        page = visit(url, color_scheme=scheme).page
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        bright = sum(int(part) for part in color[4:-1].split(","))
        assert (bright < 200) is dark


DRAWING = "[...document.querySelectorAll('svg rect')].map(one => [...one.attributes].map(a => a.value).join()).sort()"


def test_script_and_server_round_bar_heights_alike(visit: Visit, exporter: Exporter) -> None:
    assert exporter.checker.stop(15.0)
    page: Any = visit(exporter.url).page
    for one in exporter.state.snapshot():
        assert one.report
        # heights of 22 * 1/8 and 22 * 7/8 end in .25 and .75, which Python and JavaScript round differently
        for ttft in (0.8, 0.1, 0.7):
            stream = Result("stream", status="pass", seconds=1.0, message="m", figures={"ttft_seconds": ttft})
            exporter.state.record(replace(one.report, results=(stream,)))
    drawn_by_server = visit(exporter.url).page.evaluate(DRAWING)
    wait_until(lambda: page.evaluate(DRAWING) == drawn_by_server)


def test_the_script_draws_the_same_chart_as_the_server(visit: Visit, exporter: Exporter, fake: Fake) -> None:
    """Template and script both draw it: compares the chart after a poll with the one after a reload."""
    recorded = visit(exporter.url)
    page: Any = recorded.page
    first = page.evaluate(DRAWING)
    wait_until(lambda: page.evaluate(DRAWING) != first)
    assert exporter.checker.stop(15.0)
    whole = visit(exporter.url).page.evaluate(DRAWING)
    # the next poll gets the last rounds
    wait_until(lambda: page.evaluate(DRAWING) == whole)
    assert len(whole) >= 4
    for one in exporter.state.snapshot():
        assert one.report
        # another round that ends in the same second as the one before
        exporter.state.record(one.report, one.checked)
    longer = visit(exporter.url).page.evaluate(DRAWING)
    assert len(longer) > len(whole)
    wait_until(lambda: page.evaluate(DRAWING) == longer)
