"""Downloads wheels with this machine's own pip and its configuration."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from stackgen.errors import MachineError, StackgenError

__all__ = ["PLATFORM_TAGS", "download_wheels"]

# what a tag requires of glibc, the oldest first: Debian 10, RHEL 8 and newer have 2.28
GLIBC = ("2014", "_2_17", "_2_24", "_2_27", "_2_28")
MACHINES = {"linux/amd64": "x86_64", "linux/arm64": "aarch64", "linux/arm64/v8": "aarch64"}
PLATFORM_TAGS = {
    name: tuple(f"manylinux{version}_{machine}" for version in GLIBC) for name, machine in MACHINES.items()
}
# far above the depth of any real tree of packages
MAX_ROUNDS = 20
# Prints what the wheels in a folder require of another Python, and the folder lacks. `pip download --python-version`
# evaluates the markers for the Python that runs pip (findings/pip-download-ignores-markers.sh), so it leaves these out
FIND_MISSING = """
import email, pathlib, sys, zipfile
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name
folder, python, machine = sys.argv[1:]
there, wanted = set(), {}
for path in pathlib.Path(folder).glob("*.whl"):
    with zipfile.ZipFile(path) as wheel:
        name = next(one for one in wheel.namelist() if one.endswith(".dist-info/METADATA"))
        data = email.message_from_bytes(wheel.read(name))
    there.add(canonicalize_name(data["Name"]))
    for text in data.get_all("Requires-Dist") or ():
        one = Requirement(text)
        system = {"python_version": python, "python_full_version": python + ".0", "platform_machine": machine,
                  "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "extra": "",
                  "implementation_name": "cpython", "platform_python_implementation": "CPython"}
        if one.marker and one.marker.evaluate(system):
            one.marker = None
            wanted[canonicalize_name(one.name)] = str(one)
print("\\n".join(text for name, text in sorted(wanted.items()) if name not in there))
"""


def download_wheels(requirements: Sequence[str], target: Path, platform: str, python: str) -> None:
    """Downloads wheels of `requirements` and of all that they need into `target`, for `python` (3.12) on `platform`.

    Raises MachineError if this Python has no pip, and StackgenError with pip's last message if it finds no wheel.
    """
    left = list(requirements)
    for _ in range(MAX_ROUNDS):
        _download(left, target, platform, python)
        found = _run(["-c", FIND_MISSING, str(target), python, MACHINES[platform]])
        left = [line for line in found.stdout.splitlines() if line]
        if found.returncode or not left:
            # a pip without its parser: what pip has chosen is all there is to know
            return


def _download(requirements: Sequence[str], target: Path, platform: str, python: str) -> None:
    tags = [part for tag in PLATFORM_TAGS[platform] for part in ("--platform", tag)]
    # wheels only: building one runs code, for this machine's platform
    done = _run(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input",
                 "--only-binary", ":all:", "--python-version", python, "--implementation", "cp", *tags,
                 "--dest", str(target), *requirements])  # fmt: skip
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise MachineError(
            f"{sys.executable} has no pip, which downloads the Python packages",
            "install pip, or leave the packages out with --no-wheels",
        )
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines() or ["?"]
    raise StackgenError(
        f"pip can't download the packages for Python {python} on {platform}: {lines[-1].removeprefix('ERROR: ')}",
        "check this machine's connection to the package index, and --python. --no-wheels leaves the packages out",
    )


def _run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
