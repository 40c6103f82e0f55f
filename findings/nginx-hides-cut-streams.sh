#!/usr/bin/env bash
# nginx 1.22.1 (Debian 1.22.1-9+deb12u11) with openai 3.57.0: the stream of a killed server ends like a complete one.
#
# Expected  A server is killed while it streams. nginx has sent `200` already, so it cuts the client's connection.
# Seen      nginx ends the response in the regular way. The client's loop ends without an error, with half an answer.
# Why it    nginx asks the server in HTTP/1.0 by default. There, the end of the connection is the end of the body, so nginx
# surprises can't see that the body is incomplete. With `proxy_http_version 1.1`, the same client gets an error.
# Exits 0 while this holds, 1 when it has changed. Needs apt-get, dpkg, python3 with venv, and a package index. Takes about 30 s.
set -u
dir=$(mktemp -d); trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$dir"' EXIT
(cd "$dir" && apt-get download nginx=1.22.1-9+deb12u11 >/dev/null 2>&1 && dpkg -x nginx_*.deb nginx) ||
  { echo "skipped: apt-get has no nginx 1.22.1-9+deb12u11"; exit 0; }
"$dir/nginx/usr/sbin/nginx" -v 2>/dev/null || { echo "skipped: a library that nginx needs is missing"; exit 0; }
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install -q openai==3.57.0 uvicorn==0.54.0 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > "$dir/server.py" <<'PY'
import asyncio, json

async def app(scope, receive, send):
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for number in range(600):
        choice = {"index": 0, "delta": {"content": f"word{number} "}, "finish_reason": None}
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
        event = b"data: " + json.dumps(chunk).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": event, "more_body": True})
        await asyncio.sleep(0.05)
PY
cat > "$dir/try.py" <<'PY'
import pathlib, socket, subprocess, sys, time
import openai

folder = pathlib.Path(sys.argv[1])

def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]

def wait_for(port):
    for _ in range(200):
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.1)
    sys.exit(3)

def stream(setting):
    """How the stream of a killed server ends for the client, with `setting` in nginx's location."""
    front, back = free_port(), free_port()
    paths = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/errors; events {{}} http {{ access_log off; {paths} server {{ "
        f"listen 127.0.0.1:{front}; location / {{ proxy_pass http://127.0.0.1:{back}; {setting} }} }} }}")
    command = [sys.executable, "-m", "uvicorn", "--log-level", "error", "--port", str(back), "server:app"]
    server = subprocess.Popen(command, cwd=folder)
    nginx = subprocess.Popen([folder / "nginx/usr/sbin/nginx", "-p", folder, "-c", folder / "nginx.conf"], stderr=2)
    wait_for(back), wait_for(front)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{front}/v1", api_key="none", max_retries=0)
    try:
        chunks = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hello"}], stream=True)
        for number, chunk in enumerate(chunks):
            if number == 5:
                server.kill()
        return f"no error, finish_reason {chunk.choices[0].finish_reason}"
    except openai.APIConnectionError:
        return "error"
    finally:
        server.kill(), nginx.terminate(), server.wait(), nginx.wait()

default, newer = stream(""), stream("proxy_http_version 1.1;")
print(f"the server is killed. nginx's default: {default}. proxy_http_version 1.1: {newer}")
sys.exit(9 * (not (default.startswith("no error") and newer == "error")))
PY
"$dir/venv/bin/python" "$dir/try.py" "$dir"
case $? in
  0) ;;
  9) echo "changed: nginx's default shows a cut stream, or HTTP/1.1 hides it"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
