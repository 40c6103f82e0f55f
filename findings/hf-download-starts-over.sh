#!/usr/bin/env bash
# huggingface_hub 2.4.0: `hf download` starts a file from its first byte, and keeps the part of the killed download.
#
# Expected  A download is killed halfway. The next `hf download` asks for the missing part (`Range`), as curl -C does, and
#           as huggingface_hub 0.36 did.
# Seen      It asks for the whole file. The partial file stays in `blobs/` beside the complete one, and nothing deletes it.
# Why it    The server supports ranges, and the partial file is there. A container that restarts during the download of a
# surprises 100 GB model starts over each time, and each try leaves up to 100 GB in the cache.
# Exits 0 while this holds, 1 when it has changed. Needs python3 with venv, and a package index. Takes about 30 s.
set -u
dir=$(mktemp -d); trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install -q huggingface_hub==2.4.0 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > "$dir/try.py" <<'PY'
import http.server, os, pathlib, subprocess, sys, threading, time

folder = pathlib.Path(sys.argv[1])
content = os.urandom(30_000_000)
requests = []

class Hub(http.server.BaseHTTPRequestHandler):
    """One repository with one file, which the first download gets slowly."""

    def do_HEAD(self):
        self.answer(b"")

    def do_GET(self):
        if "/resolve/" not in self.path:
            return self.send_error(404)
        requests.append(self.headers.get("range"))
        start = int((self.headers.get("range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.answer(content[start:], start)

    def answer(self, body, start=0):
        self.send_response(206 if start else 200)
        for name, value in {
            "etag": '"file"', "x-repo-commit": "a" * 40, "accept-ranges": "bytes",
            "content-length": len(content) - start, "content-range": f"bytes {start}-{len(content) - 1}/{len(content)}",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        for offset in range(0, len(body), 1_000_000):
            self.wfile.write(body[offset : offset + 1_000_000])
            time.sleep(0.5 if len(requests) == 1 else 0)

    def log_message(self, *args):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(folder / "hub"), "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
command = [folder / "venv/bin/hf", "download", "org/model", "model.bin"]

def partial():
    return {path.name: path.stat().st_size for path in folder.glob("hub/**/blobs/*.incomplete")}

first = subprocess.Popen(command, stdout=2)
for _ in range(600):
    if sum(partial().values()) >= 10_000_000 or first.poll() is not None:
        break
    time.sleep(0.1)
first.kill(), first.wait()
left = partial()
second = subprocess.run(command, stdout=2)
print(f"killed with {left}; the ranges of both requests: {requests}; afterwards {partial()} is left")
if second.returncode or not left or len(requests) != 2:
    sys.exit(3)
sys.exit(9 * (requests != [None, None] or partial() != left))
PY
"$dir/venv/bin/python" "$dir/try.py" "$dir"
case $? in
  0) ;;
  9) echo "changed: the second download resumes the first one, or removes its partial file"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
