#!/bin/sh
# Waits until the Job `download` has put the weights of this pod on the claim: the Job writes a model's marker last.
# Usage: wait_for_weights.sh MARKER…
for marker in "$@"; do
  seconds=0
  until [ -e "$marker" ]; do
    [ $((seconds % 60)) -ne 0 ] || echo "stackgen: waiting for the Job \`download\`: $marker is not there yet"
    sleep 2
    seconds=$((seconds + 2))
  done
done
