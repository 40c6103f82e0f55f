#!/usr/bin/env bash
# huggingface_hub 2.4.0: `hf download` reports success when the Hub is unreachable and the files are not there.
#
# Expected  The cache contains config.json only, and no Hub answers. `hf download org/model --include '*.safetensors'` fails.
# Seen      It prints "Downloaded" and the folder of the snapshot, and exits with 0. The folder has no .safetensors file.
# Why it    A script that downloads weights first and starts a server next relies on the exit code. Nobody has asked for
# surprises offline mode. A single file by its name (`hf download org/model model.safetensors`) does fail.
# Exits 0 while this holds, 1 when it has changed. Needs python3 with venv, and a package index. Takes about 20 s.
set -u
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install -q huggingface_hub==2.4.0 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > "$dir/try.py" <<'PY'
import http.server, os, pathlib, subprocess, sys, threading

folder = pathlib.Path(sys.argv[1])

class Hub(http.server.BaseHTTPRequestHandler):
    """A Hub with one small file."""

    def do_GET(self):
        if "/resolve/" not in self.path:
            return self.send_error(404)
        self.send_response(200)
        for name, value in {"etag": '"config"', "x-repo-commit": "a" * 40, "content-length": "2"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"{}")

    do_HEAD = do_GET

    def log_message(self, *args):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(folder / "hub"), "HF_HUB_DISABLE_UPDATE_CHECK": "1", "NO_COLOR": "1"}

def download(*arguments):
    return subprocess.run([folder / "venv/bin/hf", "download", "org/model", *arguments], stdout=subprocess.PIPE, text=True)

if download("config.json").returncode:
    sys.exit(3)
server.shutdown(), server.server_close()
weights, one = download("--include", "*.safetensors"), download("model.safetensors")
files = sorted(path.name for path in folder.glob("hub/hub/models--*/snapshots/*/*"))
print(f"no Hub: --include exits with {weights.returncode} ({weights.stdout.split(chr(10))[0]}), a name exits with {one.returncode}; files: {files}")
sys.exit(9 * (weights.returncode != 0 or one.returncode == 0 or files != ["config.json"]))
PY
"$dir/venv/bin/python" "$dir/try.py" "$dir"
case $? in
  0) ;;
  9) echo "changed: hf download fails if files are missing, or downloads them"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
