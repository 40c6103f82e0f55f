"""Monitoring with real programs: Prometheus scrapes vLLM, HAProxy and stackgen's exporter, and the test runs every
query of the dashboards. Grafana runs if its image is available, and is always rendered.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stackgen.images import wheel
from stackgen.resolve.addons.monitoring import GRAFANA_IMAGE
from stackgen.stack.envfile import read_env
from stackgen.stack.folder import open_stack
from tests.live.stacks import LiveStack
from tests.resolve.addons.test_monitoring_names import (
    ADDED,
    DASHBOARDS,
    alerts,
    filled,
    labels_by_name,
    names_in,
    queries,
)

pytestmark = [pytest.mark.docker, pytest.mark.front, pytest.mark.timeout(900)]

GATEWAY, PROMETHEUS, GRAFANA = 18760, 18761, 18762
FASTCHAT = ("fastchat-controller", "fastchat-smol", "fastchat-api")
SERVICES = ("vllm-tiny", *FASTCHAT, "gateway", "exporter", "prometheus")
# series that only exist with a failure, with FastChat or with a GPU
ABSENT = ('ALERTS{alertstate="firing"}', "stackgen_chunks_per_second", "stackgen_check_status", "DCGM_")


@pytest.fixture(scope="module")
def stack(
    vllm_image: str, fastchat_image: str, haproxy_image: str, prometheus_image: str, exporter_image: str,
    grafana_image: str, tiny_model: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LiveStack]:  # fmt: skip
    tiny = {"model": str(tiny_model), "engine": "vllm", "served_names": ["tiny", "Tiny/Alias"], "image": vllm_image,
            "max_model_len": 512, "cpu_kv_cache_gib": 1, "enforce_eager": True}  # fmt: skip
    smol = {"model": str(smollm2), "engine": "fastchat", "served_names": ["smol"]}
    data = {
        "name": "sgtest-monitoring",
        "port": GATEWAY,
        "models": [smol, tiny],
        "gateway": {"image": haproxy_image},
        "monitoring": {
            "prometheus_image": prometheus_image,
            "prometheus_port": PROMETHEUS,
            "grafana_port": GRAFANA,
        },
    }
    with LiveStack(tmp_path_factory.mktemp("monitoring"), data) as started:
        assert {exporter_image, fastchat_image} <= set((started.folder / "compose.yaml").read_text().split())
        started.compose("down", "--volumes")
        started.up(*SERVICES, *(["grafana"] if grafana_image else []))
        yield started
        started.compose("down", "--volumes", "--timeout", "5")


def query_api(path: str, **args: str) -> Any:
    """Returns the data of a request to Prometheus's HTTP API, /api/v1/`path`."""
    url = f"http://127.0.0.1:{PROMETHEUS}/api/v1/{path}?{urllib.parse.urlencode(args)}"
    with urllib.request.urlopen(url, timeout=10) as response:
        data = json.load(response)
    assert data["status"] == "success", data
    return data["data"]


def run_query(query: str) -> list[dict[str, Any]]:
    """Returns the series of a PromQL query."""
    found: list[dict[str, Any]] = query_api("query", query=query)["result"]
    return found


def wait_for_value(get: Callable[[], Any], seconds: float, message: Callable[[], Any] | str = "") -> Any:
    """Calls `get` until it returns something truthy, and returns that. Fails with `message` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := get()):
        assert time.monotonic() < deadline, message() if callable(message) else message
        time.sleep(1)
    return found


def chat(stack: LiveStack, key: str | None = None) -> int:
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {key or stack.key}"}
    request = urllib.request.Request(f"http://127.0.0.1:{GATEWAY}/v1/chat/completions", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_exporter_image_builds_from_the_rendered_folder(stack: LiveStack) -> None:
    """It contains this checkout, which is in no registry. The build arguments are those of scripts/build-image."""
    bases = ("python:3.11-slim", "stackgen/base:bookworm-py311")
    base = next(
        one for one in bases if not subprocess.run(["docker", "image", "inspect", one], capture_output=True).returncode
    )
    build = open_stack(str(stack.folder)).plan.service("exporter").build
    assert build is not None
    args = [f"--build-arg=BASE_IMAGE={base}", *(f"--build-arg={name}={value}" for name, value in build.args)]
    if Path(links := os.environ.get("PIP_FIND_LINKS", "none")).is_dir():
        args.append(f"--build-context=wheels={links}")
    if Path(certificates := os.environ.get("PIP_CERT", "none")).is_file():
        args.append(f"--secret=id=pip_ca,src={certificates}")
    done = subprocess.run(["docker", "build", "--tag", "sgtest/exporter", *args, str(stack.folder / build.context)],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ask = ["python3", "-c", "import stackgen.images.wheel; print(stackgen.images.wheel.package_digest())"]
    inside = subprocess.run(["docker", "run", "--rm", "--entrypoint", ask[0], "sgtest/exporter", *ask[1:]],
                            capture_output=True, text=True)  # fmt: skip
    assert inside.stdout.strip() == stack.execute("exporter", *ask).stdout.strip() == wheel.package_digest()


def test_prometheus_scrapes_all_targets(stack: LiveStack) -> None:
    def up() -> bool:
        return all(one["health"] == "up" for one in query_api("targets")["activeTargets"])

    wait_for_value(up, 120, lambda: query_api("targets"))
    jobs = {one["labels"]["job"]: one["labels"] for one in query_api("targets")["activeTargets"]}
    assert set(jobs) == {"prometheus", "vllm", "gateway", "gateway-keys", "stackgen"}
    assert jobs["vllm"]["model"] == "tiny" and jobs["vllm"]["replica"] == "vllm-tiny"


def test_prometheus_evaluates_all_alert_rules(stack: LiveStack) -> None:
    expected = {one.name for group in alerts() if group.name != "gpus" for one in group.alerts}

    def rules() -> dict[str, str]:
        return {rule["name"]: rule["health"] for group in query_api("rules")["groups"] for rule in group["rules"]}

    wait_for_value(lambda: set(rules().values()) == {"ok"}, 60, rules)
    assert set(rules()) == expected


def test_the_exporter_reports_every_model_behind_the_gateway_as_up(stack: LiveStack) -> None:
    """Including a FastChat model, and a model whose answers to an alias carry its first name."""

    def checked() -> list[dict[str, Any]]:
        # the gateway checks replicas every two seconds, and the exporter may have been faster
        return found if len(found := run_query("stackgen_endpoint_up == 1")) == 2 else []

    found = wait_for_value(checked, 120, lambda: run_query("stackgen_check_status == 0"))
    assert {one["metric"]["endpoint"] for one in found} == {"vllm-tiny", "fastchat-smol"}
    assert {one["metric"]["base_url"] for one in found} == {"http://gateway:8000/v1"}
    timed = wait_for_value(lambda: len(known := run_query("stackgen_ttft_seconds")) == 3 and known, 60)
    assert {one["metric"]["model"] for one in timed} == {"tiny", "Tiny/Alias", "smol"}
    assert all(float(one["value"][1]) > 0 for one in timed)


def test_every_dashboard_query_returns_data(stack: LiveStack) -> None:
    empty = [(path.stem, query) for path in DASHBOARDS for query in queries(path)]
    total = len(empty)

    def all_have_data() -> bool:
        nonlocal empty
        assert chat(stack) == 200
        # rejected, so that the series of rejected requests has data
        assert chat(stack, "sk-wrong") == 401
        empty = [(where, query) for where, query in empty if not run_query(query)]
        return not [query for _, query in empty if not any(part in query for part in ABSENT)]

    wait_for_value(all_have_data, 180, lambda: empty)
    print(f"{total} queries, {total - len(empty)} with data")
    assert {where for where, _ in empty} <= {"gpus", "overview", "probes"}
    assert total - len(empty) > 40


def test_grafana_shows_the_dashboards(stack: LiveStack, grafana_image: str) -> None:
    service = open_stack(str(stack.folder)).plan.service("grafana")
    if not grafana_image:
        # its image is not available: only the rendered files can be tested
        assert service.image == GRAFANA_IMAGE
        assert (stack.folder / "monitoring" / "datasources" / "stackgen.yaml").exists()
        return

    def query_grafana(path: str) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{GRAFANA}/api/{path}")
        password = read_env(stack.folder)["GRAFANA_PASSWORD"]
        request.add_header("authorization", "Basic " + base64.b64encode(f"admin:{password}".encode()).decode())
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    expected = {f"stackgen-{path.stem}" for path in DASHBOARDS if path.stem != "gpus"}
    wait_for_value(
        lambda: {one["uid"] for one in query_grafana("search?type=dash-db")} == expected,
        60,
        "Grafana did not load the dashboards",
    )
    assert query_grafana("datasources/uid/stackgen/health")["status"] == "OK"
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{GRAFANA}/api/search", timeout=10)
    refused.value.close()


def test_dashboard_variables_have_values(stack: LiveStack) -> None:
    for path in DASHBOARDS:
        for variable in json.loads(path.read_text())["templating"]["list"]:
            if variable["type"] == "query" and path.stem != "gpus":
                series, label = filled(variable["query"]["query"])[len("label_values(") : -1].rsplit(", ", 1)
                assert query_api(f"label/{label}/values", **{"match[]": series}), variable["name"]


def test_running_programs_export_every_metric_in_use(stack: LiveStack) -> None:
    """tests/resolve/addons does this with recordings. Here, a change in a new version of an engine shows."""
    metrics = {}
    for service, port, path in (("vllm-tiny", 8000, "/metrics"), ("gateway", 8405, "/metrics"),
                                ("gateway", 8405, "/keys"), ("exporter", 9464, "/metrics")):  # fmt: skip
        script = f"import urllib.request as u; print(u.urlopen('http://{service}:{port}{path}').read().decode())"
        done = stack.execute("exporter", "python3", "-c", script)
        assert done.returncode == 0, done.stderr
        metrics |= labels_by_name(done.stdout)
    everything = [query for path in DASHBOARDS for query in queries(path)]
    everything += [one.expr for group in alerts() for one in group.alerts]
    checked = 0
    for query in everything:
        for name, labels in names_in(query).items():
            if name.startswith(("vllm:", "haproxy_", "stackgen_", "process_")):
                assert name in metrics, query
                # a metric without a value has no series, and so no labels
                if metrics[name]:
                    assert labels <= metrics[name] | ADDED, query
                    checked += 1
    assert checked > 60


def test_key_metrics_have_names_and_no_keys(stack: LiveStack) -> None:
    assert chat(stack) == 200
    found = wait_for_value(lambda: run_query("stackgen_gateway_key_requests_total > 0"), 60)
    assert [one["metric"]["key"] for one in found] == ["default"]
    assert stack.key not in json.dumps(query_api("series", **{"match[]": '{__name__=~".+"}'}))


def test_prometheus_reloads_changed_files(stack: LiveStack) -> None:
    """Scaling a stack needs this: it rewrites files while Prometheus keeps running."""
    before = stack.inspect("prometheus")["State"]["StartedAt"]
    path = stack.folder / "monitoring" / "prometheus.yml"
    text = path.read_text()
    try:
        # stackgen writes like this: a new file replaces the old one
        new = path.with_name("new.yml")
        new.write_text(text.replace("replica: vllm-tiny", "replica: vllm-other"))
        new.replace(path)
        wait_for_value(lambda: run_query('up{replica="vllm-other"} == 1'), 120, "the changed file was not loaded")
        new.write_text("scrape_configs: 3\n")
        new.replace(path)
        wait_for_value(
            lambda: run_query("prometheus_config_last_reload_successful == 0"), 120, "the broken file was not reported"
        )
        assert run_query('up{job="vllm"}'), "the previous configuration must stay in use"
    finally:
        path.write_text(text)
    wait_for_value(
        lambda: run_query("prometheus_config_last_reload_successful == 1"), 120, "the repaired file was not loaded"
    )
    assert stack.inspect("prometheus")["State"]["StartedAt"] == before


def test_a_stopped_replica_raises_an_alert(stack: LiveStack) -> None:
    def pending() -> bool:
        return any(one["labels"]["alertname"] == "ReplicaDown" for one in query_api("alerts")["alerts"])

    stack.compose("stop", "--timeout", "1", "vllm-tiny")
    try:
        wait_for_value(pending, 90, lambda: query_api("alerts"))
        wait_for_value(
            lambda: run_query('sum by (proxy) (haproxy_server_status{proxy="vllm-tiny",state="UP"}) == 0'), 60
        )
        assert chat(stack) == 503
        wait_for_value(lambda: run_query("stackgen_endpoint_up == 0"), 120)
    finally:
        stack.up(*SERVICES)


@pytest.mark.parametrize("service", ["prometheus", "exporter"])
def test_monitoring_services_are_hardened(stack: LiveStack, service: str) -> None:
    found = stack.inspect(service)
    assert found["HostConfig"]["ReadonlyRootfs"] and found["HostConfig"]["CapDrop"] == ["ALL"]
    assert found["State"]["Health"]["Status"] == "healthy"
    assert found["RestartCount"] == 0
    for bound in (found["HostConfig"]["PortBindings"] or {}).values():
        assert [one["HostIp"] for one in bound] == ["127.0.0.1"]
    if service == "exporter":
        assert found["Config"]["User"] == "1000:1000"


def test_the_key_is_not_in_monitoring_files_or_logs(stack: LiveStack) -> None:
    assert stack.key not in stack.compose("logs", "exporter", "prometheus").stdout
    for path in (stack.folder / "monitoring").rglob("*"):
        assert path.is_dir() or stack.key not in path.read_text()
