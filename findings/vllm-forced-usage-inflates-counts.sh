#!/usr/bin/env bash
# pydantic-ai 2.62.0, langchain-openai 1.7.4: with vLLM's --enable-force-include-usage, streams report several times their tokens.
#
# Expected  vLLM documents the option as "including usage on every request". A stream of 4 tokens for a prompt of 10 still counts as
#           10 and 4: the clients ask for the usage themselves, so the option changes nothing for them.
# Seen      pydantic-ai and langchain-openai report 70 input and 18 output tokens, without a warning. openai-agents 0.24.0 reports
#           10 and 4. The error grows with the length of the answer: 500 chunks multiply the prompt by about 500.
# Why it    The option is for accounting, and makes the accounts of the clients wrong. Limits on tokens (`UsageLimits`) end agents
# surprises early. Without streaming, and with the last chunk alone (`curl`), the numbers are right.
# Cause     With the option, vLLM attaches the usage so far to every chunk (should_include_usage in serve/utils/api_utils.py), as
#           for `continuous_usage_stats`. Both libraries add up the usage of all chunks. pydantic-ai has a setting for clients that
#           ask for such chunks, `openai_continuous_usage_stats` (off by default). langchain-ai/langchain issue 30429 reports sums.
# The script's server sends the chunks that vLLM sends with the option. Without `usage` in each chunk, all numbers are right.
# Exits 0 while this holds, 1 when it has changed. Needs python3 with venv, and a package index. Takes about 60 s.
set -u
export PIP_NO_COMPILE=1
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install -q pydantic-ai-slim==2.62.0 langchain-openai==1.7.4 \
    openai-agents==0.24.0 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > "$dir/try.py" <<'PY'
import asyncio, http.server, json, sys, threading

import agents
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

class Server(http.server.BaseHTTPRequestHandler):
    """An engine that streams four tokens. Under /forced, each chunk has the usage so far."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        forced = self.path.startswith("/forced/")
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        usage = lambda tokens: {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens}

        def send(choices, tokens, with_usage):
            chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices}
            chunk |= {"usage": usage(tokens)} if with_usage else {}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())

        deltas = [{"role": "assistant", "content": ""}, *({"content": word} for word in ("The ", "sky ", "is ", "blue.")), {}]
        for sent, delta in enumerate(deltas):
            send([{"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}], min(sent, 4), forced)
        if forced or (body.get("stream_options") or {}).get("include_usage"):
            send([], 4, True)
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *args):
        pass

async def pydantic_ai(url):
    agent = Agent(OpenAIChatModel("m", provider=OpenAIProvider(base_url=url, api_key="none")))
    async with agent.run_stream("Hello") as result:
        await result.get_output()
        usage = result.usage() if callable(result.usage) else result.usage
    return usage.input_tokens, usage.output_tokens

async def langchain(url):
    message = None
    async for chunk in ChatOpenAI(model="m", base_url=url, api_key="none", stream_usage=True).astream("Hello"):
        message = chunk if message is None else message + chunk
    return message.usage_metadata["input_tokens"], message.usage_metadata["output_tokens"]

async def openai_agents(url):
    client = AsyncOpenAI(base_url=url, api_key="none")
    settings = agents.ModelSettings(include_usage=True)
    agent = agents.Agent("a", model=agents.OpenAIChatCompletionsModel("m", client), model_settings=settings)
    result = agents.Runner.run_streamed(agent, "Hello")
    async for _ in result.stream_events():
        pass
    return result.context_wrapper.usage.input_tokens, result.context_wrapper.usage.output_tokens

async def main(port):
    return {(mode, client.__name__): await client(f"http://127.0.0.1:{port}/{mode}/v1")
            for mode in ("usual", "forced") for client in (openai_agents, pydantic_ai, langchain)}

agents.set_tracing_disabled(True)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
seen = asyncio.run(main(server.server_port))
for (mode, client), tokens in seen.items():
    print(f"{mode} usage, {client}: {tokens[0]} input and {tokens[1]} output tokens")
if [*seen.values()][:4] != 4 * [(10, 4)]:
    sys.exit(3)
sys.exit(9 * ([*seen.values()][4:] != 2 * [(70, 18)]))
PY
"$dir/venv/bin/python" "$dir/try.py"
case $? in
  0) ;;
  9) echo "changed: the tokens of a stream are counted once"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
