"""The list of components: packages of Debian, Alpine and Python, found in layers as they are after all of them."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from stackgen.bundle.blob_reader import BlobReader
from stackgen.bundle.blobs import BlobWriter
from stackgen.bundle.manifest import Image
from stackgen.bundle.packages import find_packages, scan_layers
from stackgen.bundle.sbom import build_sbom

STATUS = """\
Package: curl
Status: install ok installed
Architecture: amd64
Version: 7.88.1-10+deb12u15
Description: tool
 with a second line: x

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0
"""
COPYRIGHT = (
    "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: curl\n text\n"
)
RELEASE = 'PRETTY_NAME="Debian"\nID=debian\nVERSION_ID="12"\n'
METADATA = "Metadata-Version: 2.4\nName: Foo_Bar\nVersion: 1.2\nLicense-Expression: MIT\n\nLicense: not a header\n"
CLASSIFIED = (
    "Metadata-Version: 2.1\nName: old\nVersion: 3\nLicense: UNKNOWN\nClassifier: License :: OSI Approved :: BSD\n"
)
APK = "P:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\n\nP:busybox\nV:1.36.1-r29\nA:x86_64\nL:GPL-2.0-only\n"


def layer(files: dict[str, str], compressed: bool = False) -> io.BytesIO:
    """A layer with these files; names may start with `./`, as Docker and BuildKit write them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return io.BytesIO(gzip.compress(buffer.getvalue()) if compressed else buffer.getvalue())


def test_packages_of_debian_and_python_are_found_with_their_licenses() -> None:
    found, has_unread = find_packages(scan_layers([
        layer({"etc/os-release": RELEASE, "var/lib/dpkg/status": STATUS, "usr/bin/curl": "x" * 5000}),
        layer({"./usr/share/doc/curl/copyright": COPYRIGHT,
               "./opt/venv/lib/python3.12/site-packages/foo_bar-1.2.dist-info/METADATA": METADATA,
               "./usr/lib/python3/dist-packages/old-3.dist-info/METADATA": CLASSIFIED}, compressed=True),
    ]))  # fmt: skip
    assert [(one.url, one.licenses) for one in found] == [
        ("pkg:deb/debian/curl@7.88.1-10%2Bdeb12u15?arch=amd64&distro=debian-12", ("curl",)),
        ("pkg:pypi/foo-bar@1.2", ("MIT",)),
        ("pkg:pypi/old@3", ("BSD",)),
    ]
    assert not has_unread


def test_files_that_a_later_layer_removes_are_not_listed() -> None:
    old, other = "lib/a-1.dist-info/METADATA", "opt/x/b-1.dist-info/METADATA"
    both = layer({old: "Name: a\nVersion: 1\n", other: "Name: b\nVersion: 1\n"})
    newer = {
        "lib/.wh.a-1.dist-info": "",
        "lib/a-2.dist-info/METADATA": "Name: a\nVersion: 2\n",
        "opt/x/.wh..wh..opq": "",
    }
    found, _ = find_packages(scan_layers([both, layer(newer)]))
    assert [(one.name, one.version) for one in found] == [("a", "2")]


def test_packages_of_alpine_are_found_and_those_of_rpm_are_said_to_be_missing() -> None:
    found, has_unread = find_packages(scan_layers([layer({"lib/apk/db/installed": APK})]))
    assert [(one.name, one.licenses) for one in found] == [("busybox", ("GPL-2.0-only",)), ("musl", ("MIT",))]
    assert not has_unread
    assert find_packages(scan_layers([layer({"usr/lib/sysimage/rpm/rpmdb.sqlite": "SQLite"})])) == ([], True)


def test_image_is_scanned_once_and_a_damaged_result_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "b").mkdir()
    writer = BlobWriter(tmp_path / "b", 0, {})
    data = layer({"etc/os-release": RELEASE, "var/lib/dpkg/status": STATUS}).getvalue()
    layers = (writer.add_bytes(data),)
    image = Image(name="a:1", digest=layers[0], config=layers[0], layers=layers, diff_ids=(), manifest_type="x")
    reader = BlobReader(tmp_path / "b", list(writer.blobs.values()))

    def build(images: Sequence[Image], reader: BlobReader) -> bytes:
        return build_sbom("s", "2026-11-29T00:00:00Z", images, [], [], reader, lambda what, done, total: None)

    first = build([image], reader)
    assert b"pkg:deb/debian/curl@" in first
    # without the layers: nothing is read
    assert build([image], BlobReader(tmp_path / "b", [])) == first
    other = image.model_copy(update={"digest": f"sha256:{'c' * 64}"})
    with pytest.raises(KeyError):
        build([other], BlobReader(tmp_path / "b", []))
    [kept] = (tmp_path / "cache/stackgen/sbom").iterdir()
    kept.write_text('{"packages": [["x"]]}')
    assert build([image], reader) == first
