"""Every metric and label in dashboards and rules is one that the real exporters have.

The recordings are whole answers without their HELP lines: of vLLM 0.32.0 on the CPU after four requests, and of HAProxy
3.2.26 (Debian) with a backend of two servers. tests/live asks the running programs again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as families

from stackgen import flags
from stackgen.check.report import Report, Result
from stackgen.engines.sglang import VERSION
from stackgen.exporter import render_metrics
from stackgen.plan import Plan
from stackgen.render.templating import render
from stackgen.resolve.addons.monitoring_rules import Group, alert_groups
from stackgen.resolve.pipeline import resolve
from stackgen.resources import templates_dir
from stackgen.spec import MonitoringSpec
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite
from tests.exporter.test_metrics import REPORT

RECORDINGS = Path(__file__).parent / "recordings"
DASHBOARDS = sorted((templates_dir() / "monitoring" / "dashboards").glob("*.json"))
# etc/default-counters.csv of github.com/NVIDIA/dcgm-exporter 4.5.3-4.8.2: the gauges and counters that we use
DCGM = {
    f"DCGM_FI_DEV_{name}"
    for name in (
        "SM_CLOCK", "MEMORY_TEMP", "GPU_TEMP", "POWER_USAGE", "PCIE_REPLAY_COUNTER", "GPU_UTIL", "MEM_COPY_UTIL",
        "XID_ERRORS", "FB_FREE", "FB_USED", "UNCORRECTABLE_REMAPPED_ROWS", "ROW_REMAP_FAILURE",
    )
}  # fmt: skip
# internal/pkg/rendermetrics/render_metrics.go of the same
DCGM_LABELS = {"gpu", "UUID", "pci_bus_id", "device", "modelName"}
# added by Prometheus; `model` and `replica` come from the rendered configuration
PROMETHEUS = {"up": set[str](), "ALERTS": {"alertname", "alertstate", "severity"},
              "prometheus_config_last_reload_successful": set[str]()}  # fmt: skip
ADDED = {"job", "instance", "model", "replica"}
WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "bool", "offset", "group_left", "group_right"}
# values that Grafana or its user fills in
VARIABLES = {"$__rate_interval": "1m", "$model": ".*", "$replica": ".*", "$proxy": ".*", "$key": ".*", "$gpu": ".*",
             "$endpoint": ".*"}  # fmt: skip


def everything(**fields: Any) -> Plan:
    """A stack with everything that can be monitored."""
    models = [
        {"model": "org/a", "engine": "vllm", "gpus": 1, "replicas": 2},
        {"model": "org/b", "engine": "fastchat", "gpus": 2},
        {"model": "org/c", "engine": "sglang", "gpus": 1},
    ]
    # a token budget adds metrics
    gateway = {"keys": [{"name": "team", "tokens_per_day": 1000}]}
    data = {"name": "demo", "models": models, "monitoring": True, "gateway": gateway} | fields
    return resolve(build_spec(data, "test"), ComposeSite(), "test")


def alerts() -> tuple[Group, ...]:
    return alert_groups(everything(), MonitoringSpec())


def labels_by_name(text: str) -> dict[str, set[str]]:
    """The labels of each series in an exporter's response."""
    found: dict[str, set[str]] = {}
    for family in families(text):
        found.setdefault(family.name + "_total" * (family.type == "counter"), set())
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def known() -> dict[str, set[str]]:
    keys = next(file.text for file in render(everything()) if file.path == "gateway/keys.prom")
    # HAProxy fills in the values when it answers
    keys = re.sub(r"%\[.*\]", "1", keys)
    other = replace(
        REPORT, name="other", results=(Result("stream", "pass", 0.1, "ends", figures={"chunks_per_second": 9}),)
    )
    report = render_metrics(Report((REPORT, other), "2026-11-23T00:00:00+00:00"))
    texts = [path.read_text("utf-8") for path in sorted(RECORDINGS.glob("*-metrics.txt"))]
    found = dict.fromkeys(DCGM, DCGM_LABELS) | PROMETHEUS
    # from SGLang's source, because it runs on no CPU of the tests: a histogram has three series
    sglang = json.loads((Path(flags.__file__).parent / f"sglang-{VERSION}.json").read_text("utf-8"))["metrics"]
    found |= {name + suffix: {"le"} for name in sglang for suffix in ("", "_bucket", "_sum", "_count")}
    for text in (*texts, keys, report):
        for name, labels in labels_by_name(text).items():
            found[name] = found.get(name, set()) | labels
    return found


def queries(dashboard: Path) -> Iterator[str]:
    """All PromQL expressions of a dashboard, with Grafana's variables filled in."""
    data = json.loads(dashboard.read_text("utf-8"))
    for panel in data["panels"]:
        for target in panel["targets"]:
            yield filled(target["expr"])


def filled(query: str) -> str:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query


def names_in(query: str) -> dict[str, set[str]]:
    """The metrics in a PromQL expression, with the labels of their selectors."""
    found: dict[str, set[str]] = {}
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', query)
    bare = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", "", bare)
    bare = re.sub(r"\[[^\]]*\]", "", bare)
    for match in re.finditer(r"(?<![\w:.])([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?(\s*\()?", re.sub(r"\s+", " ", bare)):
        name, chosen, call = match.groups()
        if not call and name not in WORDS:
            found.setdefault(name, set()).update(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", chosen or ""))
    return found


def grouped_by(query: str) -> set[str]:
    return {
        label.strip()
        for inside in re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", query)
        for label in inside.split(",")
    }


ALL = [(path.stem, query) for path in DASHBOARDS for query in queries(path)]
ALL += [(one.name, one.expr) for group in alerts() for one in group.alerts]


def test_promql_parser_finds_metrics_and_labels() -> None:
    text = 'histogram_quantile(0.95, sum by (model, le) (rate(vllm:x_bucket{job="a b",le!="{1}"}[5m]))) > 2 and up == 0'
    assert names_in(text) == {"vllm:x_bucket": {"job", "le"}, "up": set()}
    assert names_in("(a or 0 * sum(b{c=~\"d\"} == 1)) < 3") == {"a": set(), "b": {"c"}}  # fmt: skip
    assert grouped_by(text) == {"model", "le"}


@pytest.mark.parametrize(("where", "query"), ALL, ids=[f"{where}-{index}" for index, (where, _) in enumerate(ALL)])
def test_dashboards_and_rules_use_existing_metrics_and_labels(where: str, query: str) -> None:
    found = names_in(query)
    assert found, query
    real = known()
    for name, labels in found.items():
        assert name in real, (where, query)
        assert labels <= real[name] | ADDED, (where, query)
    assert grouped_by(query) <= set().union(*(real[name] for name in found)) | ADDED, query


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_legends_and_variables_use_existing_labels(path: Path) -> None:
    data, real = json.loads(path.read_text("utf-8")), known()
    for panel in data["panels"]:
        for target in panel["targets"]:
            labels = set().union(*(real[name] for name in names_in(filled(target["expr"])))) | ADDED
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels, target
    for variable in data["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.*), (\w+)\)", filled(variable["query"]["query"]))
            assert match
            ((name, labels),) = names_in(match[1]).items()
            assert labels | {match[2]} <= real[name] | ADDED


def test_a_removed_metric_is_detected() -> None:
    for query in ("rate(vllm:gpu_cache_usage_perc[5m])", "haproxy_server_up", "stackgen_nothing"):
        assert not set(names_in(query)) & set(known())


def test_alert_summaries_use_labels_that_their_expression_keeps() -> None:
    """`sum by (model)` drops all other labels."""
    real = known()
    for group in alerts():
        for one in group.alerts:
            left = grouped_by(one.expr.partition(" and ")[0]) or set().union(
                *(real[name] for name in names_in(one.expr))
            )
            assert set(re.findall(r"\$labels\.(\w+)", one.summary)) <= left | ADDED, one.name
            if grouped_by(one.expr):
                assert set(re.findall(r"\$labels\.(\w+)", one.summary)) <= left, one.name
