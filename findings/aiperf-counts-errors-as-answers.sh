#!/usr/bin/env bash
# aiperf 0.13.0: a stream that ends with the server's error counts as a successful request.
#
# Expected  The server sends two chunks, then `data: {"error": …}`, as vLLM does when an engine fails in mid-stream. The
#           benchmark reports failed requests, as it does for a status 500 or a connection that is cut.
# Seen      All requests count as completed, with their tokens and latencies. No error is reported, and the exit code is 0.
# Why it    A benchmark of an engine that fails under load reports short and fast answers. The failure is in the raw data
# surprises only. openai 3.57.0 raises APIError for the same stream.
# Exits 0 while this holds, 1 when it has changed. Needs python3 with venv, and a package index. Takes about 200 s.
set -u
export PIP_NO_COMPILE=1  # compiling all packages takes longer than the rest
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install -q aiperf==0.13.0 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > "$dir/try.py" <<'PY'
import http.server, json, os, pathlib, subprocess, sys, threading
from tokenizers import Tokenizer, models, pre_tokenizers

folder = pathlib.Path(sys.argv[1])
count = 6

class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        events = [self.chunk("one ", None), self.chunk("two ", None)]
        if fails:
            events.append({"error": {"message": "the engine has failed", "type": "InternalServerError", "code": 500}})
        else:
            events.append(self.chunk("", "stop"))
        body = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def chunk(self, text, reason):
        choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": reason}
        return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}

    def log_message(self, *args):
        pass

def benchmark(name):
    arguments = {
        "model": "m", "url": f"http://127.0.0.1:{server.server_port}", "endpoint-type": "chat", "request-count": count,
        "concurrency": 2, "tokenizer": tokenizer, "isl": 20, "ui": "none", "artifact-dir": folder / name,
    }
    options = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
    result = subprocess.run([folder / "venv/bin/aiperf", "profile", "--streaming", *options], stdout=2)
    report = json.loads((folder / name / "profile_export_aiperf.json").read_text())
    return result.returncode, report["request_count"]["avg"], report.get("error_request_count")

tokenizer = folder / "tokenizer"  # a local one, because the benchmark needs one and the Hub may be out of reach
tokenizer.mkdir()
words = Tokenizer(models.WordLevel({"<unk>": 0, "one": 1, "two": 2, "</s>": 3}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
words.save(str(tokenizer / "tokenizer.json"))
settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "<unk>"}
(tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))
(tokenizer / "config.json").write_text('{"model_type": "llama"}')
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_HOME"] = str(folder / "hub")
seen = {}
for fails in (False, True):
    seen[fails] = benchmark("failing" if fails else "healthy")
    print(f"{'failing' if fails else 'healthy'} server: exit code {seen[fails][0]}, completed {seen[fails][1]:.0f}, errors {seen[fails][2]}")
if seen[False] != (0, count, None):
    sys.exit(3)
sys.exit(9 * (seen[True] != seen[False]))
PY
"$dir/venv/bin/python" "$dir/try.py" "$dir"
case $? in
  0) ;;
  9) echo "changed: the failed streams are reported as errors"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
