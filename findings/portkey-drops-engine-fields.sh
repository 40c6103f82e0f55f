#!/usr/bin/env bash
# @portkey-ai/gateway 1.15.2: fields that only vLLM and SGLang know don't reach the engine, so answers ignore the JSON schema.
#
# Expected  With `x-portkey-provider: openai` and `x-portkey-custom-host`, the gateway forwards the body, or refuses fields that it
#           doesn't know.
# Seen      `structured_outputs`, `chat_template_kwargs`, `top_k`, `min_p`, `repetition_penalty`, `min_tokens` and `stop_token_ids` are
#           gone. The status is 200. `x-portkey-strict-open-ai-compliance: false` changes nothing, and no line is logged.
# Why it    `temperature`, `stop`, `tools` and `response_format` do arrive, so first tests pass. Then an answer isn't JSON, and a
# surprises model that was asked not to think thinks. The same request is right with the engine alone.
# Exits 0 while this holds, 1 when it has changed. Needs node 20, npm and its registry. Takes about 40 s.
set -u
dir=$(mktemp -d); gateway=
trap '[ -z "$gateway" ] || kill "$gateway" 2>/dev/null; rm -rf "$dir"' EXIT
command -v node >/dev/null && command -v npm >/dev/null || { echo "skipped: no node or npm"; exit 0; }
cd "$dir" && npm install --silent --no-audit --no-fund @portkey-ai/gateway@1.15.2 >&2 ||
  { echo "could not install the packages"; exit 2; }
port=$(node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close(); })')
node node_modules/@portkey-ai/gateway/build/start-server.js --headless --port="$port" >"$dir/log" 2>&1 &
gateway=$!
cat > try.mjs <<'JS'
import http from "node:http";

let received;
const engine = http.createServer((request, response) => {
  let body = "";
  request.on("data", (part) => (body += part)).on("end", () => {
    received = JSON.parse(body);
    const choices = [{ index: 0, message: { role: "assistant", content: "Hello" }, finish_reason: "stop" }];
    const usage = { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2 };
    response.writeHead(200, { "content-type": "application/json" });
    response.end(JSON.stringify({ id: "c", object: "chat.completion", created: 1, model: "m", choices, usage }));
  });
});
await new Promise((done) => engine.listen(0, "127.0.0.1", done));
const engineURL = `http://127.0.0.1:${engine.address().port}/v1`;
const own = {
  structured_outputs: { json: { type: "object" } }, chat_template_kwargs: { enable_thinking: false }, top_k: 5, min_p: 0.1,
  repetition_penalty: 1.1, min_tokens: 3, stop_token_ids: [3],
};
const usual = { temperature: 0, stop: ["a"], seed: 1, max_tokens: 9, response_format: { type: "text" } };
const body = { model: "m", messages: [{ role: "user", content: "Hello" }], ...usual, ...own };

async function send(url, headers) {
  received = undefined;
  const options = { method: "POST", headers: { "content-type": "application/json", ...headers }, body: JSON.stringify(body) };
  for (let tries = 0; tries < 60; tries++) {
    const response = await fetch(`${url}/chat/completions`, options).catch(() => null);  // while the gateway starts
    if (response) return [response.status, Object.keys(body).filter((name) => !(name in (received ?? {})))];
    await new Promise((done) => setTimeout(done, 1000));
  }
  process.exit(3);
}

const gateway = `http://127.0.0.1:${process.argv[2]}/v1`;
const route = { authorization: "Bearer none", "x-portkey-provider": "openai", "x-portkey-custom-host": engineURL };
const seen = [
  await send(engineURL, {}), await send(gateway, route),
  await send(gateway, { ...route, "x-portkey-strict-open-ai-compliance": "false" }),
];
for (const [number, name] of ["engine alone", "gateway", "gateway, not strict"].entries())
  console.log(`${name}: status ${seen[number][0]}, missing: ${seen[number][1].join(", ") || "nothing"}`);
if (String(seen[0]) !== "200,") process.exit(3);
const dropped = `200,${Object.keys(own)}`;
process.exit(String(seen[1]) === dropped && String(seen[2]) === dropped ? 0 : 9);
JS
node try.mjs "$port"
case $? in
  0) ;;
  9) echo "changed: the gateway drops other fields"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
