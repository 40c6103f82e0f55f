#!/usr/bin/env bash
# lm-eval 0.4.13: with num_concurrent above 1, eos_string isn't sent to the server, and scores drop.
#
# Expected  num_concurrent changes the speed only. local-completions and local-chat-completions send eos_string as a stop
#           sequence. The harness itself asks for it: "Manually set by passing `eos_string` to model_args".
# Seen      With num_concurrent=1 the stop list is ["\n\n", "<end>"]. With num_concurrent=4 it is ["\n\n"]: answers go on after
#           the end marker. The score of the same model falls from 1.0 to 0.0. No warning is printed.
# Why it    Nobody runs whole benchmarks one request at a time, so the option works in the first trial with few requests, and
# surprises is ignored in the real run. The same holds for the EOS that is read from a tokenizer.
# Exits 0 while this holds, 1 when it has changed. Needs python3 with venv, and a package index. Takes about 40 s.
set -u
export PIP_NO_COMPILE=1
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
# without the packages for other tasks and models
python3 -m venv "$dir/venv" && PIP_NO_DEPS=1 "$dir/venv/bin/pip" install -q lm-eval==0.4.13 >&2 &&
  "$dir/venv/bin/pip" install -q datasets==5.2.0 aiohttp==3.14.5 tenacity==9.2.1 requests==2.34.2 Jinja2==3.1.6 \
    sacrebleu==2.6.0 numpy==2.4.6 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > "$dir/try.py" <<'PY'
import http.server, json, os, pathlib, sys, threading

folder = pathlib.Path(sys.argv[1])
os.chdir(folder)
os.environ |= {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none"}
import lm_eval
from lm_eval.tasks import TaskManager

class Server(http.server.BaseHTTPRequestHandler):
    """A stand-in for an engine whose model writes its end marker as text. It cuts the text at the first stop sequence."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        stops.add(json.dumps(body["stop"]))
        text = f" {body['prompt'].split()[1]}<end> Q: another one"
        text = text[: min([text.find(stop) for stop in body["stop"] if stop in text], default=len(text))]
        choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
        usage = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
        answer = {"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        answer = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass

task = {
    "task": "echo", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "test.jsonl")}},
    "test_split": "test", "output_type": "generate_until", "generation_kwargs": {"until": ["\n\n"]},
    "doc_to_text": "Repeat {{word}}\nAnswer:", "doc_to_target": " {{word}}",
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
(folder / "test.jsonl").write_text("".join(json.dumps({"word": f"word{number}"}) + "\n" for number in range(8)))
(folder / "tasks").mkdir()
(folder / "tasks/echo.yaml").write_text(json.dumps(task))
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
seen = {}
for concurrent in (1, 4):
    stops = set()
    arguments = {
        "model": "m", "base_url": f"http://127.0.0.1:{server.server_port}/v1/completions", "eos_string": "<end>",
        "num_concurrent": concurrent, "tokenizer_backend": None, "tokenized_requests": False,
    }
    results = lm_eval.simple_evaluate(
        "local-completions", arguments, ["echo"], task_manager=TaskManager(include_path=str(folder / "tasks")), bootstrap_iters=0
    )
    seen[concurrent] = float(results["results"]["echo"]["exact_match,none"]), sorted(stops)
    print(f"num_concurrent={concurrent}: score {seen[concurrent][0]}, stop {seen[concurrent][1]}")
if seen[1] != (1.0, [json.dumps(["\n\n", "<end>"])]):
    sys.exit(3)
sys.exit(9 * (seen[4] != (0.0, [json.dumps(["\n\n"])])))
PY
"$dir/venv/bin/python" "$dir/try.py" "$dir"
case $? in
  0) ;;
  9) echo "changed: eos_string is sent with every num_concurrent"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
