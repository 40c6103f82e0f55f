#!/bin/sh
# Supervises the service of this container. It treats a start that fails differently from a service that crashes.
#
# - Never healthy: the container exits with an error. Docker's `on-failure:3` retries three times, then the container
#   stays down, and the reason is at the end of its log.
# - Healthy before: the service is restarted here. vLLM exits with 0 when its engine dies. After exit code 0,
#   Docker restarts a container only with a policy that restarts forever.
# - Healthy before, but hangs: the command $STACKGEN_WATCH detects the hang and kills the service. The service is then
#   restarted here, too. After the third hang within an hour, the container exits with an error.
#
# The service's health check creates the file $ready when it passes for the first time.
ready=${STACKGEN_READY_FILE:-/tmp/stackgen.ready}
# the watch creates this file before it kills a service that hangs
hang=${STACKGEN_HANG_FILE:-/tmp/stackgen.hang}
child= watch= stopping= hangs= pause=1
# when the watch ends a Python service with SIGABRT, Python then prints the stacks of its threads
[ -z "${STACKGEN_WATCH:-}" ] || export PYTHONFAULTHANDLER="${PYTHONFAULTHANDLER:-1}"
# llama.cpp's own images keep llama-server in /app, which is not on their PATH
PATH=$PATH:/app
say() { echo "stackgen: $*" >&2; }
# variables that depend on the image and the machine, as lines NAME=VALUE; without them, the service still starts
if [ -n "${STACKGEN_SETUP:-}" ]; then
  settings=$($STACKGEN_SETUP) || say "\"$STACKGEN_SETUP\" failed"
  while IFS= read -r line; do [ -z "$line" ] || export "$line"; done <<EOF
$settings
EOF
fi
# whether port $2 of the gateway, at the address $1, accepts a connection
accepts() { timeout 1 bash -c "exec 3<>/dev/tcp/$1/$2" 2>/dev/null; }
# If the gateway stops as well, the service must outlive it: the gateway still sends it queued requests. Port 8404 closes
# when the gateway begins to stop, port 8405 when it has ended. The gateway may get its signal up to 2 s later.
wait_for_gateway() {
  address=$(timeout 2 getent ahostsv4 "$STACKGEN_GATEWAY") || return 0
  address=${address%% *}
  end=$(($(date +%s) + 30)) seen=0
  while accepts "$address" 8405 && [ "$(date +%s)" -lt "$end" ]; do
    if accepts "$address" 8404; then seen=$((seen + 1)); fi
    # the gateway keeps running: only this service stops
    if [ "$seen" -ge 10 ]; then return 0; fi
    sleep 0.2
  done
}
# counts the hangs of the last hour, including the one that has just ended
count_hangs() {
  now=$(date +%s) number=1 recent=
  for time in $hangs; do
    if [ $((now - time)) -lt 3600 ]; then recent="$recent $time" number=$((number + 1)); fi
  done
  hangs="$recent $now"
}
stop() {
  [ -z "$stopping" ] || return 0
  stopping=1
  # a service that finishes its last requests does not hang
  [ -z "$watch" ] || [ -e "$hang" ] || kill "$watch" 2>/dev/null
  [ -n "$child" ] || return 0
  if [ -e "$ready" ]; then
    [ -z "${STACKGEN_GATEWAY:-}" ] || wait_for_gateway
    # this command returns when no request is in flight; only services that would abort their requests set it
    ${STACKGEN_DRAIN:-}
  else
    # vLLM ignores SIGTERM during its start, and nothing is in flight
    { sleep 5; kill -KILL "$child" 2>/dev/null; } &
  fi
  kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT

while :; do
  rm -f "$ready"
  # the evidence stays in the container until the next hang
  [ ! -e "$hang" ] || mv -f "$hang" "$hang.last"
  born=$(date +%s)
  "$@" &
  child=$!
  if [ -n "${STACKGEN_WATCH:-}" ]; then $STACKGEN_WATCH "$child" & watch=$!; fi
  wait "$child"; code=$?
  # a trapped signal interrupts `wait`: keep waiting for the service itself
  while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
  child=
  if [ -n "$watch" ]; then
    # a watch that has found a hang ends the service's other processes before it ends itself
    [ -e "$hang" ] || kill "$watch" 2>/dev/null
    wait "$watch" 2>/dev/null
    watch=
  fi
  lived=$(($(date +%s) - born))
  if [ -n "$stopping" ]; then exit 143; fi
  if [ ! -e "$ready" ]; then
    [ "$code" -ne 0 ] || code=1
    say "the service ended with code $code after ${lived}s and was never healthy: see the reason above"
    exit "$code"
  fi
  # a cluster restarts the container itself, with a new time limit for the start
  if [ "${STACKGEN_RESTART:-}" = exit ]; then
    [ ! -e "$hang" ] || say "the service hung: \"the service hangs\" above shows why"
    say "the service was healthy and ended with code $code after ${lived}s"
    exit 1
  fi
  why=
  if [ -e "$hang" ]; then
    why=" because it hung"
    count_hangs
    if [ "$number" -ge 3 ]; then
      say "the service hung $number times within an hour: giving up. \"the service hangs\" above shows why"
      exit 1
    fi
  fi
  # back off when the service keeps dying: 1, 2, 4, … 60 s; more than 5 minutes of uptime reset the pause
  if [ "$lived" -gt 300 ]; then pause=1; fi
  say "the service was healthy and ended with code $code after ${lived}s$why: starting it again in ${pause}s"
  sleep "$pause" & wait $!
  if [ -n "$stopping" ]; then exit 143; fi
  pause=$((pause * 2)); [ "$pause" -le 60 ] || pause=60
done
