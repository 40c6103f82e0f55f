#!/usr/bin/env bash
# HAProxy 3.2.26 (Debian 3.2.26-1): with `leastconn`, a server that refused one request gets no more while the others work.
#
# Expected  Two of three servers have two long requests each, and the third one has none. `leastconn` sends the next
#           requests to the third one, also if it has just restarted.
# Seen      If the restarting server refused one request, it gets none of the next 20, and the busy ones get all of them. If it
#           refused none, it gets all 20. HAProxy 2.8.25 always sends all 20 to it.
# Why it    The refused request succeeds on another server, so nothing fails. The statistics show the server as up and idle. As
# surprises soon as one of the others is idle, it works again: the more load, the longer a replica gets nothing.
# Cause     A retry that avoids a server raises the bound from which `leastconn` searches (src/lb_fwlc.c,
#           fwlc_get_next_server). The avoided server stays below the bound, and only a server with as few requests lowers it.
# Exits 0 while this holds, 1 when it has changed. Needs apt-get with Debian's sid, dpkg and python3. Takes about 20 s.
set -u
dir=$(mktemp -d); trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$dir"' EXIT
# with the libraries that this package was built for, because Debian's stable releases have older ones
(cd "$dir" && apt-get download haproxy=3.2.26-1 libc6=2.43-7 libcrypt1=1:4.5.2+20251210-1 libjemalloc2=5.3.1-2 \
  liblua5.4-0=5.4.9-2 libopentracing-c-wrapper0t64=1.1.3-3.1+b2 libopentracing1=1.6.0-4.1+b1 libpcre2-8-0=10.49-1 \
  libssl3t64=3.6.5-1 libgcc-s1=16.2.0-4 libstdc++6=16.2.0-4 zlib1g=1:1.3.dfsg+really1.3.2-4 libzstd1=1.5.7+dfsg-4 \
  >/dev/null 2>&1 && for package in *.deb; do dpkg -x "$package" root || exit 1; done) ||
  { echo "skipped: apt-get has no haproxy 3.2.26-1 with its libraries"; exit 0; }
cat > "$dir/try.py" <<'PY'
import asyncio, pathlib, subprocess, sys

folder, *program = sys.argv[1:]


async def measure(refuses):
    """Which servers answer 20 requests after the first server has paused, and perhaps refused one request."""
    async def start(name, port=0):
        async def handle(reader, writer):
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET /long "):
                    # the first server ends its long requests before it restarts
                    await asyncio.sleep(0.5 if name == "one" else 60)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(name) + name.encode())
                await writer.drain()
            except (asyncio.CancelledError, asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", port)
        return server, server.sockets[0].getsockname()[1]

    async def ask(path):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET %s HTTP/1.1\r\nHost: models\r\nConnection: close\r\n\r\n" % path)
        status, _, name = (await asyncio.wait_for(reader.read(), 90)).decode().partition("\r\n\r\n")
        writer.close()
        assert status.startswith("HTTP/1.1 200"), status
        return name

    servers = {name: await start(name) for name in ("one", "two", "three")}
    spare, port = await start("spare")
    spare.close()
    await spare.wait_closed()
    config = pathlib.Path(folder, "haproxy.cfg")
    lines = "".join(f"    server {name} 127.0.0.1:{server[1]}\n" for name, server in servers.items())
    config.write_text(f"""
defaults
    mode http
    timeout client 90s
    timeout connect 5s
    timeout server 90s
    retries 3
    option redispatch 1
listen models
    bind 127.0.0.1:{port}
    balance leastconn
{lines}""")
    proxy = subprocess.Popen([*program, "-db", "-f", config])
    try:
        for _ in range(100):
            try:
                await ask(b"/first")
                break
            except OSError:
                await asyncio.sleep(0.1)
        long = []
        for _ in range(6):
            long.append(asyncio.create_task(ask(b"/long")))
            await asyncio.sleep(0.05)
        await asyncio.sleep(1.5)
        assert [task.result() for task in long if task.done()] == ["one", "one"], "two long requests are with each server"
        server, address = servers["one"]
        server.close()
        await server.wait_closed()
        if refuses:
            assert await ask(b"/refused") in ("two", "three")
        servers["one"] = await start("one", address)
        names = [await ask(b"/next") for _ in range(20)]
        assert sum(not task.done() for task in long) == 4
        for task in long:
            task.cancel()
        await asyncio.gather(*long, return_exceptions=True)
    finally:
        proxy.terminate()
        proxy.wait()
    return {name: names.count(name) for name in servers}


refused, calm = asyncio.run(measure(True)), asyncio.run(measure(False))
print(f"20 requests after one that was refused: {refused}; without one that was refused: {calm}")
if calm["one"] < 20:
    raise SystemExit(f"the idle server gets too few requests in any case: {calm}")
raise SystemExit(9 if refused["one"] else 0)
PY
libraries=$dir/root/usr/lib/x86_64-linux-gnu
python3 "$dir/try.py" "$dir" "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" "$dir/root/usr/sbin/haproxy"
case $? in
  0) ;;
  9) echo "changed: leastconn sends requests to the server that came back"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
