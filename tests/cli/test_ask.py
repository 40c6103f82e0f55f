"""`stackgen ask`: what it prints to stdout and stderr, for one endpoint and for several."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stackgen.cli import main as cli
from stackgen.cli.commands import ask as command
from stackgen.errors import MachineError
from stackgen.runtimes.compose import lifecycle, project
from tests.check.fake import KEY, Answer, Fake, chunk, completion, events, json_answer, serve

TEXT = "ier time4 usier time4 usize for), true"


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Fake, Fake]]:
    """Two fake servers, named `one` and `two` in an endpoints.yaml in the current folder."""
    with serve("vllm") as one, serve("vllm") as two:
        lines = [f"- {{name: {name}, base_url: '{fake.url}', models: [tiny]}}" for name, fake in
                 (("one", one), ("two", two))]  # fmt: skip
        (tmp_path / "endpoints.yaml").write_text("endpoints:\n" + "\n".join(lines) + "\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("STACKGEN_API_KEY", KEY)
        yield one, two


@pytest.fixture
def ask(fakes: tuple[Fake, Fake], capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*args: str, code: int = 0) -> tuple[str, str]:
        assert cli.main(["ask", *args]) == code
        captured = capsys.readouterr()
        assert KEY not in captured.out + captured.err
        return captured.out, captured.err

    return run


def test_only_the_answer_goes_to_stdout(ask: Any) -> None:
    assert ask("hi") == (f"{TEXT}\n", "")


def test_without_names_only_the_first_endpoint_is_asked(ask: Any, fakes: tuple[Fake, Fake]) -> None:
    ask("hi")
    assert len(fakes[0].seen) == 1 and not fakes[1].seen


def test_a_resolved_model_name_is_noted_on_stderr(ask: Any) -> None:
    out, err = ask("hi", "--model", "TINY")
    assert (out, err) == (f"{TEXT}\n", "note: one serves 'tiny', not 'TINY': upper and lower case differ\n")


def test_a_stream_is_printed_to_stdout_and_its_figures_to_stderr(ask: Any) -> None:
    out, err = ask("hi", "--stream")
    assert out == "ier time4 usier time\n"
    assert err.startswith("tiny, ") and "first token after" in err and err.endswith("6 tokens\n")


def test_each_piece_of_a_stream_is_flushed(fakes: tuple[Fake, Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Screen(io.StringIO):
        def flush(self) -> None:
            shown.append(self.getvalue())

    screen = Screen()
    monkeypatch.setattr("sys.stdout", screen)
    assert cli.main(["ask", "hi", "--stream"]) == 0
    assert len(set(shown)) >= 6
    assert screen.getvalue().startswith(shown[0]) and shown[0] != screen.getvalue()


def test_json_for_one_endpoint_and_for_several(ask: Any) -> None:
    out, _ = ask("hi", "--json", "--stream")
    one = json.loads(out)
    assert (one["answer"], one["model"], one["provider"]) == ("ier time4 usier time", "tiny", "one")
    assert 0 < one["ttft"] <= one["seconds"] and one["usage"]["completion_tokens"] == 6
    out, _ = ask("hi", "--json", "--provider", "one,two")
    assert [(each["provider"], each["answer"]) for each in json.loads(out)["answers"]] == [("one", TEXT), ("two", TEXT)]


def test_a_failing_endpoint_does_not_lose_the_other_answers(ask: Any, fakes: tuple[Fake, Fake]) -> None:
    fakes[0].chat(Answer(500, f"oops {KEY}".encode(), "text/plain"))
    out, _ = ask("hi", "--provider", "one,two", code=1)
    first, second = out.split("\n\n")
    assert first.startswith("── one (no answer)\nerror: one returned HTTP 500") and "hint: " in first
    assert second.startswith("── two (tiny, ") and "12 tokens" in second and second.endswith(f"{TEXT}\n")
    out, _ = ask("hi", "--provider", "one", "--provider", "two", "--json", code=1)
    failed, answered = json.loads(out)["answers"]
    assert failed["provider"] == "one" and "HTTP 500" in failed["error"] and failed["hint"]
    assert answered["answer"] == TEXT


@pytest.mark.parametrize("changes", [{"model": {}}, {"choices": [{"message": {"content": [{"text": "hi"}]}}]}])
def test_a_malformed_answer_does_not_lose_the_other_answers(
    ask: Any, fakes: tuple[Fake, Fake], changes: dict[str, Any]
) -> None:
    fakes[0].chat(json_answer(completion(**changes)))
    out, _ = ask("hi", "--provider", "one,two", "--json", code=1)
    malformed, answered = json.loads(out)["answers"]
    assert malformed["error"] == "the server's response is not a valid chat completion"
    assert answered["answer"] == TEXT


def test_a_bug_in_stackgen_does_not_lose_the_other_answers(
    ask: Any, fakes: tuple[Fake, Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    from stackgen.client import question

    def broken(target: Any, *args: Any) -> Any:
        if target.name == "one":
            raise KeyError(KEY)
        return resolve_model(target, *args)

    resolve_model = question.resolve_model
    monkeypatch.setattr(question, "resolve_model", broken)
    out, _ = ask("hi", "--provider", "one,two", "--json", code=1)
    odd, answered = json.loads(out)["answers"]
    assert odd["error"] == "a bug in stackgen: KeyError" and answered["answer"] == TEXT


def test_a_cut_stream_prints_its_text_and_fails(ask: Any, fakes: tuple[Fake, Fake]) -> None:
    # text that could be the start of a key is printed too, since nothing follows
    fakes[0].stream(events(chunk("Paris "), chunk(KEY[:4]), done=False))
    out, err = ask("hi", "--stream", code=1)
    assert out == f"Paris {KEY[:4]}\n" and "the stream was cut off" in err
    fakes[0].stream(events())
    out, err = ask("hi", "--stream", code=1)
    assert out == "" and "the server's response is empty" in err


def test_invalid_values_are_refused_before_anything_is_sent(ask: Any, fakes: tuple[Fake, Fake]) -> None:
    for args in (("--temperature", "nan"), ("--timeout", "inf"), ("--timeout", "-1")):
        out, err = ask("hi", "--provider", "one,two", *args, code=2)
        assert not out and f"{args[0].strip('-')} must be" in err
    assert not fakes[0].seen


def test_several_endpoints_are_asked_concurrently(ask: Any, fakes: tuple[Fake, Fake]) -> None:
    import threading

    barrier = threading.Barrier(2, timeout=10)
    for fake in fakes:
        handler = fake.routes["POST /v1/chat/completions"]

        def wait_for_the_other(request: Any, handler: Any = handler) -> Answer:
            barrier.wait()
            answer: Answer = handler(request)
            return answer

        fake.routes["POST /v1/chat/completions"] = wait_for_the_other
    # sequential requests would time out at the barrier
    ask("hi", "--provider", "one,two")


def test_answers_are_side_by_side_in_a_wide_terminal(
    ask: Any, fakes: tuple[Fake, Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes[1].chat(Answer(500, b"[bold]oops[/bold]", "text/plain"))
    monkeypatch.setattr(command.sys.stdout, "isatty", lambda: True)
    for columns, wide in (("120", True), ("60", False)):
        monkeypatch.setenv("COLUMNS", columns)
        out, _ = ask("hi", "--provider", "one,two", code=1)
        head = next(line for line in out.splitlines() if "one" in line)
        assert ("two" in head) is wide
        # server text is not interpreted as rich markup
        assert "[bold]oops" in out and "12 tokens" in out


def test_a_question_can_come_from_standard_input(
    ask: Any, fakes: tuple[Fake, Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("What is\nthe capital?\n"))
    ask("-", "--system", "")
    assert fakes[0].seen[-1].json()["messages"] == [{"role": "user", "content": "What is\nthe capital?"}]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    _, err = ask("-", code=2)
    assert "the question is empty" in err


def test_control_characters_from_a_model_are_removed(ask: Any, fakes: tuple[Fake, Fake]) -> None:
    fakes[0].stream(events(chunk("a\x1b[2J"), chunk(f"b{KEY}", finish="stop")))
    out, _ = ask("hi", "--stream")
    assert out == "a[2Jb[key]\n"


def test_the_error_of_a_single_endpoint_is_the_commands_error(ask: Any) -> None:
    out, err = ask("hi", "--model", "tinny", code=2)
    assert not out and "one does not serve the model 'tinny'" in err and "did you mean 'tiny'?" in err
    _, err = ask("hi", "--provider", "on", code=2)
    assert "did you mean one?" in err


def test_a_missing_key_is_reported_with_its_variable(
    ask: Any, fakes: tuple[Fake, Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.delenv("STACKGEN_API_KEY")
    monkeypatch.delenv("GPU_BOX_KEY", raising=False)
    (tmp_path / "endpoints.yaml").write_text(
        f"endpoints: [{{name: box, base_url: '{fakes[0].url}', models: [tiny], api_key_env: GPU_BOX_KEY}}]"
    )
    _, err = ask("hi", code=2)
    assert "box requires an API key, but none was given" in err
    assert "hint: set GPU_BOX_KEY in the environment or .env, or pass --api-key" in err
    # the check gives the same hint
    assert cli.main(["check", "--json"]) == 1
    results = json.loads(capsys.readouterr().out)["endpoints"][0]["results"]
    hints = {one["name"]: one["hint"] for one in results if one["status"] == "fail"}
    assert hints and all(hint.startswith("set GPU_BOX_KEY") for hint in hints.values()), hints


def test_base_url_may_be_repeated(ask: Any, fakes: tuple[Fake, Fake]) -> None:
    out, _ = ask("hi", "--base-url", fakes[0].url, "--base-url", fakes[1].url, "--json")
    assert [each["provider"] for each in json.loads(out)["answers"]] == [f"127.0.0.1:{fake.port}" for fake in fakes]


class Engine:
    """A Docker client that lists these containers, as (name, project, published port)."""

    def __init__(self, *rows: tuple[str, str, int]) -> None:
        self.api, self.rows = self, rows

    def containers(self) -> list[dict[str, Any]]:
        return [
            {"Names": [f"/{name}"], "Labels": {"com.docker.compose.project": project} if project else None,
             "Ports": [{"IP": "127.0.0.1", "PublicPort": port}]}
            for name, project, port in self.rows
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("web-1", "web", 0)], "the container web-1 of the stack web answers at port"),
        ([("web", "", 0)], "the container web answers at port"),
        # the stack runs, or another program has the port
        ([("mine-gateway-1", "mine", 0)], "rejected the API key"),
        ([("web-1", "web", 1)], "rejected the API key"),
        (None, "rejected the API key"),
    ],
)
def test_another_stack_at_the_port_is_named(
    rows: list[tuple[str, str, int]] | None, expected: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with serve("vllm", key="of-another-stack") as fake:
        port = int(fake.url.split(":")[2].split("/")[0])

        def connect(**_: Any) -> Engine:
            if rows is None:
                raise MachineError("the Docker engine does not answer")
            return Engine(*((name, project, number or port) for name, project, number in rows))

        monkeypatch.setattr(lifecycle, "connect", connect)
        monkeypatch.delenv("STACKGEN_API_KEY", raising=False)
        models = "models: [{model: org/m, engine: vllm, served_names: [tiny]}]"
        (tmp_path / "stack.yaml").write_text(f"{{name: mine, port: {port}, gateway: false, {models}}}")
        (tmp_path / ".env").write_text(f"STACKGEN_API_KEY={KEY}\n")
        assert cli.main(["ask", "hi", "--stack", str(tmp_path)]) in (1, 2)
    shown = capsys.readouterr().err
    assert expected in shown
    if "answers at" in expected:
        assert "the stack mine is not running" in shown and "set another `port:`" in shown


def test_a_stack_of_the_same_name_in_another_folder_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both folders may have the same key and port, so the answer would be that of the other stack."""
    there, here = tmp_path / "there", tmp_path / "here"
    with serve("vllm") as fake:
        for folder in (there, here):
            folder.mkdir()
            port = int(fake.url.split(":")[2].split("/")[0])
            models = "models: [{model: org/m, engine: vllm, served_names: [tiny]}]"
            (folder / "stack.yaml").write_text(f"{{name: mine, port: {port}, gateway: false, {models}}}")
            (folder / ".env").write_text(f"STACKGEN_API_KEY={KEY}\n")

        class Containers:
            def __init__(self) -> None:
                self.api = self

            def containers(self, **_: Any) -> list[dict[str, Any]]:
                return [{"Labels": {"com.docker.compose.project.working_dir": str(there)}}]

        monkeypatch.setattr(project, "connect", lambda *_: Containers())
        monkeypatch.delenv("STACKGEN_API_KEY", raising=False)
        assert cli.main(["ask", "hi", "--stack", str(here)]) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and not fake.seen
        assert f"its containers belong to {there}, not to {here}" in shown.err and "run the command in" in shown.err
        assert cli.main(["ask", "hi", "--stack", str(there)]) == 0
