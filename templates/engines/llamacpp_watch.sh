#!/usr/bin/env bash
# Watches llama-server for hangs, with the rules of watch.py. supervise.sh starts it: upstream's image has no python3.
# In router mode, llamacpp_router_watch.sh starts one for the router and one for each model.
# Usage: llamacpp_watch.sh http://127.0.0.1:8080 SECONDS PID
#
# GET /slots shows the tokens of each request (n_prompt_tokens_processed, n_decoded). A separate thread answers it, even
# while llama-server computes (tools/server/server-queue.cpp of build 11434).
set -u
base=$1 seconds=$2 pid=$3 folder=${0%/*}
ready=${STACKGEN_READY_FILE:-/tmp/stackgen.ready} hang=${STACKGEN_HANG_FILE:-/tmp/stackgen.hang}
patience=${STACKGEN_HANG_PATIENCE:-40}
say() { echo "stackgen: $*" >&2; }
now() { read -r up _ </proc/uptime; echo "$((10#${up/./}))"; }  # in 1/100 s
slots() {  # the status line and the body, without headers such as the date
  # shellcheck disable=SC2016
  timeout 1 bash -c 'exec 3<>"/dev/tcp/${0/://}" &&
    printf "GET /slots HTTP/1.0\r\nAuthorization: Bearer %s\r\n\r\n" "${LLAMA_API_KEY:-}" >&3 && cat <&3' "${base#http://}" | sed -n '1p; /^\r$/,$p'
} 2>/dev/null
# state, CPU time in 1/100 s, page faults that waited for a disk (proc_pid_stat(5); the name may contain spaces)
usage() {
  local line
  read -r line <"/proc/$pid/stat" 2>/dev/null || exit 0
  # shellcheck disable=SC2086
  set -- ${line##*) }
  state=$1 faults=${10} cpu=$((${12} + ${13} + ${14} + ${15}))
}
threads() { cat /proc/"$pid"/task/*/stat 2>/dev/null | sed 's/^[0-9]* (\(.*\)) \(.\) .*/\2 \1/' | sort | uniq -c; }
is_gpu_busy() {
  [ -e /dev/nvidiactl ] || [ -e /dev/kfd ] || return 1
  # if no tool shows the load, the GPU counts as busy
  shown=$(timeout 5 nvidia-smi --query-gpu=utilization.gpu --format=csv,noheader,nounits 2>/dev/null ||
    cat /sys/class/drm/card*/device/gpu_busy_percent 2>/dev/null) || return 0
  [ -z "$shown" ] || [ -n "${shown//[0$'\n ']/}" ]
}
progress() { since=$(now) idle=$since stopped=$since; }
# compares the process with the previous sample; since the times `idle` and `stopped`, it has been idle or stopped
sample() {
  local time ran before=$cpu seen=$faults
  time=$(now)
  usage
  [ "$state" = T ] || stopped=$time
  # 5 % of a core, a page fault per second, or a thread that ran in two samples: idle threads wake up now and then
  ran=$runs runs=""
  ! threads | grep -q '^ *[0-9]* [RD] ' || runs=yes
  if [ $(((cpu - before) * 20)) -gt $((time - last)) ] || [ $(((faults - seen) * 100)) -gt $((time - last)) ] ||
    [ "$ran$runs" = yesyes ]; then idle=$time; fi
  last=$time
}
answers() {  # whether one token, or any other answer, arrives in time
  timeout $((seconds / 3)) /bin/sh "$folder/llamacpp_health.sh" "$base" >/dev/null 2>&1
  [ $? -ne 124 ]
}
end() {
  quiet=$((($(now) - since) / 100)) running=$(grep -o '"is_processing":true' <<<"$before" | wc -l)
  lines="${STACKGEN_WATCHED:-the service} hangs: no progress for ${quiet}s, $running requests running, no answer to a request for one token, $1
hang: process $pid (llama-server): state $state, $((cpu / 100)) s of CPU time
$(threads | sed 's/^/hang:   threads: /')
$(grep -oE '"(id|is_processing|n_prompt_tokens_processed|n_decoded)":[a-z0-9]+' <<<"$before" | sed 's/^/hang: /')"
  while read -r line; do say "$line"; done <<<"$lines"
  # from this file, supervise.sh knows why the service ended
  echo "$lines" >"$hang"
  kill -KILL "$pid"
  exit
}

# supervise.sh waits for the watch of a service that has ended, and its signal may come too early to be noticed
while [ ! -e "$ready" ]; do
  [ -e "/proc/$pid" ] || exit 0
  sleep 1
done
before="" runs="" cpu=0 faults=0 last=$(now)
usage
progress
while sleep "$((seconds / 10)).$((seconds % 10))"; do
  # after a pause of the container, earlier samples are not valid
  if [ $(($(now) - last)) -gt $((seconds * 50)) ]; then progress; fi
  sample
  text=$(slots)
  case $text in
    *" 501 "*) say "llama-server has no /slots (--no-slots), so hangs are not found"; exit ;;
    "") ;;
    "$before") ;;
    *) before=$text; progress ;;
  esac
  if [ $((last - since)) -lt $((seconds * 60)) ]; then continue; fi
  if answers; then progress; last=$since; continue; fi
  sample
  if is_gpu_busy; then idle=$last; fi
  quiet=$((last - since)) needed=$((seconds * 30))
  text=$(slots)
  if [ -n "$text" ] && [ "$text" != "$before" ]; then continue; fi
  if [ "$quiet" -lt $((seconds * 95)) ]; then continue; fi
  if [ $((last - stopped)) -ge "$needed" ]; then end "process $pid (llama-server) is stopped"; fi
  if [ $((last - idle)) -ge $((seconds * 95)) ]; then end "its processes are asleep"; fi
  if [ "$quiet" -ge $((seconds * 100 * patience)) ]; then end "its processes compute without a result"; fi
done
