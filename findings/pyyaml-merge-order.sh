#!/usr/bin/env bash
# PyYAML 6.0.4 with Docker Compose 2.40.3 (Debian 2.40.3-3): the length of a key's name decides which merged value wins.
#
# Expected  `<<: [*fast, *base]` takes each value from `fast`, and the rest from `base`: an earlier mapping overrides a later
#           one (YAML's merge key specification). Docker Compose 2.40.3 and PyYAML 6.0.3 do so.
# Seen      PyYAML 6.0.4 takes `MODE` from `base`, and `N` from `fast`: the last mapping wins for names with two or more
#           characters, the first one for names with one character. Also, if `more` merges `base` and sets both names,
#           `<<: *more` gives the value of `base` for the name with one character. No loader warns.
# Why it    The same Compose file then starts one container with Docker Compose, and another one with a Python tool that
# surprises reads it. 6.0.4 is a patch release, and configuration files that worked for years change their meaning with it.
# Cause     To prevent exponential growth, `flatten_mapping` skips keys that it has seen. It compares their text by `id()`,
#           which is the same only for strings that CPython shares (yaml/pyyaml issue 953).
# Exits 0 while this holds, 1 when it has changed. Needs apt-get, dpkg, python3 with venv, and a package index. Takes about 20 s.
set -u
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
(cd "$dir" && apt-get download docker-compose=2.40.3-3 >/dev/null 2>&1 && dpkg -x docker-compose_*.deb .) ||
  { echo "skipped: apt-get has no docker-compose 2.40.3-3"; exit 0; }
for version in 6.0.3 6.0.4; do
  python3 -m venv "$dir/$version" && "$dir/$version/bin/pip" install -q "pyyaml==$version" >&2 ||
    { echo "could not install the packages"; exit 2; }
done
cat > "$dir/compose.yaml" <<'END'
name: merge
x-base: &base {MODE: base, N: base}
x-fast: &fast {MODE: fast, N: fast}
x-more: &more {<<: *base, MODE: more, N: more}
services:
  list: {image: server, environment: {<<: [*fast, *base]}}
  nested: {image: server, environment: {<<: *more}}
END
cat > "$dir/read.py" <<'PY'
import json, sys, yaml

read = json.load if sys.argv[1] == "json" else lambda file: yaml.load(file, Loader=getattr(yaml, sys.argv[1]))
services = read(sys.stdin)["services"]
print(*(f"{name}: MODE={one['environment']['MODE']} N={one['environment']['N']}" for name, one in sorted(services.items())))
PY
compose=$dir/usr/libexec/docker/cli-plugins/docker-compose
by_compose=$("$compose" -f "$dir/compose.yaml" config --format json | "$dir/6.0.4/bin/python" "$dir/read.py" json)
before=$("$dir/6.0.3/bin/python" "$dir/read.py" SafeLoader < "$dir/compose.yaml")
python=$("$dir/6.0.4/bin/python" "$dir/read.py" SafeLoader < "$dir/compose.yaml")
libyaml=$("$dir/6.0.4/bin/python" "$dir/read.py" CSafeLoader < "$dir/compose.yaml")
printf '%s\n' "Compose and 6.0.3: $by_compose" "PyYAML 6.0.4:      $python"
right='list: MODE=fast N=fast nested: MODE=more N=more'
[ "$by_compose" = "$right" ] && [ "$before" = "$right" ] || { echo "the script could not measure"; exit 2; }
[[ "$python" == 'list: MODE=base N=fast nested: MODE=more N=base' && "$libyaml" == "$python" ]] ||
  { echo "changed: PyYAML merges in another order"; exit 1; }
