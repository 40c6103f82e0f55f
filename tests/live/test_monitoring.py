"""Prometheus and the exporter while files change and a replica stops. The replica is a stand-in for vLLM.

test_front_monitoring.py has the metrics and dashboards of real engines.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stackgen.images import wheel
from stackgen.resolve.addons.monitoring import GRAFANA_IMAGE
from stackgen.stack.folder import open_stack
from tests.live.containers import docker
from tests.live.prometheus import Prometheus, wait_for_value
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

NAME, PORT, GRAFANA_PORT = "sgtest-monitoring", 18760, 18762
PROMETHEUS = Prometheus(18761)
SERVICES = ("vllm-tiny", "gateway", "exporter", "prometheus")


@pytest.fixture(scope="module")
def stack(
    standin_image: str, haproxy_image: str, prometheus_image: str, exporter_image: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LiveStack]:  # fmt: skip
    folder = tmp_path_factory.mktemp("monitoring")
    (folder / "model").mkdir()
    tiny = {"model": "./model", "engine": "vllm", "served_names": ["tiny", "Tiny/Alias"], "image": standin_image,
            "max_model_len": 512}  # fmt: skip
    monitoring = {
        "prometheus_image": prometheus_image, "prometheus_port": PROMETHEUS.port, "grafana_port": GRAFANA_PORT,
        "scrape_interval": 1, "check_interval": 1, "reload_interval": 1,
    }  # fmt: skip
    data = {"name": NAME, "port": PORT, "models": [tiny], "gateway": {"image": haproxy_image}, "monitoring": monitoring}
    with LiveStack(folder, data) as started:
        rendered = (folder / "compose.yaml").read_text()
        assert exporter_image in rendered and GRAFANA_IMAGE in rendered
        started.compose("down", "--volumes")
        # the other services work without Grafana, whose image may not be available
        started.up(*SERVICES)
        yield started
        started.compose("down", "--volumes", "--timeout", "5")


def container(service: str) -> str:
    return f"{NAME}-{service}-1"


def chat_status(stack: LiveStack) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8})
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {stack.key}"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    status = connection.getresponse().status
    connection.close()
    return status


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
    docker("build", "--tag", "sgtest/exporter", *args, str(stack.folder / build.context))
    ask = ["python3", "-c", "import stackgen.images.wheel; print(stackgen.images.wheel.package_digest())"]
    inside = docker("run", "--rm", "--entrypoint", ask[0], "sgtest/exporter", *ask[1:]).strip()
    assert inside == docker("exec", container("exporter"), *ask).strip() == wheel.package_digest()


def test_without_its_image_only_grafana_is_missing(stack: LiveStack) -> None:
    assert open_stack(str(stack.folder)).plan.service("grafana").image == GRAFANA_IMAGE
    assert (stack.folder / "monitoring" / "datasources" / "stackgen.yaml").exists()
    wait_for_value(lambda: PROMETHEUS.query("stackgen_endpoint_up == 1"), 60, lambda: PROMETHEUS.get("targets"))


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
        wait_for_value(
            lambda: PROMETHEUS.query('up{replica="vllm-other"} == 1'), 120, "the changed file was not loaded"
        )
        new.write_text("scrape_configs: 3\n")
        new.replace(path)
        wait_for_value(
            lambda: PROMETHEUS.query("prometheus_config_last_reload_successful == 0"),
            120,
            "the broken file was not reported",
        )
        assert PROMETHEUS.query('up{job="vllm"}'), "the previous configuration must stay in use"
    finally:
        path.write_text(text)
    wait_for_value(
        lambda: PROMETHEUS.query("prometheus_config_last_reload_successful == 1"),
        120,
        "the repaired file was not loaded",
    )
    assert stack.inspect("prometheus")["State"]["StartedAt"] == before


def test_the_key_is_not_in_monitoring_files_or_logs(stack: LiveStack) -> None:
    assert stack.key not in stack.compose("logs", "exporter", "prometheus").stdout
    for path in (stack.folder / "monitoring").rglob("*"):
        assert path.is_dir() or stack.key not in path.read_text()


def test_a_stopped_replica_raises_an_alert(stack: LiveStack) -> None:
    def alerts(name: str) -> bool:
        return any(one["labels"]["alertname"] == name for one in PROMETHEUS.get("alerts")["alerts"])

    wait_for_value(lambda: PROMETHEUS.query('up{job="vllm",replica="vllm-tiny"} == 1'), 60)
    assert chat_status(stack) == 200
    docker("stop", "--time", "1", container("vllm-tiny"))
    try:
        wait_for_value(lambda: alerts("ReplicaDown"), 90, lambda: PROMETHEUS.get("alerts"))
        wait_for_value(
            lambda: PROMETHEUS.query('sum by (proxy) (haproxy_server_status{proxy="vllm-tiny",state="UP"}) == 0'), 60
        )
        assert chat_status(stack) == 503
        wait_for_value(lambda: PROMETHEUS.query("stackgen_endpoint_up == 0"), 120)
    finally:
        docker("start", container("vllm-tiny"))
    wait_for_value(lambda: not alerts("ReplicaDown"), 60, lambda: PROMETHEUS.get("alerts"))
