#!/usr/bin/env bash
# ai 6.0.326 with @ai-sdk/openai-compatible 2.0.92 (Vercel's AI SDK): an error in mid-stream leaves half an answer, without an error.
#
# Expected  The server sends two chunks, then `data: {"error": …}`, as vLLM does when an engine fails in mid-stream.
#           `await streamText(…).text` rejects, as it does when the server cuts the connection at the same place.
# Seen      It resolves with the two chunks. The loop over `textStream` ends normally, too. Only `finishReason` is "error".
# Why it    The two ways to lose an engine end differently, so tests that kill the server pass. The default `onError` prints the
# surprises error to the console of the server; the code that uses the text never sees it. openai 6.49.0 throws both times.
# Exits 0 while this holds, 1 when it has changed. Needs node 20, npm and its registry. Takes about 20 s.
set -u
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
command -v node >/dev/null && command -v npm >/dev/null || { echo "skipped: no node or npm"; exit 0; }
cd "$dir" && npm install --silent --no-audit --no-fund ai@6.0.326 @ai-sdk/openai-compatible@2.0.92 openai@6.49.0 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > try.mjs <<'JS'
import http from "node:http";
import OpenAI from "openai";
import { streamText } from "ai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";

let cuts;
const server = http.createServer((request, response) => {
  request.resume().on("end", () => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    for (const content of ["half an ", "answer"]) {
      const choices = [{ index: 0, delta: { role: "assistant", content }, finish_reason: null }];
      response.write(`data: ${JSON.stringify({ id: "c", object: "chat.completion.chunk", created: 1, model: "m", choices })}\n\n`);
    }
    const error = { message: "the engine has failed", type: "InternalServerError", code: 500 };
    setTimeout(() => (cuts ? response.destroy() : response.end(`data: ${JSON.stringify({ error })}\n\ndata: [DONE]\n\n`)), 100);
  });
});
await new Promise((done) => server.listen(0, "127.0.0.1", done));
const baseURL = `http://127.0.0.1:${server.address().port}/v1`;
const model = createOpenAICompatible({ name: "try", baseURL })("m");
const start = () => streamText({ model, prompt: "Hello", maxRetries: 0, onError() {} });
const clients = {
  "await text": async () => await start().text,
  textStream: async () => {
    let text = "";
    for await (const part of start().textStream) text += part;
    return text;
  },
  openai: async () => {
    let text = "";
    const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
    const request = { model: "m", messages: [{ role: "user", content: "Hello" }], stream: true };
    for await (const chunk of await client.chat.completions.create(request)) text += chunk.choices[0].delta.content ?? "";
    return text;
  },
};
process.on("unhandledRejection", () => {});  // other promises of a result that is not awaited
const seen = [];
for (cuts of [true, false])
  for (const [name, read] of Object.entries(clients)) {
    seen.push(await read().catch(() => "throws"));
    console.log(`${cuts ? "connection cut" : "error sent"}, ${name}: ${seen.at(-1)}`);
  }
process.exit(seen.join() === "throws,throws,throws,half an answer,half an answer,throws" ? 0 : 9);
JS
node try.mjs
case $? in
  0) ;;
  9) echo "changed: an error in mid-stream throws, or a cut connection doesn't"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
