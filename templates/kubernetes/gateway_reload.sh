#!/bin/bash
# Runs the gateway in a pod, and reloads it when the cluster has put changed files into /gateway: keys, models or limits.
# No request is lost: HAProxy's new worker takes over the sockets, and the old one finishes its requests. A file that
# HAProxy rejects changes nothing, and the log says why.
# Source: HAProxy 3.2's management guide, 4 "Stopping and restarting HAProxy" (SIGUSR2, SIGUSR1).
set -u
interval=${STACKGEN_RELOAD_SECONDS:-5}
state=/tmp/servers.state

# Prints the answer of HAProxy's runtime API to the command $1
api() {
  exec 3<>/dev/tcp/127.0.0.1/8406 || return
  printf '%s\n' "$1" >&3
  cat <&3
  exec 3>&-
}

version() { cat /gateway/*.cfg /gateway/*.map /gateway/*.lua /gateway/*.prom /tls/* 2>/dev/null | sha256sum; }

worker() { api 'show info' 2>/dev/null | sed -n 's/^Pid: //p'; }

reload() {
  # the start script computes the real hash; a check only needs the variable to exist
  if ! (export STACKGEN_KEY_HASH=0; haproxy -c -f /gateway/haproxy.cfg && haproxy -c -f /gateway/large.cfg) >/tmp/check 2>&1; then
    echo "stackgen: HAProxy rejects the changed files, and keeps the old configuration:" >&2
    grep -E 'ALERT|rror' /tmp/check | head -n 6 >&2
    return
  fi
  old=$(worker)
  # without it, the new worker would refuse requests until DNS has answered
  api 'show servers state' >$state 2>/dev/null || true
  kill -USR2 "$gateway"
  for _ in {1..150}; do
    new=$(worker)
    [ -z "$new" ] || [ "$new" = "$old" ] || break
    sleep 0.2
  done
  rm -f $state
  echo "stackgen: the gateway has loaded changed files" >&2
}

/bin/bash /stackgen/gateway_start.sh & gateway=$!
ending=
# a graceful stop, whichever signal the cluster sends: it kills the pod at the end of the grace period
trap 'ending=1; kill -USR1 $gateway 2>/dev/null' TERM INT USR1
trap 'kill -USR2 $gateway 2>/dev/null' USR2
known=$(version)
while kill -0 $gateway 2>/dev/null; do
  # `wait` ends at once when the gateway or a signal does
  sleep "$interval" & pause=$!
  wait -n $gateway $pause
  kill $pause 2>/dev/null
  [ -z "$ending" ] || continue
  found=$(version)
  if [ "$found" != "$known" ]; then
    known=$found
    reload
  fi
done
wait $gateway
