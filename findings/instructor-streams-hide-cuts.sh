#!/usr/bin/env bash
# instructor 1.17.0 (openai 3.3.0): streamed objects that were cut at max_tokens look whole.
#
# Expected  IncompleteOutputException, as create() raises for the same answer. The reference of errors lists it for output that
#           is cut by the token limit, without an exception for streams.
# Seen      create_partial ends with a price of 12, although the model was writing 125. create_iterable ends after two of three
#           objects. Both end normally, and the finish_reason "length" appears nowhere.
# Why it    A cut number is a valid number, and a cut list is a valid list, so no check of types finds it. Code that changes
# surprises from create() to a stream, to show progress, stores wrong data if max_tokens or the engine's context is too small.
# Exits 0 while this holds, 1 when it has changed. Needs python3 with venv, and a package index. Takes about 40 s.
set -u
export PIP_NO_COMPILE=1
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install -q instructor==1.17.0 openai==3.3.0 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > "$dir/try.py" <<'PY'
import http.server, json, sys, threading
import instructor, openai
from pydantic import BaseModel

class Item(BaseModel):
    name: str
    price: float

bolt = ['{"name": ', '"bolt", ', '"price": ', "12", "5", "}"]
objects = ['{"tasks": [', *bolt, ", ", *bolt, ", ", *bolt, "]}"]

class Server(http.server.BaseHTTPRequestHandler):
    """A stand-in for an engine whose model calls the one tool that it's given, at most max_tokens tokens long."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        name, limit = body["tools"][0]["function"]["name"], body["max_tokens"]
        tokens = objects if "tasks" in json.dumps(body["tools"]) else bolt
        reason = "stop" if len(tokens) <= limit else "length"
        call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": ""}}
        common = {"id": "c", "created": 1, "model": "m"}
        self.send_response(200)
        if not body.get("stream"):
            call["function"]["arguments"] = "".join(tokens[:limit])
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
            choice = {"index": 0, "message": message, "finish_reason": reason}
            answer = json.dumps({**common, "object": "chat.completion", "choices": [choice]}).encode()
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(answer)
            return
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        calls = [[{"index": 0, **call}], *([{"index": 0, "function": {"arguments": token}}] for token in tokens[:limit])]
        deltas = [({"role": "assistant", "content": None, "tool_calls": calls[0]}, None)]
        deltas += [({"tool_calls": call}, None) for call in calls[1:]] + [({}, reason)]
        for delta, reason in deltas:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            chunk = {**common, "object": "chat.completion.chunk", "choices": [choice]}
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *args):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = instructor.from_openai(
    openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none", max_retries=0)
)
calls = {
    "create": lambda **more: client.create(response_model=Item, **more).price,
    "create_partial": lambda **more: list(client.create_partial(response_model=Item, **more))[-1].price,
    "create_iterable": lambda **more: len(list(client.create_iterable(response_model=Item, **more))),
}
seen = []
for limit_one, limit_many in ((6, 22), (4, 19)):
    for name, call in calls.items():
        limit = limit_many if name == "create_iterable" else limit_one
        try:
            seen.append(call(messages=[{"role": "user", "content": "Hello"}], model="m", max_tokens=limit, max_retries=0))
        except Exception as error:
            seen.append(type(error).__name__)
        print(f"{name}, max_tokens={limit}: {seen[-1]}")
if seen[:3] != [125, 125, 3]:
    sys.exit(3)
sys.exit(9 * (seen[3:] != ["IncompleteOutputException", 12, 2]))
PY
"$dir/venv/bin/python" "$dir/try.py"
case $? in
  0) ;;
  9) echo "changed: a stream that was cut at max_tokens raises an error"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
