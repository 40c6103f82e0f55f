"""diagnose and explain: why a stack failed, and what the ids mean. Exit codes of diagnose: 0 nothing wrong, 1 found,
or it can't be told.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from stackgen.check.options import Options
from stackgen.cli.commands.fix import fix
from stackgen.cli.commands.output import note, print_data
from stackgen.diagnose import Evidence, Finding
from stackgen.diagnose import diagnose as judge
from stackgen.diagnose.bundle import pack
from stackgen.diagnose.explain import told
from stackgen.diagnose.gpus import summary
from stackgen.diagnose.log_lines import decoded
from stackgen.diagnose.rule_engine import unsure
from stackgen.diagnose.rules import known
from stackgen.diagnose.secrets import Scrubber
from stackgen.errors import StackgenError
from stackgen.plan import Plan
from stackgen.providers.endpoints import from_plan
from stackgen.providers.probe import run_check
from stackgen.runtimes.observation import evidence
from stackgen.runtimes.observation.evidence import versions
from stackgen.stack.folder import open_stack, stack_file

__all__ = ["diagnose"]


def diagnose(args: Namespace) -> int:
    """`stackgen diagnose`: the cause first, what else was found below."""
    evidence, files, path = _collect(args)
    findings = judge(evidence)
    if args.bundle:
        _bundle(args.bundle, evidence, findings, files)
    lines = [told(one, first=not index) for index, one in enumerate(findings)]
    nothing = "nothing wrong found" + ("" if evidence.services else ": there is nothing to look at")
    unclear = () if findings else unsure(evidence)
    if unclear:
        nothing = f"can't tell: no cause is found, and nothing says that {', '.join(unclear)} was ever ready"
    gpus = evidence.gpus
    # a log alone may come from another machine: nothing is known of its cards, and nothing is said
    cards = ["", *summary(gpus)] if gpus else []
    print_data(args, {"ok": not findings and not unclear, "findings": [one.to_json() for one in findings],
                       "gpus": gpus.to_json() if gpus else None},
               [*(["\n\n".join(lines)] if lines else [nothing]), *map(Scrubber(evidence.secrets), cards)])  # fmt: skip
    if args.fix:
        fix(args, findings, path)
    return 1 if findings or unclear else 0


def _collect(args: Namespace) -> tuple[Evidence, dict[str, str], Path | None]:
    """The evidence, the rendered files for a report, and stack.yaml where the words name one."""
    if args.logs:
        try:
            pasted = decoded(sys.stdin.buffer.read() if args.logs == "-" else Path(args.logs).read_bytes())
        except OSError as error:
            raise StackgenError(f"{args.logs} can't be read: {error.strerror}") from None
        return evidence.of_log(pasted), {}, None
    if args.container:
        return evidence.of_container(args.container), {}, None

    stack = open_stack(args.stack)
    path = stack_file(args.stack) or Path(args.stack) / "stack.yaml"
    runtime = args.runtime or ("process" if evidence.ran_as_processes(stack.plan, stack.folder) else "compose")
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
    data = pack(evidence, findings, files, versions())
    path = Path(target)
    path.touch(mode=0o600)
    path.write_bytes(data)
    note(f"wrote {target}: secrets are removed, but look it through before you send it")
