"""diagnose and explain: why a stack failed, and what the ids mean. Exit codes of diagnose: 0 nothing wrong, 1 found,
or it can't be told.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stackgen.commands.output import note, print_data

if TYPE_CHECKING:
    from stackgen.diagnose import Evidence, Finding
    from stackgen.plan import Plan

__all__ = ["diagnose", "explain", "fix"]


def diagnose(words: Namespace) -> int:
    """`stackgen diagnose`: the cause first, what else was found below."""
    from stackgen.diagnose import diagnose as judge
    from stackgen.diagnose.engine import unsure
    from stackgen.diagnose.explain import told
    from stackgen.diagnose.gpus import summary
    from stackgen.diagnose.secrets import Scrubber

    evidence, files, path = _collect(words)
    findings = judge(evidence)
    if words.bundle:
        _bundle(words.bundle, evidence, findings, files)
    lines = [told(one, first=not index) for index, one in enumerate(findings)]
    nothing = "nothing wrong found" + ("" if evidence.services else ": there is nothing to look at")
    unclear = () if findings else unsure(evidence)
    if unclear:
        nothing = f"can't tell: no cause is found, and nothing says that {', '.join(unclear)} was ever ready"
    gpus = evidence.gpus
    # a log alone may come from another machine: nothing is known of its cards, and nothing is said
    cards = ["", *summary(gpus)] if gpus else []
    print_data(words, {"ok": not findings and not unclear, "findings": [one.to_json() for one in findings],
                       "gpus": gpus.to_json() if gpus else None},
               [*(["\n\n".join(lines)] if lines else [nothing]), *map(Scrubber(evidence.secrets), cards)])  # fmt: skip
    if words.fix:
        fix(words, findings, path)
    return 1 if findings or unclear else 0


def explain(words: Namespace) -> int:
    """`stackgen explain ID`: the page of a rule, or the list of all."""
    from stackgen.diagnose.explain import find_rule, page, readable
    from stackgen.diagnose.rules import RULES

    if not words.id:
        rows = sorted((one.id, readable(one.title)) for one in RULES)
        known = [{"id": id, "title": title} for id, title in rows]
        print_data(words, {"rules": known}, [f"{id}  {title}" for id, title in rows])
        return 0
    from stackgen.doctor.table import CHECKS

    # what doctor finds has ids of its own kind, and no page beyond its line
    wanted = words.id.upper()
    for check in CHECKS:
        if check.id in (wanted, f"SG-{wanted}"):
            text = f"{check.id}: {check.name}\n\n`stackgen doctor` looks at this before a start: {check.looks_at}."
            print_data(words, {"id": check.id, "title": check.name, "explain": check.looks_at}, [text])
            return 0
    rule = find_rule(words.id)
    data = {"id": rule.id, "title": readable(rule.title), "cause": readable(rule.cause), "fix": readable(rule.fix),
            "explain": rule.explain, "source": rule.source}  # fmt: skip
    print_data(words, data, [page(rule)])
    return 0


def _collect(words: Namespace) -> tuple[Evidence, dict[str, str], Path | None]:
    """The evidence, the rendered files for a report, and stack.yaml where the words name one."""
    from stackgen.diagnose.lines import decoded
    from stackgen.errors import StackgenError
    from stackgen.runtimes import evidence

    if words.logs:
        try:
            pasted = decoded(sys.stdin.buffer.read() if words.logs == "-" else Path(words.logs).read_bytes())
        except OSError as error:
            raise StackgenError(f"{words.logs} can't be read: {error.strerror}") from None
        return evidence.of_log(pasted), {}, None
    if words.container:
        return evidence.of_container(words.container), {}, None
    from stackgen.stack import open_stack, stack_file

    stack = open_stack(words.stack)
    path = stack_file(words.stack) or Path(words.stack) / "stack.yaml"
    runtime = words.runtime or ("process" if evidence.ran_as_processes(stack.plan, stack.folder) else "compose")
    if runtime == "process":
        found = evidence.of_processes(path, stack.spec)
    else:
        found = evidence.of_stack(stack.plan, stack.folder, stack.spec)
    if found.plan and found.services and all(one.works for one in found.services):
        found = replace(found, checks=_checks(found.plan, stack.folder))
    names = ("stack.yaml", "compose.yaml", ".env", "stackgen.lock")
    files = {name: text for name in names if (text := _text(stack.folder / name)) is not None}
    return found, files, path


def _checks(plan: Plan, folder: Path) -> tuple[tuple[str, str], ...]:
    """The failed checks of a stack whose services all run, and warnings that a rule knows: what users meet of it."""
    from stackgen.check.options import Options
    from stackgen.diagnose.rules import known
    from stackgen.endpoints import from_plan
    from stackgen.errors import StackgenError
    from stackgen.probe import run_check

    try:
        report = run_check(from_plan(plan, folder), Options(timeout=20.0, skip=("topology",)))
    # no key, say: the other evidence is still worth a look
    except StackgenError as error:
        note(f"not checked: {error.message}")
        return ()
    results = [result for endpoint in report.endpoints for result in endpoint.results]
    told = [(one, f"{one.message} {one.evidence}".strip()) for one in results if one.status in ("fail", "warn")]
    return tuple((one.name, text) for one, text in told if one.status == "fail" or known(one.name, text))


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return None


def _bundle(target: str, evidence: Evidence, findings: tuple[Finding, ...], files: dict[str, str]) -> None:
    from stackgen.diagnose.bundle import pack
    from stackgen.runtimes.evidence import versions

    data = pack(evidence, findings, files, versions())
    path = Path(target)
    path.touch(mode=0o600)
    path.write_bytes(data)
    note(f"wrote {target}: secrets are removed, but look it through before you send it")


def fix(words: Namespace, findings: tuple[Finding, ...], path: Path | None) -> None:
    """Shows the change that mends the cause, asks, and writes it; only safe ones, and only of the first finding."""
    from difflib import unified_diff

    from stackgen.diagnose.edit import apply
    from stackgen.load import parse_stack, read_text
    from stackgen.write import write_atomically

    edit = findings[0].edit if findings else None
    if edit is None or path is None:
        note("nothing to fix" if not findings else "no change to stack.yaml is known that mends it")
        return
    if not edit.safe:
        note("the change decides more than a start: make it by hand")
        return
    before = read_text(path)
    after = apply(before, edit)
    # a change that makes the file invalid is none
    parse_stack(after, str(path))
    for line in unified_diff(before.splitlines(), after.splitlines(), str(path), str(path), lineterm=""):
        note(line)
    if not words.yes and not _agreed():
        note("left as it was")
        return
    write_atomically(path, after, path.stat().st_mode & 0o777)
    note(f"changed {path}: `stackgen up` tries it")


def _agreed() -> bool:
    if not sys.stdin.isatty():
        note("--yes makes the change without asking")
        return False
    sys.stderr.write("make this change? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
