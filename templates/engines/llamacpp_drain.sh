#!/bin/sh
# Waits until the llama.cpp service in this container has no request in flight, because llama-server aborts its requests
# on SIGTERM. Uses curl in upstream's image, and python3 in stackgen's image.
# A router (--models-dir) has one process for each loaded model, each with its own slots.
# Usage: llamacpp_drain.sh http://127.0.0.1:8080 SECONDS [router]
set -u
get() {  # URL SECONDS: prints the answer
  if command -v curl >/dev/null; then
    curl --silent --fail --noproxy '*' --max-time "$2" -H "Authorization: Bearer $LLAMA_API_KEY" "$1"
  else
    python3 -c 'import os, sys, urllib.request
headers = {"Authorization": "Bearer " + os.environ["LLAMA_API_KEY"]}
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
request = urllib.request.Request(sys.argv[1], headers=headers)
print(opener.open(request, timeout=int(sys.argv[2])).read().decode())' "$1" "$2" 2>/dev/null
  fi
}
slots() {  # URL SECONDS [router]
  [ "${3:-}" = router ] || { get "$1/slots" "$2"; return; }
  models=$(get "$1/v1/models" "$2") || return 1
  # "status":{"value":"loaded","args":[…,"--port","50669",…
  for port in $(printf '%s' "$models" | grep -o '"value":"loaded","args":\[[^]]*\]' | grep -o '"--port","[0-9]*"' | tr -dc '0-9\n'); do
    # the router may have unloaded the model meanwhile
    get "${1%:*}:$port/slots" "$2" || true
  done
}
end=$(($(date +%s) + $2))
# twice, because a slot is free for a moment before it takes a waiting request
idle=0
while [ "$idle" -lt 2 ] && [ "$(date +%s)" -lt "$end" ]; do
  # without an answer (--no-slots, or the server is dead), there is nothing to wait for
  answer=$(slots "$@") || exit 0
  case $answer in
    *'"is_processing":true'*) idle=0 ;;
    *) idle=$((idle + 1)) ;;
  esac
  sleep 0.2
done
