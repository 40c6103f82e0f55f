#!/usr/bin/env bash
# dspy 3.4.1: a comparison of two servers that serve one model name gets all answers from the first server.
#
# Expected  `dspy.LM("openai/m", api_base=…)` for each server. A program evaluated with both shows which one is better, for
#           example the same model in FP8 and in BF16, or before and after an update.
# Seen      Only the first server gets requests. The second LM returns the first server's answers from the cache, also in another
#           process, on another day. The two scores are equal, although the second server answers everything correctly.
# Why it    The cache is on by default, and a repeated question may come from it. But the address is not part of the key, and
# surprises two replicas, a canary, or an updated engine have the same name. `cache=False` helps. The tutorial on the cache
#           says nothing about addresses. A pull request that adds them was closed (stanfordnlp/dspy 10006).
# Exits 0 while this holds, 1 when it has changed. Needs python3 with venv, and a package index. Takes about 60 s.
set -u
export PIP_NO_COMPILE=1
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install -q dspy==3.4.1 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > "$dir/score.py" <<'PY'
import sys

import dspy

lm = dspy.LM("openai/m", api_base=sys.argv[1], api_key="none", cache=sys.argv[2] == "cache")
dspy.configure(lm=lm)
examples = [dspy.Example(question=f"What is {n} + 1?", answer=str(n + 1)).with_inputs("question") for n in range(4)]
metric = lambda example, prediction, trace=None: example.answer == prediction.answer
evaluate = dspy.Evaluate(devset=examples, metric=metric, num_threads=1, display_progress=False)
print(evaluate(dspy.Predict("question -> answer")).score)
PY
cat > "$dir/try.py" <<'PY'
import http.server, json, os, re, subprocess, sys, threading

class Server(http.server.BaseHTTPRequestHandler):
    """An engine: a good one adds 1 to the number in the question, the other one doesn't."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        number = int(re.findall(r"What is (\d+)", body["messages"][-1]["content"])[-1])
        self.server.requests += 1
        content = f"[[ ## answer ## ]]\n{number + self.server.good}\n\n[[ ## completed ## ]]"
        choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
        answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        answer = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass

def start(good):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.good, server.requests = good, 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server

def score(server, cache):
    command = [sys.executable, f"{sys.argv[1]}/score.py", f"http://127.0.0.1:{server.server_port}/v1", cache]
    output = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return float(output.split()[-1]) if output.split() else None

os.environ["DSPY_CACHEDIR"] = f"{sys.argv[1]}/cache"
seen = {}
for cache in ("no cache", "cache"):
    bad, good = start(0), start(1)
    seen[cache] = score(bad, cache), score(good, cache), bad.requests, good.requests
    print("{}: scores {} and {}, requests {} and {}".format(cache, *seen[cache]))
if seen["no cache"] != (0.0, 100.0, 4, 4):
    sys.exit(3)
sys.exit(9 * (seen["cache"] != (0.0, 0.0, 4, 0)))
PY
"$dir/venv/bin/python" "$dir/try.py" "$dir"
case $? in
  0) ;;
  9) echo "changed: the second server is asked"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
