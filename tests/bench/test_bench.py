"""`stackgen bench`: what it makes of GuideLLM's reports, and that no failure passes for a measurement.

GuideLLM itself is a script here that writes a given report: the tool needs 1.5 GB, which `make bench-stack` installs.
"""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackgen.bench.curves import curve_chart
from stackgen.bench.guidellm import NAME, VERSION, read_report
from stackgen.bench.result import Level, Percentiles, Run
from stackgen.cli.main import main
from stackgen.runtimes.process.tool_environment import find_environment, tool_folder
from tests.bench.reports import failed_level, level, report
from tests.check.fake import KEY, Answer, Fake, serve

STACK = """\
name: s
port: {port}
models: [{{model: ./model, engine: vllm, gpus: none, served_names: [tiny], max_model_len: 512}}]
"""
# what the tool got, and the report that it shall write
TOOL = """\
#!{python}
import json, os, pathlib, sys
here = pathlib.Path({folder!r})
(here / "seen.json").write_text(json.dumps({{"arguments": sys.argv[1:], "environment": dict(os.environ)}}))
scenario = json.loads(pathlib.Path(sys.argv[5]).read_text())
print("Traceback\\nRuntimeError: no room for " + os.environ["GUIDELLM__SPEC__BACKEND__API_KEY"] + "\\n")
if (here / "report.json").exists():
    pathlib.Path(scenario["spec"]["outputs"][0]["path"]).write_text((here / "report.json").read_text())
sys.exit(0 if (here / "report.json").exists() else 1)
"""


class Bench:
    """A stack whose server is the fake one, and the replaced tool."""

    def __init__(self, folder: Path, fake: Fake) -> None:
        self.folder, self.fake = folder, fake

    def report(self, *levels: dict[str, Any]) -> None:
        """What the next run of the tool measures."""
        (self.folder / "tool" / "report.json").write_text(json.dumps(report(*levels)))

    def seen(self) -> dict[str, Any]:
        """Arguments and environment of the tool."""
        found: dict[str, Any] = json.loads((self.folder / "tool" / "seen.json").read_text())
        return found

    def run(self, *arguments: str) -> int:
        """The exit code of `stackgen bench`."""
        return main(["bench", str(self.folder), *arguments])

    def results(self) -> list[Path]:
        """The folders of the runs."""
        return sorted((self.folder / "bench").glob("2*"))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("STACKGEN_API_KEY", raising=False)
    folder = tool_folder(NAME, VERSION)
    (folder / "bin").mkdir(parents=True)
    (folder / ".complete").touch()
    (tmp_path / "tool").mkdir()
    tool = folder / "bin" / "python"
    tool.write_text(TOOL.format(python=sys.executable, folder=str(tmp_path / "tool")))
    tool.chmod(0o755)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    (tmp_path / ".env").write_text(f"STACKGEN_API_KEY={KEY}\n")
    with serve("vllm") as fake:
        port = int(fake.url.rsplit(":", 1)[1].partition("/")[0])
        (tmp_path / "stack.yaml").write_text(STACK.format(port=port))
        yield Bench(tmp_path, fake)


def test_a_run_prints_and_stores_what_was_measured(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.report(level(1, 100, 10), level(4, 200, 20))
    assert bench.run("--concurrency", "1,4", "--prompt-tokens", "32", "--output-tokens", "16") == 0
    out = capsys.readouterr().out
    assert "100 ms" in out and "200 ms" in out and "40 ms" in out
    (folder,) = bench.results()
    assert {one.name for one in folder.iterdir()} == {
        "scenario.json", "guidellm.json", "guidellm.log", "result.json", "report.html",
    }  # fmt: skip
    stored = json.loads((folder / "result.json").read_text())
    assert [one["load"] for one in stored["levels"]] == [1, 4] and stored["levels"][1]["ttft"]["p95"] == 0.4
    assert (bench.folder / "bench" / ".gitignore").read_text() == "*\n"
    scenario = json.loads((folder / "scenario.json").read_text())["spec"]
    assert scenario["profile"] == {"kind": "concurrent", "streams": [1, 4]}
    assert scenario["tokenizer"]["model"] == str(bench.folder / "model") and scenario["backend"]["verify"] is True


def test_a_report_of_the_real_tool() -> None:
    # 2 levels of 4 requests to vLLM 0.32.0 on the CPU, through the gateway; shortened to the fields around those read
    one, two = read_report(Path(__file__).parent / "recorded" / "guidellm-0.8.1.json")
    assert (one.load, one.succeeded, one.failed, one.unfinished, one.errors) == (1, 4, 0, 0, ())
    assert one.ttft and one.ttft.p50 == 0.033275 and one.itl and one.itl.p95 == 0.002285
    assert one.latency and one.latency.p50 == 0.043395 and round(one.requests_per_second, 1) == 6.6
    assert (two.load, two.succeeded, round(two.tokens_per_second, 1)) == (2, 4, 41.5)


def test_errors_of_the_real_tool_are_readable(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    # FastChat 0.2.36 behind the gateway, whose worker was killed during the first request
    cut = "Streaming response returned an error: a worker does not answer (RemoteProtocolError): see the stack"
    status = (
        "HTTPStatusError(\"Server error '503 Service Unavailable' for url 'http://127.0.0.1:8000/v1/completions'\\nFor "
        'more information check: https://developer.mozilla.org/en-US/docs/Web/HTTP/Status/503")'
    )
    bench.report(level(1, 100, 10, errors=(f'ValueError("{cut}\'s logs")', status, status, "RemoteProtocolError('')")))
    assert bench.run() == 1
    out = capsys.readouterr().out
    assert "2 failed: HTTP 503 Service Unavailable\n" in out and f"1 failed: {cut}'s logs\n" in out
    assert "1 failed: RemoteProtocolError('')" in out


def test_the_stack_in_the_current_folder(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # the tool runs in another folder, so a relative path would mean another file
    bench.report(level(1, 100, 10))
    monkeypatch.chdir(bench.folder)
    assert main(["bench", "."]) == 0 and main(["bench", "compare", ".", "."]) == 0


def test_the_key_is_in_no_argument_and_in_no_file(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.report(level(1, 100, 10, errors=(f"401 for {KEY}",)))
    bench.run()
    seen = bench.seen()
    assert seen["environment"]["GUIDELLM__SPEC__BACKEND__API_KEY"] == KEY and KEY not in " ".join(seen["arguments"])
    (folder,) = bench.results()
    written = [one for one in folder.iterdir() if KEY in one.read_text()]
    # the tool wrote the server's text into its own report
    assert [one.name for one in written] == []
    assert KEY not in "".join(capsys.readouterr())
    # the log is evidence of the redaction: the tool printed the key
    assert "no room for [key]" in (folder / "guidellm.log").read_text()


def test_a_measurement_in_which_every_request_failed_is_an_error(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.report(failed_level(1, "HTTP 500", "HTTP 500"))
    assert bench.run() == 1
    assert "no request of the measurement succeeded: HTTP 500" in capsys.readouterr().err


def test_failed_requests_are_counted_with_their_reason(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.report(level(1, 100, 10), level(2, 100, 10, errors=("HTTP 503", "HTTP 503", "a cut stream")))
    assert bench.run() == 1
    out = capsys.readouterr().out
    assert "2 streams: 2 failed: HTTP 503" in out and "2 streams: 1 failed: a cut stream" in out


@pytest.mark.parametrize(
    ("limits", "code", "sentence"),
    [
        (["--max-ttft", "0.5s"], 0, "up to 2 streams. At 4 streams, the p95 of the TTFT is 800 ms, above 500 ms"),
        (["--max-itl", "20ms"], 0, "up to 1 stream. At 2 streams, the p95 of the inter-token latency is 40 ms"),
        (["--max-ttft", "10ms"], 1, "no load stays within the limits. At 1 stream, the p95 of the TTFT is 200 ms"),
        (["--max-ttft", "2", "--max-itl", "1s"], 0, "every load stays within the limits, up to 4 streams"),
    ],
)
def test_the_highest_load_that_keeps_the_limits(
    bench: Bench, capsys: pytest.CaptureFixture[str], limits: list[str], code: int, sentence: str
) -> None:
    bench.report(level(1, 100, 10), level(4, 400, 40), level(2, 200, 20))
    assert bench.run(*limits) == code
    assert sentence in capsys.readouterr().out
    (folder,) = bench.results()
    assert sentence in (folder / "report.html").read_text()


def test_a_level_with_failures_does_not_keep_the_limits(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.report(level(1, 100, 10), level(2, 100, 10, errors=("HTTP 503",)))
    assert bench.run("--max-ttft", "1s") == 1
    assert "At 2 streams, 1 of 11 requests failed" in capsys.readouterr().out


def test_the_tool_failing_is_an_error_with_its_last_exception(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run() == 3
    assert "GuideLLM ended with exit code 1: RuntimeError: no room for [key]" in capsys.readouterr().err


def test_a_stack_that_does_not_answer_is_reported_before_the_tool_starts(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.fake.routes["POST /v1/chat/completions"] = Answer(500, b'{"error": {"message": "engine is dead"}}')
    assert bench.run() == 1
    error = capsys.readouterr().err
    assert "does not answer" in error and "engine is dead" in error and bench.results() == []


def test_weights_without_a_tokenizer_need_one_or_prompts(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    (bench.folder / "model" / "tokenizer.json").unlink()
    assert bench.run() == 2
    assert "--tokenizer" in capsys.readouterr().err
    bench.report(level(1, 100, 10))
    prompts = bench.folder / "prompts.jsonl"
    prompts.write_text('{"text": "Hi"}\n')
    assert bench.run("--prompts", str(prompts)) == 2 and "has no field `prompt`" in capsys.readouterr().err
    prompts.write_text('{"prompt": "Hi"}\n')
    assert bench.run("--prompts", str(prompts)) == 0
    scenario = json.loads((bench.results()[-1] / "scenario.json").read_text())["spec"]
    assert scenario["data"] == [{"kind": "json_file", "path": str(prompts)}] and "tokenizer" not in scenario


def test_prompts_that_are_longer_than_the_context_are_refused(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run("--prompt-tokens", "500") == 2
    assert "context of 512 tokens" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--rates", "0"], ["--rates", "nan"], ["--concurrency", "1.5"], ["--max-ttft", "x"]])
def test_numbers_that_make_no_sense_are_refused(bench: Bench, wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.run(*wrong)
    assert ended.value.code == 2


def test_two_runs_side_by_side(bench: Bench, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    runs = []
    for number, ttft in enumerate((100, 50)):
        bench.report(level(1, ttft, 10), level(2, 2 * ttft, 10))
        bench.run()
        (made,) = (one for one in bench.results() if one not in runs)
        # two runs within a second would share a name
        runs.append(made.rename(made.with_name(f"2026010{number}-000000")))
    capsys.readouterr()
    page = tmp_path / "compare.html"
    assert main(["bench", "compare", *map(str, runs), "--html", str(page), "--max-ttft", "150ms"]) == 0
    out = capsys.readouterr().out
    assert "0.50x" in out and "At 1 stream, the p95 of the TTFT is 200 ms" in out and "up to 1 stream" in out
    assert page.read_text().count("<polyline") == 6
    # the newest run of the stack
    assert main(["bench", "compare", str(bench.folder), str(bench.folder)]) == 0
    assert main(["bench", "compare", str(tmp_path / "cache"), str(bench.folder)]) == 2
    assert main(["bench", "compare", str(bench.folder)]) == 2


def test_rates_are_requests_that_arrive(bench: Bench) -> None:
    bench.report(level(0.5, 100, 10, kind="rate"))
    assert bench.run("--rates", "0.5") == 0
    scenario = json.loads((bench.results()[0] / "scenario.json").read_text())["spec"]
    assert scenario["profile"] == {"kind": "poisson", "rate": [0.5]}


def test_an_incomplete_environment_is_not_used(bench: Bench) -> None:
    assert find_environment(NAME, VERSION)
    (tool_folder(NAME, VERSION) / ".complete").unlink()
    assert find_environment(NAME, VERSION) is None


def test_a_tool_that_can_not_be_installed_is_reported(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tool_folder(NAME, VERSION) / ".complete").unlink()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(bench.folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert bench.run() == 3
    error = capsys.readouterr().err
    assert "guidellm" in error and "can't be installed" in error and "package index" in error
    assert stat.S_ISDIR(tool_folder(NAME, VERSION).stat().st_mode) and find_environment(NAME, VERSION) is None


def run(title: str, *latencies: float) -> Run:
    """A run with a level for each p95 of the time to first token, in seconds."""
    levels = tuple(Level(2.0**index, 10, 0, 0, 1.0, 10.0 * (index + 1), Percentiles(one, one, one), None, None)
                   for index, one in enumerate(latencies))  # fmt: skip
    return Run(title, "m", "vllm", "guidellm", "2026-11-30T00:00:00", "concurrency", 8, 8, 1.0, levels)


def test_latencies_that_differ_by_far_get_a_logarithmic_axis() -> None:
    chart = curve_chart("TTFT", "ttft", [run("a", 0.1, 0.2, 0.4), run("b", 0.5, 5, 50)], 1.0)
    assert chart and chart.unit == "s, logarithmic" and chart.limit
    assert [one.text for one in chart.y_ticks] == ["0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "50"]
    (first, _, last), (_, _, slowest) = (curve.dots for curve in chart.curves)
    assert first.y == chart.bottom and slowest.y == chart.y_ticks[-1].at and last.y > chart.limit[0] > slowest.y
    linear = curve_chart("TTFT", "ttft", [run("a", 0.1, 0.2, 0.4)])
    assert linear and linear.unit == "ms" and linear.y_ticks[0].text == "0"
    assert curve_chart("TTFT", "itl", [run("a", 0.1)]) is None


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=6), st.floats(0.001, 1000) | st.none())
def test_every_dot_and_label_is_inside_the_chart(latencies: list[float], limit: float | None) -> None:
    chart = curve_chart("TTFT", "ttft", [run("a", *latencies), run("b", *reversed(latencies))], limit)
    assert chart
    for dot in (dot for curve in chart.curves for dot in curve.dots):
        assert chart.left <= dot.x <= chart.right + 1e-6 and 0 < dot.y <= chart.bottom + 1e-6
        left, top, right, bottom = dot.label.box
        # binary fractions: a label at the edge may be outside by 1e-14
        assert -1e-6 <= left < right <= chart.width + 1e-6 and -1e-6 <= top < bottom <= chart.height + 1e-6
    # labels of ticks keep their distance
    heights = [one.at for one in chart.y_ticks]
    assert min(first - second for first, second in pairwise(heights)) >= 9
