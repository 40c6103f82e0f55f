#!/usr/bin/env bash
# Docker Compose 2.40.3 (Debian 2.40.3-3): numbers without quotes under `environment` reach the container as other text.
#
# Expected  `LIMIT: 0.90` arrives as "0.90", and `VERSION: 1.0` as "1.0": environment variables are text.
# Seen      They arrive as "0.9" and "1". `010` arrives as "8", `1_000` as "1000", and `100000000.0` as "1e+08".
# Why it    The file is valid and Compose prints no warning. A version "1.0" becomes "1", and a program that reads an
# surprises integer gets "1e+08". `yes` and `12:30`, the classic cases, arrive unchanged.
# Exits 0 while this holds, 1 when it has changed. Needs apt-get and dpkg, no Docker engine. Takes about 5 s.
set -u
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir" && apt-get download docker-compose=2.40.3-3 >/dev/null 2>&1 && dpkg -x docker-compose_*.deb . ||
  { echo "skipped: apt-get has no docker-compose 2.40.3-3"; exit 0; }
compose=$dir/usr/libexec/docker/cli-plugins/docker-compose
cat > compose.yaml <<'END'
name: numbers
services:
  server:
    image: server
    environment: {LIMIT: 0.90, VERSION: 1.0, OCTAL: 010, GROUPED: 1_000, LARGE: 100000000.0, FLAG: yes, TIME: 12:30}
END
seen=$("$compose" -f compose.yaml config | sed -n '/environment:/,/image:/{s/^ *\([A-Z]*: \)/\1/p}' | tr '\n' ' ')
echo "read back: $seen"
[ "$seen" = 'FLAG: "yes" GROUPED: "1000" LARGE: "1e+08" LIMIT: "0.9" OCTAL: "8" TIME: "12:30" VERSION: "1" ' ] ||
  { echo "changed: Compose reads other values back"; exit 1; }
