#!/usr/bin/env bash
# dash 0.5.12 (Debian 0.5.12-2) and busybox 1.35 as /bin/sh: a script with a `trap` ends a new background job, which goes on.
#
# Expected  With `trap 'stopping=1' TERM`, the lines `sleep 0.5 & kill -TERM $!; wait $!` give 143 at once, because
#           the trap is the script's own: a job starts with the default action, which ends it.
# Seen      In most runs, the signal has no effect, and `wait` returns 0 when the job has ended by itself. The script's own
#           trap does not run either. Without the `trap`, and in bash, every job is ended.
# Why it    A supervisor that ends its helper and waits for it, hangs if the helper has only just begun: in a container, a
# surprises service that dies at once leaves a container that neither exits nor restarts, with a helper that waits for it.
# Exits 0 while this holds, 1 when it has changed. Needs apt-get and dpkg. Takes about 25 s.
set -u
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
(cd "$dir" && apt-get download dash=0.5.12-2 busybox-static=1:1.35.0-4+deb12u1+b1 >/dev/null 2>&1 &&
  dpkg -x dash_*.deb . && dpkg -x busybox-static_*.deb .) ||
  { echo "skipped: apt-get has no dash 0.5.12-2 or busybox-static 1.35.0-4"; exit 0; }
cat > "$dir/job.sh" <<'SH'
[ -z "${TRAP:-}" ] || trap 'stopping=1' TERM
lost=0 stopping=0
for number in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
  sleep 0.5 &
  kill -TERM $!
  wait $!
  [ $? -ne 0 ] || lost=$((lost + 1))
done
echo "$lost of 20 jobs went on (the script's own trap ran: $stopping)"
SH
try() { echo "$1: $2"; }
dash=$(TRAP=1 "$dir/bin/dash" "$dir/job.sh" 2>/dev/null)
plain=$("$dir/bin/dash" "$dir/job.sh" 2>/dev/null)
busybox=$(TRAP=1 "$dir/bin/busybox" sh "$dir/job.sh" 2>/dev/null)
bash=$(TRAP=1 bash "$dir/job.sh" 2>/dev/null)
try "dash with a trap" "$dash"; try "dash without" "$plain"; try "busybox with a trap" "$busybox"; try "bash with a trap" "$bash"
[ "${dash%% *}" -ge 3 ] && [ "${plain%% *}" = 0 ] && [ "${bash%% *}" = 0 ] && [ "${busybox%% *}" -ge 3 ] && exit 0
echo "changed: see the head of this file"; exit 1
