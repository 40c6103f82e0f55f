#!/bin/sh
# Health check of a llama.cpp service, run inside its container: exits 0 if the server generates a token.
# A router (--models-dir) must answer, and each model that is loaded must generate a token. The request goes to the
# model's own process, so that it loads no model, and the router does not count it as a use of the model.
# Uses curl in upstream's image, and python3 in stackgen's image.
# Usage: llamacpp_health.sh http://127.0.0.1:8080 [router]
set -eu
body='{"prompt": "1", "n_predict": 1, "max_tokens": 1, "temperature": 0}'
request() {  # URL [BODY]: prints the answer
  if command -v curl >/dev/null; then
    curl --silent --show-error --fail --noproxy '*' --max-time 55 -H "Authorization: Bearer $LLAMA_API_KEY" \
      -H 'Content-Type: application/json' ${2:+-d "$2"} "$1"
  else
    BODY=${2:-} python3 - "$1" <<'PYTHON'
import os, sys, urllib.request
headers = {"Authorization": "Bearer " + os.environ["LLAMA_API_KEY"], "Content-Type": "application/json"}
request = urllib.request.Request(sys.argv[1], os.environ["BODY"].encode() or None, headers)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
try:
    print(opener.open(request, timeout=55).read().decode())
except OSError as error:
    sys.exit(f"{type(error).__name__}: {error}")
PYTHON
  fi
}
if [ "${2:-}" = router ]; then
  models=$(request "$1/v1/models")
  # "status":{"value":"loaded","args":[…,"--port","50669",…
  ports=$(printf '%s' "$models" | grep -o '"value":"loaded","args":\[[^]]*\]' | grep -o '"--port","[0-9]*"' | tr -dc '0-9\n') || true
  for port in $ports; do
    # a model without text generation, such as one for embeddings, still answers /health
    request "${1%:*}:$port/v1/completions" "$body" >/dev/null || request "${1%:*}:$port/health" >/dev/null ||
      # unloaded since the list was read
      ! request "$1/v1/models" | grep -q "\"--port\",\"$port\""
  done
else
  request "$1/v1/completions" "$body" >/dev/null
fi
# from this file, supervise.sh knows that the service was healthy
: > "${STACKGEN_READY_FILE:-/tmp/stackgen.ready}"
