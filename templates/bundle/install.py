#!/usr/bin/env python3
"""Installs the stackgen of this bundle into a virtual environment, without network. Needs only Python.

    python3 install.py [--venv DIR]      default: ./stackgen-venv

Every package is compared with its digest in manifest.json before it is installed. Exit codes: 0 installed, 1 the bundle
is damaged, 2 it has no packages for this Python, 3 this machine can't create a virtual environment.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def fail(code, message, remedy):
    print(f"install.py: {message}\n  hint: {remedy}", file=sys.stderr)
    raise SystemExit(code)


def read_blob(blob):
    data = b""
    for piece in blob["pieces"]:
        try:
            data += (HERE / piece["path"]).read_bytes()
        except OSError as error:
            fail(1, "{}: {}".format(piece["path"], error.strerror), "copy all parts of the bundle into one folder")
    if "sha256:" + hashlib.sha256(data).hexdigest() != blob["digest"]:
        fail(1, "{} is damaged".format(blob["pieces"][0]["path"]), "copy the bundle again")
    return data


def main():
    parser = argparse.ArgumentParser(description="Installs the stackgen of this bundle, without network.")
    parser.add_argument("--venv", default="stackgen-venv", help="folder of the virtual environment")
    target = Path(parser.parse_args().venv).expanduser()
    manifest = json.loads((HERE / "manifest.json").read_text("utf-8"))
    this = "{}.{}".format(*sys.version_info[:2])
    if this not in manifest["pythons"]:
        known = ", ".join(manifest["pythons"]) or "none"
        fail(2, f"this is Python {this}, but the bundle has packages only for these versions of Python: {known}",
             f"run install.py with one of these versions, or create the bundle with --python {this}")  # fmt: skip
    blobs = {blob["digest"]: blob for blob in manifest["blobs"]}
    absent = [wheel["name"] for wheel in manifest["wheels"] if not blobs[wheel["digest"]]["pieces"]]
    if absent:
        fail(2, f"{absent[0]} is in an earlier bundle",
             "run install.py of the earlier bundle, or create this one without --base")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for wheel in manifest["wheels"]:
            (Path(folder) / wheel["name"]).write_bytes(read_blob(blobs[wheel["digest"]]))
        if subprocess.call([sys.executable, "-m", "venv", str(target)]):
            fail(3, f"{sys.executable} can't create a virtual environment",
                 "on Debian and Ubuntu, install the package python3-venv")  # fmt: skip
        command = [str(target / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                   "--no-index", "--find-links", folder, "stackgen=={}".format(manifest["stackgen"])]  # fmt: skip
        if subprocess.call(command):
            fail(2, "pip could not install the packages", "see its message above")
    print("installed stackgen {}: {}".format(manifest["stackgen"], target / "bin" / "stackgen"))


if __name__ == "__main__":
    main()
