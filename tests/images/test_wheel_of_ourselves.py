"""The wheel for the exporter's image: built from a checkout, and from an installed wheel."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from stackgen.cli.main import main
from stackgen.images import wheel
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the wheel as in the image: without an index, and without dependencies."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / wheel.WHEEL_NAME).write_bytes(wheel.build_wheel())
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        folder / "site",
    ]
    subprocess.run([*command, folder / wheel.WHEEL_NAME], check=True, capture_output=True)
    return folder / "site"


def run_python(site: Path, *arguments: str) -> str:
    # the dependencies come from this environment, the package from the folder
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", *arguments], cwd=site,
                          env=environment, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_installed_wheel_runs_and_has_templates(installed: Path) -> None:
    assert run_python(installed, "-c", "import stackgen; print(stackgen.__file__)").startswith(str(installed))
    assert "usage: stackgen exporter" in run_python(installed, "-m", "stackgen", "exporter", "--help")
    example = ROOT / "compose" / "gateway-monitored"
    rendered = run_python(installed, "-m", "stackgen", "render", str(example), "--stdout", "--no-validate")
    assert rendered.partition("\n")[2] == (example / "compose.yaml").read_text("utf-8").partition("\n")[2]


def test_an_installed_stackgen_builds_the_same_wheel(installed: Path, tmp_path: Path) -> None:
    assert run_python(installed, "-m", "stackgen.images.wheel", str(tmp_path)).strip() == wheel.package_digest()
    assert (tmp_path / wheel.WHEEL_NAME).read_bytes() == wheel.build_wheel()


def test_wheel_contains_only_the_package() -> None:
    with zipfile.ZipFile(io.BytesIO(wheel.build_wheel())) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
    assert {
        "stackgen/cli/main.py",
        "stackgen/_templates/report/status.html.j2",
        "stackgen/_templates/env.example",
    } <= names
    assert not [name for name in names if "__pycache__" in name or not name.startswith("stackgen")]


def test_exporter_image_pins_every_dependency_within_its_range() -> None:
    text = (ROOT / "templates" / "images" / "exporter" / "requirements.txt").read_text("utf-8")
    pinned = {name.lower().replace("_", "-"): version for name, version in re.findall(r"(?m)^(\S+)==(\S+)$", text)}
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    dependencies = re.findall(r'"([^"]+)"', project.partition("\ndependencies = [")[2].partition("]")[0])
    assert len(dependencies) > 5
    for one in map(Requirement, dependencies):
        assert pinned[one.name] in one.specifier, one


def test_rendering_writes_the_wheel_into_the_build_context(tmp_path: Path) -> None:
    text = "name: demo\nmonitoring: {on}\nmodels: [{{model: org/m, engine: vllm}}]\n"
    (tmp_path / "stack.yaml").write_text(text.format(on="true"))
    (tmp_path / "exporter").mkdir()
    (tmp_path / "exporter" / "stackgen-0.0.1-py3-none-any.whl").write_bytes(b"an older one")
    assert main(["render", str(tmp_path), "--no-validate"]) == 0
    assert [path.name for path in (tmp_path / "exporter").glob("*.whl")] == [wheel.WHEEL_NAME]
    assert (tmp_path / "exporter" / wheel.WHEEL_NAME).read_bytes() == wheel.build_wheel()
    # it is built, not rendered: no text that could be edited, so it isn't in the lock file
    assert wheel.WHEEL_NAME not in (tmp_path / "stackgen.lock").read_text()
    assert main(["render", str(tmp_path), "--check", "--no-validate"]) == 0
    recipe = (tmp_path / "exporter" / "Dockerfile").read_text()
    assert "--no-index" in recipe and "stackgen==" not in recipe


@pytest.mark.parametrize("on", ["false", "{exporter_image: 'me/x:1'}"])
def test_no_wheel_without_a_built_exporter_image(tmp_path: Path, on: str) -> None:
    (tmp_path / "stack.yaml").write_text(f"name: demo\nmonitoring: {on}\nmodels: [{{model: org/m, engine: vllm}}]\n")
    assert main(["render", str(tmp_path), "--no-validate"]) == 0
    assert not (tmp_path / "exporter").exists()
