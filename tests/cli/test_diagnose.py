"""The commands diagnose and explain: arguments, output, exit codes and the edit of stack.yaml."""

from __future__ import annotations

import io
import json
import tarfile
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import pytest

from stackgen.cli import commands
from stackgen.cli.parsers.base import Subcommands
from stackgen.cli.parsers.diagnose import add_diagnose_commands
from stackgen.diagnose import Evidence, ServiceEvidence
from stackgen.diagnose.rule import Edit
from stackgen.diagnose.stack_edit import apply_edit
from stackgen.errors import StackgenError
from tests.diagnose.fixtures import LOGS

STACK = """\
# my stack
name: demo   # the name
models:
  # the first
  - model: acme/one
    engine: vllm
    max_model_len: 8192   # as long as it may
    extra_args: ["--seed", "7", "--disable-log-requests"]
  - engine: vllm   # the second
    model: acme/two
    max_num_seqs: 9001
    extra_args:
      # why
      - --disable-log-requests   # gone
      - --seed=7
  - {model: acme/three, engine: vllm, max_num_seqs: 9002}
"""
KV = (
    "ValueError: To serve at least one request with the models's max seq len (8192), (1.0 GiB KV cache is needed, "
    "which is larger than the available KV cache memory (0.5 GiB). Based on the available memory, the estimated "
    "maximum model length is 4096. Try …"
)


def parse_args(*arguments: str) -> Namespace:
    parser = ArgumentParser()
    add_diagnose_commands(Subcommands(parser.add_subparsers(dest="command")))
    return parser.parse_args(arguments)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = commands.run(parse_args(*arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def piped(data: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(data), "utf-8")


def test_a_log_is_read_from_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "diagnose", "--logs", str(LOGS / "SG-V012-kvsmall.log"))
    assert code == 1 and out.startswith("error[SG-V012]") and "max_model_len: 2097024" in out
    code, out, _ = run(capsys, "diagnose", "--logs", str(LOGS / "healthy-vllm.log"))
    assert (code, out) == (0, "no problems found\n")


def test_a_log_is_read_from_standard_input_and_reported_as_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", piped((LOGS / "SG-V004-misspelled.log").read_bytes()))
    code, out, _ = run(capsys, "diagnose", "--logs", "-", "--json")
    data = json.loads(out)
    assert code == 1 and data["ok"] is False and data["findings"][0]["id"] == "SG-V004"


def test_a_missing_file_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StackgenError) as raised:
        run(capsys, "diagnose", "--logs", "no-such-file")
    assert raised.value.exit_code == 2


def test_explain_prints_pages_and_lists_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert "SG-V012" in run(capsys, "explain", "SG-V012")[1]
    code, out, _ = run(capsys, "explain")
    assert code == 0 and len(out.splitlines()) > 80
    assert json.loads(run(capsys, "explain", "V012", "--json")[1])["id"] == "SG-V012"
    assert json.loads(run(capsys, "explain", "P001", "--json")[1])["id"] == "SG-P001"


def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str, text: str = STACK) -> Path:
    """A stack whose first service failed with `log`; needs no Docker."""
    from stackgen.runtimes.observation import evidence

    path = tmp_path / "stack.yaml"
    path.write_text(text)

    def collect_from_stack(plan: Any, folder: Path, spec: Any = None, *_: Any, **__: Any) -> Evidence:
        service = ServiceEvidence("vllm-one", engine="vllm", state="exited", exit_code=1, log=log)
        return Evidence((service,), spec=spec, plan=plan, secrets=("the-secret-key",))

    monkeypatch.setattr(evidence, "collect_from_stack", collect_from_stack)
    return path


def test_fix_shows_the_diff_and_keeps_the_comments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stack(tmp_path, monkeypatch, KV)
    code, out, err = run(capsys, "diagnose", str(path), "--fix", "--yes")
    assert code == 1 and "max_model_len: 4096    # was 8192" in out
    assert "-    max_model_len: 8192   # as long as it may" in err
    assert "+    max_model_len: 4096   # as long as it may" in err
    assert path.read_text() == STACK.replace("8192", "4096")


def test_fix_does_not_edit_without_confirmation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stack(tmp_path, monkeypatch, KV)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    _, _, err = run(capsys, "diagnose", str(path), "--fix")
    assert "the change was not applied. To apply the change without asking, add --yes" in err
    assert path.read_text() == STACK


def test_fix_does_not_apply_an_unsafe_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stack(tmp_path, monkeypatch, "Please pass the argument `trust_remote_code=True` to allow custom code")
    _, _, err = run(capsys, "diagnose", str(path), "--fix", "--yes")
    assert "affects more than the start of the stack. Edit stack.yaml by hand" in err and path.read_text() == STACK


def test_fix_of_a_pasted_log_says_that_it_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stack(tmp_path, monkeypatch, KV)
    (tmp_path / "engine.log").write_text(KV)
    code, out, err = run(capsys, "diagnose", str(path), "--logs", str(tmp_path / "engine.log"), "--fix", "--yes")
    assert code == 1 and "max_model_len: 4096" in out
    assert "--fix changes nothing: write the change above into stack.yaml" in err
    assert path.read_text() == STACK


def test_fix_removes_a_removed_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stack(tmp_path, monkeypatch, "vllm: error: unrecognized arguments: --disable-log-requests")
    run(capsys, "diagnose", str(path), "--fix", "--yes")
    assert path.read_text() == STACK.replace(', "--disable-log-requests"', "")


def test_a_bundle_is_private_and_contains_the_stack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stack(tmp_path, monkeypatch, f"key the-secret-key\n{KV}")
    target = tmp_path / "report.tar.gz"
    run(capsys, "diagnose", str(path), "--bundle", str(target))
    assert target.stat().st_mode & 0o777 == 0o600
    with tarfile.open(target) as tar:
        names = tar.getnames()
        texts = [tar.extractfile(one).read() for one in tar.getmembers()]  # type: ignore[union-attr]
    assert "stackgen-report/files/stack.yaml" in names and "stackgen-report/logs/vllm-one.log" in names
    assert not any(b"the-secret-key" in text for text in texts)


@pytest.mark.parametrize(
    ("index", "field", "value", "before", "after"),
    [
        (0, "max_model_len", "4096", "8192   # as", "4096   # as"),
        (0, "dtype", "float16", "acme/one\n", "acme/one\n    dtype: float16\n"),
        (1, "shm_size", "1g", "# the second\n", "# the second\n    shm_size: 1g\n"),
        (2, "enforce_eager", "true", "max_num_seqs: 9002}", "max_num_seqs: 9002, enforce_eager: true}"),
    ],
)
def test_an_edit_changes_one_place(index: int, field: str, value: str, before: str, after: str) -> None:
    assert apply_edit(STACK, Edit(("models", index, field), value)) == STACK.replace(before, after)


def test_an_edit_removes_an_entry_of_a_block_list() -> None:
    edit = Edit(("models", 1, "extra_args"), "--disable-log-requests", remove=True)
    assert apply_edit(STACK, edit) == STACK.replace("      - --disable-log-requests   # gone\n", "")


@pytest.mark.parametrize("text", ["models: [", "models: 3", "name: x", "models:\n  - &a {model: x}\n  - *a\n"])
def test_an_unsafe_edit_is_refused(text: str) -> None:
    import yaml

    with pytest.raises((StackgenError, yaml.YAMLError)):
        apply_edit(text, Edit(("models", 1, "dtype"), "float16"))


def test_removing_the_last_entry_leaves_an_empty_list() -> None:
    for text in ("models:\n- model: x\n  extra_args: [--a]\n", "models:\n- model: x\n  extra_args:\n  - --a\n"):
        import yaml

        done = apply_edit(text, Edit(("models", 0, "extra_args"), "--a", remove=True))
        assert yaml.safe_load(done)["models"][0]["extra_args"] == []


def test_a_broken_diagnosis_does_not_fail_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stackgen.runtimes.observation import evidence

    def broken(*_: Any, **__: Any) -> Evidence:
        raise RuntimeError

    monkeypatch.setattr(evidence, "collect_from_stack", broken)
    assert evidence.explain_failure(None, tmp_path) is None  # type: ignore[arg-type]


def test_up_shows_the_change_with_the_old_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stackgen.runtimes.observation import evidence
    from stackgen.stack.folder import open_stack

    path = stack(tmp_path, monkeypatch, KV)
    found = evidence.explain_failure(open_stack(str(path)).plan, tmp_path, "dependency failed to start")
    assert found is not None and found.edit is not None
    assert (found.id, found.edit.was) == ("SG-V012", "8192")


def test_a_log_with_survived_errors_is_not_free_of_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "vllm.log"
    served = '(APIServer pid=1) INFO:     10.0.0.1:4 - "POST /v1/chat/completions HTTP/1.1" 200 OK\n'
    log.write_text(f"INFO:     Application startup complete.\nValueError: out of plums\n{served}", "utf-8")
    code, out, _ = run(capsys, "diagnose", "--logs", str(log))
    assert (code, "out of plums" in out, "no problems found" in out) == (1, True, False)
    # an error that only its level shows, and a traceback that was cut
    for line in ("(APIServer pid=1) ERROR 10-09 09:39:54 [x.py:1] out of plums", "Traceback (most recent call last):"):
        log.write_text(f"INFO:     Application startup complete.\n{line}\n{served}", "utf-8")
        code, out, _ = run(capsys, "diagnose", "--logs", str(log))
        assert (code, line[-12:] in out, "no problems found" in out) == (1, True, False)
    log.write_text(f"INFO:     Application startup complete.\n{served}", "utf-8")
    assert "no problems found" in run(capsys, "diagnose", "--logs", str(log))[1]


def test_a_failed_request_is_named_in_text_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "vllm.log"
    answer = '(APIServer pid=1) INFO:     10.0.0.1:4 - "POST /v1/chat/completions HTTP/1.1" {}\n'
    failed = answer.format("500 Internal Server Error")
    log.write_text(
        f"INFO:     Application startup complete.\n{failed}ValueError: out of plums\n{answer.format('200 OK')}"
    )
    code, out, _ = run(capsys, "diagnose", "--logs", str(log))
    assert code == 1 and "no failure was found" not in out and "no problems found" not in out
    assert "the server runs, but a request failed" in out and "out of plums" in out and "next:" in out
    data = json.loads(run(capsys, "diagnose", "--logs", str(log), "--json")[1])
    assert data["findings"] == [] and "out of plums" in data["failed_requests"][0]


def test_a_refused_request_without_a_reason_says_where_the_reason_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "vllm.log"
    answer = '(APIServer pid=1) INFO:     10.0.0.1:4 - "POST /v1/{} HTTP/1.1" {}\n'
    log.write_text(answer.format("chat/completions", "400 Bad Request"))
    code, out, _ = run(capsys, "diagnose", "--logs", str(log))
    assert code == 1 and "refused the last request" in out and "tool_call_parser" in out
    data = json.loads(run(capsys, "diagnose", "--logs", str(log), "--json")[1])
    assert data["findings"] == [] and "the answer to the client contains it" in data["hints"][0]
    # tools are a part of chats only
    log.write_text(answer.format("embeddings", "422 Unprocessable Entity"))
    assert "refused the last request" in (out := run(capsys, "diagnose", "--logs", str(log))[1]) and "tool" not in out
    log.write_text(answer.format("chat/completions", "400 Bad Request") + answer.format("completions", "200 OK"))
    assert "refused the last request" not in run(capsys, "diagnose", "--logs", str(log))[1]


def test_every_finding_has_its_fix_in_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "compose.log"
    errors = {
        "a-1": "RuntimeError: CUDA-capable device(s) is/are busy or unavailable",
        "b-1": "OSError: [Errno 28] No space left on device",
    }
    lines = (f"{name}  | {error}\n{name} exited with code 1\n" for name, error in errors.items())
    log.write_text("".join(lines), "utf-8")
    _, out, _ = run(capsys, "diagnose", "--logs", str(log))
    assert out.count("error[") + out.count("also[") == out.count("  fix: ") == 2
