#!/usr/bin/env bash
# lm-eval 0.4.13: with local-chat-completions, the fifth stop string of a task isn't sent to the server, and scores drop.
#
# Expected  A task with five strings in `until` sends five. vLLM, SGLang and llama.cpp take any number. local-completions sends
#           all of them to the same server, and so do the backends that load the model.
# Seen      The request has the first four. The model goes on where the fifth one would have stopped it. The score of the same model
#           falls from 1.0 to 0.0. No warning is printed, and the log of samples shows the task with five strings.
# Why it    Four is the limit of OpenAI's own API, but `local-chat-completions` is for one's own server. lm-eval's own tasks humaneval
# surprises and gsm8k_cot_llama have five. Answers of humaneval go on after "\nprint", and run code that the task meant to cut off.
# Exits 0 while this holds, 1 when it has changed. Needs python3 with venv, and a package index. Takes about 60 s.
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
    """An engine whose model goes on after its answer. It cuts the text at the first stop string."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        chat = self.path.endswith("/chat/completions")
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        stops.add(json.dumps(body["stop"]))
        text = f"{prompt.split()[1]}\nprint the next one"
        text = text[: min([text.find(stop) for stop in body["stop"] if stop in text], default=len(text))]
        choice = {"index": 0, "finish_reason": "stop", "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        usage = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
        kind = "chat.completion" if chat else "text_completion"
        answer = json.dumps({"id": "c", "object": kind, "created": 1, "model": "m", "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass

until = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]  # those of humaneval
task = {
    "task": "echo", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "test.jsonl")}},
    "test_split": "test", "output_type": "generate_until", "generation_kwargs": {"until": until},
    "doc_to_text": "Repeat {{word}}\nAnswer:", "doc_to_target": "{{word}}",
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
(folder / "test.jsonl").write_text("".join(json.dumps({"word": f"word{number}"}) + "\n" for number in range(8)))
(folder / "tasks").mkdir()
(folder / "tasks/echo.yaml").write_text(json.dumps(task))
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
seen = {}
for model, path in (("local-completions", "completions"), ("local-chat-completions", "chat/completions")):
    stops = set()
    arguments = {
        "model": "m", "base_url": f"http://127.0.0.1:{server.server_port}/v1/{path}",
        "tokenizer_backend": None, "tokenized_requests": False,
    }
    results = lm_eval.simple_evaluate(
        model, arguments, ["echo"], task_manager=TaskManager(include_path=str(folder / "tasks")), bootstrap_iters=0,
        apply_chat_template="chat" in model,
    )
    seen[model] = float(results["results"]["echo"]["exact_match,none"]), [json.loads(stop) for stop in stops]
    print("{}: score {}, stop {}".format(model, *seen[model]))
score, sent = seen["local-completions"]
if score != 1.0 or len(sent) != 1 or sent[0][:5] != until:
    sys.exit(3)
sys.exit(9 * (seen["local-chat-completions"] != (0.0, [until[:4]])))
PY
"$dir/venv/bin/python" "$dir/try.py" "$dir"
case $? in
  0) ;;
  9) echo "changed: all stop strings are sent"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
