"""What is installed in an image: packages of Debian, Alpine and Python, read from its layers without running it.

Formats: deb-control(5), Debian's copyright format 1.0, apk's installed database (wiki.alpinelinux.org, Apk spec), and
packaging.python.org, core metadata 2.4. Layers and whiteouts: opencontainers/image-spec 1.1, layer.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from typing import Any
from urllib.parse import quote

from stackgen.bundle.tar_headers import scan_tar

__all__ = ["Package", "find_packages", "parse_metadata", "scan_layers"]

INTERESTING = re.compile(
    r"var/lib/dpkg/status(\.d/[^/]+)?|lib/apk/db/installed|usr/share/doc/[^/]+/copyright|(etc|usr/lib)/os-release"
    r"|.*\.dist-info/METADATA|var/lib/rpm/(rpmdb\.sqlite|Packages)|usr/lib/sysimage/rpm/rpmdb\.sqlite"
)
ENDINGS = (b"/METADATA", b"/status", b"/installed", b"/copyright", b"/os-release", b"/rpmdb.sqlite", b"/Packages")
# the largest file, Debian's list of packages, has 5 MB on a large system
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Package:
    """An installed package. `url` is its package URL (purl); `licenses` as the package states them."""

    name: str
    version: str
    url: str
    licenses: tuple[str, ...] = ()


def scan_layers(layers: Iterable[Any]) -> dict[str, bytes]:
    """The files that list packages, after all layers (open files of tar archives, from the bottom)."""
    found: dict[str, bytes] = {}
    for layer in layers:
        for name, size, read in scan_tar(layer):
            # most files end here: an image has a hundred thousand
            if not name.endswith(ENDINGS) and b".wh." not in name and b"/status.d/" not in name:
                continue
            path = name.decode("utf-8", "replace").removeprefix("./")
            folder, _, last = path.rpartition("/")
            if last == ".wh..wh..opq":
                _remove(found, folder)
            elif last.startswith(".wh."):
                _remove(found, f"{folder}/{last[4:]}".lstrip("/"))
            elif INTERESTING.fullmatch(path) and size <= MAX_BYTES:
                found[path] = read()
    return found


def _remove(found: dict[str, bytes], path: str) -> None:
    for one in [one for one in found if one == path or one.startswith(f"{path}/")]:
        del found[one]


def find_packages(files: dict[str, bytes]) -> tuple[list[Package], bool]:
    """The packages in the files that `scan_layers` found, and whether there is also a list that can't be read (RPM)."""
    texts = {path: data.decode("utf-8", "replace") for path, data in files.items() if "rpm" not in path.split("/")}
    release = texts.get("etc/os-release") or texts.get("usr/lib/os-release") or ""
    ids = dict(re.findall(r"(?m)^(ID|VERSION_ID)=\"?([^\"\n]*)", release))
    distro = f"&distro={ids['ID']}-{ids['VERSION_ID']}" if len(ids) == 2 else ""
    found = [*_debian(texts, ids.get("ID", "debian"), distro), *_alpine(texts.get("lib/apk/db/installed", ""), distro)]
    for path, text in texts.items():
        if path.endswith(".dist-info/METADATA") and (package := parse_metadata(text)):
            found.append(package)
    has_unread = any(path.endswith(("rpmdb.sqlite", "rpm/Packages")) for path in files)
    # by address: a virtual environment may have a package once more
    return sorted({one.url: one for one in found}.values(), key=lambda one: one.url), has_unread


def parse_metadata(text: str) -> Package | None:
    """The Python package that METADATA describes; None if it has no name or no version."""
    headers = HeaderParser().parsestr(text)
    name, version = headers.get("Name"), headers.get("Version")
    if not name or not version:
        return None
    classifiers = [one for one in headers.get_all("Classifier") or () if one.startswith("License ::")]
    licenses = [headers.get("License-Expression") or ""]
    if not licenses[0]:
        # a long text is the license itself, and not its name
        short = (headers.get("License") or "").strip()
        licenses = [one.rpartition(" :: ")[2] for one in classifiers] or ([short] if 0 < len(short) < 100 else [])
    normal = re.sub(r"[-_.]+", "-", name).lower()
    return Package(name, version, f"pkg:pypi/{normal}@{quote(version)}", tuple(one for one in licenses if one))


def _debian(texts: dict[str, str], distribution: str, distro: str) -> Iterator[Package]:
    for path, text in texts.items():
        if not path.startswith("var/lib/dpkg/status"):
            continue
        for stanza in text.split("\n\n"):
            fields = dict(re.findall(r"(?m)^([A-Za-z-]+): (.*)$", stanza))
            # a removed package may leave its configuration; status.d of images without dpkg has no Status
            if "Package" not in fields or not fields.get("Status", "installed").endswith("installed"):
                continue
            name, version, machine = fields["Package"], fields.get("Version", ""), fields.get("Architecture", "all")
            url = f"pkg:deb/{distribution}/{quote(name)}@{quote(version)}?arch={machine}{distro}"
            yield Package(name, version, url, _debian_licenses(texts.get(f"usr/share/doc/{name}/copyright", "")))


def _debian_licenses(text: str) -> tuple[str, ...]:
    if not text.startswith("Format:"):
        # free text: it names the files of common licenses
        return tuple(sorted(set(re.findall(r"/usr/share/common-licenses/([A-Za-z0-9.-]*[A-Za-z0-9])", text))))
    return tuple(sorted(set(re.findall(r"(?m)^License:[ \t]*(\S[^\n]{0,99})$", text))))


def _alpine(text: str, distro: str) -> Iterator[Package]:
    for stanza in text.split("\n\n"):
        fields = dict(re.findall(r"(?m)^([PVAL]):(.*)$", stanza))
        if "P" in fields:
            url = f"pkg:apk/alpine/{fields['P']}@{quote(fields.get('V', ''))}?arch={fields.get('A', '')}{distro}"
            yield Package(fields["P"], fields.get("V", ""), url, tuple(filter(None, [fields.get("L", "")])))
