#!/usr/bin/env bash
# prometheus_client 0.26.0 with Prometheus 2.53.3 (Debian 2.53.3+ds1-2): `vllm:` metrics are stored under other names.
#
# Expected  A gauge `vllm:num_requests_running` has this name in `curl …/metrics`, and so in Prometheus. A colon is valid
#           in the names of metrics, and prometheus_client 0.22.1 keeps it in all formats.
# Seen      Prometheus 2.53.3 (also 2.42.0) stores `vllm_num_requests_running`. Prometheus 3.5.3 stores the name with the
#           colon, from the same server. The target is up, and nothing is logged.
# Why it    Dashboards and alerts for vLLM and SGLang query the names with colons, which are the documented ones. After an
# surprises update of the engine's image, they show no data and never fire, while `curl` prints the expected names.
# Cause     Prometheus 2 asks for OpenMetrics without saying how to escape names. prometheus_client then writes `# TYPE` with
#           the colon and the value with `_` (prometheus/client_python issue 1177 reports the two spellings in the text).
#           `scrape_protocols: [PrometheusText0.0.4]` (Prometheus 2.49 and newer) keeps the names.
# Exits 0 while this holds, 1 when it has changed. Needs apt-get with Debian's trixie and sid, dpkg, python3 with venv, and a
# package index. Takes about 40 s.
set -u
dir=$(mktemp -d); trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$dir"' EXIT
for version in 2.53.3+ds1-2 3.5.3+ds1-6; do
  mkdir "$dir/$version"
  (cd "$dir/$version" && apt-get download "prometheus=$version" >/dev/null 2>&1 && dpkg -x prometheus_*.deb .) ||
    { echo "skipped: apt-get has no prometheus $version"; exit 0; }
done
python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install -q prometheus_client==0.26.0 >&2 ||
  { echo "could not install the packages"; exit 2; }
cat > "$dir/try.py" <<'PY'
import json, pathlib, socket, subprocess, sys, time, urllib.request
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

folder = pathlib.Path(sys.argv[1])
registry = CollectorRegistry()
Gauge("vllm:num_requests_running", "Requests", ["model_name"], registry=registry).labels("m").set(3)
Counter("vllm:prompt_tokens", "Tokens", registry=registry).inc(5)
server, _ = start_http_server(0, "127.0.0.1", registry)


def get(url):
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read().decode()


def stored(version, option=""):
    """The names that this version of Prometheus has after it has read the metrics."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = opened.getsockname()[1]
    place = folder / version
    (place / "prometheus.yml").write_text(f"""
global: {{scrape_interval: 1s}}
scrape_configs:
- job_name: engine
  {option}
  static_configs: [{{targets: ["127.0.0.1:{server.server_port}"]}}]
""")
    prometheus = subprocess.Popen([
        place / "usr/bin/prometheus", f"--config.file={place}/prometheus.yml",
        f"--storage.tsdb.path={place}/data{len(option)}", f"--web.listen-address=127.0.0.1:{port}",
    ], stderr=subprocess.DEVNULL)
    try:
        for _ in range(150):
            time.sleep(0.2)
            try:
                found = json.loads(get(f"http://127.0.0.1:{port}/api/v1/label/__name__/values"))["data"]
            except OSError:
                continue
            if names := [name for name in found if name.startswith("vllm") and not name.endswith("_created")]:
                return names
        sys.exit(3)
    finally:
        prometheus.terminate(), prometheus.wait()


printed = get(f"http://127.0.0.1:{server.server_port}/metrics")
colons = ["vllm:num_requests_running", "vllm:prompt_tokens_total"]
old, new = stored("2.53.3+ds1-2"), stored("3.5.3+ds1-6")
text = stored("2.53.3+ds1-2", "scrape_protocols: [PrometheusText0.0.4]")
print(f"2.53.3 stores {old}, 3.5.3 {new}, 2.53.3 with scrape_protocols {text}")
if not all(f"\n{name}" in printed for name in colons):
    sys.exit(3)
sys.exit(9 * ([old, new, text] != [[name.replace(":", "_") for name in colons], colons, colons]))
PY
"$dir/venv/bin/python" "$dir/try.py" "$dir"
case $? in
  0) ;;
  9) echo "changed: Prometheus stores other names"; exit 1 ;;
  *) echo "the script could not measure"; exit 2 ;;
esac
