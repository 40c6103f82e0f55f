#!/usr/bin/env bash
# Docker Engine 28.5.2: the limit of `on-failure:2` counts all crashes of a container's life, however far apart they are.
#
# Expected  Docker's documentation calls a container started successfully when it has been up for 10 s. A crash after
#           that is a new failure, and gets two new restarts, as in systemd or Kubernetes.
# Seen      The third crash ends the container for good, although it ran longer than 10 s before each crash. RestartCount
#           never goes back to 0.
# Why it    The policy is meant for starts that can't succeed. A server that crashes once a month stays down after some
# surprises months, and looks as if its start had failed. Only `docker start`, or a new container, resets the count.
# Exits 0 while this holds, 1 when it has changed. Needs apt-get, dpkg and a Docker engine. Takes about 60 s.
set -u
dir=$(mktemp -d); name=finding-restarts-$$
trap 'docker rm -f "$name" >/dev/null 2>&1; docker rmi -f "$name" >/dev/null 2>&1; rm -rf "$dir"' EXIT
docker version --format '{{.Server.Version}}' >"$dir/version" 2>/dev/null || { echo "skipped: no Docker engine"; exit 0; }
(cd "$dir" && apt-get download busybox-static=1:1.35.0-4+deb12u1+b1 >/dev/null 2>&1 && dpkg -x busybox-static_*.deb root) ||
  { echo "skipped: apt-get has no busybox-static 1:1.35.0-4+deb12u1+b1"; exit 0; }
tar -C "$dir/root" -c bin | docker import - "$name" >/dev/null || { echo "could not create an image"; exit 2; }
docker run -d --name "$name" --restart on-failure:2 "$name" /bin/busybox sh -c '/bin/busybox sleep 12; exit 1' >/dev/null ||
  { echo "could not run the container"; exit 2; }
for _ in $(seq 24); do  # three runs of 12 s, and time to see a fourth one
  sleep 2; seen=$(docker inspect --format '{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}' "$name")
done
echo "Docker $(cat "$dir/version"). on-failure:2, 48 s after the start, each run 12 s: restarts, state and exit code: $seen"
[ "$seen" = "2 exited 1" ] || { echo "changed: a run of 12 s resets the count, or the limit is another one"; exit 1; }
