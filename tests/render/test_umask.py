"""With every umask, containers that run as other users can read what is mounted, and the rest stays private."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from stackgen.cli.main import main
from stackgen.plan import Bind
from stackgen.stack.envfile import create_env
from stackgen.stack.folder import open_stack

STACK = """\
name: s
gateway: { tls: {}, keys: [{ name: team }] }
monitoring: true
models:
  - { model: org/m, engine: vllm, replicas: 2 }
  - { model: org/f, engine: fastchat }
  - model: org/l
    engine: llamacpp
    file: a.gguf
    fallback: { base_url: "https://example.com/v1", model: x, api_key_env: A_KEY }
"""
OTHERS_READ, OTHERS_ENTER = 0o004, 0o005


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "stack"
    folder.mkdir(mode=0o700)
    (folder / "stack.yaml").write_text(STACK)
    return folder


@pytest.fixture(params=[0o077, 0o027, 0o022], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mounted_paths(folder: Path) -> list[Path]:
    """What the services mount of the stack's folder, and everything in it, except for the certificate."""
    binds = (one for service in open_stack(str(folder)).plan.services for one in service.mounts)
    sources = {one.source for one in binds if isinstance(one, Bind) and one.source.startswith("./")}
    assert {"./scripts", "./gateway", "./monitoring"} <= sources
    roots = [folder / one for one in sorted(sources)]
    # HAProxy reads the certificate and its key before it gives up root's rights
    return [path for root in roots for path in (root, *root.rglob("*")) if "tls" not in path.parts]


def unreadable(paths: list[Path]) -> list[Path]:
    """What other users can't read."""
    needed = {one: OTHERS_ENTER if one.is_dir() else OTHERS_READ for one in paths}
    return [one for one, bits in needed.items() if one.stat().st_mode & bits != bits]


@pytest.mark.parametrize("before", ["new", "keys first", "private"])
def test_other_users_can_read_what_is_mounted_and_nothing_else(folder: Path, umask: int, before: str) -> None:
    create_env(folder)
    if before == "keys first":
        # creates gateway/ with the umask
        assert main(["keys", "new", "team", "--stack", str(folder)]) in (0, 1)
    if before == "private":
        # as an earlier version left it
        (folder / "gateway").mkdir(mode=0o700)
        (folder / "monitoring" / "dashboards").mkdir(mode=0o700, parents=True)
    assert main(["render", str(folder), "--no-validate"]) == 0
    assert main(["keys", "new", "later", "--stack", str(folder)]) in (0, 1)
    paths = mounted_paths(folder)
    assert len(paths) > 20 and folder / "gateway" / "keys.map" in paths
    assert unreadable(paths) == []
    for name in ("compose.yaml", "stackgen.lock"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o666 & ~umask, name
    for name in (".env", "gateway/tls/site.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_new_folder_of_a_stack_follows_the_umask(tmp_path: Path, folder: Path, umask: int) -> None:
    target = tmp_path / "a" / "b"
    assert main(["render", str(folder), "--no-validate", "-o", str(target)]) == 0
    for path in (target.parent, target):
        assert stat.S_IMODE(path.stat().st_mode) == 0o777 & ~umask
    inside = (target / "gateway").rglob("*")
    # only root reads the private key, and only the gateway's container its folder
    assert unreadable([target / "gateway", *(path for path in inside if "tls" not in path.parts)]) == []
    assert stat.S_IMODE((target / "gateway" / "tls" / "site.key").stat().st_mode) == 0o600


def test_the_target_of_a_link_keeps_its_mode(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "private").mkdir(mode=0o700)
    (folder / "gateway").symlink_to(tmp_path / "private")
    assert main(["render", str(folder), "--no-validate"]) == 0
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o700
