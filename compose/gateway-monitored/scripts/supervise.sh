#!/bin/sh
# Runs a service and tells a start that can't work from a service that died.
#
# A start that never became healthy ends the container with a failure, which Docker's `on-failure:3` counts: after
# three more tries it stays down, and the reason is the end of its log. A service that was healthy and dies (vLLM
# then exits with 0, which no restart policy but an endless one would bring back) is started again right here.
#
# "Was healthy" is the file below, which the service's health check writes when it passes.
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
  # a trapped signal ends `wait` early: wait again for the service itself
  while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
  child=
  lived=$(($(date +%s) - born))
  if [ -n "$stopping" ]; then exit 143; fi
  if [ ! -e "$ready" ]; then
    [ "$code" -ne 0 ] || code=1
    say "the service ended with code $code after ${lived}s and was never healthy: the reason stands above"
    exit "$code"
  fi
  # one that dies again and again is started less and less often, up to once a minute
  if [ "$lived" -gt 300 ]; then pause=1; fi
  say "the service was healthy and ended with code $code after ${lived}s: starting it again in ${pause}s"
  sleep "$pause" & wait $!
  if [ -n "$stopping" ]; then exit 143; fi
  pause=$((pause * 2)); [ "$pause" -le 60 ] || pause=60
done
