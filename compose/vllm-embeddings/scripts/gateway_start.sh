#!/bin/bash
# Starts two HAProxy processes: one for all requests, one for bodies that need large buffers.
# HAProxy gets only the SHA-256 of the key from .env. The key is valid until `stackgen keys` writes keys.map.
set -eu
STACKGEN_KEY_HASH=$(printf %s "$STACKGEN_API_KEY" | sha256sum | cut -d ' ' -f 1 | tr a-f A-F)
export STACKGEN_KEY_HASH
for name in ${STACKGEN_REQUIRED:-}; do
  [ -n "$(printenv "$name")" ] || { echo "Error: $name is missing in .env: a fallback of the stack needs it" >&2; exit 1; }
done
unset STACKGEN_API_KEY
haproxy -W -db -f /gateway/large.cfg & large=$!
haproxy -W -db -f /gateway/haproxy.cfg & main=$!
ending=

# Prints the answer of the main process's runtime API to the command $1
api() {
  exec 3<>/dev/tcp/127.0.0.1/8406 || return
  printf '%s\n' "$1" >&3
  cat <&3
  exec 3>&-
}

# Accepts no more connections, finishes the requests, and only then stops the ports between the two processes. If both
# processes got SIGUSR1 at once, a large body that is still arriving could not return from the second process.
stop_gracefully() {
  for frontend in accepting redirect page api; do
    # `disable` refuses new connections (`shutdown` alone would let them wait); `shutdown` closes idle connections
    api "disable frontend $frontend; shutdown frontend $frontend" >/dev/null 2>&1 || true
  done
  while api 'show stat' 2>/dev/null | grep -Eq '^api,FRONTEND,([^,]*,){2}[1-9]'; do sleep 0.2; done
  # Nothing is in flight, and SIGUSR1 would wait 10 s for the idle connections between the processes. After a reload, an
  # old worker may still have streams.
  workers=()
  read -r -a workers <"/proc/$main/task/$main/children" || true
  if [ "${#workers[@]}" = 1 ]; then kill -TERM $main $large || true; else kill -USR1 $main $large || true; fi
}

trap 'kill -USR2 $main $large || true' USR2
trap 'ending=1; stop_gracefully &' USR1
trap 'ending=1; kill -TERM $main $large || true' TERM INT
status=0
# `wait` also returns on a signal, so check that both processes are still running
while kill -0 $main 2>/dev/null && kill -0 $large 2>/dev/null; do
  wait -n $main $large && status=0 || status=$?
done
if [ -z "$ending" ]; then
  echo "Error: one of the gateway's two processes has ended" >&2
  kill -TERM $main $large 2>/dev/null || true
  [ "$status" != 0 ] || status=1
fi
# on a graceful stop, wait until both have finished their requests
while kill -0 $main 2>/dev/null || kill -0 $large 2>/dev/null; do wait $main $large || true; done
[ -n "$ending" ] || exit $status
