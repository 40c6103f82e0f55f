#!/usr/bin/env bash
# agno 3.1.10 (openai 3.57.0): a workflow hands an engine's error message to the next agent as its task.
#
# Expected  The engine of the first step answers 503 once, and then works. Step has max_retries=3 by default ("maximum number of
#           retry attempts on failure"). So the step runs again, as it does with workflow.run(..., stream=True).
# Seen      workflow.run() doesn't try again. The second agent gets "The engine is overloaded" as its whole task, and answers
#           it. The workflow's status is COMPLETED, and its content is that answer.
# Why it    Agent.run() returns an error as content, with a status that the step doesn't look at before it retries. A short
# surprises overload changes results, and nothing raises. Tests that stream, or whose step is a Python function, see the retry.
# Exits 0 while this holds, 1 when it has changed. Needs python3 with venv, and a package index. Takes about 50 s.
set -u
export PIP_NO_COMPILE=1
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install -q agno==3.1.10 openai==3.57.0 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > "$dir/try.py" <<'PY'
import http.server, json, sys, threading
from agno.agent import Agent
from agno.models.openai.like import OpenAILike
from agno.workflow import Step, Workflow

class Server(http.server.BaseHTTPRequestHandler):
    """A stand-in for an engine that answers 503 to the first request, and then names the task that it was given."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        tasks.append(body["messages"][-1]["content"])
        if len(tasks) == 1:
            answer = {"error": {"message": "The engine is overloaded", "type": "ServiceUnavailableError", "code": 503}}
            self.answer(503, "application/json", json.dumps(answer))
            return
        text, common = f"done: {tasks[-1]}", {"id": "c", "created": 1, "model": "m"}
        if body.get("stream"):
            choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            chunk = {**common, "object": "chat.completion.chunk", "choices": [choice]}
            self.answer(200, "text/event-stream", f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n")
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            self.answer(200, "application/json", json.dumps({**common, "object": "chat.completion", "choices": [choice]}))

    def answer(self, status, kind, body):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/v1"

def step(name):
    agent = Agent(model=OpenAILike(id="m", base_url=url, api_key="none", max_retries=0), telemetry=False)
    return Step(name=name, agent=agent)

seen = []
for stream in (True, False):
    tasks = []
    workflow = Workflow(name="try", steps=[step("summarize"), step("translate")], telemetry=False)
    try:
        result = workflow.run("text", stream=stream)
        content = list(result)[-1].content if stream else (result.status.value, result.content)
    except Exception as error:
        content = type(error).__name__
    seen.append((content, tasks))
    print(f"stream={stream}: {content}, tasks: {tasks}")
if seen[0] != ("done: done: text", ["text", "text", "done: text"]):
    sys.exit(3)
lost = "The engine is overloaded"
sys.exit(9 * (seen[1] != (("COMPLETED", f"done: {lost}"), ["text", lost])))
PY
"$dir/venv/bin/python" "$dir/try.py"
case $? in
  0) ;;
  9) echo "changed: the step is tried again, or the workflow fails"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
