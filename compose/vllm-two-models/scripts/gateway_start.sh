#!/bin/sh
# Starts HAProxy. The key of .env is handed on as its SHA-256 only; it counts until `stackgen keys` writes keys.map.
set -eu
STACKGEN_KEY_HASH=$(printf %s "$STACKGEN_API_KEY" | sha256sum | cut -d ' ' -f 1 | tr a-f A-F)
export STACKGEN_KEY_HASH
for name in ${STACKGEN_REQUIRED:-}; do
  [ -n "$(printenv "$name")" ] || { echo "Error: $name is missing in .env: the stack names a fallback" >&2; exit 1; }
done
unset STACKGEN_API_KEY
exec haproxy -W -db -f /gateway/haproxy.cfg
