"""Bundles on disk: verified, compared, and loaded without a Docker engine. No image is in them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator

from stackgen import __version__
from stackgen.bundle.blob_reader import BlobReader
from stackgen.bundle.blobs import JOURNAL, BlobWriter
from stackgen.bundle.manifest import MANIFEST, read_manifest
from stackgen.cli.parsers.bundle import parse_size
from stackgen.images.wheel import WHEEL_NAME, build_wheel
from stackgen.stack.copies import sign
from tests.bundle.bundles import STACK, bundle, flip_byte, make_bundle, snapshot_files

ROOT = Path(__file__).parents[2]
WEIGHTS = bytes(range(256)) * 14_000  # 3.6 MB


def large_piece(folder: Path) -> Path:
    return max(folder.rglob("blobs/sha256/*"), key=lambda path: path.stat().st_size)


def read_tree(folder: Path) -> dict[str, bytes | str]:
    """Every file and link of a folder."""
    paths = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return {
        path.relative_to(folder).as_posix(): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in paths
    }


def test_intact_bundle_is_verified_and_sha256sum_agrees(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", WEIGHTS)
    found = json.loads(bundle("verify", folder, "--json").stdout)
    assert found["intact"] and found["problems"] == [] and found["bytes"] > len(WEIGHTS)
    assert found["digest"] == "sha256:" + hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder).returncode == 0


def test_flipped_byte_is_reported_with_the_file_and_what_it_contains(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", WEIGHTS)
    path = large_piece(folder)
    flip_byte(path)
    done = bundle("verify", folder, code=1)
    assert f"blobs/sha256/{path.name}: damaged: its content has changed (weights of org/tiny)" in done.stdout


@pytest.mark.parametrize("name", [MANIFEST, "SHA256SUMS"])
def test_flipped_byte_in_a_small_file_is_reported(tmp_path: Path, name: str) -> None:
    folder = make_bundle(tmp_path / "b", WEIGHTS)
    data = (folder / name).read_text()
    # the date: the manifest stays valid, so only the checksum shows the change
    (folder / name).write_text(data.replace("2026-11-29", "2026-11-28") if name == MANIFEST else "0" + data[1:])
    assert "damaged" in bundle("verify", folder, code=1).stdout


def test_missing_part_is_reported_by_its_name(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", WEIGHTS, part_size=2**20)
    parts = sorted(path.name for path in folder.glob("part-*"))
    assert len(parts) >= 4
    assert all(
        sum(one.stat().st_size for one in (folder / part).rglob("*") if one.is_file()) <= 2**20 for part in parts
    )
    bundle("verify", folder)
    shutil.rmtree(folder / "part-003")
    done = bundle("load", folder, "--only", "weights", "--storage", tmp_path / "store", "-o", tmp_path / "s", code=1)
    assert "part-003: this part of the bundle is missing" in done.stderr and "nothing was loaded" in done.stderr
    assert not (tmp_path / "store").exists() and not (tmp_path / "s").exists()


def test_missing_file_of_a_part_is_reported(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", WEIGHTS, part_size=2**20)
    piece = next((folder / "part-002").rglob("blobs/sha256/*.0*"))
    piece.unlink()
    done = bundle("verify", folder, code=1)
    assert f"{piece.relative_to(folder)}: missing (weights of org/tiny)" in done.stdout


def test_weights_in_parts_are_loaded_byte_for_byte_and_only_once(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", WEIGHTS, part_size=2**20)
    store = tmp_path / "store"
    args = ("load", folder, "--only", "weights", "--storage", store, "-o", tmp_path / "s")
    bundle(*args)
    assert read_tree(store) == snapshot_files(WEIGHTS)
    before = {path: path.stat(follow_symlinks=False).st_ino for path in store.rglob("*")}
    bundle(*args)
    assert {path: path.stat(follow_symlinks=False).st_ino for path in store.rglob("*")} == before


def test_other_files_in_the_store_stay(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "hub" / "models--a--b").mkdir(parents=True)
    (store / "hub" / "models--a--b" / "x").write_text("mine")
    bundle("load", make_bundle(tmp_path / "b", WEIGHTS), "--only", "weights", "--storage", store, "-o", tmp_path / "s")
    assert read_tree(store) == snapshot_files(WEIGHTS) | {"hub/models--a--b/x": b"mine"}


def test_failure_in_the_middle_of_the_weights_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    folder, store = make_bundle(tmp_path / "b", WEIGHTS), tmp_path / "store"
    (store / "by-name" / "org").mkdir(parents=True)
    # a folder where the bundle has a link: the move of the last files fails
    (store / ".stackgen" / "org--tiny@main+all.json" / "busy").mkdir(parents=True)
    (store / "by-name" / "org" / "old").write_text("mine")
    before = read_tree(store)
    blocker = store / "by-name" / "org" / "tiny"
    blocker.write_text("a file where a folder belongs")
    bundle("load", folder, "--only", "weights", "--storage", store, "-o", tmp_path / "s", code=3)
    assert read_tree(store) == before | {"by-name/org/tiny": b"a file where a folder belongs"}
    assert not (store / "hub").exists()


# holds a lock as a load of another process does, until its standard input is closed
HOLD = (
    "import sys; from pathlib import Path; from stackgen.stack.lock import stack_lock\n"
    "with stack_lock(Path(sys.argv[1]), 'bundle', create=True, doing='loading a bundle'):\n"
    "    print(flush=True); sys.stdin.read()"
)


@pytest.mark.parametrize("place", ["state/stackgen/loads", "store"])
def test_second_load_at_the_same_time_is_refused_and_waits(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder, store = make_bundle(tmp_path / "b", WEIGHTS), tmp_path / "store"
    store.mkdir()
    load = ("load", folder, "-o", tmp_path / "s", "--storage", store, "--only", "weights", "--only", "stack")
    command = [sys.executable, "-c", HOLD, str(tmp_path / place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin and other.stdout and other.stdout.readline() == "\n"
        error = bundle(*load, code=2).stderr
        assert f"`stackgen bundle` (pid {other.pid}) has been loading a bundle since" in error and "--wait" in error
        assert not (tmp_path / "s").exists()
        other.stdin.close()
    bundle(*load, "--wait", "5")
    assert (tmp_path / "s/stack.yaml").exists() and not [*store.rglob(".stackgen.busy.json")]
    assert not (tmp_path / "state/stackgen/loads").exists()


def test_stack_is_loaded_with_new_keys_and_an_edited_one_is_kept(tmp_path: Path) -> None:
    folder, target = make_bundle(tmp_path / "b", WEIGHTS), tmp_path / "s"
    bundle("load", folder, "--only", "stack", "-o", target)
    assert (target / "compose.yaml").read_text() == "name: tiny\n"
    key = (target / ".env").read_text()
    assert "STACKGEN_API_KEY=sk-" in key and (target / ".env").stat().st_mode & 0o777 == 0o600
    (target / "compose.yaml").write_text("name: mine\n")
    done = bundle("load", folder, "--only", "stack", "-o", target, code=2)
    assert "compose.yaml" in done.stderr and "edited by hand" in done.stderr
    assert (target / "compose.yaml").read_text() == "name: mine\n" and (target / ".env").read_text() == key


def test_storage_moves_the_store_of_the_loaded_stack(tmp_path: Path) -> None:
    folder, target = make_bundle(tmp_path / "b", WEIGHTS), tmp_path / "s"
    bundle("load", folder, "--only", "stack", "--only", "weights", "--storage", tmp_path / "store", "-o", target)
    assert f'path: "{tmp_path}/store"' in (target / "stack.yaml").read_text()
    assert str(tmp_path / "store") in (target / "compose.yaml").read_text()


def test_full_disk_is_refused_with_the_name_of_the_model(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", WEIGHTS)
    store = Path("/proc")  # a file system without free space
    assert shutil.disk_usage(store).free == 0
    done = bundle("load", folder, "--only", "weights", "--storage", store / "x", "-o", tmp_path / "s", code=3)
    assert "weights of org/tiny" in done.stderr and "0 are free" in done.stderr


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": "../outside"}, "is not a relative path"),
        ({"path": "/etc/outside"}, "is not a relative path"),
        ({"path": "a/link", "digest": None, "link": "../../outside"}, "leads out of the store"),
        ({"path": "a/link", "digest": None, "link": "/etc"}, "leads out of the store"),
    ],
)
def test_paths_that_leave_the_store_are_refused(tmp_path: Path, fields: dict[str, str], message: str) -> None:
    folder = make_bundle(tmp_path / "b", WEIGHTS)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["models"][0]["files"][0] |= fields
    (folder / MANIFEST).write_text(json.dumps(manifest))
    done = bundle("load", folder, "--only", "weights", "--storage", tmp_path / "store", "-o", tmp_path / "s", code=2)
    assert message in done.stderr and not (tmp_path / "store").exists()


def test_other_versions_formats_and_digests_are_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", WEIGHTS, stackgen="9.9.9")
    done = bundle("load", folder, "-o", tmp_path / "s", code=2)
    assert "stackgen 9.9.9 created this bundle" in done.stderr and "install.py" in done.stderr
    assert "another bundle" in bundle("verify", folder, "--expect", "sha256:" + "0" * 64, code=1).stderr
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace("stackgen.bundle/1", "stackgen.bundle/2"))
    assert "has the format stackgen.bundle/2" in bundle("verify", folder, code=2).stderr
    (folder / MANIFEST).write_text(text[:100])
    assert "is damaged" in bundle("verify", folder, code=2).stderr
    (folder / MANIFEST).unlink()
    assert "is not a bundle" in bundle("verify", folder, code=2).stderr


def test_differential_bundle_needs_the_earlier_one(tmp_path: Path) -> None:
    first = make_bundle(tmp_path / "first", WEIGHTS)
    second = make_bundle(tmp_path / "second", WEIGHTS, base=first, stack=STACK.replace("512", "256"))
    assert large_piece(second).stat().st_size < 1000
    assert "not verified: 3,58" in bundle("verify", second).stdout
    store = tmp_path / "store"
    args = ("load", second, "--only", "weights", "--only", "stack", "--storage", store, "-o", tmp_path / "s")
    done = bundle(*args, code=2)
    assert "the content of weights of org/tiny is in an earlier bundle" in done.stderr and not store.exists()
    bundle(*args, "--base", first)
    assert read_tree(store) == snapshot_files(WEIGHTS)
    flip_byte(large_piece(first))
    assert "damaged" in bundle("verify", second, "--base", first, code=1).stdout
    assert "this bundle is not based on" in bundle("verify", first, "--base", second, code=2).stderr


def test_diff_shows_what_changed_and_the_bytes(tmp_path: Path) -> None:
    first = make_bundle(tmp_path / "first", WEIGHTS)
    second = make_bundle(tmp_path / "second", WEIGHTS, stack=STACK.replace("512", "256"))
    done = bundle("diff", first, second, code=1)
    assert "+  - {model: org/tiny" in done.stdout and "max_model_len: 256" in done.stdout
    data = json.loads(bundle("diff", first, second, "--json", code=1).stdout)
    assert [one["name"] for one in data["differences"]] == ["stack.yaml"]
    assert data["bytes_added"] == len(sign(STACK))
    assert "same content" in bundle("diff", first, first).stdout


def test_killed_create_continues_without_its_half_files(tmp_path: Path) -> None:
    writer = BlobWriter(tmp_path, 2**20, {})
    digest = writer.add([WEIGHTS], len(WEIGHTS), "weights:1")
    # what a kill leaves behind: a half file, and no word about it in the journal
    stray = tmp_path / "part-002" / "blobs" / "sha256" / ".99.0.tmp"
    stray.write_bytes(b"half")
    again = BlobWriter(tmp_path, 2**20, {})
    assert again.known("weights:1") == digest and not stray.exists()
    with BlobReader(tmp_path, list(again.blobs.values())).open(digest) as file:
        assert file.read() == WEIGHTS
    # a lost file is written again
    large_piece(tmp_path).unlink()
    assert BlobWriter(tmp_path, 2**20, {}).known("weights:1") is None


def test_content_that_ends_early_or_late_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    writer = BlobWriter(tmp_path, 0, {})
    for size in (len(WEIGHTS) - 1, len(WEIGHTS) + 1):
        with pytest.raises(Exception, match="arrived"):
            writer.add([WEIGHTS], size)
    assert list(tmp_path.rglob("blobs/sha256/*")) == []


def test_unfinished_bundle_is_not_loaded(tmp_path: Path) -> None:
    BlobWriter(tmp_path, 0, {}).save()
    assert (tmp_path / JOURNAL).exists()
    assert "is not a complete bundle" in bundle("verify", tmp_path, code=2).stderr


def test_install_script_installs_the_stackgen_of_the_bundle_without_network(tmp_path: Path) -> None:
    writer = BlobWriter(tmp_path / "b", 0, {})
    # without its packages, which only a registry has: `--version` needs none
    digest = writer.add_bytes(build_wheel())
    blobs = [blob.model_dump() for blob in writer.blobs.values()]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    data = {
        "stackgen": __version__,
        "pythons": [version],
        "wheels": [{"name": WHEEL_NAME, "digest": digest}],
        "blobs": blobs,
    }
    (tmp_path / "b" / MANIFEST).write_text(json.dumps(data))
    script = tmp_path / "b" / "install.py"
    shutil.copy(ROOT / "templates" / "bundle" / "install.py", script)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON"))}
    command = [sys.executable, script, "--venv", tmp_path / "venv"]
    subprocess.run(command, check=True, capture_output=True, env=env)
    done = subprocess.run([tmp_path / "venv/bin/stackgen", "--version"], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == __version__
    flip_byte(large_piece(tmp_path / "b"))
    damaged = subprocess.run(command, capture_output=True, text=True, env=env)
    assert damaged.returncode == 1 and "is damaged" in damaged.stderr


def test_published_schema_describes_real_manifests(tmp_path: Path) -> None:
    schema = json.loads((ROOT / "docs" / "reference" / "bundle.schema.json").read_text())
    folder = make_bundle(tmp_path / "b", WEIGHTS, part_size=2**20)
    Draft202012Validator(schema).validate(json.loads((folder / MANIFEST).read_text()))
    assert read_manifest(folder).stack == "tiny"


@pytest.mark.parametrize(
    ("text", "size"), [("4GiB", 4 * 2**30), ("700MB", 700_000_000), ("4.7G", 4_700_000_000), ("1048576", 2**20)]
)
def test_part_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("create", ".", "--part-size", "huge"), "is not a size"),
        (("verify",), "takes one bundle"),
        (("diff", "a"), "takes the older and the newer bundle"),
        (("verify", ".", "--storage", "x"), "only for `bundle load`"),
        (("load", ".", "--platform", "linux/amd64"), "only for `bundle create`"),
        (("create", ".", "--platform", "windows"), "is not a platform"),
    ],
)
def test_wrong_arguments(tmp_path: Path, args: tuple[str, ...], message: str) -> None:
    assert message in bundle(*args, code=2).stderr


def test_stack_whose_tls_key_must_be_copied_by_hand_is_loaded(tmp_path: Path) -> None:
    tls = "bind: 0.0.0.0\ngateway: {tls: {certificate: /nowhere/tls.crt, key: /nowhere/tls.key}}\n"
    needed = ("gateway.tls.key: /nowhere/tls.key",)
    folder = make_bundle(tmp_path / "b", WEIGHTS, stack=STACK + tls, needed=needed)
    done = bundle("load", folder, "--only", "stack", "-o", tmp_path / "s")
    assert "to do: gateway.tls.key: /nowhere/tls.key" in done.stdout and (tmp_path / "s" / ".env").exists()


def test_weights_reach_a_claim_as_the_guide_says(tmp_path: Path) -> None:
    """All but the cluster is real: the pod of the guide has the schema of Kubernetes, and both `tar` run here."""
    guide = (ROOT / "docs/how-to/serve-without-internet.md").read_text()
    blocks = [textwrap.dedent(one) for one in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)]
    [pod] = [one for one in map(yaml.safe_load, blocks) if one.get("kind") == "Pod"]
    kubernetes_validate.validate(pod, "1.37", strict=True)
    [copy] = [line.strip() for line in guide.splitlines() if "kubectl" in line and "tar -C" in line]
    folder = make_bundle(tmp_path / "b", WEIGHTS)
    bundle("load", folder, "--only", "weights", "--storage", tmp_path / "weights")
    (tmp_path / "claim").mkdir()
    local = copy.replace("kubectl -n llama exec -i weights-loader -- ", "").replace("/models", "claim")
    # twice: existing files and links are replaced
    for _ in range(2):
        subprocess.run(["bash", "-o", "pipefail", "-c", local], cwd=tmp_path, check=True)
    assert read_tree(tmp_path / "claim") == read_tree(tmp_path / "weights") == snapshot_files(WEIGHTS)
