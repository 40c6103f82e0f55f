"""Scripts in `findings/` have the form that CONTRIBUTING.md describes. They are not run here: they install packages."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "findings"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
INSTALL = r"pip\" install -q|apt-get download|npm install --silent --no-audit --no-fund"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_finding_has_the_described_form(script: Path):
    text = script.read_text()
    head = text.split("\nset -u\n")[0]
    assert os.access(script, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n# ")
    fields = ("Expected", "Seen", "Why it", "surprises", "Exits 0 while this holds, 1 when it has changed.")
    assert [field for field in fields if f"\n# {field}" not in head] == []
    assert re.match(r"#.*\n# .*\d+\.\d+.*:", head), "the first line names the program and its version"
    # findings/run ends a script after 240 s
    assert 0 < int(re.search(r" Takes about (\d+) s\.\n?$", head)[1]) < 240  # type: ignore[index]
    assert "mktemp -d" in text and "changed: " in text
    # Python and node exit with 1 after an exception, which must not look like a changed behavior
    assert not re.search(r"try\.(py|mjs)[^\n]*\|\| \{ echo \"changed", text)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_finding_installs_pinned_packages_and_runs_without_stackgen(script: Path):
    text = script.read_text()
    installs = re.findall(rf"(?:{INSTALL}) ((?:[\w\"$.=+:@/-]+ )+)", text)
    assert installs, "the script installs nothing"
    for packages in installs:
        assert all("=" in package or "@" in package[1:] for package in packages.split()), packages
    assert not re.search(r"https?://(?!127\.0\.0\.1)", text)
    assert "stackgen" not in text


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_page_of_the_documentation_says_what_a_finding_means_for_users(script: Path):
    pages = (FOLDER.parent / "docs").rglob("*.md")
    assert any(f"findings/{script.name}" in page.read_text("utf-8") for page in pages)


# scripts of our own: real findings take minutes, and none of them changes on demand
SCRIPTED = {
    "holds": "echo seen; exit 0",
    "absent": "echo 'skipped: no tool'; exit 0",
    "moved": "echo 'changed: it works now'; exit 1",
    "broken": "echo 'no network'; exit 2",
    "crashed": "exit 1",
    "slow": "sleep 60",
}


@pytest.mark.parametrize(
    ("names", "code", "results"),
    [
        (["holds"], 0, ["holds"]),
        (["absent", "holds"], 0, ["skipped: no tool", "holds"]),
        (["broken", "moved"], 1, ["did not run: no network", "changed: it works now"]),
        (["broken", "holds"], 2, ["did not run: no network", "holds"]),
        # a script that ends with 1 for another reason has not seen a change
        (["crashed"], 2, ["did not run:"]),
        (["slow"], 2, ["not finished after 1 s"]),
    ],
)
def test_the_runner_tells_a_change_from_a_script_that_could_not_run(
    names: list[str], code: int, results: list[str], tmp_path: Path
):
    runner = shutil.copy(FOLDER / "run", tmp_path)
    for name in names:
        (tmp_path / f"{name}.sh").write_text(f"#!/usr/bin/env bash\n{SCRIPTED[name]}\n")
        (tmp_path / f"{name}.sh").chmod(0o755)
    chosen = [argument for name in names for argument in ("--only", name)]
    limit = ["--limit", "1"] if "slow" in names else []
    # without --only, all scripts run in the order of their names
    for arguments in ([], chosen):
        done = subprocess.run([runner, *limit, *arguments], capture_output=True, text=True)
        rows = [re.split(r" {2,}\d+ {2}", line) for line in done.stdout.splitlines()[1:]]
        assert done.returncode == code, done.stderr
        assert [(name.strip(), result.strip()) for name, result in rows] == list(zip(names, results, strict=True))


@pytest.mark.parametrize("arguments", [["--only"], ["--only", "missing"], ["--limit", "soon"], ["all"]])
def test_the_runner_refuses_unknown_arguments(arguments: list[str], tmp_path: Path):
    done = subprocess.run([shutil.copy(FOLDER / "run", tmp_path), *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: findings/run" in done.stderr
