"""Logs as people paste them: with timestamps, from other shells, truncated, or from a server that works."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stackgen.cli.main import main
from stackgen.diagnose import Evidence, ServiceEvidence, diagnose
from stackgen.diagnose.log_lines import strip_prefix
from stackgen.diagnose.log_text import OMITTED, decode_log, shorten_long_lines
from stackgen.diagnose.rule import UNKNOWN
from stackgen.diagnose.rules import RULES
from stackgen.runtimes.observation.evidence import collect_from_log
from tests.cli.test_diagnose import piped, run
from tests.diagnose.fixtures import LOGS, load_fixture
from tests.diagnose.test_rules import first_id

PLUM = "ValueError: the frobnicator is out of plums"
TRACEBACK = f'Traceback (most recent call last):\n  File "/app/x.py", line 3, in <module>\n    frobnicate()\n{PLUM}\n'
STAMPS = {
    "docker logs --timestamps": "2026-11-23T04:27:04.123456789Z ",
    "another time zone": "2026-11-23T04:27:04.123456+01:00 ",
    "docker compose logs --timestamps": "vllm-a-1  | 2026-11-23T04:27:04.123456789Z ",
    "the journal": "Nov 23 04:27:04 gpu-host 4c01db0b339c[1234]: ",
    "the journal in ISO": "2026-11-23T04:27:04+0000 gpu-host docker-compose[1234]: ",
    "a file of Kubernetes": "2026-11-23T04:27:04.123456789Z stderr F ",
    "kubectl logs --prefix": "[pod/vllm-7d9f-abcde/vllm] ",
    "torch's rank": "[rank0]: ",
    "both": "2026-11-23T04:27:04.123456789Z [rank0]: ",
}


def stamped(stamp: str, text: str) -> str:
    return "".join(f"{stamp}{line}\n" for line in text.splitlines())


@pytest.mark.parametrize("stamp", STAMPS.values(), ids=STAMPS)
def test_an_unknown_crash_is_found_behind_timestamps(stamp: str) -> None:
    (found,) = diagnose(collect_from_log(stamped(stamp, TRACEBACK)))
    assert (found.id, found.evidence) == (UNKNOWN, (PLUM,))


@pytest.mark.parametrize("stamp", STAMPS.values(), ids=STAMPS)
def test_known_causes_are_found_behind_timestamps(stamp: str) -> None:
    for name in ("SG-V001-len", "SG-V004-misspelled", "SG-A003-choice", "SG-H001-hgated"):
        whole = load_fixture(LOGS / f"{name}.log")
        plain, below = diagnose(collect_from_log(whole.text)), diagnose(collect_from_log(stamped(stamp, whole.text)))
        assert [(one.id, one.evidence) for one in below] == [(one.id, one.evidence) for one in plain]


@pytest.mark.parametrize("stamp", STAMPS.values(), ids=STAMPS)
def test_a_healthy_log_with_timestamps_has_no_finding(stamp: str) -> None:
    for name in ("healthy-vllm", "healthy-fastchat-worker", "healthy-llamacpp"):
        assert diagnose(collect_from_log(stamped(stamp, load_fixture(LOGS / f"{name}.log").text))) == ()


@pytest.mark.parametrize(
    "text",
    [
        PLUM,
        "Segmentation fault (core dumped)",
        "/bin/sh: line 1:    12 Illegal instruction     (core dumped) llama-server",
        "Illegal instruction",
        "Fatal Python error: Segmentation fault",
        "terminate called after throwing an instance of 'c10::Error'",
        "!!!!!!! Segfault encountered !!!!!!!",
        "vllm-a-1 exited with code 1",
        "vllm-a-1  | starting\nvllm-a-1 exited with code 139",
        "(Worker_TP0 pid=12) [rank0]: Traceback (most recent call last):\n(Worker_TP0 pid=12) [rank0]: KeyError: 1",
    ],
)
def test_a_crash_with_a_short_message_is_unknown(text: str) -> None:
    (found,) = diagnose(collect_from_log(f"{text}\n"))
    assert found.id == UNKNOWN and found.evidence[-1] in " ".join(strip_prefix(text.splitlines()[-1]).split())


def test_a_service_that_somebody_stopped_has_not_failed() -> None:
    ready = "vllm-a-1  | INFO:     Application startup complete.\n"
    for code in (0, 130, 143):
        assert diagnose(collect_from_log(f"{ready}vllm-a-1 exited with code {code}\n")) == ()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig", "utf-8"])
def test_logs_in_other_encodings_are_decoded(encoding: str) -> None:
    mark = "" if encoding in ("utf-16", "utf-8-sig", "utf-8") else "\ufeff"
    assert decode_log(f"{mark}{TRACEBACK}".encode(encoding)) == TRACEBACK


def test_a_log_file_from_powershell_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(TRACEBACK.replace("\n", "\r\n").encode("utf-16"))
    code, out, _ = run(capsys, "diagnose", "--logs", str(path))
    assert code == 1 and f"  log: {PLUM}\n" in out


def test_invalid_utf8_on_standard_input_is_accepted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", piped(b"\xff Traceback\nKeyError: \xfe\n"))
    code, out, _ = run(capsys, "diagnose", "--logs", "-")
    assert code == 1 and "KeyError" in out


@pytest.mark.parametrize("text", ["", "loading the model\n", "(APIServer pid=1) INFO 11-23 04:27:04 [x.py:1] hello\n"])
def test_a_log_that_shows_nothing_is_unknown_and_not_healthy(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.log"
    path.write_text(text)
    code, out, _ = run(capsys, "diagnose", "--logs", str(path))
    assert (
        code == 1 and out.startswith("unknown: no cause was found") and "unknown whether log ever became ready" in out
    )
    assert '"ok": false' in run(capsys, "diagnose", "--logs", str(path), "--json")[1]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("loading\nplums are not supported here\nwaiting\n", "are the most likely errors, but may be unrelated"),
        ("loading\nwaiting for plums\n", "Its last line:"),
    ],
)
def test_the_lines_that_come_closest_are_shown_if_nothing_is_known(
    text: str, shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.log"
    path.write_text(text)
    out = run(capsys, "diagnose", "--logs", str(path))[1]
    assert shown in out and "  | " in out and "plums" in out and "next: " in out
    assert "plums" in run(capsys, "diagnose", "--logs", str(path), "--json")[1]
    assert not any(word in out for word in ("delete", "prune", "rm -", "restart"))


def test_an_engine_that_never_got_ready_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.log"
    ready, gateway = "(APIServer pid=1) INFO:     Application startup complete.", "[NOTICE]   (1) : Loading success."
    path.write_text(f"vllm-a-1  | {ready}\ngateway-1  | {gateway}\n")
    assert run(capsys, "diagnose", "--logs", str(path))[:2] == (0, "no problems found\n")
    path.write_text(f"vllm-a-1  | {ready}\nvllm-b-1  | (APIServer pid=1) INFO 11-23 04:27:04 [x.py:1] loading\n")
    code, out, _ = run(capsys, "diagnose", "--logs", str(path))
    assert code == 1 and "vllm-b ever became ready" in out and "vllm-a" not in out


READY = "(APIServer pid=10) INFO:     Application startup complete.\n"
DEAD = (
    "(EngineCore pid=27) ERROR 11-23 04:27:04 [core.py:1510] EngineCore encountered a fatal error.\n"
    "(EngineCore pid=27) ERROR 11-23 04:27:04 [core.py:1510] Traceback (most recent call last):\n"
    f"(EngineCore pid=27) ERROR 11-23 04:27:04 [core.py:1510] {PLUM}\n"
    "(APIServer pid=10) ERROR 11-23 04:27:04 [async_llm.py:500] vllm.v1.engine.exceptions.EngineDeadError: EngineCore "
    "encountered an issue. See stack trace (above) for the root cause.\n"
)
AGAIN = "stackgen: the service was healthy and ended with code 0 after 42s: starting it again in 2s\n"


@pytest.mark.parametrize("health", ["starting", "healthy", "unhealthy"])
def test_a_restart_loop_inside_the_container_is_found_whatever_docker_reports(health: str) -> None:
    """supervise.sh restarts a service that was healthy, and Docker's restart count stays 0."""
    log = (READY + DEAD + AGAIN) * 5 + (READY if health == "healthy" else "")
    (found,) = diagnose(Evidence((ServiceEvidence("a", engine="vllm", state="running", health=health, log=log),)))
    assert found.id == "SG-D012" and "5 times" in found.evidence[0] and PLUM in found.evidence
    assert diagnose(collect_from_log(log))[0].id == "SG-D012"


def test_a_crash_is_not_reported_as_loading() -> None:
    service = ServiceEvidence("a", engine="vllm", state="running", health="starting", log=READY + DEAD + AGAIN)
    (found,) = diagnose(Evidence((service,)))
    assert found.id == UNKNOWN and PLUM in found.evidence
    # once it is ready again, the crash has been overcome
    assert diagnose(Evidence((replace(service, health="healthy", log=service.log + READY),))) == ()
    known = service.log.replace(PLUM, "ValueError: No available memory for the cache blocks")
    assert first_id(Evidence((replace(service, log=known),))) == "SG-M001"


def test_a_dead_engine_is_not_reported_as_stopped() -> None:
    """vLLM exits with 0 when its engine dies."""
    service = ServiceEvidence("a", engine="vllm", state="exited", exit_code=0, log=READY + DEAD)
    (found,) = diagnose(Evidence((service,)))
    assert found.id == UNKNOWN and PLUM in found.evidence
    assert first_id(Evidence((replace(service, log=READY),))) == "SG-C009"


@pytest.mark.parametrize(("code", "shown"), [(137, "SIGKILL"), (139, "SIGSEGV"), (132, "SIGILL"), (1, "exit code 1")])
def test_an_unknown_failure_shows_the_exit_code_and_signal(code: int, shown: str) -> None:
    service = ServiceEvidence("a", engine="vllm", state="exited", exit_code=code, log="hello\n")
    (found,) = diagnose(Evidence((service,)))
    assert found.id == UNKNOWN and found.evidence[0] == "hello" and shown in found.evidence[1]


# config/model.py of vLLM 0.32.0, _get_and_verify_max_len, with VLLM_ALLOW_LONG_MAX_MODEL_LEN=1
ALLOWED = (
    "(APIServer pid=1) WARNING 11-23 04:27:04 [model.py:2660] User-specified max_model_len (8192) is greater than the "
    "derived max_model_len (max_position_embeddings=2048 or model_max_length=None in model's config.json). "
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN must be used with extreme caution. If the model uses relative position encoding "
    "(RoPE), positions exceeding derived_max_model_len lead to nan.\n"
)


def test_a_long_context_that_the_user_allowed_is_not_a_cause() -> None:
    loading = ServiceEvidence("a", engine="vllm", state="running", health="starting", log=ALLOWED)
    assert first_id(Evidence((loading,))) == "SG-C008"
    truncated = load_fixture(LOGS / "SG-L001-truncated.log")
    assert [one.id for one in diagnose(collect_from_log(ALLOWED + truncated.text))] == ["SG-L001"]
    # the error names the variable as well
    refusal = ALLOWED.replace("config.json). ", "config.json). To allow overriding this maximum, set the env var "
                              "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1. ").replace("WARNING", "ERROR")  # fmt: skip
    assert first_id(collect_from_log(refusal)) == "SG-V001"


@pytest.mark.parametrize(
    "prompt",
    [
        "How do I fix No space left on device?",
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "what means [Errno 13] Permission denied: '/models/x.json'",
        "exited with code 1, and a Traceback (most recent call last):",
        "no kernel image is available for execution on the device",
    ],
)
def test_the_text_of_a_request_is_not_evidence(prompt: str) -> None:
    said = f"(APIServer pid=1) INFO 11-23 04:27:04 [logger.py:39] Received request chatcmpl-1: prompt: '{prompt}'\n"
    log = READY + said + '(APIServer pid=1) INFO:     127.0.0.1:5 - "POST /v1/chat/completions HTTP/1.1" 200 OK\n'
    service = ServiceEvidence("a", engine="vllm", state="running", health="healthy", log=log)
    assert diagnose(Evidence((service,))) == () == diagnose(collect_from_log(log))
    # an error of the server itself counts
    failed = f"(EngineCore pid=2) ERROR 11-23 04:27:04 [core.py:1] RuntimeError: {prompt}\n"
    assert prompt.startswith(("exited", "what")) or diagnose(Evidence((replace(service, log=log + failed),)))


@pytest.mark.parametrize(
    "line",
    [
        "mkdir -p failed for path /.config/matplotlib: [Errno 13] Permission denied: '/.config'",
        "429 Client Error: Too Many Requests for url: https://huggingface.co/x, retrying",
        "WARNING 11-23 04:27:04 [x.py:1] HTTP Error 429 thrown while requesting GET https://huggingface.co/x",
    ],
)
def test_warnings_of_a_loading_server_do_not_hide_that_it_is_loading(line: str) -> None:
    service = ServiceEvidence("a", engine="vllm", state="running", health="starting", log=f"{line}\n")
    assert [one.id for one in diagnose(Evidence((service,)))] == ["SG-C008"]


@pytest.mark.parametrize("line", ["INFO validating data: ok", "Hint: toomanyrequests: what is that?"])
def test_phrases_of_compose_inside_another_log_are_not_a_cause(line: str) -> None:
    assert [one.id for one in diagnose(collect_from_log(f"{line}\n{TRACEBACK}"))] == [UNKNOWN]


HOSTILE = {
    "hex": "deadbeef" * 40_000,
    "words": "a " * 150_000,
    "digits": "1." * 150_000,
    "slashes": "/a" * 150_000,
    "colons": "a: " * 100_000,
    "quotes": "'a' " * 75_000,
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("line", HOSTILE.values(), ids=HOSTILE)
def test_no_pattern_hangs_on_a_long_line(line: str) -> None:
    """A pattern that takes quadratic time would not finish here."""
    for one in RULES:
        for pattern in (*one.all_patterns, *one.unless):
            pattern.search(line)
            pattern.search(f"ValueError: {line}")
    strip_prefix(line)


@pytest.mark.timeout(120)
def test_a_long_line_is_shortened_and_both_ends_are_read() -> None:
    said = "ValueError: No available memory for the cache blocks"
    for line in (f"{said} {HOSTILE['hex']}", f"{HOSTILE['hex']} {said}"):
        assert first_id(collect_from_log(f"{line}\n")) == "SG-M001"
        assert len(collect_from_log(line).services[0].log) < 10_000
    assert shorten_long_lines("a\nb\n") == "a\nb\n" and OMITTED not in shorten_long_lines(HOSTILE["words"])


def test_shortening_a_line_never_leaves_half_of_a_secret() -> None:
    key = "sk-abcdefghijklmnopqrstuvwxyz0123456789"
    for place in range(4050, 4150):
        line = f"{'x ' * (place // 2)}{key} {'y ' * 6000}"
        assert key in shorten_long_lines(line) or "sk-" not in shorten_long_lines(line)
        line = f"{'x ' * 6000}{key}{' y' * (place // 2)}"
        assert key in shorten_long_lines(line) or "6789" not in shorten_long_lines(line)


@pytest.mark.parametrize(
    "line",
    [
        "2025-03-13 08:19:18 | ERROR | controller | the plums are out",
        "2025-03-13 08:19:18.120 | ERROR    | app.main:load:12 - the plums are out",
    ],
)
def test_a_line_at_level_error_is_never_called_no_problem(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    served = '2025-03-13 08:32:41 | INFO | stdout | INFO:     10.0.0.1:4 - "GET / HTTP/1.1" 200 OK'
    log.write_text(f"{line}\n{served}\n", "utf-8")
    code, out, _ = run(capsys, "diagnose", "--logs", str(log))
    assert code == 1 and "no problems found" not in out and "the plums are out" in out
    # FastChat logs at level ERROR what a program prints to stderr, which is often no error
    stderr = "2025-03-13 08:19:18 | ERROR | stderr | loading 3 plums"
    log.write_text(f"{stderr}\n{served}\n", "utf-8")
    assert run(capsys, "diagnose", "--logs", str(log))[:2] == (0, "no problems found\n")


def test_an_undecided_log_gets_only_the_advice_that_fits_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def advise(text: str) -> str:
        (tmp_path / "log").write_text(text, "utf-8")
        return run(capsys, "diagnose", "--logs", str(tmp_path / "log"))[1]

    error = advise("the plums could not be picked today\nand more\n")
    assert "docker inspect" in error and "docker stats" not in error and "XET" not in error
    stopped = advise("Fetching 12 files: 30%\n")
    assert "docker stats" in stopped and "HF_HUB_DISABLE_XET" in stopped
    assert "`rocm-smi`" in advise("gfx1151\nloading\n")
    # errors that the program may have survived; a state that is there already
    survived = advise("loading\nValueError: out of plums\n" + "more plums\n" * 20)
    assert "Its errors" in survived and "clearly an error" not in survived
    inspected = advise('loading\n{\n  "State": {\n    "OOMKilled": false,\n    "Error": "",\n')
    assert "| loading" in inspected and "docker inspect" not in inspected
    noise = "DEBUG 10-22 05:47:43 [x.py:1] TPU platform is not available because: plums"
    assert "| loading" in advise(f"loading\n{noise}\n")


def test_the_indented_rest_of_a_message_of_ray_is_joined() -> None:
    head = "(EngineCore pid=6) [autoscaler] Error: No available node types can fulfill resource request\n"
    rest = "                     {'GPU': 1.0, 'node:10.0.0.5': 0.001}.\n"
    found = diagnose(collect_from_log(f"{head}{rest}(EngineCore pid=6) Waiting for the plums\n"))[0]
    assert found.id == "SG-C015" and "10.0.0.5" in found.cause and "plums" not in found.evidence[0]


def test_a_line_that_names_its_own_remedy_is_an_error() -> None:
    line = "the basket exceeds its limit. You may need to pass the flag --larger-basket"
    assert diagnose(collect_from_log(f"{line}\n"))[0].id == UNKNOWN
    # without words of an error, and as a warning, it may be mere advice
    for harmless in ("To see more, you may need to pass the flag --plums", f"WARNING 01-02 10:00:00 [x.py:1] {line}"):
        assert diagnose(collect_from_log(f"{harmless}\n")) == ()


def test_a_rank_that_works_again_has_not_lost_its_first_machine() -> None:
    line = "stackgen: no connection to the first machine (10.0.0.5 port 29500) for 20 s: ending this rank\n"
    lost = ServiceEvidence("a", engine="vllm", state="exited", exit_code=1, log=line)
    assert diagnose(Evidence((lost,)))[0].id == "SG-C016"
    assert diagnose(Evidence((replace(lost, state="running", health="healthy", exit_code=None),))) == ()


def test_a_log_whose_last_request_was_refused_is_not_without_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def exit_code(status: str) -> int:
        lines = [f'INFO:     10.0.0.2:51544 - "POST /v1/messages HTTP/1.1" {one}' for one in ("200 OK", status)]
        (tmp_path / "log").write_text("\n".join(lines) + "\n")
        return main(["diagnose", "--logs", str(tmp_path / "log")])

    assert exit_code("400 Bad Request") == 1
    assert 'POST /v1/messages HTTP/1.1" 400' in capsys.readouterr().out
    # clients without a key are no problem of the server
    assert exit_code("401 Unauthorized") == exit_code("200 OK") == 0


@pytest.mark.parametrize("braces", ["{'type': 'BadRequestError', 'code': 400}", "{0}", "}", "{gpu}", "{{maker"])
def test_advice_with_braces_in_a_message_is_quoted(braces: str) -> None:
    found = diagnose(
        collect_from_log(f"RuntimeError: the frobnicator is full. Please reduce the number of plums {braces}")
    )
    assert found[0].id == UNKNOWN
    assert "the message advises: Please reduce the number of plums" in found[0].fix
