"""`stackgen diagnose`: why a stack failed.

Exit codes: 0 no problems found; 1 a cause was found, a pasted log shows errors, or the evidence does not show whether
the stack works.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from stackgen.check.options import Options
from stackgen.cli.commands.fix import fix
from stackgen.cli.commands.output import note, print_data
from stackgen.cli.scrub import known_secrets
from stackgen.diagnose import Evidence, Finding
from stackgen.diagnose import diagnose as find_causes
from stackgen.diagnose.bundle import build_bundle
from stackgen.diagnose.explain import format_finding
from stackgen.diagnose.gpus import format_gpus
from stackgen.diagnose.hints import describe_refused, describe_undecided
from stackgen.diagnose.log_text import decode_log
from stackgen.diagnose.rule_engine import find_logged_errors, find_survived_requests, find_undecided_services
from stackgen.diagnose.rules import has_check_rule
from stackgen.errors import StackgenError
from stackgen.plan import Plan
from stackgen.providers.endpoints import targets_from_plan
from stackgen.providers.probe import run_check
from stackgen.render.read import read_regular
from stackgen.runtimes.observation import evidence
from stackgen.runtimes.observation.versions import collect_versions
from stackgen.stack.folder import Stack, find_stack_file, open_stack
from stackgen.stack.load import load_stack
from stackgen.stack.redactor import SecretRedactor
from stackgen.stack.secrets import find_stack_secrets
from stackgen.targets.kubernetes import FOLDER

__all__ = ["diagnose"]


def diagnose(args: Namespace) -> int:
    """`stackgen diagnose`: prints the cause first, then other findings. Returns the exit code."""
    evidence, files, path, stack = _collect_evidence(args)
    # a log or a container may belong to the stack of this folder; before the diagnosis, which shortens long lines
    evidence = replace(evidence, secrets=(*evidence.secrets, *known_secrets()))
    findings = find_causes(evidence)
    if stack:
        from stackgen.cli.commands.cluster import in_words_of

        findings = tuple(in_words_of(stack, one) for one in findings)
    if args.bundle:
        _write_bundle(args.bundle, evidence, findings, files)
    lines = [format_finding(one, first=not index) for index, one in enumerate(findings)]
    no_finding = "no problems found" + ("" if evidence.services else ": there are no services to diagnose")
    undecided = () if findings else find_undecided_services(evidence)
    hints = describe_undecided(evidence, undecided) if undecided else ()
    logged = () if findings else find_logged_errors(evidence)
    if logged:
        no_finding = (
            f"no failure was found. The log shows errors after which the service continued, such as: {logged[-1]}"
        )
        if refused := describe_refused(logged[-1]):
            hints = (*hints, refused)
            no_finding = f"no failure was found, but the server refused the last request: {logged[-1]}\n{refused}"
    survived = () if findings else find_survived_requests(evidence)
    if survived:
        no_finding = "\n".join(survived)
    if undecided:
        no_finding = "\n".join((
            f"unknown: no cause was found, and it is unknown whether {', '.join(undecided)} ever became ready", *hints,
        ))  # fmt: skip
    is_ok = not (findings or undecided or logged)
    gpus = evidence.gpus
    # a log alone may come from another machine, so print nothing about this machine's GPUs
    gpu_lines = ["", *format_gpus(gpus)] if gpus else []
    print_data(args, {"ok": is_ok, "findings": [one.to_json() for one in findings],
                       "failed_requests": list(survived), "hints": list(hints),
                       "gpus": gpus.to_json() if gpus else None},
               ["\n\n".join(lines) or no_finding, *map(SecretRedactor(evidence.secrets), gpu_lines)])  # fmt: skip
    if args.fix:
        fix(args, findings, path)
    return 0 if is_ok else 1


def _collect_evidence(args: Namespace) -> tuple[Evidence, dict[str, str], Path | None, Stack | None]:
    """Returns the evidence, the rendered files for a bundle, and the path of stack.yaml if `args` select a stack.

    The last value is the stack if it is in a cluster.
    """
    if args.logs:
        try:
            # bytes, because a log that PowerShell wrote is in UTF-16
            pasted = decode_log(sys.stdin.buffer.read() if args.logs == "-" else Path(args.logs).read_bytes())
        except OSError as error:
            raise StackgenError(
                f"{args.logs} can't be read: {error.strerror}", "pass an existing file, or `-` for standard input"
            ) from None
        return _add_spec(evidence.collect_from_log(pasted), args.stack), {}, None, None
    if args.container:
        return evidence.collect_from_container(args.container), {}, None, None

    stack = open_stack(args.stack)
    path = find_stack_file(args.stack) or Path(args.stack) / "stack.yaml"
    if stack.site.is_cluster:
        from stackgen.cli.commands.cluster import collect_evidence

        names = (path.name, ".env", f"{FOLDER}/stackgen.lock")
        return collect_evidence(args, stack), _read_files(stack.folder, names), path, stack
    runtime = args.runtime or ("process" if evidence.last_ran_as_processes(stack.plan, stack.folder) else "compose")
    if runtime == "process":
        found = evidence.collect_from_processes(path, stack.spec)
    else:
        found = evidence.collect_from_stack(stack.plan, stack.folder, stack.spec)
    # if a service has failed, its failed checks contain no further information
    if found.plan and found.services and all(one.is_working for one in found.services):
        found = replace(found, checks=_run_checks(found.plan, stack.folder))
    # of .env, build_bundle keeps only the names of the variables
    return found, _read_files(stack.folder, (path.name, "compose.yaml", ".env", "stackgen.lock")), path, None


def _read_files(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    return {name: text for name in names if (text := _read_text(folder / name)) is not None}


def _add_spec(found: Evidence, where: str) -> Evidence:
    """`found` with the stack.yaml that the user named; a log may come from any stack, so no other one counts."""
    if where == ".":
        return found
    try:
        spec = load_stack(find_stack_file(where) or Path(where))
    except StackgenError as error:
        note(f"{where} can't be used, so the diagnosis uses only the log: {error.message}")
        return found
    return replace(found, spec=spec, secrets=(*found.secrets, *find_stack_secrets(spec, None)))


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
        return read_regular(path).decode("utf-8", "replace")
    except OSError:
        return None


def _write_bundle(target: str, evidence: Evidence, findings: tuple[Finding, ...], files: dict[str, str]) -> None:
    data = build_bundle(evidence, findings, files, collect_versions())
    path = Path(target)
    # private before the first byte is written: logs may contain secrets that redaction does not find
    path.touch(mode=0o600)
    path.write_bytes(data)
    note(f"wrote {target}: secrets are removed, but review the file before you send it")
