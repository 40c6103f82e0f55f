"""`stackgen diagnose`: why a stack failed.

Exit codes: 0 no problems found, 1 a cause was found, or the evidence does not show whether the stack works.
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
from stackgen.diagnose import diagnose as find_causes
from stackgen.diagnose.bundle import build_bundle
from stackgen.diagnose.explain import format_finding
from stackgen.diagnose.gpus import format_gpus
from stackgen.diagnose.log_lines import decode_log
from stackgen.diagnose.rule_engine import find_undecided_services
from stackgen.diagnose.rules import has_check_rule
from stackgen.diagnose.secrets import SecretRedactor
from stackgen.errors import StackgenError
from stackgen.plan import Plan
from stackgen.providers.endpoints import targets_from_plan
from stackgen.providers.probe import run_check
from stackgen.runtimes.observation import evidence
from stackgen.runtimes.observation.versions import collect_versions
from stackgen.stack.folder import find_stack_file, open_stack

__all__ = ["diagnose"]


def diagnose(args: Namespace) -> int:
    """`stackgen diagnose`: prints the cause first, then other findings. Returns the exit code."""
    evidence, files, path = _collect_evidence(args)
    findings = find_causes(evidence)
    if args.bundle:
        _write_bundle(args.bundle, evidence, findings, files)
    lines = [format_finding(one, first=not index) for index, one in enumerate(findings)]
    no_finding = "no problems found" + ("" if evidence.services else ": there are no services to diagnose")
    undecided = () if findings else find_undecided_services(evidence)
    if undecided:
        no_finding = f"unknown: no cause was found, but nothing shows that {', '.join(undecided)} was ever ready"
    gpus = evidence.gpus
    # a log alone may come from another machine, so print nothing about this machine's GPUs
    gpu_lines = ["", *format_gpus(gpus)] if gpus else []
    print_data(args, {"ok": not findings and not undecided, "findings": [one.to_json() for one in findings],
                       "gpus": gpus.to_json() if gpus else None},
               ["\n\n".join(lines) or no_finding, *map(SecretRedactor(evidence.secrets), gpu_lines)])  # fmt: skip
    if args.fix:
        fix(args, findings, path)
    return 1 if findings or undecided else 0


def _collect_evidence(args: Namespace) -> tuple[Evidence, dict[str, str], Path | None]:
    """Returns the evidence, the rendered files for a bundle, and the path of stack.yaml if `args` select a stack."""
    if args.logs:
        try:
            pasted = decode_log(sys.stdin.buffer.read() if args.logs == "-" else Path(args.logs).read_bytes())
        except OSError as error:
            raise StackgenError(f"{args.logs} can't be read: {error.strerror}") from None
        return evidence.collect_from_log(pasted), {}, None
    if args.container:
        return evidence.collect_from_container(args.container), {}, None

    stack = open_stack(args.stack)
    path = find_stack_file(args.stack) or Path(args.stack) / "stack.yaml"
    runtime = args.runtime or ("process" if evidence.last_ran_as_processes(stack.plan, stack.folder) else "compose")
    if runtime == "process":
        found = evidence.collect_from_processes(path, stack.spec)
    else:
        found = evidence.collect_from_stack(stack.plan, stack.folder, stack.spec)
    # if a service has failed, its failed checks contain no further information
    if found.plan and found.services and all(one.is_working for one in found.services):
        found = replace(found, checks=_run_checks(found.plan, stack.folder))
    names = ("stack.yaml", "compose.yaml", ".env", "stackgen.lock")
    files = {name: text for name in names if (text := _read_text(stack.folder / name)) is not None}
    return found, files, path


def _run_checks(plan: Plan, folder: Path) -> tuple[tuple[str, str], ...]:
    """Returns what clients see if all services work: the failed checks, and warnings that a rule explains."""
    try:
        report = run_check(targets_from_plan(plan, folder), Options(timeout=20.0, skip=("topology",)))
    # for example, the key is missing; the other evidence may still show the cause
    except StackgenError as error:
        note(f"skipped `stackgen check`: {error.message}")
        return ()
    results = [result for endpoint in report.endpoints for result in endpoint.results]
    failed = [(one, f"{one.message} {one.evidence}".strip()) for one in results if one.status in ("fail", "warn")]
    return tuple((one.name, text) for one, text in failed if one.status == "fail" or has_check_rule(one.name, text))


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return None


def _write_bundle(target: str, evidence: Evidence, findings: tuple[Finding, ...], files: dict[str, str]) -> None:
    data = build_bundle(evidence, findings, files, collect_versions())
    path = Path(target)
    # private before the first byte is written: logs may contain secrets that redaction does not find
    path.touch(mode=0o600)
    path.write_bytes(data)
    note(f"wrote {target}: secrets are removed, but review the file before you send it")
