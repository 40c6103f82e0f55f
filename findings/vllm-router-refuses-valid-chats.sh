#!/usr/bin/env bash
# vllm-router 0.1.17: chats that OpenAI's API and vLLM allow get 422 from the router, in plain text.
#
# Expected  The router forwards a tool without `parameters` (for OpenAI, a function without arguments), and
#           `response_format: {"type": "structural_tag", …}`, which vLLM reads.
# Seen      The router answers 422 before any engine sees the request: "Failed to deserialize the JSON body".
# Why it    The same request works with the engine alone, and stops working when a router is put in front of it. The answer
# surprises is plain text, not the error object of OpenAI's API.
# Exits 0 while this holds, 1 when it has changed. Needs python3 with venv, and a package index. Takes about 30 s.
set -u
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install -q vllm-router==0.1.17 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > "$dir/try.py" <<'PY'
import http.server, json, pathlib, socket, subprocess, sys, threading, time, urllib.error, urllib.request

class Engine(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def do_GET(self):
        answer = json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass

def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]

engine = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Engine)
threading.Thread(target=engine.serve_forever, daemon=True).start()
port = free_port()
program = pathlib.Path(sys.executable).parent / "vllm-router"
arguments = ["--port", port, "--worker-urls", f"http://127.0.0.1:{engine.server_port}", "--prometheus-port", free_port()]
router = subprocess.Popen([program, *map(str, arguments)], stdout=2)

def post(**fields):
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hello"}], **fields}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body, {"content-type": "application/json"})
    for _ in range(100):  # the router starts, and waits for its engine
        try:
            return urllib.request.urlopen(request, timeout=10).status
        except urllib.error.HTTPError as error:
            if error.code != 503:
                return f"{error.code} {error.headers['content-type']}: {error.read().decode()[:140]}"
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.5)
    sys.exit(3)

def tool(**function):
    return [{"type": "function", "function": {"name": "now", **function}}]

try:
    seen = {
        "a tool with parameters": post(tools=tool(parameters={"type": "object"})),
        "a tool without parameters": post(tools=tool()),
        "a structural tag": post(response_format={"type": "structural_tag", "structures": [], "triggers": []}),
    }
finally:
    router.terminate(), router.wait()
for name, answer in seen.items():
    print(f"{name}: {answer}")
sys.exit(9 * ([str(answer)[:3] for answer in seen.values()] != ["200", "422", "422"]))
PY
"$dir/venv/bin/python" "$dir/try.py"
case $? in
  0) ;;
  9) echo "changed: the router forwards these chats"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
