#!/usr/bin/env bash
# Watches llama-server in router mode for hangs: the router itself, and each model, which is a process of its own.
# supervise.sh starts it. If the router hangs, the service is restarted. If a model hangs, only its process is ended: the
# router then counts the model as unloaded, and loads it again for the next request (measured on build 11434).
# Usage: llamacpp_router_watch.sh http://127.0.0.1:8080 SECONDS PID
set -u
base=$1 seconds=$2 router=$3 folder=${0%/*}
hang=${STACKGEN_HANG_FILE:-/tmp/stackgen.hang} ready=${STACKGEN_READY_FILE:-/tmp/stackgen.ready}
declare -A watches
stop() {
  # shellcheck disable=SC2046
  kill $(jobs -p) 2>/dev/null
  exit
}
trap stop TERM
is_loaded() {  # PORT: a model that is still loading answers 503
  timeout 1 bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$0" && printf "GET /health HTTP/1.0\r\n\r\n" >&3 && head -n 1 <&3' "$1" |
    grep -q ' 200 '
} 2>/dev/null
# PID PORT NAME of each process of a model: a child of the router. Their arguments: --port N, --alias NAME
models() {
  local file line pid words
  for file in /proc/[0-9]*/stat; do
    read -r line <"$file" || continue
    pid=${line%% *}
    # shellcheck disable=SC2086
    set -- ${line##*) }
    [ "$2" = "$router" ] || continue
    words=$(tr '\0' '\n' <"/proc/$pid/cmdline")
    echo "$pid" "$(sed -n '/^--port$/{n;p;q}' <<<"$words")" "$(sed -n '/^--alias$/{n;p;q}' <<<"$words")"
  done
} 2>/dev/null

bash "$folder/llamacpp_watch.sh" "$base" "$seconds" "$router" &
while kill -0 "$router" 2>/dev/null; do
  while read -r pid port name; do
    # a process that does not listen is not a model
    if [ -z "$port" ] || [ -n "${watches[$pid:$port]:-}" ] || ! is_loaded "$port"; then continue; fi
    watches[$pid:$port]=yes
    : >"$ready.$pid"
    STACKGEN_WATCHED="the model $name" STACKGEN_READY_FILE="$ready.$pid" STACKGEN_HANG_FILE="$hang.$pid" \
      bash "$folder/llamacpp_watch.sh" "http://127.0.0.1:$port" "$seconds" "$pid" </dev/null &
  done < <(models)
  # in the background, so that a signal is handled at once
  sleep 2 & wait $!
done
# the watch of the router may still be writing what it has found
wait %1 2>/dev/null
stop
