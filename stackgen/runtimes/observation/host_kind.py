"""Reads what kind of machine this is: WSL, a virtual machine, or a Jetson."""

from __future__ import annotations

import re
from pathlib import Path

from stackgen.diagnose.machine import Machine

__all__ = ["read_machine"]

# # R36 (release), REVISION: 4.7, GCID: …, as Jetson Linux writes it
RELEASE = re.compile(r"# (?P<major>R\d+) \(release\), REVISION: (?P<minor>[\d.]+)")


def read_machine(root: Path = Path("/")) -> Machine:
    """The kind of the machine whose file system starts at `root`; files that can't be read count as absent."""
    release = RELEASE.search(_read(root / "etc/nv_tegra_release"))
    # Microsoft's kernel names itself in its release, and every hypervisor sets this flag of the CPU
    return Machine(
        wsl="microsoft" in _read(root / "proc/sys/kernel/osrelease").lower(),
        virtual=bool(re.search(r"^flags\s*:.*\bhypervisor\b", _read(root / "proc/cpuinfo"), re.M)),
        jetson=f"{release['major']} {release['minor']}" if release else "",
    )


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
