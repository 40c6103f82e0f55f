#!/usr/bin/env bash
# langfuse 5.0.4 (openai 3.57.0): traces of an engine have a temperature that nobody sent, and lack `top_k` that was sent.
#
# Expected  `from langfuse.openai import OpenAI` traces each request: the settings that were sent, or none where the client sent none.
# Seen      A request without settings is recorded with temperature 1, top_p 1 and max_tokens "Infinity". `top_k`, `min_p` and
#           `chat_template_kwargs` in `extra_body` are not recorded, and nor is the `reasoning` of the answer.
# Why it    The values are the defaults of OpenAI's service. vLLM and SGLang take the defaults of the model's generation_config.json,
# surprises which for reasoning models are often temperature 0.6, top_p 0.95 and top_k 20. So the trace of a request that can't be
#           reproduced names the wrong settings, as if they had been measured. Settings that are sent by name are recorded rightly.
# The script receives the spans in memory, before they go to Langfuse's server.
# Exits 0 while this holds, 1 when it has changed. Needs python3 with venv, and a package index. Takes about 40 s.
set -u
export PIP_NO_COMPILE=1
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install -q langfuse==5.0.4 openai==3.57.0 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > "$dir/try.py" <<'PY'
import http.server, json, sys, threading

from langfuse import Langfuse
from langfuse.openai import OpenAI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

class Server(http.server.BaseHTTPRequestHandler):
    """An engine with a reasoning model, and a Langfuse server that takes everything."""

    def do_POST(self):
        body, answer = self.rfile.read(int(self.headers["content-length"])), b"{}"
        if self.path.endswith("/chat/completions"):
            received.append(json.loads(body))
            message = {"role": "assistant", "content": "4", "reasoning": "2 + 2 is 4"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
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

received, spans, provider = [], InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
Langfuse(public_key="none", secret_key="none", host=url, tracer_provider=provider)
client = OpenAI(base_url=f"{url}/v1", api_key="none")
extra = {"top_k": 5, "min_p": 0.1, "chat_template_kwargs": {"enable_thinking": True}}
answers = []
for settings in ({"temperature": 0.3, "top_p": 0.9, "max_tokens": 50}, {"extra_body": extra}):
    answers.append(client.chat.completions.create(model="m", messages=[{"role": "user", "content": "2 + 2?"}], **settings))
traces = [dict(span.attributes) for span in spans.get_finished_spans() if span.name == "OpenAI-generation"]
if len(traces) != 2 or answers[1].choices[0].message.reasoning != "2 + 2 is 4":
    sys.exit(3)
recorded = [json.loads(trace["langfuse.observation.model.parameters"]) for trace in traces]
for body, settings in zip(received, recorded):
    sent = {name: value for name, value in body.items() if name not in ("model", "messages")}
    print(f"sent {sent}\n  recorded {settings}")
print(f"answer recorded as {traces[1]['langfuse.observation.output']}")
by_name = {name: recorded[0].get(name) for name in ("temperature", "top_p", "max_tokens")}
if by_name != {"temperature": 0.3, "top_p": 0.9, "max_tokens": 50} or not set(extra) <= set(received[1]):
    sys.exit(3)
invented = [recorded[1].get(name) for name in ("temperature", "top_p", "max_tokens")] == [1, 1, "Infinity"]
everything = json.dumps(traces[1])
lost = not any(word in everything for word in (*extra, "2 + 2 is 4"))
sys.exit(9 * (not invented or not lost))
PY
timeout 100 "$dir/venv/bin/python" "$dir/try.py" 2>"$dir/errors"
case $? in
  0) ;;
  9) echo "changed: other settings are recorded"; exit 1 ;;
  *) cat "$dir/errors"; echo "the script could not measure"; exit 2 ;;
esac
