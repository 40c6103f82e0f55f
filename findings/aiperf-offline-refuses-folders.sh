#!/usr/bin/env bash
# aiperf 0.13.0: with HF_HUB_OFFLINE in the environment, even as 0, a tokenizer in a local folder is not loaded.
#
# Expected  `aiperf profile --tokenizer /path/to/folder` needs no Hub, so HF_HUB_OFFLINE=1 changes nothing.
# Seen      The benchmark ends with "Repo id must be in the form 'repo_name' or 'namespace/repo_name'" before its first
#           request. Without the variable, the same command works, also without a network.
# Why it    The folder is what a machine without Internet access has, and such machines set the variable for every program.
# surprises aiperf has even printed "[OK] Tokenizer … detected" for the folder. `HF_HUB_OFFLINE=0` has the same effect.
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

class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        choice = {"index": 0, "message": {"role": "assistant", "content": "one two"}, "finish_reason": "stop"}
        body = json.dumps({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

def benchmark(name, **variables):
    """Exit code and output of a benchmark with `variables` in its environment."""
    arguments = {
        "model": "m", "url": f"http://127.0.0.1:{server.server_port}", "endpoint-type": "chat", "request-count": 4,
        "concurrency": 2, "tokenizer": tokenizer, "isl": 20, "ui": "none", "artifact-dir": folder / name,
    }
    options = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"} | variables
    result = subprocess.run([folder / "venv/bin/aiperf", "profile", *options], stdout=2, env=environment)
    log = (folder / name / "logs/aiperf.log").read_text()
    return result.returncode, "Repo id must be in the form" in log

tokenizer = folder / "tokenizer"
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
unset, one, zero = benchmark("unset"), benchmark("one", HF_HUB_OFFLINE="1"), benchmark("zero", HF_HUB_OFFLINE="0")
for name, (code, refused) in {"no variable": unset, "HF_HUB_OFFLINE=1": one, "HF_HUB_OFFLINE=0": zero}.items():
    print(f"{name}: exit code {code}, {'folder taken for a Hub repository' if refused else 'folder read'}")
if unset != (0, False):
    sys.exit(3)
sys.exit(9 * ([one, zero] != [(1, True)] * 2))
PY
"$dir/venv/bin/python" "$dir/try.py" "$dir"
case $? in
  0) ;;
  9) echo "changed: HF_HUB_OFFLINE no longer keeps aiperf from reading a folder"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
