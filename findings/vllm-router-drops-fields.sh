#!/usr/bin/env bash
# vllm-router 0.1.17: fields of valid requests don't reach the engine.
#
# Expected  The router forwards the body of a request, or refuses fields that it doesn't know.
# Seen      In /v1/embeddings, `truncate_prompt_tokens` and `priority` are gone. In chats, `reasoning_content` of earlier
#           answers, `name` of tool messages and `strict` of functions are gone. The status is 200.
# Why it    Unknown fields at the top of a chat do arrive, so a first test looks fine. Embeddings of long texts fail in vLLM
# surprises with a length error, although the client asked for truncation. Reasoning under its older name is lost.
# Exits 0 while this holds, 1 when it has changed. Needs python3 with venv, and a package index. Takes about 30 s.
set -u
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install -q vllm-router==0.1.17 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > "$dir/try.py" <<'PY'
import http.server, json, pathlib, socket, subprocess, sys, threading, time, urllib.error, urllib.request

class Engine(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
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

def find_missing(sent, seen, place=""):
    """Places of `sent` that `seen` lacks. Fields that the router adds don't count."""
    if isinstance(sent, dict) and isinstance(seen, dict):
        pairs = [(key, sent[key], seen.get(key)) for key in sent]
    elif isinstance(sent, list) and isinstance(seen, list):
        pairs = list(zip(range(len(sent)), sent, seen))
    else:
        return [] if sent == seen else [place]
    return [found for key, one, other in pairs for found in find_missing(one, other, f"{place}.{key}".strip("."))]

bodies = []
engine = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Engine)
threading.Thread(target=engine.serve_forever, daemon=True).start()
port = free_port()
program = pathlib.Path(sys.executable).parent / "vllm-router"
arguments = ["--port", port, "--worker-urls", f"http://127.0.0.1:{engine.server_port}", "--prometheus-port", free_port()]
router = subprocess.Popen([program, *map(str, arguments)], stdout=2)

def post(path, body):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    for _ in range(100):  # the router starts, and waits for its engine
        try:
            urllib.request.urlopen(request, timeout=10).close()
            return sorted(find_missing(body, bodies[-1]))
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    sys.exit(3)

call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
chat = {
    "model": "m", "chat_template_kwargs": {"enable_thinking": False}, "min_p": 0.1, "any_field": 1,
    "messages": [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "I search.", "reasoning_content": "Search first.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "name": "find", "content": "nothing"},
    ],
    "tools": [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}, "strict": True}}],
}
embeddings = {"model": "m", "input": "Hello", "dimensions": 8, "truncate_prompt_tokens": 512, "priority": 1}
try:
    missing = {path: post(path, body) for path, body in (("/v1/chat/completions", chat), ("/v1/embeddings", embeddings))}
finally:
    router.terminate(), router.wait()
for path, fields in missing.items():
    print(f"{path}: the engine doesn't get {', '.join(fields) or 'nothing'}")
sys.exit(9 * (missing != {
    "/v1/chat/completions": ["messages.1.reasoning_content", "messages.2.name", "tools.0.function.strict"],
    "/v1/embeddings": ["priority", "truncate_prompt_tokens"],
}))
PY
"$dir/venv/bin/python" "$dir/try.py"
case $? in
  0) ;;
  9) echo "changed: the engine gets other fields"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
