#!/bin/sh
# Supervises the service of this container. It treats a start that fails differently from a service that crashes.
#
# - Never healthy: the container exits with an error. Docker's `on-failure:3` retries three times, then the container
#   stays down, and the reason is at the end of its log.
# - Healthy before: the service is restarted here. vLLM exits with 0 when its engine dies, and no restart policy
#   restarts that, except those that restart forever.
#
# The service's health check creates the file $ready when it passes for the first time.
ready=${STACKGEN_READY_FILE:-/tmp/stackgen.ready}
child= stopping= pause=1
say() { echo "stackgen: $*" >&2; }
stop() { stopping=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null; }
trap stop TERM INT

while :; do
  rm -f "$ready"
  born=$(date +%s)
  "$@" &
  child=$!
  wait "$child"; code=$?
  # a trapped signal interrupts `wait`: keep waiting for the service itself
  while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
  child=
  lived=$(($(date +%s) - born))
  if [ -n "$stopping" ]; then exit 143; fi
  if [ ! -e "$ready" ]; then
    [ "$code" -ne 0 ] || code=1
    say "the service ended with code $code after ${lived}s and was never healthy: see the reason above"
    exit "$code"
  fi
  # back off when the service keeps dying: 1, 2, 4, … 60 s; more than 5 minutes of uptime reset the pause
  if [ "$lived" -gt 300 ]; then pause=1; fi
  say "the service was healthy and ended with code $code after ${lived}s: starting it again in ${pause}s"
  sleep "$pause" & wait $!
  if [ -n "$stopping" ]; then exit 143; fi
  pause=$((pause * 2)); [ "$pause" -le 60 ] || pause=60
done
