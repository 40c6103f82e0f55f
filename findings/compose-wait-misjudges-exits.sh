#!/usr/bin/env bash
# Docker Compose 2.40.3: `up --wait` fails for a service that has finished, and succeeds for a service that keeps crashing.
#
# Expected  A one-shot service exits with 0, as it should: `docker compose up --wait` exits with 0. A service with
#           `restart: on-failure` exits with 3 right after each start: `up --wait` exits with another code.
# Seen      The other way round: the first one exits with 1 ("container … exited (0)"), the second one with 0.
# Why it    Deployment scripts rely on this exit code. A container without a health check counts as healthy when it has run for
# surprises a moment. A one-shot service counts only if another service waits for its completion in `depends_on`.
# Exits 0 while this holds, 1 when it has changed. Needs apt-get, dpkg and a Docker engine. Takes about 20 s.
set -u
dir=$(mktemp -d); name=finding-wait-$$
trap 'compose down --timeout 0 >/dev/null 2>&1; docker rmi -f "$name" >/dev/null 2>&1; rm -rf "$dir"' EXIT
compose() { "$dir/usr/libexec/docker/cli-plugins/docker-compose" -p "$name" -f "$dir/compose.yaml" "$@"; }
docker version >/dev/null 2>&1 || { echo "skipped: no Docker engine"; exit 0; }
(cd "$dir" && apt-get download docker-compose=2.40.3-3 busybox-static=1:1.35.0-4+deb12u1+b1 >/dev/null 2>&1 &&
  dpkg -x docker-compose_*.deb . && dpkg -x busybox-static_*.deb root) ||
  { echo "skipped: apt-get has no docker-compose 2.40.3-3 or busybox-static 1:1.35.0-4+deb12u1+b1"; exit 0; }
tar -C "$dir/root" -c bin | docker import - "$name" >/dev/null || { echo "could not create an image"; exit 2; }
try() {  # EXIT CODE OF THE SERVICE, RESTART POLICY: exit code and last line of `up --wait`
  cat > "$dir/compose.yaml" <<YAML
services:
  job: {image: "$name", restart: "$2", command: [/bin/busybox, sh, -c, "exit $1"]}
YAML
  compose up --detach --wait --wait-timeout 30 >"$dir/output" 2>&1; code=$?
  compose down --timeout 0 >/dev/null 2>&1
  echo "$code $(tail -n 1 "$dir/output" | tr -s ' ')"
}
finished=$(try 0 no); crashing=$(try 3 on-failure)
echo "finished with 0: $finished; crashing with 3: $crashing"
[[ $finished == "1 "*"exited (0)"* && $crashing == "0 "* ]] || { echo "changed: the exit codes fit the services"; exit 1; }
