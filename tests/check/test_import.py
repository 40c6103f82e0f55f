"""Importing the package must be cheap, because the CLI imports it at start."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("httpx2", "openai", "pydantic", "rich", "docker", "yaml")


def loaded(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_package_targets_and_reports_import_nothing_heavy() -> None:
    modules = "stackgen.check, stackgen.check.target, stackgen.check.report, stackgen.check.report.text"
    assert loaded(f"import {modules}") == set()


def test_a_check_imports_no_sdk() -> None:
    assert loaded("import stackgen.check as c; c.check([])") == {"pydantic"}
