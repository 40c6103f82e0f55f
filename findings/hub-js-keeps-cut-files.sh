#!/usr/bin/env bash
# @huggingface/hub 2.17.5 (JavaScript): a download that a proxy cuts short succeeds, and the cut file stays in the cache.
#
# Expected  A mirror is restarted while it sends model.safetensors. The proxy in front of it ends the response in the regular way, as
#           nginx does by default (nginx-hides-cut-streams.sh). `snapshotDownload` knows the size from the Hub's API, and the
#           SHA-256 of the file, so it fails or tries again. huggingface_hub 2.4.0 (Python) raises an error.
# Seen      It returns the snapshot with the first part of the file, without an error. The next call, with a mirror that works, returns
#           the same cut file and doesn't download it again.
# Why it    A cut connection does raise an error, so a test that kills the mirror passes. The file has its final name, not
# surprises `.incomplete`. The engine that loads it fails much later, or on another machine, and downloading again doesn't help.
# Exits 0 while this holds, 1 when it has changed. Needs node 20, npm and its registry. Takes about 20 s.
set -u
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
command -v node >/dev/null && command -v npm >/dev/null || { echo "skipped: no node or npm"; exit 0; }
cd "$dir" && npm install --silent --no-audit --no-fund @huggingface/hub@2.17.5 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > try.mjs <<'JS'
import { createHash } from "node:crypto";
import fs from "node:fs";
import http from "node:http";
import { snapshotDownload } from "@huggingface/hub";

const weights = Buffer.alloc(300000, "w"), sha = createHash("sha256").update(weights).digest("hex"), commit = "a".repeat(40);
const file = { type: "file", path: "model.safetensors", size: weights.length, oid: "b".repeat(40) };
file.lfs = { oid: sha, size: weights.length, pointerSize: 134 };
let mode, downloads = 0;
const hub = http.createServer((request, response) => {
  const json = (value) => response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(value));
  request.resume().on("end", () => {
    if (request.url.includes("/paths-info/")) return json([{ ...file, lastCommit: { id: commit, title: "", date: "2026-01-01" } }]);
    if (request.url.includes("/tree/")) return json([file]);
    if (request.url.startsWith("/api/")) return json({ _id: "1", id: "org/model", sha: commit, private: false });
    const range = /bytes=(\d+)-(\d*)/.exec(request.headers.range ?? "");
    const [first, last] = range ? [+range[1], range[2] ? +range[2] : weights.length - 1] : [0, weights.length - 1];
    const headers = { etag: `"${sha}"`, "x-repo-commit": commit, "x-linked-size": weights.length };
    if (range) headers["content-range"] = `bytes ${first}-${last}/${weights.length}`;
    const part = weights.subarray(first, last + 1);
    if (request.method === "GET" && part.length > 1) downloads++;
    if (mode === "whole" || part.length === 1) headers["content-length"] = part.length;
    response.writeHead(range ? 206 : 200, headers);
    if (request.method === "HEAD") return response.end();
    if (mode === "whole" || part.length === 1) return response.end(part);
    response.write(part.subarray(0, 1000));
    // without content-length, so the body is in chunks; a proxy ends it with the last chunk, a cut connection does not
    setTimeout(() => (mode === "proxy" ? response.end() : response.destroy()), 200);
  });
});
await new Promise((done) => hub.listen(0, "127.0.0.1", done));
const hubUrl = `http://127.0.0.1:${hub.address().port}`;

async function download(cacheDir) {
  const before = downloads;
  const folder = await snapshotDownload({ repo: "org/model", hubUrl, cacheDir }).catch(() => null);
  const size = folder && fs.statSync(`${folder}/model.safetensors`).size;
  console.log(`${mode}: ${folder ? `succeeds with ${size} of ${weights.length} bytes` : "fails"}, ${downloads - before} downloads`);
  return `${size}/${downloads - before}`;
}
console.debug = () => {};  // the package prints a line for each file

const seen = [];
for (const [next, cache] of [["whole", "a"], ["cut connection", "b"], ["proxy", "c"], ["whole", "c"]]) {
  mode = next;
  seen.push(await download(cache));
}
if (seen[0] !== "300000/1" || !seen[1].startsWith("null/")) process.exit(3);
process.exit(`${seen.slice(2)}` === "1000/1,1000/0" ? 0 : 9);
JS
node try.mjs
case $? in
  0) ;;
  9) echo "changed: cut files are noticed"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
