#!/usr/bin/env bash
# pip 26.3: `pip download --python-version 3.10` leaves out packages that only Python 3.10 needs.
#
# Expected  Package `a` requires `b; python_version < "3.11"`. `pip download --python-version 3.10 a` downloads both, because
#           a Python 3.10 can't install `a` without `b`.
# Seen      pip evaluates the marker for the Python that runs pip. With Python 3.11 or newer, `b` is left out, without a
#           warning; with `--python-version 3.12` on an older Python, it would be downloaded for nothing.
# Why it    The option selects wheels (tags and Requires-Python) for that version, so a folder of wheels for a machine
# surprises without network looks complete, and its installation fails there.
# Exits 0 while this holds, 1 when it has changed. Needs python3 >= 3.11 with venv, and a package index. Takes about 20 s.
set -u
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "skipped: needs Python 3.11 or newer"; exit 0; }
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install -q pip==26.3 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > "$dir/wheels.py" <<'PY'
import sys, zipfile

def wheel(name, requires=""):
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(f"{sys.argv[1]}/{name}-1.0-py3-none-any.whl", "w") as file:
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")

wheel("a", 'Requires-Dist: b; python_version < "3.11"\n')
wheel("b")
PY
mkdir "$dir/index" "$dir/out"
"$dir/venv/bin/python" "$dir/wheels.py" "$dir/index"
"$dir/venv/bin/pip" download -q --no-index --find-links "$dir/index" --only-binary :all: --python-version 3.10 \
  --dest "$dir/out" a >&2 || { echo "pip download failed"; exit 2; }
echo "downloaded for Python 3.10: $(cd "$dir/out" && echo *)"
[ -e "$dir/out/a-1.0-py3-none-any.whl" ] || { echo "a is missing: the script is wrong"; exit 2; }
if [ -e "$dir/out/b-1.0-py3-none-any.whl" ]; then
  echo "changed: pip download evaluates markers for the version in --python-version"
  exit 1
fi
echo "holds: b is missing, and Python 3.10 can't install a"
