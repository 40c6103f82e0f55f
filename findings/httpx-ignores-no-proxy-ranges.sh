#!/usr/bin/env bash
# httpx 0.28.1: an address range in NO_PROXY has no effect. curl 7.88.1, requests 2.34.2 and httpx2 2.16.2 honor it.
#
# Expected  With `NO_PROXY=127.0.0.0/8`, a request to http://127.0.0.1:8000 does not go to the proxy.
# Seen      It goes to the proxy, without a warning. Only `NO_PROXY=127.0.0.1` prevents that.
# Why it    Networks of companies set HTTP_PROXY and ranges like 10.0.0.0/8 for the whole machine. `curl` to a model server then
# surprises works, and the Python program next to it gets errors of a proxy, or the proxy's operators read the prompts.
# Exits 0 while this holds, 1 when it has changed. Needs python3 with venv, and a package index. Takes about 15 s.
set -u
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install -q httpx==0.28.1 requests==2.34.2 httpx2==2.16.2 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > "$dir/try.py" <<'PY'
import http.server, os, sys, threading
import httpx, httpx2, requests

asked = []

class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked.append("proxy" if self.path.startswith("http:") else "direct")
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)  # it is the target and the proxy
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
for name in ("HTTP_PROXY", "http_proxy"):
    os.environ[name] = url
seen = {}
for without in ("127.0.0.1", "127.0.0.0/8"):
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = without
    for library in (httpx, httpx2, requests):
        library.get(f"{url}/v1/models")
        seen[without, library.__name__] = asked[-1]
    print(f"NO_PROXY={without}:", ", ".join(f"{name} {way}" for (value, name), way in seen.items() if value == without))
sys.exit(9 * ([key for key, way in seen.items() if way == "proxy"] != [("127.0.0.0/8", "httpx")]))
PY
"$dir/venv/bin/python" "$dir/try.py"
case $? in
  0) ;;
  9) echo "changed: httpx honors ranges, or the other libraries don't"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
