"""Monitoring in the plan: what is scraped, by which service, and which ports are published."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stackgen import __version__
from stackgen.errors import SpecError
from stackgen.plan import EnvRef, GpuRequest, Logging, Plan, Volume
from stackgen.render.templating import render
from stackgen.resolve.pipeline import resolve
from stackgen.stack.load import build_spec, load_endpoints
from stackgen.targets.compose import ComposeSite
from stackgen.targets.process import ProcessSite
from tests.conftest import ROOT
from tests.resolve.addons.test_monitoring_names import DASHBOARDS, alerts, everything


def plan(*models: dict[str, Any], **fields: Any) -> Plan:
    entries = [{"model": f"org/m{index}", "engine": "vllm"} | model for index, model in enumerate(models)]
    data = {"name": "demo", "models": entries, "monitoring": True} | fields
    return resolve(build_spec(data, "test"), ComposeSite(), "test")


def files(made: Plan) -> dict[str, str]:
    return {file.path: file.text for file in render(made)}


def parsed(made: Plan, name: str) -> Any:
    return yaml.safe_load(files(made)[f"monitoring/{name}"])


def scraped(made: Plan) -> dict[str, list[str]]:
    jobs = parsed(made, "prometheus.yml")["scrape_configs"]
    return {job["job_name"]: [one for group in job["static_configs"] for one in group["targets"]] for job in jobs}


def names(made: Plan) -> set[str]:
    return {service.name for service in made.services}


ADDED = {"prometheus", "grafana", "exporter"}
FC = {"engine": "fastchat"}


@pytest.mark.parametrize("off", [None, False, {"enabled": False}])
def test_monitoring_is_off_by_default(off: Any) -> None:
    assert not names(plan({}, monitoring=off)) & ADDED
    assert not [path for path in files(plan({}, monitoring=off)) if path.startswith(("monitoring", "exporter"))]


def test_local_processes_warn_that_monitoring_is_not_used(tmp_path: Path) -> None:
    data = {"name": "demo", "models": [{"model": "./m", "engine": "vllm"}], "monitoring": True}
    made = resolve(build_spec(data, "test"), ProcessSite(tmp_path, tmp_path / "state"), "test")
    assert [service.name for service in made.services] == ["vllm-m"]
    assert "monitoring needs containers: local processes run without monitoring" in made.warnings
    quiet = resolve(build_spec(data | {"monitoring": None}, "test"), ProcessSite(tmp_path, tmp_path / "state"), "test")
    assert not [one for one in quiet.warnings if "monitoring" in one]


def test_each_replica_is_scraped_with_model_and_replica_labels() -> None:
    made = plan({"replicas": 2}, {"served_names": ["big", "b"]}, FC)
    jobs = {job["job_name"]: job for job in parsed(made, "prometheus.yml")["scrape_configs"]}
    assert jobs["vllm"]["static_configs"] == [
        {"targets": ["vllm-m0:8000"], "labels": {"model": "org/m0", "replica": "vllm-m0"}},
        {"targets": ["vllm-m0-2:8000"], "labels": {"model": "org/m0", "replica": "vllm-m0-2"}},
        {"targets": ["vllm-big:8000"], "labels": {"model": "big", "replica": "vllm-big"}},
    ]
    assert scraped(made)["gateway"] == scraped(made)["gateway-keys"] == ["gateway:8405"]
    assert jobs["gateway-keys"]["metrics_path"] == "/keys"
    assert scraped(made)["stackgen"] == ["exporter:9464"]


def test_the_watch_for_hangs_is_scraped_where_it_has_metrics() -> None:
    made = plan({"replicas": 2}, {"restart_hung": False, "served_names": ["off"]}, FC)
    jobs = {job["job_name"]: job for job in parsed(made, "prometheus.yml")["scrape_configs"]}
    assert jobs["watch"]["static_configs"] == [
        {"targets": ["vllm-m0:9465"], "labels": {"model": "org/m0", "replica": "vllm-m0"}},
        {"targets": ["vllm-m0-2:9465"], "labels": {"model": "org/m0", "replica": "vllm-m0-2"}},
    ]
    ports = {one.name: dict(one.environment).get("STACKGEN_WATCH_PORT") for one in made.services}
    assert {name for name, port in ports.items() if port} == {"vllm-m0", "vllm-m0-2"}
    # without monitoring, nothing would read them
    assert not any("STACKGEN_WATCH_PORT" in dict(one.environment) for one in plan({}, monitoring=False).services)


def test_intervals_are_settable() -> None:
    intervals = {"scrape_interval": 5, "check_interval": 10, "reload_interval": 20}
    made = plan({}, gateway=True, monitoring=intervals)
    config = parsed(made, "prometheus.yml")
    assert config["global"] == {"scrape_interval": "5s", "evaluation_interval": "5s"}
    assert {job["job_name"]: job["scrape_interval"] for job in config["scrape_configs"]} == {
        "prometheus": "10s", "vllm": "5s", "watch": "5s", "gateway": "5s", "gateway-keys": "5s", "stackgen": "10s",
    }  # fmt: skip
    assert parsed(made, "datasources/stackgen.yaml")["datasources"][0]["jsonData"]["timeInterval"] == "5s"
    assert "--config.auto-reload-interval=20s" in made.service("prometheus").command
    assert made.service("exporter").command[-2:] == ("--interval", "10")


def test_absent_services_are_not_scraped() -> None:
    assert set(scraped(plan({}))) == {"prometheus", "vllm", "watch", "stackgen"}
    assert set(scraped(plan({"restart_hung": False}))) == {"prometheus", "vllm", "stackgen"}
    assert set(scraped(plan(FC))) == {"prometheus", "stackgen"}
    assert {group["name"] for group in parsed(plan(FC), "rules.yml")["groups"]} == {"probes", "monitoring"}
    assert "monitoring/dashboards/gateway.json" not in files(plan({}))
    assert "monitoring/dashboards/gpus.json" not in files(plan({}))
    assert "monitoring/dashboards/models.json" not in files(plan(FC))
    assert {path.name for path in DASHBOARDS} == {
        path.rpartition("/")[2] for path in files(everything()) if path.endswith(".json")
    }


def test_exporter_gets_endpoint_urls_inside_the_network(tmp_path: Path) -> None:
    def probes(made: Plan) -> list[tuple[Any, ...]]:
        (tmp_path / "endpoints.yaml").write_text(files(made)["monitoring/endpoints.yaml"])
        found = load_endpoints(tmp_path / "endpoints.yaml").endpoints
        assert {one.api_key_env for one in found} == {"STACKGEN_API_KEY"}
        return [(one.name, one.base_url, one.models, one.dialect) for one in found]

    assert probes(plan({"served_names": ["a", "b"]})) == [("vllm-a", "http://vllm-a:8000/v1", ("a", "b"), "vllm")]
    assert probes(plan(FC)) == [("fastchat", "http://fastchat-api:8000/v1", ("org/m0",), "fastchat")]
    assert probes(plan({"replicas": 2}, FC)) == [
        ("vllm-m0", "http://gateway:8000/v1", ("org/m0",), "vllm"),
        ("fastchat-m1", "http://gateway:8000/v1", ("org/m1",), "fastchat"),
    ]
    # the certificate is valid only for the names that clients use
    tls = plan({}, gateway={"tls": "generate"})
    assert probes(tls) == [("vllm-m0", "http://gateway:8001/v1", ("org/m0",), "vllm")]


def test_changed_endpoints_recreate_the_exporter() -> None:
    def endpoints_hash(made: Plan) -> Any:
        return dict(made.service("exporter").environment)["STACKGEN_ENDPOINTS"]

    assert endpoints_hash(plan({})) == endpoints_hash(plan({"gpus": 1}))
    assert endpoints_hash(plan({})) != endpoints_hash(plan({"served_names": ["x"]}))


def test_only_web_pages_are_published_and_only_on_loopback() -> None:
    made = plan({}, bind="0.0.0.0", monitoring={"grafana_port": 3300})
    published = {s.name: [(p.address, p.host) for p in s.ports] for s in made.services if s.role == "monitoring"}
    assert published == {"prometheus": [("127.0.0.1", 9090)], "grafana": [("127.0.0.1", 3300)], "exporter": []}


def test_every_monitoring_service_is_hardened_and_has_a_health_check() -> None:
    made = everything(logging={"max_size": "5m", "max_file": 2})
    data = yaml.safe_load(files(made)["compose.yaml"])
    mine = [service for service in made.services if service.role == "monitoring"]
    assert {service.name for service in mine} == ADDED | {"dcgm-exporter"}
    for service in mine:
        assert service.logging == Logging("5m", 2)
        assert service.restart == "unless-stopped" and service.health
        # hooks of the NVIDIA Container Toolkit write to the root file system
        assert service.read_only == (not service.gpus)
        assert not service.cap_add and not service.networks and not service.engine
        printed = data["services"][service.name]
        assert printed["cap_drop"] == ["ALL"]
        assert ":" in printed["image"] and not printed["image"].endswith(":latest")
        # Compose rejects an empty list of volumes, so the field must be absent
        assert printed.get("volumes", [1])


def test_metrics_and_accounts_are_kept_in_volumes_of_the_stack() -> None:
    made = plan({})
    assert {("prometheus", "demo-prometheus"), ("grafana", "demo-grafana")} <= set(made.volumes)
    assert Volume("prometheus", "/prometheus") in made.service("prometheus").mounts
    lines = files(made)["compose.yaml"].splitlines()
    assert "    name: demo-prometheus" in lines
    assert any(line.startswith("    name: stackgen-models # shared by all stacks") for line in lines)


def test_grafana_needs_a_password_and_sends_no_telemetry() -> None:
    environment = dict(plan({}).service("grafana").environment)
    password = environment["GF_SECURITY_ADMIN_PASSWORD"]
    assert isinstance(password, EnvRef) and password.name == "GRAFANA_PASSWORD" and password.required
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == environment["GF_USERS_ALLOW_SIGN_UP"] == "false"
    assert {value for name, value in environment.items() if name.startswith("GF_ANALYTICS")} == {"false"}
    source = parsed(plan({}), "datasources/stackgen.yaml")["datasources"]
    assert [(one["uid"], one["url"]) for one in source] == [("stackgen", "http://prometheus:9090")]


@pytest.mark.parametrize(
    ("models", "driver", "request_", "lost"),
    [
        ([{"gpus": 2}], "nvidia", GpuRequest("nvidia", count=2), "< 2"),
        ([{"gpus": 1, "replicas": 2}, {"gpus": [5]}], "nvidia", GpuRequest("nvidia", ids=("0", "1", "5")), "< 3"),
        ([{"gpus": 1}], "cdi", GpuRequest("cdi", ids=("nvidia.com/gpu=0",)), "< 1"),
        ([{"gpus": "all", "tensor_parallel_size": 2}], "nvidia", GpuRequest("nvidia", count=-1), "[1d:5m])"),
    ],
)
def test_dcgm_exporter_gets_all_gpus_of_the_stack(
    models: list[dict[str, Any]], driver: str, request_: GpuRequest, lost: str
) -> None:
    made = plan(*models, gpu_driver=driver)
    assert made.service("dcgm-exporter").gpus == request_
    rules = {rule["alert"]: rule for group in parsed(made, "rules.yml")["groups"] for rule in group["rules"]}
    assert rules["GpuLost"]["expr"].endswith(lost)
    assert scraped(made)["dcgm"] == ["dcgm-exporter:9400"]


@pytest.mark.parametrize("models", [[{}], [{"gpus": [0]}]])
def test_no_dcgm_exporter_without_nvidia_gpus(models: list[dict[str, Any]]) -> None:
    made = plan(*models, gpu_driver="amd")
    assert "dcgm-exporter" not in names(made)
    assert "dcgm" not in scraped(made)


def test_exporter_image_is_built_or_taken_from_the_stack_file() -> None:
    made = plan({}).service("exporter")
    assert made.build and dict(made.build.args) == {"STACKGEN_VERSION": __version__}
    assert made.image.startswith(f"stackgen/exporter:{__version__}-")
    assert {"exporter/Dockerfile", "exporter/requirements.txt"} <= set(files(plan({})))
    given = plan({}, monitoring={"exporter_image": "me/x:1", "prometheus_image": "me/p", "grafana_image": "me/g:2"})
    assert given.service("exporter").image == "me/x:1" and given.service("exporter").build is None
    assert given.service("prometheus").image == "me/p" and given.service("grafana").image == "me/g:2"
    assert "exporter/Dockerfile" not in files(given)
    assert "image me/p is not pinned to a version" in given.warnings


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        (
            {"monitoring": {"grafana_port": 9090}},
            "monitoring.prometheus_port: port 9090 is also used by `monitoring.grafana_port`",
        ),
        ({"monitoring": {"grafana_port": 8000}}, "monitoring.grafana_port: port 8000 is also used by `port`"),
        ({"port": 9090}, "monitoring.prometheus_port: port 9090 is also used by `port`"),
        ({"gateway": {"tls": {"redirect_port": 3000}}}, "port 3000 is also used by `gateway.tls.redirect_port`"),
    ],
)
def test_conflicting_monitoring_ports_are_rejected(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(SpecError) as caught:
        plan({}, **fields)
    assert path in str(caught.value)
    with pytest.raises(SpecError, match=r"port 3000 is also used by `models\[0\].port`"):
        plan({"port": 3000})


def test_model_ports_skip_monitoring_ports() -> None:
    made = plan({}, {}, {}, gateway=False, port=9089)
    assert [port.host for s in made.services for port in s.ports if s.engine == "vllm"] == [9089, 9091, 9092]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=12).filter(lambda text: text.isprintable()), min_size=1, max_size=3))
def test_hostile_names_are_rendered_unchanged(served: list[str]) -> None:
    try:
        made = plan({"served_names": served}, gateway=False)
    except SpecError:
        return
    (probe,) = parsed(made, "endpoints.yaml")["endpoints"]
    assert probe["models"] == served
    jobs = {job["job_name"]: job for job in parsed(made, "prometheus.yml")["scrape_configs"]}
    assert jobs["vllm"]["static_configs"][0]["labels"]["model"] == served[0]


def test_dollars_are_not_doubled_outside_compose() -> None:
    made = plan({"served_names": ["a$b${HOME}"]})
    assert parsed(made, "endpoints.yaml")["endpoints"][0]["models"] == ["a$b${HOME}"]
    assert "{{ $labels.replica }}" in files(made)["monitoring/rules.yml"]
    assert "$$" not in files(made)["monitoring/rules.yml"] + files(made)["monitoring/prometheus.yml"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_have_all_fields_that_grafana_needs(path: Path) -> None:
    data = json.loads(path.read_text("utf-8"))
    assert data["uid"] == f"stackgen-{path.stem}" and len(data["uid"]) <= 40
    assert data["schemaVersion"] >= 39 and "id" not in data
    variables = {one["name"]: one for one in data["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    panels = data["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["type"] in ("timeseries", "stat", "table")
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24 and place["w"] > 0 and place["h"] > 0
        squares = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not squares & taken, panel["title"]
        taken |= squares
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEF"[: len(panel["targets"])])
        for target in panel["targets"]:
            used = {word for word in variables if f"${word}" in target["expr"]}
            assert all(variables[word]["includeAll"] for word in used)
            assert target["expr"].count("(") == target["expr"].count(")")


def test_documentation_lists_every_alert() -> None:
    page = (ROOT / "docs" / "reference" / "monitoring.md").read_text("utf-8")
    listed = re.findall(r"(?m)^\| `(\w+)` \| .* \| (critical|warning|info) \|$", page)
    assert listed == [(one.name, one.severity) for group in alerts() for one in group.alerts]


def test_dashboard_uids_are_unique() -> None:
    uids = [json.loads(path.read_text("utf-8"))["uid"] for path in DASHBOARDS]
    assert len(set(uids)) == len(uids) == 6
