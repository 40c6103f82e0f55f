"""`stackgen check` as people and CI call it: whole processes against fakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import jsonschema

from .fake import KEY, Answer, Fake, raw_server

Run = subprocess.CompletedProcess[str]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "STACKGEN_API_KEY"}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "stackgen", *words]


def check(*words: str, fake: Fake | None = None) -> Run:
    where = ["--base-url", fake.url, "--api-key", KEY] if fake else []
    return subprocess.run(command("check", *where, *words), capture_output=True, text=True, env=ENVIRONMENT, timeout=60)


def test_the_list_of_checks_needs_no_endpoint() -> None:
    done = check("--list")
    assert done.returncode == 0
    assert [line.split()[:2] for line in done.stdout.splitlines()][:2] == [
        ["containers", "quick"],
        ["resolve", "quick"],
    ]
    listed = {one["name"]: one for one in json.loads(check("--list", "--json").stdout)["checks"]}
    assert listed["load"]["profile"] == "deep"
    assert listed["chat"]["per_model"] is True


def test_the_report_is_as_the_printed_schema_says(vllm: Fake) -> None:
    schema = json.loads(check("--schema").stdout)
    done = check("--json", fake=vllm)
    assert done.returncode == 0, done.stdout + done.stderr
    jsonschema.validate(json.loads(done.stdout), schema)


def test_an_unhealthy_endpoint_is_1_and_a_wrong_word_2(vllm: Fake) -> None:
    vllm.chat(Answer(500, b"oops", "text/plain"))
    assert check(fake=vllm).returncode == 1
    for words in (("--select", "chta"), ("--timeout", "0"), ("--load", "-1"), ("--base-url", "nowhere")):
        done = check(*words, fake=vllm)
        assert done.returncode == 2, words
        assert "hint" in done.stderr or "above 0" in done.stderr
        assert "Traceback" not in done.stderr


def test_files_for_ci_and_for_people(vllm: Fake, tmp_path: Path) -> None:
    page, cases = tmp_path / "new" / "report.html", tmp_path / "report.xml"
    done = check("--html", str(page), "--junit", str(cases), fake=vllm)
    assert done.returncode == 0, done.stderr
    assert ElementTree.fromstring(cases.read_text()).get("failures") == "0"
    assert "<!doctype html>" in page.read_text().lower()[:40]
    assert KEY not in page.read_text() + cases.read_text()
    # a folder in the way is this machine's trouble
    assert check("--junit", str(tmp_path), fake=vllm).returncode == 3


def test_debug_shows_requests_and_no_key(vllm: Fake) -> None:
    words = command("--debug", "check", "--base-url", vllm.url, "--api-key", KEY)
    done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    assert "chat: POST" in done.stderr
    assert "> {" in done.stderr
    assert KEY not in done.stderr + done.stdout


def test_a_watch_tells_changes_only(vllm: Fake) -> None:
    words = command("check", "--base-url", vllm.url, "--api-key", KEY, "--quick", "--watch", "0.5")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as watch:
        assert watch.stdout is not None
        assert "✓ pass" in watch.stdout.readline()
        vllm.chat(Answer(500, b'{"error":{"message":"EngineDeadError"}}'))
        changed = watch.stdout.readline()
        assert "chat [tiny]: pass → fail" in changed or "chat [tiny]: warn → fail" in changed
        assert "EngineDeadError" in changed
        watch.send_signal(signal.SIGINT)
        # what it saw last is the answer
        try:
            assert watch.wait(timeout=10) == 1
        finally:
            watch.kill()


def test_rounds_end_a_watch(vllm: Fake) -> None:
    done = check("--quick", "--watch", "0.5", "--rounds", "2", "--json", fake=vllm)
    assert [json.loads(line)["ok"] for line in done.stdout.splitlines()] == [True, True]


def test_ctrl_c_does_not_wait_for_a_silent_server() -> None:
    with raw_server(lambda connection: time.sleep(8)) as port:
        words = command("check", "--base-url", f"http://127.0.0.1:{port}", "--timeout", "60")
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as one:
            time.sleep(2)
            started = time.monotonic()
            one.send_signal(signal.SIGINT)
            try:
                assert one.wait(timeout=20) == 130
            finally:
                one.kill()
            assert time.monotonic() - started < 3


def test_endpoints_of_a_file_are_checked_together(start: Callable[..., Fake], tmp_path: Path) -> None:
    fakes = [start("vllm") for _ in range(5)]
    (tmp_path / "key.env").write_text("")
    lines = "".join(
        f"  - {{name: e{n}, base_url: '{fake.url}', api_key_env: FAKE_KEY}}\n" for n, fake in enumerate(fakes)
    )
    (tmp_path / "endpoints.yaml").write_text(
        f"endpoints:\n{lines}  - {{name: gone, base_url: 'http://127.0.0.1:9/v1'}}\n"
    )
    done = subprocess.run(command("check", str(tmp_path), "--quick"), capture_output=True, text=True,
                          env=ENVIRONMENT | {"FAKE_KEY": KEY}, timeout=60)  # fmt: skip
    assert done.returncode == 1
    assert done.stdout.startswith("FAIL  gone  http://127.0.0.1:9/v1")
    assert "NOT healthy: 1 of 6 endpoints" in done.stdout
    assert "✓ pass  e3" in done.stdout


def test_a_docker_engine_that_is_away_is_told(vllm: Fake, tmp_path: Path) -> None:
    """The stack is known, so what stands behind the endpoint should be looked at, and can't be."""
    data = {
        "name": "it",
        "models": [{"model": "org/tiny", "served_names": ["tiny"], "engine": "vllm", "port": vllm.port}],
    }
    (tmp_path / "stack.yaml").write_text(json.dumps(data))
    words = command("check", str(tmp_path), "--api-key", KEY, "--json")
    done = subprocess.run(words, capture_output=True, text=True, timeout=60,
                          env=ENVIRONMENT | {"DOCKER_HOST": f"unix://{tmp_path}/nope"})  # fmt: skip
    assert done.stdout, done.stderr
    (endpoint,) = json.loads(done.stdout)["endpoints"]
    found = {one["name"]: one for one in endpoint["results"]}
    for name in ("containers", "topology"):
        assert found[name]["status"] == "skip"
        assert found[name]["message"].startswith("the Docker engine does not answer: ")
        assert found[name]["message"].count("does not answer") == 1
    assert found["chat"]["status"] == "pass", found["chat"]
