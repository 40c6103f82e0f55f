"""The HTML report: complete, safe whatever servers sent, and usable with a thousand endpoints."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product

import pytest

from stackgen.check.report import EndpointReport, Exchange, Report, Result
from stackgen.check.report.page import as_html, content_security_policy, load_css
from stackgen.check.report.plots import bar_chart, format_duration, line_chart

EVIL = "</script><script>alert(1)</script>"
IMAGE = '"><img src=x onerror=alert(2)>'
GOOD = EndpointReport(
    "good",
    base_url="http://h:8000/v1",
    dialect="vllm",
    results=(
        Result("connect", status="pass", seconds=0.01, message="answers"),
        Result("alive", status="skip", seconds=None, message="has none"),
        Result(
            "stream",
            status="pass",
            seconds=0.5,
            message="12 deltas",
            model="tiny",
            notes=("counts one too few",),
            figures={
                "ttft_seconds": 0.031,
                "inter_token_p50_seconds": 0.01,
                "inter_token_p99_seconds": 0.04,
                "tokens_per_second": 81.5,
            },
            samples={"inter_token_seconds": (0.01, 0.012, 0.04, 0.009)},
            exchanges=(
                Exchange(
                    "POST",
                    url="http://h:8000/v1/chat/completions",
                    status=200,
                    seconds=0.5,
                    started=0.0,
                    request='{"model":"tiny"}',
                    response="data: {}",
                ),
            ),
        ),
        Result(
            "load",
            status="pass",
            seconds=1.0,
            message="4 at once",
            model="tiny",
            figures={"p50_seconds": 0.4, "p99_seconds": 1.25},
            samples={"latency_seconds": (0.3, 0.4, 1.25)},
        ),
    ),
    answer="Paris",
    seconds=1.5,
)
BAD = EndpointReport(
    "bad",
    base_url="http://b:8000/v1",
    dialect="openai",
    results=(
        Result("connect", status="pass", seconds=0.01, message="answers"),
        Result("tls", status="warn", seconds=0.01, message="ends soon", hint="renew it"),
        Result(
            "models",
            status="fail",
            seconds=0.02,
            message="not listed",
            hint="name one that is",
            evidence="listed: other",
        ),
        Result("chat", status="skip", seconds=None, message="needs `models`"),
    ),
)
STARTED = "2026-11-23T14:05:09+00:00"


class Outline(HTMLParser):
    """Elements with attributes and the visible text of a page; fails if a tag is not closed."""

    VOID = frozenset(("meta", "link", "br", "img", "input"))

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def outline(*endpoints: EndpointReport) -> Outline:
    return Outline(as_html(Report(endpoints, STARTED, "deep", 2.5)))


def test_the_page_shows_everything_in_the_report() -> None:
    page = outline(GOOD, BAD)
    for text in ("Not healthy: 1 of 2 endpoints fails", "2026-11-23 14:05:09 UTC", "deep", "2.50 s", "1 fail",
                  "1 warn", "good", "http://h:8000/v1", "12 deltas", "counts one too few", "31 ms", "81.5 tokens/s",
                  "Paris", "POST http://h:8000/v1/chat/completions", "200, 500 ms", "data: {}"):  # fmt: skip
        assert text in page.text, text


def test_the_failing_endpoint_comes_first_and_its_cause_before_its_checks() -> None:
    text = outline(GOOD, BAD).text
    assert "Failing (1)" in text and "Healthy (1)" in text
    # skip the summary line, which the CSS hides while the endpoint is expanded
    start = text.index("Failed check")
    order = ("Failed check: models", "not listed", "name one that is", "listed: other", "Warning: tls",
             "needs `models`", "http://h:8000")  # fmt: skip
    positions = [text.index(part, start) for part in order]
    assert positions == sorted(positions)


def test_a_healthy_endpoint_is_collapsed_unless_it_is_the_only_one() -> None:
    def expanded(page: Outline) -> list[bool]:
        return ["open" in one for one in page.all("details") if "endpoint" in (one["class"] or "")]

    assert expanded(outline(GOOD, BAD)) == [True, False]
    assert expanded(outline(GOOD)) == [True]
    assert expanded(outline(*[replace(BAD, name=f"e{n}") for n in range(50)])) == [True] * 12 + [False] * 38


def test_server_text_never_becomes_markup() -> None:
    nasty = EVIL + IMAGE
    exchange = Exchange(
        nasty,
        url=nasty,
        status=200,
        seconds=0.1,
        started=0.0,
        request=nasty,
        response='{"a": "</pre><script>alert(1)</script>"}',
    )
    results = tuple(
        Result(
            nasty,
            status=status,
            seconds=0.1,
            message=nasty,
            hint=nasty,
            evidence=nasty,
            model=nasty,
            notes=(nasty,),
            figures={"ttft_seconds": 0.1, "inter_token_p50_seconds": 0.1},
            samples={"inter_token_seconds": (0.1, 0.2)},
            exchanges=(exchange,),
        )
        for status in ("fail", "warn", "pass", "skip")
    )
    page = Outline(
        as_html(
            Report(
                (EndpointReport(nasty, base_url=nasty, dialect=nasty, results=results, answer=nasty),), nasty, "deep"
            )
        )
    )
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe", "object"}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert EVIL in page.text and IMAGE in page.text


def test_the_page_is_self_contained_and_its_policy_forbids_the_rest() -> None:
    text = as_html(Report((GOOD, BAD), STARTED))
    page = Outline(text)
    (rule,) = [one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert rule == content_security_policy()
    assert "default-src 'none'" in content_security_policy() and "unsafe" not in content_security_policy()
    # the policy must come before the content that it restricts
    assert text.index("Content-Security-Policy") < text.index("<style")
    sources = [one[name] for _, one in page.elements for name in ("src", "href") if name in one]
    assert all((source or "").startswith(("#", "data:")) for source in sources)
    assert "url(" not in load_css() and "@import" not in load_css()
    assert f"<style>{load_css()}</style>" in text
    # style attributes would need a policy that allows any inline style
    assert not [one for _, one in page.elements if "style" in one]


def test_ids_are_unique_and_charts_have_descriptions() -> None:
    page = outline(GOOD, replace(GOOD, name="second"), BAD)
    ids = [one["id"] for _, one in page.elements if "id" in one]
    assert len(ids) == len(set(ids))
    charts = page.all("svg")
    assert len(charts) == 6
    for chart in charts:
        assert chart["role"] == "img"
        assert all(word in ids for word in (chart["aria-labelledby"] or "").split())
    assert "Inter-token latency, tiny: 4 measurements, 9.0 ms to 40 ms; p50 10 ms, p99 40 ms" in page.text
    assert "Time to first token: tiny 31 ms" in page.text
    assert "Latency under load, tiny: 3 measurements, 300 ms to 1.25 s; p50 400 ms, p99 1.25 s" in page.text


def test_heading_levels_are_not_skipped_and_tables_are_labelled() -> None:
    page = outline(GOOD, BAD)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))  # noqa: RUF007
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(one.get("scope") in ("row", "col") for one in page.all("th"))


def test_the_size_of_a_page_of_a_thousand_endpoints_is_bounded() -> None:
    many = tuple(replace(BAD if n % 10 == 0 else GOOD, name=f"endpoint-{n}") for n in range(1000))
    text = as_html(Report(many, STARTED))
    assert len(text) < 20_000_000
    page = Outline(text)
    assert "Not healthy: 100 of 1000 endpoints fail" in page.text
    # the page says what it leaves out
    assert "Requests of passed checks are omitted because this report has many endpoints" in page.text
    assert "POST" not in page.text


def test_an_empty_report_is_a_page_too() -> None:
    assert "Not healthy: nothing was checked" in outline().text


def test_only_a_served_report_links_back() -> None:
    assert 'href="../"' in as_html(Report((GOOD,), STARTED), home="../")
    assert "All endpoints" not in as_html(Report((GOOD,), STARTED))


def luminance(color: str) -> float:
    parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_is_sufficient_in_both_color_schemes() -> None:
    """WCAG 2.2 AA: 4.5 for text, 3 for graphics."""
    schemes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", load_css(), re.S)
    ]
    assert len(schemes) == 2
    for scheme in schemes:
        assert len(scheme) == len(schemes[0])
        backgrounds = ("bg", "panel", "code")
        for text, background in product(("text", "muted", "link", "pass", "warn", "fail", "skip"), backgrounds):
            assert contrast(scheme[text], scheme[background]) >= 4.5, (text, background)
        for status in ("pass", "warn", "fail", "skip"):
            assert contrast(scheme[status], scheme[f"{status}-bg"]) >= 4.5, status
            assert contrast(scheme["text"], scheme[f"{status}-bg"]) >= 4.5, status
        assert contrast(scheme["plot"], scheme["panel"]) >= 3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.0 ms"), (0.0004, "0.4 ms"), (0.00999, "10 ms"), (0.031, "31 ms"), (0.9994, "999 ms"),
     (0.9999, "1.00 s"), (9.999, "10.0 s"), (119.9, "119.9 s"), (179.7, "3 min 0 s"), (200, "3 min 20 s")],
)  # fmt: skip
def test_durations_have_a_readable_precision(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("samples", [(0.0,), (0.5,), (1e-7, 1e-7), (0.1, 0.2, 0.3), (0.001, 900.0),
                                     tuple(n / 1000 for n in range(10_000))])  # fmt: skip
def test_a_line_chart_stays_within_its_bounds(samples: tuple[float, ...]) -> None:
    plot = line_chart("t", samples, [("p50", samples[0]), ("p99", samples[-1])], "request")
    assert 1 <= len(plot.points) <= 240
    assert all(plot.left <= x <= plot.right and 0 <= y <= plot.bottom for x, y in plot.points)
    # the slowest sample is drawn, however many are left out
    assert min(y for _, y in plot.points) == pytest.approx(min(rule.y for rule in plot.rules), abs=0.5)
    ticks = [float(tick.text) for tick in plot.y_ticks]
    assert ticks == sorted(set(ticks)) and 2 <= len(ticks) <= 7
    high, low = sorted(rule.label_y for rule in plot.rules)
    assert low - high >= 12 or high == 9


def test_bars_leave_room_for_their_labels() -> None:
    plot = bar_chart("t", [("short", 0.01), ("m" * 200, 2.0)])
    assert [bar.text for bar in plot.bars] == ["10 ms", "2.00 s"]
    assert plot.bars[1].name.endswith("…") and plot.bars[1].full == "m" * 200
    assert all(plot.left + bar.width < plot.width - 50 for bar in plot.bars)
    assert plot.bars[-1].y + 30 <= plot.bottom
