#!/usr/bin/env bash
# evalscope 1.14.1 (openai 3.57.0): `evalscope perf` reports an acceptance rate of speculative decoding for engines without it.
#
# Expected  The section "Speculative Decoding" appears for engines that use it only, as the documentation of the metrics says, and
#           "Spec. Accept Rate" measures the draft model. vLLM reports such numbers in a field of its own.
# Seen      An engine that sends four tokens in a chunk, as `vllm serve --stream-interval 4` does without any draft model, has
#           "Spec. Accept Rate" 0.75 and "Avg Decoded Tok/Iter" 4. With a token in each chunk, the section is absent.
# Why it    The tool divides the tokens by the chunks. Chunks also have several tokens because of stream intervals, and because
# surprises vLLM merges what a slow client has not read yet. So a draft model that never helps looks good.
# Exits 0 while this holds, 1 when it has changed. Needs python3 with venv, and a package index. Takes about 50 s.
set -u
export PIP_NO_COMPILE=1  # compiling all packages takes longer than the rest
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
# without the packages for its other commands, which take more than a minute
python3 -m venv "$dir/venv" && PIP_NO_DEPS=1 "$dir/venv/bin/pip" install -q evalscope==1.14.1 >&2 &&
  "$dir/venv/bin/pip" install -q openai==3.57.0 aiohttp==3.14.5 datasets==5.2.0 fastapi==0.165.0 uvicorn==0.54.0 \
    sse-starlette==3.7.0 httpx==0.28.1 requests==2.34.2 numpy==2.4.6 pandas==3.1.1 pillow==13.0.0 pydantic==2.14.4 \
    PyYAML==6.0.4 jsonlines==4.0.0 jsonschema==4.26.0 simplejson==4.3.0 rich==15.0.0 tabulate==0.10.0 tqdm==4.70.1 \
    click==8.5.1 cloudpickle==3.1.3 colorama==0.4.6 colorlog==6.12.0 docstring_parser==0.18.0 editdistance==0.8.1 \
    filetype==1.2.0 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > "$dir/try.py" <<'PY'
import contextlib, http.server, json, os, pathlib, sys, threading

folder = pathlib.Path(sys.argv[1])
os.chdir(folder)
os.environ |= {"HOME": str(folder), "HF_HUB_OFFLINE": "1"}
from evalscope.perf.arguments import Arguments
from evalscope.perf.main import run_perf_benchmark

tokens = 17

class Server(http.server.BaseHTTPRequestHandler):
    """A stand-in for an engine without speculative decoding: the first token in a chunk of its own, then `interval` in each."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        model = {"id": "m", "object": "model", "created": 1, "owned_by": "me"}
        self.answer("application/json", json.dumps({"object": "list", "data": [model]}))

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        ends = range(1, tokens + 1, interval)
        texts = ["a", *(" a" * interval for _ in ends[1:])]
        chunks = [self.chunk(choices=[self.choice(text, "stop" if end == ends[-1] else None)]) for end, text in zip(ends, texts)]
        usage = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}
        events = [*chunks, self.chunk(choices=[], usage=usage)]
        self.answer("text/event-stream", "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n")

    def choice(self, text, reason):
        return {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": reason}

    def chunk(self, **more):
        return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", **more}

    def answer(self, kind, body):
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
(folder / "prompts.txt").write_text("\n".join(f"Hello, I am number {number}." for number in range(8)))
seen = {}
for interval in (1, 4):
    with contextlib.redirect_stdout(sys.stderr):
        run_perf_benchmark(Arguments(
            url=f"http://127.0.0.1:{server.server_port}/v1/chat/completions", api="openai", model="m", number=[6], parallel=[2],
            dataset="line_by_line", dataset_path=str(folder / "prompts.txt"), outputs_dir=str(folder / f"out{interval}"),
            no_test_connection=True,
        ))
    report = json.loads(next((folder / f"out{interval}").rglob("benchmark_summary.json")).read_text())
    if report["Success Requests"] != 6 or report["Avg Output Tokens"] != tokens:
        sys.exit(3)
    seen[interval] = report.get("Spec. Accept Rate"), report.get("Avg Decoded Tok/Iter")
    print(f"{interval} tokens a chunk: acceptance rate {seen[interval][0]}, tokens per iteration {seen[interval][1]}")
sys.exit(9 * (seen != {1: (None, None), 4: (0.75, 4.0)}))
PY
"$dir/venv/bin/python" "$dir/try.py" "$dir"
case $? in
  0) ;;
  9) echo "changed: the acceptance rate doesn't depend on the size of the chunks"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
