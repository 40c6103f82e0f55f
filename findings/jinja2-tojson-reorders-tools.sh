#!/usr/bin/env bash
# jinja2 3.1.6: `tojson` in a chat template writes other text than json.dumps does, for the same tools.
#
# Expected  `{{ tools | tojson }}` gives the keys in the order of the request, and `<`, `&` and `'` as they are.
# Seen      jinja2 sorts the keys and writes `<`, `&` and `'` as \u003c, \u0026 and \u0027, as for a web page.
# Why it    Chat templates rely on `tojson`. Tools that render a template with plain jinja2 (token counters, benchmarks,
# surprises own proxies) get another prompt and another token count than with a json.dumps filter, without an error.
# Exits 0 while this holds, 1 when it has changed. Needs python3 with venv, and a package index. Takes about 10 s.
set -u
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install -q jinja2==3.1.6 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > "$dir/try.py" <<'END'
import json, sys
from jinja2.sandbox import ImmutableSandboxedEnvironment

tool = {"type": "function", "function": {"name": "find", "description": "year < 2000 & author's name"}}
seen = ImmutableSandboxedEnvironment().from_string("{{ tool | tojson }}").render(tool=tool)
print(f"jinja2: {seen}\njson:   {json.dumps(tool)}")
same_order = list(json.loads(seen)) == list(tool)
sys.exit(9 * (same_order or "<" in seen))
END
"$dir/venv/bin/python" "$dir/try.py"
case $? in
  0) ;;
  9) echo "changed: tojson keeps the order or the characters"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
