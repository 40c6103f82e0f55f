"""The oldest Python that stackgen promises: every setting names it, and stackgen runs there (docs/decisions)."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "python310"
# no containers, few libraries of the dev extra, and a few seconds: rendering, quoting, the check against a server
SAMPLE = ("tests/targets", "tests/providers", "tests/check/test_time_limit.py", "tests/render/test_write.py")
IMPORTS = """
import importlib, pkgutil, sys, warnings
warnings.simplefilter("error")
import stackgen
for module in pkgutil.walk_packages(stackgen.__path__, "stackgen."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(sys.version_info[:2], len(sys.modules))
"""


def test_every_setting_names_the_same_oldest_version() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    (oldest,) = re.findall(r'requires-python = ">=3\.(\d+)"', text)
    assert re.findall(r'target-version = "py3(\d+)"', text) == [oldest]
    assert re.findall(r'python_version = "3\.(\d+)"', text) == [oldest]
    assert f"version_info < (3, {oldest})" in (ROOT / "scripts" / "setup").read_text()
    assert f"Python 3.{oldest} " in (ROOT / "docs" / "decisions" / "python-versions.md").read_text()


# a machine without Python 3.10 has no such test, instead of a skipped one: mypy and ruff still check the code for 3.10
if subprocess.run([SCRIPT, "--find"], capture_output=True).returncode == 0:

    @pytest.fixture(scope="module")
    def python310() -> str:
        """A Python 3.10 with stackgen's dependencies; its first use installs them, at the speed of the network."""
        done = subprocess.run([SCRIPT], capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    # the installation is no part of what may take 300 s
    @pytest.mark.timeout(300, func_only=True)
    def test_every_module_can_be_imported(python310: str) -> None:
        done = subprocess.run([python310, "-c", IMPORTS], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("(3, 10)")

    @pytest.mark.timeout(300, func_only=True)
    def test_a_sample_of_the_tests_passes(python310: str) -> None:
        arguments = ["-q", "-x", "-m", "not docker and not compose", "-p", "no:cacheprovider"]
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "STACKGEN_TEST_"))}
        done = subprocess.run(
            [python310, "-m", "pytest", *arguments, *SAMPLE], capture_output=True, text=True, cwd=ROOT, env=env
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
