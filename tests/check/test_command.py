"""`stackgen check` as users and CI run it: whole processes against fakes."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest

from .fake import GOOD_STREAM, KEY, Answer, Fake, Request, events, raw_server, slow

Run = subprocess.CompletedProcess[str]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "STACKGEN_API_KEY"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "stackgen", *arguments]


def check(*arguments: str, fake: Fake | None = None) -> Run:
    where = ["--base-url", fake.url, "--api-key", KEY] if fake else []
    return subprocess.run(
        command("check", *where, *arguments), capture_output=True, text=True, env=ENVIRONMENT, timeout=60
    )


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


def test_the_json_report_matches_the_printed_schema(vllm: Fake) -> None:
    schema = json.loads(check("--schema").stdout)
    done = check("--json", fake=vllm)
    assert done.returncode == 0, done.stdout + done.stderr
    jsonschema.validate(json.loads(done.stdout), schema)


def test_an_unhealthy_endpoint_exits_with_1_and_a_wrong_argument_with_2(vllm: Fake) -> None:
    vllm.chat(Answer(500, b"oops", "text/plain"))
    assert check(fake=vllm).returncode == 1
    for arguments in (("--select", "chta"), ("--timeout", "0"), ("--load", "-1"), ("--base-url", "nowhere")):
        done = check(*arguments, fake=vllm)
        assert done.returncode == 2, arguments
        assert "hint" in done.stderr or "above 0" in done.stderr
        assert "Traceback" not in done.stderr


def test_junit_and_html_files_are_written(vllm: Fake, tmp_path: Path) -> None:
    page, cases = tmp_path / "new" / "report.html", tmp_path / "report.xml"
    done = check("--html", str(page), "--junit", str(cases), fake=vllm)
    assert done.returncode == 0, done.stderr
    assert ElementTree.fromstring(cases.read_text()).get("failures") == "0"
    assert "<!doctype html>" in page.read_text().lower()[:40]
    assert KEY not in page.read_text() + cases.read_text()


@pytest.mark.parametrize("option", ["--junit", "--html"])
def test_an_unwritable_file_is_reported_before_any_request(vllm: Fake, tmp_path: Path, option: str) -> None:
    (tmp_path / "file").write_text("")
    for path, expected in (
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "report", "is not a writable folder"),
    ):
        done = check(option, str(path), fake=vllm)
        # exit code 3: this machine is not ready
        assert done.returncode == 3
        assert f"{path} " in done.stderr and expected in done.stderr and option in done.stderr
    assert not vllm.seen


def test_pipes_and_links_stay_pipes_and_links(vllm: Fake, tmp_path: Path) -> None:
    pipe, link, real = tmp_path / "pipe", tmp_path / "link", tmp_path / "elsewhere" / "report.html"
    os.mkfifo(pipe)
    real.parent.mkdir()
    real.write_text("old")
    link.symlink_to(real)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True) as reader:
        done = check("--quick", "--junit", str(pipe), "--html", str(link), fake=vllm)
        assert done.returncode == 0, done.stderr
        assert reader.stdout is not None
        assert ElementTree.fromstring(reader.stdout.read()).get("failures") == "0"
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert link.is_symlink() and real.read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "link", "pipe"]


@pytest.mark.parametrize("to_file", [False, True])
def test_a_file_may_be_standard_output(vllm: Fake, tmp_path: Path, to_file: bool) -> None:
    """`-`, or the file that the shell redirects stdout to; the text report then goes to stderr."""
    out = tmp_path / "out"
    where = str(out) if to_file else "-"
    with out.open("w") as stdout:
        done = subprocess.run(command("check", "--base-url", vllm.url, "--api-key", KEY, "--quick", "--junit", where),
                              stdout=stdout, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, timeout=60,
                              cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0
    assert ElementTree.fromstring(out.read_text()).get("failures") == "0"
    assert "healthy: 1 endpoint" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("more", [("--json",), ("--watch", "1"), ("--html", "-")])
def test_only_one_output_may_use_standard_output(vllm: Fake, more: tuple[str, ...]) -> None:
    done = check("--junit", "-", *more, fake=vllm)
    assert done.returncode == 2 and "can't share standard output" in done.stderr
    assert not vllm.seen


def test_a_failed_file_does_not_lose_the_report(vllm: Fake, tmp_path: Path) -> None:
    folder, page = tmp_path / "new", tmp_path / "page.html"

    def gone(_: Request) -> Answer:
        # during the check, a file appears where the folder should be created
        folder.write_text("")
        return Answer(200, b"")

    vllm.routes["GET /health"] = gone
    done = check("--junit", str(folder / "report.xml"), "--html", str(page), fake=vllm)
    assert done.returncode == 3 and "report.xml can't be written" in done.stderr
    assert "healthy: 1 endpoint" in done.stdout
    assert page.exists()


def test_debug_shows_requests_and_no_key(vllm: Fake) -> None:
    arguments = command("--debug", "check", "--base-url", vllm.url, "--api-key", KEY)
    done = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    assert "chat: POST" in done.stderr
    assert "> {" in done.stderr
    assert KEY not in done.stderr + done.stdout


def test_watch_prints_changes_only(vllm: Fake) -> None:
    arguments = command("check", "--base-url", vllm.url, "--api-key", KEY, "--quick", "--watch", "0.5")
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as watch:
        assert watch.stdout is not None
        assert "✓ pass" in watch.stdout.readline()
        vllm.chat(Answer(500, b'{"error":{"message":"EngineDeadError"}}'))
        changed = watch.stdout.readline()
        assert "chat [tiny]: pass → fail" in changed or "chat [tiny]: warn → fail" in changed
        assert "EngineDeadError" in changed
        watch.send_signal(signal.SIGINT)
        # the exit code is that of the last round
        try:
            assert watch.wait(timeout=10) == 1
        finally:
            watch.kill()


def test_rounds_end_the_watch(vllm: Fake) -> None:
    done = check("--quick", "--watch", "0.5", "--rounds", "2", "--json", fake=vllm)
    assert [json.loads(line)["ok"] for line in done.stdout.splitlines()] == [True, True]


def test_watch_prints_two_urls_of_one_host_separately(vllm: Fake) -> None:
    vllm.routes |= {route.replace(" /v1/", " /other/v1/"): answer for route, answer in vllm.routes.items()}
    vllm.routes["POST /other/v1/chat/completions"] = Answer(500, b"{}")
    done = check("--base-url", f"{vllm.url.removesuffix('/v1')}/other/v1", "--select", "chat", "--watch", "0.1",
                 "--rounds", "3", fake=vllm)  # fmt: skip
    lines = [line.split(None, 1)[1] for line in done.stdout.splitlines()]
    assert len(lines) == 2, done.stdout
    assert [line.split()[:2] for line in lines] == [["✓", "pass"], ["✗", "fail"]]
    assert f"127.0.0.1:{vllm.port}-2" in lines[1]


def test_watch_does_not_repeat_a_failed_limit_with_new_figures(vllm: Fake) -> None:
    # on any machine, each round is slower than the one before by more than the last digit of the figure
    rounds = [slow(events(*GOOD_STREAM), pause) for pause in (0.02, 0.1, 0.3)]
    vllm.stream(*rounds)
    done = check("--select", "stream", "--max-ttft", "0.001", "--watch", "0.1", "--rounds", "3", "--json", fake=vllm)
    found = [json.loads(line)["endpoints"][0]["results"] for line in done.stdout.splitlines()]
    messages = {one["message"] for results in found for one in results if one["status"] == "fail"}
    # otherwise the messages would be equal anyway, and the test would prove nothing
    assert len(messages) == 3
    vllm.stream(*rounds)
    done = check("--select", "stream", "--max-ttft", "0.001", "--watch", "0.1", "--rounds", "3", fake=vllm)
    assert len(done.stdout.splitlines()) == 1, done.stdout
    assert done.returncode == 1


@pytest.mark.parametrize("arguments", [("--watch", "inf"), ("--watch", "nan"), ("--watch", "-1"), ("--wait", "inf"),
                                   ("--watch", "1", "--rounds", "0"), ("--watch", "1", "--rounds", "-1"),
                                   ("--timeout", "inf"), ("--timeout", "1e9")])  # fmt: skip
def test_invalid_times_and_rounds_are_an_input_error(vllm: Fake, arguments: tuple[str, ...]) -> None:
    done = check(*arguments, fake=vllm)
    assert done.returncode == 2, done.stderr
    assert arguments[-2].strip("-") in done.stderr and "must" in done.stderr and "Traceback" not in done.stderr
    assert not vllm.seen


SILENT = [
    ("check",),
    ("check", "--watch", "1"),
    ("check", "--watch", "1", "--json"),
    ("ask", "hi", "--model", "tiny"),
    ("ask", "hi", "--model", "tiny", "--stream"),
    ("ask", "hi", "--model", "tiny", "--base-url", "{url}/other/v1"),
    ("exporter", "--once"),
]


@pytest.mark.parametrize("arguments", SILENT, ids=lambda arguments: " ".join(arguments))
def test_ctrl_c_ends_every_command_that_waits_for_a_silent_server(arguments: tuple[str, ...]) -> None:
    requested, finished = threading.Event(), threading.Event()

    def silent(connection: socket.socket) -> None:
        # `connect` sends nothing and disconnects
        if connection.recv(65536):
            requested.set()
            finished.wait(30)

    with raw_server(silent) as port:
        url = f"http://127.0.0.1:{port}"
        line = command(
            arguments[0], "--base-url", url, "--timeout", "60", *(word.format(url=url) for word in arguments[1:])
        )
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as one:
            try:
                assert requested.wait(30)
                one.send_signal(signal.SIGINT)
                # well below the timeout, even on a slow machine
                out, err = one.communicate(timeout=20)
            finally:
                one.kill()
                finished.set()
        # no result, so no verdict
        assert (one.returncode, out) == (130, "")
        assert err.endswith("stackgen: stopped\n") and "Traceback" not in err


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


def test_a_docker_engine_that_does_not_answer_is_reported(vllm: Fake, tmp_path: Path) -> None:
    """The stack is known, so its services should be observed, but can't be."""
    data = {
        "name": "it",
        "models": [{"model": "org/tiny", "served_names": ["tiny"], "engine": "vllm", "port": vllm.port}],
    }
    (tmp_path / "stack.yaml").write_text(json.dumps(data))
    arguments = command("check", str(tmp_path), "--api-key", KEY, "--json")
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60,
                          env=ENVIRONMENT | {"DOCKER_HOST": f"unix://{tmp_path}/nope"})  # fmt: skip
    assert done.stdout, done.stderr
    (endpoint,) = json.loads(done.stdout)["endpoints"]
    found = {one["name"]: one for one in endpoint["results"]}
    for name in ("containers", "topology"):
        assert found[name]["status"] == "skip"
        assert found[name]["message"].startswith("the Docker engine does not answer: ")
        assert found[name]["message"].count("does not answer") == 1
    assert found["chat"]["status"] == "pass", found["chat"]


def after_ctrl_c(code: str) -> tuple[int, str]:
    """Exit code and stderr of a program that gets Ctrl-C while it sleeps, after it has printed `asked`."""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as one:
        try:
            assert one.stdout and one.stdout.readline() == "asked\n"
            # only once it sleeps: before that, Python itself handles the signal
            asleep = 0
            while asleep < 5:
                state = Path(f"/proc/{one.pid}/stat").read_text().rpartition(")")[2].split()[0]
                asleep = asleep + 1 if state == "S" else 0
                time.sleep(0.02)
            one.send_signal(signal.SIGINT)
            _, err = one.communicate(timeout=40)
        finally:
            one.kill()
    return one.returncode, err


def test_ctrl_c_ends_a_command_even_if_python_loses_the_exception() -> None:
    """Python only prints an exception in a finalizer, also that of Ctrl-C."""
    code = (
        "import sys, time\n"
        "from stackgen.cli.commands.output import exit_on_interrupt\n"
        "class Last:\n"
        "    def __del__(self):\n"
        "        print('asked', flush=True)\n"
        "        time.sleep(60)\n"
        "with exit_on_interrupt():\n"
        "    last = Last()\n"
        "    del last\n"
        "    time.sleep(60)\n"
    )
    ended, err = after_ctrl_c(code)
    assert "Exception ignored in" in err and err.endswith("stackgen: stopped\n")
    assert ended == 130


def test_ctrl_c_ends_a_command_whose_system_call_it_does_not_interrupt() -> None:
    """A signal that comes just before the system call that waits does not end that wait.

    That moment can't be had at will, so the signal is kept from the thread that waits: another one takes it, Python
    notes it, and nothing wakes the wait either.
    """
    code = (
        "import signal, socket\n"
        "from stackgen.cli.commands.output import exit_on_interrupt\n"
        "one, other = socket.socketpair()\n"
        "one.settimeout(60)\n"
        "with exit_on_interrupt():\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})\n"
        "    print('asked', flush=True)\n"
        "    one.recv(1)\n"
    )
    ended, err = after_ctrl_c(code)
    assert (ended, err) == (130, "stackgen: stopped\n")
