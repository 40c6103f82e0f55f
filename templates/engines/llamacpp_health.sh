#!/bin/sh
# Health check of a llama.cpp service, run inside its container: exits 0 if the server generates a token.
# Uses curl in upstream's image, and python3 in stackgen's image.
# Usage: llamacpp_health.sh http://127.0.0.1:8080
set -eu
body='{"prompt": "1", "n_predict": 1, "max_tokens": 1, "temperature": 0}'
if command -v curl >/dev/null; then
  curl --silent --show-error --fail --noproxy '*' --max-time 55 -o /dev/null -H "Authorization: Bearer $LLAMA_API_KEY" \
    -H 'Content-Type: application/json' -d "$body" "$1/v1/completions"
else
  BODY=$body python3 - "$1" <<'PYTHON'
import os, sys, urllib.request
headers = {"Authorization": "Bearer " + os.environ["LLAMA_API_KEY"], "Content-Type": "application/json"}
request = urllib.request.Request(sys.argv[1] + "/v1/completions", os.environ["BODY"].encode(), headers)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
try:
    opener.open(request, timeout=55).read()
except OSError as error:
    sys.exit(f"{type(error).__name__}: {error}")
PYTHON
fi
# supervise.sh reads from this file that the service was healthy
: > "${STACKGEN_READY_FILE:-/tmp/stackgen.ready}"
