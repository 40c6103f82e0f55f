"""The wheel works without the checkout: installed into an empty environment, it renders the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORDS = ["render", "org/Model", "--engine", "fastchat", "--gpus", "none", "--stdout", "--no-validate"]


@pytest.mark.timeout(300)
def test_an_installed_wheel_renders_what_the_checkout_renders(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "stackgen/_templates/compose/compose.yaml.j2" in names
    assert not [name for name in names if name.startswith("tests/")]

    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True, capture_output=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    installed = subprocess.run(
        [python.with_name("stackgen"), *WORDS],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    here = subprocess.run(
        [sys.executable, "-m", "stackgen", *WORDS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert installed.stdout == here.stdout
    assert "build:" in installed.stdout
    init = [python.with_name("stackgen"), "init", "new"]
    subprocess.run(init, cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert (tmp_path / "new" / ".env").exists()
