#!/usr/bin/env bash
# PyYAML 6.0.4: a file with a tab behind a value is read by CSafeLoader (libyaml) and refused by SafeLoader.
#
# Expected  Both loaders read the same files: programs use the C loader where it is installed, and the other one elsewhere.
# Seen      `a: 1` with a tab at the end of the line, a tab before a comment, and a tab after the colon are valid for
#           CSafeLoader. SafeLoader ends with "found character '\t' that cannot start any token".
# Why it    A tab at the end of a line is invisible, and YAML 1.2 allows it. The same file then works on one machine, and
# surprises not on another one, whose PyYAML was built without libyaml.
# Exits 0 while this holds, 1 when it has changed. Needs python3 with venv, and a package index. Takes about 20 s.
set -u
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install -q pyyaml==6.0.4 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > "$dir/try.py" <<'PY'
import sys
import yaml

def read(text, loader):
    try:
        return yaml.load(text, loader)
    except yaml.YAMLError as error:
        return error.problem

if read("a: 1\n", yaml.CSafeLoader) != {"a": 1} or read("a: 1\n", yaml.SafeLoader) != {"a": 1}:
    sys.exit(3)
seen = []
for text in ("a: 1\t\n", "a: 1\t# one\n", "a:\t1\n"):
    fast, slow = read(text, yaml.CSafeLoader), read(text, yaml.SafeLoader)
    print(f"{text!r}: CSafeLoader {fast}, SafeLoader {slow}")
    seen.append(fast == {"a": 1} and "cannot start any token" in str(slow))
sys.exit(9 * (not all(seen)))
PY
"$dir/venv/bin/python" "$dir/try.py"
case $? in
  0) ;;
  9) echo "changed: both loaders read the file, or neither does"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
