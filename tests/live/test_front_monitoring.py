"""Monitoring of real engines: Prometheus scrapes vLLM, HAProxy and stackgen's exporter, and the test runs every query
of the dashboards. Grafana runs if its image is available. test_monitoring.py has faults, on a stand-in.
"""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from stackgen.stack.envfile import read_env
from tests.live.containers import fetch
from tests.live.front import GRAFANA_PORT, PROMETHEUS, TINY, ask, container
from tests.live.prometheus import wait_for_value
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

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.xdist_group("front"), pytest.mark.timeout(600)]

# series that only exist with a failure, with FastChat, with SGLang or with a GPU
ABSENT = ('ALERTS{alertstate="firing"}', "stackgen_chunks_per_second", "stackgen_check_status", "DCGM_", "sglang:")
# groups of alerts, and dashboards, that this stack doesn't have
OTHERS = ("gpus", "sglang")
MODELS = {"vllm-tiny": {"tiny", "Tiny/Alias"}, "fastchat-smol": {"smol"}, "llamacpp-llama": {"llama"}}


def test_prometheus_scrapes_all_targets(front: LiveStack) -> None:
    def up() -> bool:
        return all(one["health"] == "up" for one in PROMETHEUS.get("targets")["activeTargets"])

    wait_for_value(up, 120, lambda: PROMETHEUS.get("targets"))
    targets = [one["labels"] for one in PROMETHEUS.get("targets")["activeTargets"]]
    assert {one["job"] for one in targets} == {"prometheus", "vllm", "watch", "gateway", "gateway-keys", "stackgen"}
    replicas = {(one["model"], one["replica"]) for one in targets if one["job"] == "vllm"}
    assert replicas == {("tiny", name) for name in TINY}


def test_prometheus_evaluates_all_alert_rules(front: LiveStack) -> None:
    expected = {one.name for group in alerts() if group.name not in OTHERS for one in group.alerts}

    def rules() -> dict[str, str]:
        return {rule["name"]: rule["health"] for group in PROMETHEUS.get("rules")["groups"] for rule in group["rules"]}

    wait_for_value(lambda: set(rules().values()) == {"ok"}, 60, rules)
    assert set(rules()) == expected


def test_the_exporter_reports_every_model_behind_the_gateway_as_up(front: LiveStack) -> None:
    """Including a FastChat model, and a model whose answers to an alias carry its first name."""

    def checked() -> list[dict[str, Any]]:
        # the gateway checks replicas every two seconds, and the exporter may have been faster
        return found if len(found := PROMETHEUS.query("stackgen_endpoint_up == 1")) == len(MODELS) else []

    found = wait_for_value(checked, 120, lambda: PROMETHEUS.query("stackgen_check_status == 0"))
    assert {one["metric"]["endpoint"] for one in found} == set(MODELS)
    assert {one["metric"]["base_url"] for one in found} == {"http://gateway:8000/v1"}
    names = set().union(*MODELS.values())
    timed = wait_for_value(lambda: len(known := PROMETHEUS.query("stackgen_ttft_seconds")) == len(names) and known, 60)
    assert {one["metric"]["model"] for one in timed} == names
    assert all(float(one["value"][1]) > 0 for one in timed)


def test_every_dashboard_query_returns_data(front: LiveStack) -> None:
    empty = [(path.stem, query) for path in DASHBOARDS for query in queries(path)]
    total = len(empty)

    def all_have_data() -> bool:
        nonlocal empty
        assert ask(front, "tiny")[0] == 200
        # rejected, so that the series of rejected requests has data
        assert ask(front, "tiny", key="sk-wrong")[0] == 401
        empty = [(where, query) for where, query in empty if not PROMETHEUS.query(query)]
        return not [query for _, query in empty if not any(part in query for part in ABSENT)]

    wait_for_value(all_have_data, 180, lambda: empty)
    print(f"{total} queries, {total - len(empty)} with data")
    assert {where for where, _ in empty} <= {*OTHERS, "overview", "probes"}
    assert total - len(empty) > 40


def test_grafana_shows_the_dashboards(front: LiveStack, grafana_image: str) -> None:
    if not grafana_image:
        # its image is not available: only the rendered files can be tested
        assert (front.folder / "monitoring" / "datasources" / "stackgen.yaml").exists()
        return

    def query_grafana(path: str) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{GRAFANA_PORT}/api/{path}")
        password = read_env(front.folder)["GRAFANA_PASSWORD"]
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
        urllib.request.urlopen(f"http://127.0.0.1:{GRAFANA_PORT}/api/search", timeout=10)
    refused.value.close()


def test_dashboard_variables_have_values(front: LiveStack) -> None:
    for path in DASHBOARDS:
        for variable in json.loads(path.read_text())["templating"]["list"]:
            if variable["type"] == "query" and path.stem not in OTHERS:
                series, label = filled(variable["query"]["query"])[len("label_values(") : -1].rsplit(", ", 1)
                assert PROMETHEUS.get(f"label/{label}/values", **{"match[]": series}), variable["name"]


def test_running_programs_export_every_metric_in_use(front: LiveStack) -> None:
    """tests/resolve/addons does this with recordings. Here, a change in a new version of an engine shows."""
    metrics: dict[str, set[str]] = {}
    for service, port, path in (("vllm-tiny", 8000, "/metrics"), ("vllm-tiny", 9465, "/metrics"),
                                ("gateway", 8405, "/metrics"), ("gateway", 8405, "/keys"),
                                ("exporter", 9464, "/metrics")):  # fmt: skip
        metrics |= labels_by_name(fetch(container(service), port, path))
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


def test_key_metrics_have_names_and_no_keys(front: LiveStack) -> None:
    assert ask(front, "tiny")[0] == 200
    found = wait_for_value(lambda: PROMETHEUS.query("stackgen_gateway_key_requests_total > 0"), 60)
    assert [one["metric"]["key"] for one in found] == ["default"]
    assert front.key not in json.dumps(PROMETHEUS.get("series", **{"match[]": '{__name__=~".+"}'}))
