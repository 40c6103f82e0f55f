#!/bin/bash
# The gateway is healthy if both HAProxy processes answer, even if no model is up. Uses bash, as the image has no curl.
set -eu
for port in 8405 8407; do
  exec 3<>/dev/tcp/127.0.0.1/$port
  printf 'GET /alive HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n' >&3
  read -r _ status _ <&3
  [ "$status" = 200 ]
  exec 3>&-
done

# Sends one command to the runtime API
api() {
  exec 3<>/dev/tcp/127.0.0.1/8406
  printf '%s\n' "$1" >&3
  cat <&3
  exec 3>&-
}

# A stackgen command that drains a replica renews its lease. If the command was killed, enable the replica again.
for lease in /tmp/drained/*; do
  [ -f "$lease" ] || continue
  read -r expires <"$lease" || continue
  [ "$(date +%s)" -ge "$expires" ] || continue
  name=${lease##*/}
  api 'show servers state' | while read -r _ backend _ server _; do
    [ "$server" != "$name" ] || api "set server $backend/$name state ready"
  done
  rm -f "$lease"
  # Docker's log contains the output of process 1, but not the output of a health check
  echo "Enabled $name again: the command that drained it has ended without enabling it" >/proc/1/fd/1 || true
done
