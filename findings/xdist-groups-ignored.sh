#!/usr/bin/env bash
# pytest-xdist 3.8.0 with pytest 9.2.0: `--dist loadgroup` spreads the tests of one xdist_group over all workers.
#
# Expected  Tests with the same mark `xdist_group` run in one worker, as xdist documents. So did pytest 9.1.1.
# Seen      With pytest 9.2.0, the tests of a group run in several workers. No warning says so.
# Why it    The mark is there so that tests which share a database, a port or a container don't run side by side. The run
# surprises looks normal until two of them collide, and both projects are at their newest release.
# Cause     xdist appends "@GROUP" to the private attribute `_nodeid` of an item. In pytest 9.2, an item's `nodeid` is
#           computed from another attribute, so the scheduler never sees the suffix.
# Exits 0 while this holds, 1 when it has changed. Needs python3 with venv, and a package index. Takes about 20 s.
set -u
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
mkdir "$dir/tests"
cat > "$dir/tests/test_group.py" <<'END'
import os, time
import pytest

pytestmark = pytest.mark.xdist_group("shared")

@pytest.mark.parametrize("number", range(8))
def test_in_one_worker(number):
    time.sleep(0.2)
    with open(os.environ["WORKERS"], "a") as file:
        print(os.environ["PYTEST_XDIST_WORKER"], file=file)
END
workers() {  # VERSION OF PYTEST: number of workers that ran the group's tests
  python3 -m venv "$dir/$1" && "$dir/$1/bin/pip" install -q "pytest==$1" pytest-xdist==3.8.0 >&2 || return 1
  (cd "$dir/tests" && WORKERS="$dir/$1.txt" "$dir/$1/bin/python" -m pytest -q -n 3 --dist loadgroup . >&2)
  sort -u "$dir/$1.txt" | wc -l
}
old=$(workers 9.1.1) && new=$(workers 9.2.0) || { echo "could not install the packages"; exit 2; }
echo "workers that ran the 8 tests of one group: pytest 9.1.1: $old, pytest 9.2.0: $new"
[ "$old" = 1 ] && [ "$new" -gt 1 ] || { echo "changed: groups stay together in both versions, or in neither"; exit 1; }
