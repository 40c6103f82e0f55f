#!/usr/bin/env bash
# PyYAML 6.0.4 with Docker Compose 2.40.3 (Debian 2.40.3-3): strings that PyYAML writes arrive as other strings.
#
# Expected  A program writes a Compose file with yaml.safe_dump. The string "1e-5" in `environment` arrives as "1e-5".
# Seen      It arrives as "1e-05". "1E3" arrives as "1000", and "0o10" as "8". In `command`, the same strings are refused.
# Why it    The program passed strings, and the library is the usual one. PyYAML writes them without quotes, because they
# surprises are strings in YAML 1.1 as PyYAML reads it. For Compose they are numbers. "010" and "yes" are quoted.
# Exits 0 while this holds, 1 when it has changed. Needs apt-get, dpkg, python3 with venv, and a package index. Takes about 15 s.
set -u
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
(cd "$dir" && apt-get download docker-compose=2.40.3-3 >/dev/null 2>&1 && dpkg -x docker-compose_*.deb .) ||
  { echo "skipped: apt-get has no docker-compose 2.40.3-3"; exit 0; }
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install -q pyyaml==6.0.4 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > "$dir/try.py" <<'PY'
import json, pathlib, subprocess, sys
import yaml

folder = pathlib.Path(sys.argv[1])

def config(service):
    (folder / "compose.yaml").write_text(yaml.safe_dump({"name": "try", "services": {"server": {"image": "server", **service}}}))
    command = [folder / "usr/libexec/docker/cli-plugins/docker-compose", "-f", folder / "compose.yaml", "config"]
    return subprocess.run([*command, "--format", "json"], capture_output=True, text=True)

values = ("1e-5", "1E3", "0o10", "08", "010", "yes")
result = config({"environment": {f"V{number}": value for number, value in enumerate(values)}})
seen = list(json.loads(result.stdout)["services"]["server"]["environment"].values())
refused = config({"command": ["serve", "--rate", "1e-5"]})
print(f"written: {values}\nread:    {tuple(seen)}\ncommand: {refused.stderr.strip().partition(': ')[2] or 'accepted'}")
sys.exit(9 * (seen != ["1e-05", "1000", "8", "8", "010", "yes"] or refused.returncode == 0))
PY
"$dir/venv/bin/python" "$dir/try.py" "$dir"
case $? in
  0) ;;
  9) echo "changed: PyYAML quotes these strings, or Compose reads them as strings"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
