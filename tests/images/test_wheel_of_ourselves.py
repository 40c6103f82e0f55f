"""stackgen's own wheel, which the exporter's image is built from: of a checkout, and of what was installed from it."""

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
    """A folder that pip has unpacked the wheel into, as in the image: from no index, and with nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / wheel.NAME).write_bytes(wheel.wheel())
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder / "site"]
    subprocess.run([*words, folder / wheel.NAME], check=True, capture_output=True)
    return folder / "site"


def ran(site: Path, *words: str) -> str:
    # the dependencies are this environment's; the package is the installed one
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", *words], cwd=site,
                          env=environment, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_runs_and_has_its_templates(installed: Path) -> None:
    assert ran(installed, "-c", "import stackgen; print(stackgen.__file__)").startswith(str(installed))
    assert "usage: stackgen exporter" in ran(installed, "-m", "stackgen", "exporter", "--help")
    example = ROOT / "compose" / "gateway-monitored"
    rendered = ran(installed, "-m", "stackgen", "render", str(example), "--stdout", "--no-validate")
    assert rendered.partition("\n")[2] == (example / "compose.yaml").read_text("utf-8").partition("\n")[2]


def test_an_installed_one_makes_the_same_wheel(installed: Path, tmp_path: Path) -> None:
    assert ran(installed, "-m", "stackgen.images.wheel", str(tmp_path)).strip() == wheel.digest()
    assert (tmp_path / wheel.NAME).read_bytes() == wheel.wheel()


def test_it_holds_the_package_and_nothing_that_lies_beside_it() -> None:
    with zipfile.ZipFile(io.BytesIO(wheel.wheel())) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
    assert {
        "stackgen/cli/main.py",
        "stackgen/_templates/report/status.html.j2",
        "stackgen/_templates/env.example",
    } <= names
    assert not [name for name in names if "__pycache__" in name or not name.startswith("stackgen")]


def test_the_image_pins_every_dependency_in_its_range() -> None:
    text = (ROOT / "templates" / "images" / "exporter" / "requirements.txt").read_text("utf-8")
    pinned = {name.lower().replace("_", "-"): version for name, version in re.findall(r"(?m)^(\S+)==(\S+)$", text)}
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    wanted = re.findall(r'"([^"]+)"', project.partition("\ndependencies = [")[2].partition("]")[0])
    assert len(wanted) > 5
    for one in map(Requirement, wanted):
        assert pinned[one.name] in one.specifier, one


def test_rendering_puts_it_into_the_exporters_build_context(tmp_path: Path) -> None:
    text = "name: demo\nmonitoring: {on}\nmodels: [{{model: org/m, engine: vllm}}]\n"
    (tmp_path / "stack.yaml").write_text(text.format(on="true"))
    (tmp_path / "exporter").mkdir()
    (tmp_path / "exporter" / "stackgen-0.0.1-py3-none-any.whl").write_bytes(b"an older one")
    assert main(["render", str(tmp_path), "--no-validate"]) == 0
    assert [path.name for path in (tmp_path / "exporter").glob("*.whl")] == [wheel.NAME]
    assert (tmp_path / "exporter" / wheel.NAME).read_bytes() == wheel.wheel()
    # it is made and not rendered: no text that could be edited, nothing for a lock
    assert wheel.NAME not in (tmp_path / "stackgen.lock").read_text()
    assert main(["render", str(tmp_path), "--check", "--no-validate"]) == 0
    recipe = (tmp_path / "exporter" / "Dockerfile").read_text()
    assert "--no-index" in recipe and "stackgen==" not in recipe


@pytest.mark.parametrize("on", ["false", "{exporter_image: 'me/x:1'}"])
def test_where_none_is_built_there_is_no_wheel(tmp_path: Path, on: str) -> None:
    (tmp_path / "stack.yaml").write_text(f"name: demo\nmonitoring: {on}\nmodels: [{{model: org/m, engine: vllm}}]\n")
    assert main(["render", str(tmp_path), "--no-validate"]) == 0
    assert not (tmp_path / "exporter").exists()
