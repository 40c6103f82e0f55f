#!/usr/bin/env bash
# openai 3.57.0: the wait before a retry can be longer than the client's timeout.
#
# Expected  A call with timeout=2 and max_retries=1 ends after about 4 s, even if the server asks for a longer wait.
# Seen      The server answers 503 with `Retry-After: 8` at once. The call ends after 8 s.
# Why it    Users of a server that loads a model set a short timeout to fail fast. A gateway that sends Retry-After then
# surprises decides how long their call blocks. The timeout limits single attempts, not the whole call.
# Exits 0 while this holds, 1 when it has changed. Needs python3 with venv, and a package index. Takes about 20 s.
set -u
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install -q openai==3.57.0 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > "$dir/try.py" <<'END'
import http.server, sys, threading, time
import openai

class Busy(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(503)
        self.send_header("retry-after", "8")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/v1"
client = openai.OpenAI(base_url=url, api_key="none", timeout=2, max_retries=1)
start = time.monotonic()
try:
    client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hello"}])
except openai.InternalServerError:
    pass
took = time.monotonic() - start
print(f"timeout=2, Retry-After: 8: the call took {took:.1f} s")
sys.exit(9 * (took < 7))
END
"$dir/venv/bin/python" "$dir/try.py"
case $? in
  0) ;;
  9) echo "changed: the timeout limits the wait before a retry"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
