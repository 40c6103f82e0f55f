"""`monitoring.alertmanager`: where Prometheus sends alerts. Syntax: `alertmanager_config` of Prometheus 3.5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.cli import main as cli
from stackgen.errors import SpecError
from stackgen.stack.load import build_spec

MODEL = {"model": "org/m-1B", "engine": "vllm", "gpus": 1, "revision": "abc"}


def render(folder: Path, alertmanager: Any, **fields: Any) -> int:
    data = {"name": "demo", "models": [MODEL], "monitoring": {"alertmanager": alertmanager}} | fields
    (folder / "stack.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return cli.main(["render", str(folder), "--no-validate"])


def config(folder: Path) -> Any:
    return yaml.safe_load((folder / "monitoring" / "prometheus.yml").read_text())


@pytest.mark.parametrize(
    ("urls", "rendered"),
    [
        ("http://alertmanager:9093", [{"scheme": "http", "static_configs": [{"targets": ["alertmanager:9093"]}]}]),
        (
            ["https://alerts.example.org:443/am/", "http://[fd00::5]:9093/"],
            [
                {"scheme": "https", "path_prefix": "/am", "static_configs": [{"targets": ["alerts.example.org:443"]}]},
                {"scheme": "http", "static_configs": [{"targets": ["[fd00::5]:9093"]}]},
            ],
        ),
        # a cluster of Alertmanager gets each alert once from each entry
        (["http://a:1", "http://a:1"], [{"scheme": "http", "static_configs": [{"targets": ["a:1"]}]}]),
    ],
)
def test_prometheus_sends_alerts_to_each_alertmanager(tmp_path: Path, urls: Any, rendered: list[Any]) -> None:
    assert render(tmp_path, urls) == 0
    assert config(tmp_path)["alerting"] == {"alertmanagers": rendered}
    # equal alerts of two stacks must differ
    assert config(tmp_path)["global"]["external_labels"] == {"stack": "demo"}


def test_a_later_change_renders_and_keeps_the_alerting(tmp_path: Path) -> None:
    assert render(tmp_path, "http://10.0.0.5:9093") == 0
    before = config(tmp_path)
    assert render(tmp_path, "http://10.0.0.5:9093", gateway={"keys": [{"name": "ada"}]}) == 0
    assert config(tmp_path)["alerting"] == before["alerting"]


def test_without_alertmanager_the_configuration_has_no_alerting(tmp_path: Path) -> None:
    assert render(tmp_path, []) == 0
    assert not config(tmp_path).keys() & {"alerting"} and "external_labels" not in config(tmp_path)["global"]


def test_own_authorities_verify_https_only(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    assert render(tmp_path, ["https://alerts:9093", "http://other:9093"], ca_certificates="./ca.pem") == 0
    first, second = config(tmp_path)["alerting"]["alertmanagers"]
    assert "tls_config" not in second

    def targets() -> list[str]:
        services = yaml.safe_load((tmp_path / "compose.yaml").read_text())["services"]
        return [one["target"] for one in services["prometheus"]["volumes"]]

    assert first["tls_config"]["ca_file"] in targets()
    assert render(tmp_path, "http://other:9093", ca_certificates="./ca.pem") == 0
    assert first["tls_config"]["ca_file"] not in targets()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9093", "http://localhost:9093", "http://[::1]:9093",
                                 "https://0.0.0.0:9093", "http://127.0.0.53:80/x"])  # fmt: skip
def test_addresses_of_prometheus_container_are_refused_with_alternatives(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert render(tmp_path, url) == 2
    error = capsys.readouterr().err
    assert "monitoring.alertmanager: " in error and "is Prometheus's own container" in error
    assert "IP address in the local network" in error and "http://alertmanager:9093" in error


@pytest.mark.parametrize(
    ("value", "place", "what"),
    [
        ("10.0.0.5:9093", "alertmanager", "must look like http://10.0.0.5:9093"),
        ("http://10.0.0.5", "alertmanager", "with a port"),
        (["http://a:1", "http://u:p@a:9093"], "alertmanager[1]", "without credentials"),
        ("http://a:9093/#/alerts", "alertmanager", "without credentials, query or fragment"),
        ("http://a:9093/api/v2/alerts", "alertmanager", "must end before /api"),
        ("http://a:99999", "alertmanager", "is not a URL"),
        ("http://[12]:9093", "alertmanager", "is not a URL"),
        ("http://999.1.1.1:9093", "alertmanager", "is not a URL"),
        (9093, "alertmanager", "must look like"),
        (True, "alertmanager", "must look like"),
    ],
)
def test_mistakes_name_the_field_and_the_form(value: Any, place: str, what: str) -> None:
    with pytest.raises(SpecError) as error:
        build_spec({"name": "x", "models": [MODEL], "monitoring": {"alertmanager": value}}, "stack.yaml")
    assert f"monitoring.{place}: " in str(error.value) and what in str(error.value)
    assert "u:p" not in str(error.value)


def test_hosts_label_their_alerts(tmp_path: Path) -> None:
    hosts = {"front": {}, "box": {"address": "10.0.0.2"}}
    models = [MODEL | {"host": "box"}, MODEL | {"model": "org/n-1B", "host": "front"}]
    assert render(tmp_path, "http://10.0.0.5:9093", hosts=hosts, models=models) == 0
    found = {name: config(tmp_path / name)["global"]["external_labels"] for name in hosts}
    assert found == {name: {"stack": "demo", "host": name} for name in hosts}


def test_kubernetes_reports_the_fields_of_the_missing_services(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert render(tmp_path, "http://10.0.0.5:9093", target="kubernetes") == 0
    text = capsys.readouterr().err
    assert "monitoring.alertmanager has no effect: on Kubernetes" in text
    assert "monitoring.retention" not in text
