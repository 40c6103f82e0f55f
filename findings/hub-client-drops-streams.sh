#!/usr/bin/env bash
# huggingface_hub 2.4.0: a stream of InferenceClient breaks off if no variable refers to the client.
#
# Expected  `for chunk in InferenceClient(base_url=…).chat_completion(…, stream=True)` yields the chunks. So do functions that
#           create a client and return its stream. AsyncInferenceClient and openai 3.57.0 work this way.
# Seen      The loop fails with StreamClosed. With the client in a variable that lives as long as the loop, it works.
# Why it    The stream is in use, but only the client owns the connection. When Python deletes the client, the response is
# surprises closed. The error names no cause: "Attempted to read or stream content, but the stream has been closed."
# Exits 0 while this holds, 1 when it has changed. Needs python3 with venv, and a package index. Takes about 15 s.
set -u
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install -q huggingface_hub==2.4.0 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > "$dir/try.py" <<'PY'
import http.server, json, sys, threading
from huggingface_hub import InferenceClient

class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for word, reason in (("Hello ", None), ("world", None), ("", "stop")):
            choice = {"index": 0, "delta": {"role": "assistant", "content": word}, "finish_reason": reason}
            chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *args):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()

def open_client():
    return InferenceClient(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none")

def read(client):
    messages = [{"role": "user", "content": "Hello"}]
    chunks = client().chat_completion(messages, model="m", stream=True)
    try:
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    except Exception as error:
        return type(error).__name__

kept = open_client()
with_variable, without = read(lambda: kept), read(open_client)
print(f"client in a variable: {with_variable!r}, without: {without!r}")
sys.exit(9 * ((with_variable, without) != ("Hello world", "StreamClosed")))
PY
"$dir/venv/bin/python" "$dir/try.py"
case $? in
  0) ;;
  9) echo "changed: the stream no longer depends on the client's variable"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
