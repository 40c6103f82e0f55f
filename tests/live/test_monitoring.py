"""Monitoring that really runs: Prometheus scrapes a real vLLM, HAProxy and stackgen's exporter, and every query of
the dashboards is put to it. Grafana runs where its image can be had, and is rendered everywhere.
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
# what only trouble, FastChat or a card makes
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


def asked(path: str, **words: str) -> Any:
    url = f"http://127.0.0.1:{PROMETHEUS}/api/v1/{path}?{urllib.parse.urlencode(words)}"
    with urllib.request.urlopen(url, timeout=10) as response:
        data = json.load(response)
    assert data["status"] == "success", data
    return data["data"]


def result(query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = asked("query", query=query)["result"]
    return found


def until(what: Callable[[], Any], seconds: float, why: Callable[[], Any] | str = "") -> Any:
    """What `what` gives as soon as it gives something."""
    limit = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < limit, why() if callable(why) else why
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


def test_the_rendered_folder_holds_all_that_the_exporter_is_built_from(stack: LiveStack) -> None:
    """The stackgen at hand, which is in no registry; the words beside the folder are those of scripts/build-image."""
    known = ("python:3.11-slim", "stackgen/base:bookworm-py311")
    base = next(
        one for one in known if not subprocess.run(["docker", "image", "inspect", one], capture_output=True).returncode
    )
    build = open_stack(str(stack.folder)).plan.service("exporter").build
    assert build is not None
    words = [f"--build-arg=BASE_IMAGE={base}", *(f"--build-arg={name}={value}" for name, value in build.args)]
    if Path(links := os.environ.get("PIP_FIND_LINKS", "none")).is_dir():
        words.append(f"--build-context=wheels={links}")
    if Path(certificates := os.environ.get("PIP_CERT", "none")).is_file():
        words.append(f"--secret=id=pip_ca,src={certificates}")
    done = subprocess.run(["docker", "build", "--tag", "sgtest/exporter", *words, str(stack.folder / build.context)],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ask = ["python3", "-c", "import stackgen.images.wheel; print(stackgen.images.wheel.digest())"]
    inside = subprocess.run(["docker", "run", "--rm", "--entrypoint", ask[0], "sgtest/exporter", *ask[1:]],
                            capture_output=True, text=True)  # fmt: skip
    assert inside.stdout.strip() == stack.execute("exporter", *ask).stdout.strip() == wheel.digest()


def test_all_targets_answer(stack: LiveStack) -> None:
    def up() -> bool:
        return all(one["health"] == "up" for one in asked("targets")["activeTargets"])

    until(up, 120, lambda: asked("targets"))
    jobs = {one["labels"]["job"]: one["labels"] for one in asked("targets")["activeTargets"]}
    assert set(jobs) == {"prometheus", "vllm", "gateway", "gateway-keys", "stackgen"}
    assert jobs["vllm"]["model"] == "tiny" and jobs["vllm"]["replica"] == "vllm-tiny"


def test_all_rules_are_evaluated(stack: LiveStack) -> None:
    wanted = {one.name for group in alerts() if group.name != "gpus" for one in group.alerts}

    def rules() -> dict[str, str]:
        return {rule["name"]: rule["health"] for group in asked("rules")["groups"] for rule in group["rules"]}

    until(lambda: set(rules().values()) == {"ok"}, 60, rules)
    assert set(rules()) == wanted


def test_the_exporter_finds_every_model_well_through_the_gateway(stack: LiveStack) -> None:
    """Also one that is not vLLM, and one that answers to an alias under its first name."""

    def checked() -> list[dict[str, Any]]:
        # the gateway looks for replicas each two seconds, and the exporter may have been faster
        return found if len(found := result("stackgen_endpoint_up == 1")) == 2 else []

    found = until(checked, 120, lambda: result("stackgen_check_status == 0"))
    assert {one["metric"]["endpoint"] for one in found} == {"vllm-tiny", "fastchat-smol"}
    assert {one["metric"]["base_url"] for one in found} == {"http://gateway:8000/v1"}
    timed = until(lambda: len(known := result("stackgen_ttft_seconds")) == 3 and known, 60)
    assert {one["metric"]["model"] for one in timed} == {"tiny", "Tiny/Alias", "smol"}
    assert all(float(one["value"][1]) > 0 for one in timed)


def test_every_query_of_the_dashboards_gives_data(stack: LiveStack) -> None:
    left = [(path.stem, query) for path in DASHBOARDS for query in queries(path)]
    total = len(left)

    def some_left() -> bool:
        nonlocal left
        assert chat(stack) == 200
        # refused, and so counted as such
        assert chat(stack, "sk-wrong") == 401
        left = [(where, query) for where, query in left if not result(query)]
        return not [query for _, query in left if not any(part in query for part in ABSENT)]

    until(some_left, 180, lambda: left)
    print(f"{total} queries, {total - len(left)} with data")
    assert {where for where, _ in left} <= {"gpus", "overview", "probes"}
    assert total - len(left) > 40


def test_grafana_shows_the_dashboards(stack: LiveStack, grafana_image: str) -> None:
    service = open_stack(str(stack.folder)).plan.service("grafana")
    if not grafana_image:
        # no registry answers here: what it would be given is all that can be looked at
        assert service.image == GRAFANA_IMAGE
        assert (stack.folder / "monitoring" / "datasources" / "stackgen.yaml").exists()
        return

    def told(path: str) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{GRAFANA}/api/{path}")
        password = read_env(stack.folder)["GRAFANA_PASSWORD"]
        request.add_header("authorization", "Basic " + base64.b64encode(f"admin:{password}".encode()).decode())
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    wanted = {f"stackgen-{path.stem}" for path in DASHBOARDS if path.stem != "gpus"}
    until(lambda: {one["uid"] for one in told("search?type=dash-db")} == wanted, 60, "the dashboards are not there")
    assert told("datasources/uid/stackgen/health")["status"] == "OK"
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{GRAFANA}/api/search", timeout=10)
    refused.value.close()


def test_choices_of_the_dashboards_are_filled(stack: LiveStack) -> None:
    for path in DASHBOARDS:
        for variable in json.loads(path.read_text())["templating"]["list"]:
            if variable["type"] == "query" and path.stem != "gpus":
                series, label = filled(variable["query"]["query"])[len("label_values(") : -1].rsplit(", ", 1)
                assert asked(f"label/{label}/values", **{"match[]": series}), variable["name"]


def test_running_programs_tell_every_metric_that_is_named(stack: LiveStack) -> None:
    """As tests/resolve/addons does it with recordings: here a new version of an engine shows itself."""
    metrics = {}
    for service, port, path in (("vllm-tiny", 8000, "/metrics"), ("gateway", 8405, "/metrics"),
                                ("gateway", 8405, "/keys"), ("exporter", 9464, "/metrics")):  # fmt: skip
        code = f"import urllib.request as u; print(u.urlopen('http://{service}:{port}{path}').read().decode())"
        done = stack.execute("exporter", "python3", "-c", code)
        assert done.returncode == 0, done.stderr
        metrics |= labels_by_name(done.stdout)
    everything = [query for path in DASHBOARDS for query in queries(path)]
    everything += [one.expr for group in alerts() for one in group.alerts]
    checked = 0
    for query in everything:
        for name, labels in names_in(query).items():
            if name.startswith(("vllm:", "haproxy_", "stackgen_", "process_")):
                assert name in metrics, query
                # a figure that was not measured has no series, and so no labels
                if metrics[name]:
                    assert labels <= metrics[name] | ADDED, query
                    checked += 1
    assert checked > 60


def test_keys_are_told_by_name(stack: LiveStack) -> None:
    assert chat(stack) == 200
    found = until(lambda: result("stackgen_gateway_key_requests_total > 0"), 60)
    assert [one["metric"]["key"] for one in found] == ["default"]
    assert stack.key not in json.dumps(asked("series", **{"match[]": '{__name__=~".+"}'}))


def test_a_changed_file_is_read_without_a_word(stack: LiveStack) -> None:
    """What scaling a stack needs: it writes files, and Prometheus runs on."""
    before = stack.inspect("prometheus")["State"]["StartedAt"]
    path = stack.folder / "monitoring" / "prometheus.yml"
    text = path.read_text()
    try:
        # as stackgen writes: another file takes the place
        new = path.with_name("new.yml")
        new.write_text(text.replace("replica: vllm-tiny", "replica: vllm-other"))
        new.replace(path)
        until(lambda: result('up{replica="vllm-other"} == 1'), 120, "not read")
        new.write_text("scrape_configs: 3\n")
        new.replace(path)
        until(lambda: result("prometheus_config_last_reload_successful == 0"), 120, "a broken file was not noticed")
        assert result('up{job="vllm"}'), "what ran before runs on"
    finally:
        path.write_text(text)
    until(lambda: result("prometheus_config_last_reload_successful == 1"), 120, "not mended")
    assert stack.inspect("prometheus")["State"]["StartedAt"] == before


def test_a_replica_that_is_gone_is_noticed(stack: LiveStack) -> None:
    def pending() -> bool:
        return any(one["labels"]["alertname"] == "ReplicaDown" for one in asked("alerts")["alerts"])

    stack.compose("stop", "--timeout", "1", "vllm-tiny")
    try:
        until(pending, 90, lambda: asked("alerts"))
        until(lambda: result('sum by (proxy) (haproxy_server_status{proxy="vllm-tiny",state="UP"}) == 0'), 60)
        assert chat(stack) == 503
        until(lambda: result("stackgen_endpoint_up == 0"), 120)
    finally:
        stack.up(*SERVICES)


@pytest.mark.parametrize("service", ["prometheus", "exporter"])
def test_they_run_without_rights(stack: LiveStack, service: str) -> None:
    found = stack.inspect(service)
    assert found["HostConfig"]["ReadonlyRootfs"] and found["HostConfig"]["CapDrop"] == ["ALL"]
    assert found["State"]["Health"]["Status"] == "healthy"
    assert found["RestartCount"] == 0
    for bound in (found["HostConfig"]["PortBindings"] or {}).values():
        assert [one["HostIp"] for one in bound] == ["127.0.0.1"]
    if service == "exporter":
        assert found["Config"]["User"] == "1000:1000"


def test_the_exporter_holds_no_file_and_no_log_with_the_key(stack: LiveStack) -> None:
    assert stack.key not in stack.compose("logs", "exporter", "prometheus").stdout
    for path in (stack.folder / "monitoring").rglob("*"):
        assert path.is_dir() or stack.key not in path.read_text()
