#!/usr/bin/env bash
# Docker Engine 28.5.2: after `docker kill --signal HUP`, a container with `unless-stopped` does not restart when it crashes.
#
# Expected  The signal asks a program to read its configuration again. The program goes on. When it crashes a minute later,
#           Docker restarts it.
# Seen      The container stays down. A container that got no signal, or got it from inside (`docker exec … kill`), restarts.
# Why it    `docker kill --signal` is the documented way to send any signal. Docker remembers every such signal as a stop by
# surprises the user, until the container starts again. Nothing shows this: `docker inspect` has the same policy and state.
# Exits 0 while this holds, 1 when it has changed. Needs apt-get, dpkg and a Docker engine. Takes about 20 s.
set -u
dir=$(mktemp -d); image=finding-kill:$$
trap 'docker rm -f "kill-none-$$" "kill-inside-$$" "kill-outside-$$" >/dev/null 2>&1; docker rmi -f "$image" >/dev/null 2>&1; rm -rf "$dir"' EXIT
docker version --format '{{.Server.Version}}' >"$dir/version" 2>/dev/null || { echo "skipped: no Docker engine"; exit 0; }
(cd "$dir" && apt-get download busybox-static=1:1.35.0-4+deb12u1+b1 >/dev/null 2>&1 && dpkg -x busybox-static_*.deb root) ||
  { echo "skipped: apt-get has no busybox-static 1:1.35.0-4+deb12u1+b1"; exit 0; }
tar -C "$dir/root" -c bin | docker import - "$image" >/dev/null || { echo "could not create an image"; exit 2; }
try() {  # NAME, COMMAND THAT SENDS A SIGNAL…: number of restarts after a crash
  local name=$1-$$; shift
  # the program handles HUP, as a server does that reads its configuration again, and crashes when it finds the file
  docker run -d --name "$name" --restart unless-stopped "$image" /bin/busybox sh -c \
    'trap : HUP; until [ -e /crash ]; do /bin/busybox sleep 0.2; done; /bin/busybox rm /crash; exit 1' >/dev/null || return 1
  "$@" >/dev/null || return 1
  sleep 1
  docker exec "$name" /bin/busybox touch /crash >/dev/null || return 1  # fails if the signal has ended the program
  sleep 4
  docker inspect --format '{{.RestartCount}} {{.State.Status}} {{.HostConfig.RestartPolicy.Name}}' "$name"
}
none=$(try kill-none true) && inside=$(try kill-inside docker exec "kill-inside-$$" /bin/busybox kill -HUP 1) &&
  outside=$(try kill-outside docker kill --signal HUP "kill-outside-$$") || { echo "could not run the containers"; exit 2; }
echo "Docker $(cat "$dir/version"). Restarts and state after a crash: no signal: $none; signal from inside: $inside; docker kill: $outside"
[ "$none" = "1 running unless-stopped" ] && [ "$inside" = "$none" ] && [ "$outside" = "0 exited unless-stopped" ] ||
  { echo "changed: docker kill no longer prevents the restart"; exit 1; }
