"""Prometheus' own promtool reads what is rendered, and each rule fires for what it is for, and for nothing less.

promtool is that of the pinned image where it can be had, else Debian's build of the same version (3.5.3).
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.plan import Plan
from stackgen.render.templating import render
from stackgen.resolve.addons.monitoring import PROMETHEUS_IMAGE
from tests.resolve.addons.test_monitoring_names import alerts, everything

pytestmark = pytest.mark.docker

REPLICA = 'job="vllm",instance="a:8000",model="m",replica="vllm-m"'
FIRST = f"vllm:time_to_first_token_seconds_bucket{{{REPLICA},le="
SGLANG_FIRST = FIRST.replace("vllm:", "sglang:")
KEYS = 'job="gateway-keys",instance="gateway:8405",key="ci"'
REQUESTS, ERRORS = f"stackgen_gateway_key_requests_total{{{KEYS}}}", f"stackgen_gateway_key_errors_total{{{KEYS}}}"
API = 'haproxy_frontend_http_responses_total{proxy="api",code="4xx"}'
DRAINED = 'job="gateway-keys",instance="gateway:8405",replica="vllm-m-2"'
SINCE = f"stackgen_gateway_drained_since_timestamp_seconds{{{DRAINED}}}"
LEASE = f"stackgen_gateway_drain_lease_timestamp_seconds{{{DRAINED}}}"
SERVER = "haproxy_server_status{proxy=\"m\",server="  # fmt: skip
PROVIDER = "haproxy_server_status{proxy=\"fallback-m\",server="  # fmt: skip
PROBE = 'endpoint="m",base_url="http://gateway:8000/v1",dialect="vllm"'


def dcgm(name: str, gpu: int, labels: str = "") -> str:
    return f'DCGM_FI_DEV_{name}{{job="dcgm",gpu="{gpu}"{labels}}}'


def xid(gpu: int, code: int) -> str:
    """The series of an Xid error: DCGM exporter 4.5.3-4.8.2, internal/pkg/collector/gpu_collector.go."""
    return dcgm("XID_ERRORS", gpu, f',err_code="{code}",err_msg="text of {code}"')


HANGS = 'stackgen_replica_hangs_total{job="watch",instance="a:9465",model="m",replica="vllm-m",reason="asleep"}'
# alert: (series that make it fire, minute at which it fires, similar series that must not); one value per minute, in
# promtool's notation
CASES: dict[str, tuple[dict[str, str], int, dict[str, str]]] = {
    "ReplicaDown": ({f"up{{{REPLICA}}}": "1x5 0x20"}, 9, {f"up{{{REPLICA}}}": "0x20"}),
    "ReplicaNotUp": ({f"up{{{REPLICA}}}": "0x60"}, 31, {f"up{{{REPLICA}}}": "0x20 1x40"}),
    "QueueGrowing": (
        {f"vllm:num_requests_waiting{{{REPLICA}}}": "0+2x40"}, 20,
        # long, but shrinking
        {f"vllm:num_requests_waiting{{{REPLICA}}}": "90-2x40"},
    ),
    "KvCacheFull": ({f"vllm:kv_cache_usage_perc{{{REPLICA}}}": "0.99x30"}, 12,
                    {f"vllm:kv_cache_usage_perc{{{REPLICA}}}": "0.9x30"}),
    "Preemptions": ({f"vllm:num_preemptions_total{{{REPLICA}}}": "0+2x30"}, 11,
                    {f"vllm:num_preemptions_total{{{REPLICA}}}": "0x10 5x20"}),
    "FirstTokenSlow": (
        {f'{FIRST}"1.0"}}': "0x40", f'{FIRST}"5.0"}}': "0+60x40", f'{FIRST}"+Inf"}}': "0+60x40"}, 12,
        # only one in thirty is slow
        {f'{FIRST}"1.0"}}': "0+58x40", f'{FIRST}"5.0"}}': "0+60x40", f'{FIRST}"+Inf"}}': "0+60x40"},
    ),
    "SglangQueueGrowing": ({f"sglang:num_queue_reqs{{{REPLICA}}}": "0+2x40"}, 20,
                           {f"sglang:num_queue_reqs{{{REPLICA}}}": "90-2x40"}),
    "SglangKvCacheFull": ({f"sglang:token_usage{{{REPLICA}}}": "0.99x30"}, 12,
                          {f"sglang:token_usage{{{REPLICA}}}": "0.9x30"}),
    "SglangRetractions": ({f"sglang:num_retracted_requests_total{{{REPLICA}}}": "0+2x30"}, 11,
                          {f"sglang:num_retracted_requests_total{{{REPLICA}}}": "0x10 5x20"}),
    "SglangFirstTokenSlow": (
        {f'{SGLANG_FIRST}"1.0"}}': "0x40", f'{SGLANG_FIRST}"5.0"}}': "0+60x40", f'{SGLANG_FIRST}"+Inf"}}': "0+60x40"},
        12,
        {f'{SGLANG_FIRST}"1.0"}}': "0+58x40", f'{SGLANG_FIRST}"5.0"}}': "0+60x40",
         f'{SGLANG_FIRST}"+Inf"}}': "0+60x40"},
    ),
    "ReplicaHung": ({HANGS: "0x10 1x20"}, 12, {HANGS: "2x30"}),
    "GatewayReplicaDown": (
        {f'{SERVER}"a",state="UP"}}': "1x5 0x30"}, 17,
        # drained and back five minutes later; and a fallback that is not needed
        {f'{SERVER}"a",state="UP"}}': "1x5 0x5 1x30", f'{PROVIDER}"x",state="UP"}}': "0x41"},
    ),
    # the time in promtool's tests begins with 0, so minute 1 is the timestamp 60
    "GatewayReplicaLeftDrained": (
        {SINCE: "0x1 60x30", LEASE: "0x1 120x30"}, 5,
        # renewed each minute by the command that drains it; and not drained, with the lease of an earlier drain
        {SINCE: "0x1 60x30", LEASE: "60+60x30", SINCE.replace("-2", ""): "0x31", LEASE.replace("-2", ""): "60x31"},
    ),
    "GatewayModelDown": (
        {f'{SERVER}"a",state="UP"}}': "0x20", f'{SERVER}"b",state="UP"}}': "1x5 0x20"}, 8,
        {f'{SERVER}"a",state="UP"}}': "0x20", f'{SERVER}"b",state="UP"}}': "1x20",
         f'{PROVIDER}"x",state="UP"}}': "0x20"},
    ),
    "GatewayQueueGrowing": ({'haproxy_backend_current_queue{proxy="m"}': "20x30"}, 8,
                            {'haproxy_backend_current_queue{proxy="m"}': "5x30"}),
    "GatewayFailures": ({'haproxy_backend_http_responses_total{proxy="m",code="5xx"}': "0+2x30"}, 11,
                        {'haproxy_backend_http_responses_total{proxy="m",code="5xx"}': "0x10 3x20"}),
    "KeyRefusedOften": ({REQUESTS: "0+10x30", ERRORS: "0+9x30"}, 11, {REQUESTS: "0+100x30", ERRORS: "0+9x30"}),
    "RequestsRefused": ({API: "0+60x30"}, 11, {API: "0+6x30"}),
    "GpuLost": (
        {dcgm("GPU_TEMP", 0): "40x30", dcgm("GPU_TEMP", 1): "40x30", dcgm("GPU_TEMP", 2): "40x30",
         dcgm("GPU_TEMP", 3): "40x30", dcgm("GPU_TEMP", 4): "40x5 stale"}, 12,
        {dcgm("GPU_TEMP", gpu): "40x30" for gpu in range(5)},
    ),
    # one error on a GPU without any before; on others, an error of long ago and no error
    "GpuError": ({xid(0, 79): "_x5 79x20", xid(1, 31): "31x30", xid(2, 0): "0x30"}, 17,
                 {xid(1, 31): "31x30", xid(2, 0): "0x30"}),
    "ProbeFailing": ({f"stackgen_endpoint_up{{{PROBE}}}": "1x3 0x20"}, 8,
                     {f"stackgen_endpoint_up{{{PROBE}}}": "1x3 0x1 1x20"}),
    "ProbeOld": ({'stackgen_last_check_timestamp_seconds{endpoint="m"}': "0x30"}, 12,
                 {'stackgen_last_check_timestamp_seconds{endpoint="m"}': "0+60x30"}),
    "ProbeFirstTokenSlow": ({'stackgen_ttft_seconds{endpoint="m",model="m"}': "3x30"}, 12,
                            {'stackgen_ttft_seconds{endpoint="m",model="m"}': "3 3 1 3 3 1 3 3 1 3 3 1 3 3 1 3"}),
    "MonitoringTargetMissing": ({'up{job="dcgm",instance="dcgm-exporter:9400"}': "1x3 0x20"}, 10,
                                {'up{job="dcgm",instance="dcgm-exporter:9400"}': "1x3 0x2 1x20"}),
    "MonitoringConfigWrong": ({"prometheus_config_last_reload_successful": "0x20"}, 4,
                              {"prometheus_config_last_reload_successful": "1x20"}),
}  # fmt: skip
# this alert must also stay quiet during a long start
QUIET_UNTIL = {"ReplicaNotUp": 60}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("rules")
    write(everything(), made)
    return made


def write(made: Plan, folder: Path) -> None:
    for file in render(made):
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.path).write_text(file.text)


def promtool(image: str, folder: Path, *arguments: str) -> str:
    command = ["docker", "run", "--rm", "--network", "none", "-v", f"{folder}/monitoring:/etc/stackgen:ro"]
    done = subprocess.run([*command, "--entrypoint", "promtool", image, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def unit_tests(name: str) -> list[dict[str, Any]]:
    firing, minute, close = CASES[name]
    quiet = [{"eval_time": f"{at}m", "alertname": name, "exp_alerts": []} for at in (minute, QUIET_UNTIL.get(name, 29))]
    # without labels and texts, which have a test of their own
    asked = f'count(ALERTS{{alertname="{name}",alertstate="firing"}})'
    return [
        {
            "name": f"{name} fires",
            "interval": "1m",
            "input_series": [{"series": one, "values": values} for one, values in firing.items()],
            "promql_expr_test": [
                {"expr": asked, "eval_time": f"{minute}m", "exp_samples": [{"labels": "{}", "value": 1}]}
            ],
        },
        {
            "name": f"{name} stays quiet",
            "interval": "1m",
            "input_series": [{"series": one, "values": values} for one, values in close.items()],
            "alert_rule_test": quiet,
        },
    ]


def test_promtool_has_the_pinned_version(prometheus_image: str, folder: Path) -> None:
    version = PROMETHEUS_IMAGE.rpartition(":v")[2]
    assert f"version {version}" in promtool(prometheus_image, folder, "--version")


def test_promtool_accepts_the_rendered_files(prometheus_image: str, folder: Path, tmp_path: Path) -> None:
    output = promtool(prometheus_image, folder, "check", "config", "/etc/stackgen/prometheus.yml")
    assert f"SUCCESS: {len(CASES)} rules found" in output
    write(everything(models=[{"model": "org/b", "engine": "fastchat"}]), tmp_path)
    promtool(prometheus_image, tmp_path, "check", "config", "/etc/stackgen/prometheus.yml")
    # the gateway would refuse this name
    models = [{"model": "o/b", "engine": "vllm", "served_names": ['"}\\ $x {{ .y }} é']}]
    write(everything(models=models, gateway=False), tmp_path)
    promtool(prometheus_image, tmp_path, "check", "config", "/etc/stackgen/prometheus.yml")


def test_each_alert_has_a_test_case() -> None:
    assert set(CASES) == {one.name for group in alerts() for one in group.alerts}


def test_each_alert_fires_only_for_its_condition(prometheus_image: str, folder: Path) -> None:
    data = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [test for name in CASES for test in unit_tests(name)],
    }
    (folder / "monitoring" / "tests.yml").write_text(yaml.safe_dump(data, sort_keys=False))
    assert "SUCCESS" in promtool(prometheus_image, folder, "test", "rules", "/etc/stackgen/tests.yml")


@pytest.mark.parametrize(
    ("name", "labels", "summary"),
    [
        ("ReplicaDown", "severity: critical, job: vllm, instance: 'a:8000', model: m, replica: vllm-m",
         "vllm-m of m is down"),
        ("FirstTokenSlow", "severity: warning, model: m, replica: vllm-m",
         "vllm-m of m: the 95th percentile of the time to first token is 4.8s; the target is 2 s"),
        ("GpuLost", "severity: critical", "DCGM reports only 4 of 5 GPUs"),
        ("KvCacheFull", "severity: warning, job: vllm, instance: 'a:8000', model: m, replica: vllm-m",
         "vllm-m: the KV cache is 99% full"),
    ],
)  # fmt: skip
def test_alert_summary_and_action_are_rendered(
    prometheus_image: str, folder: Path, name: str, labels: str, summary: str
) -> None:
    firing, minute, _ = CASES[name]
    action = next(one.action for group in alerts() for one in group.alerts if one.name == name)
    expected = {
        "exp_labels": yaml.safe_load(f"{{{labels}}}"),
        "exp_annotations": {"summary": summary, "action": action},
    }
    data = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [{
            "interval": "1m",
            "input_series": [{"series": one, "values": values} for one, values in firing.items()],
            "alert_rule_test": [{"eval_time": f"{minute}m", "alertname": name, "exp_alerts": [expected]}],
        }],
    }  # fmt: skip
    (folder / "monitoring" / "texts.yml").write_text(yaml.safe_dump(data, sort_keys=False))
    promtool(prometheus_image, folder, "test", "rules", "/etc/stackgen/texts.yml")


def test_a_missing_alert_fails_the_test(prometheus_image: str, folder: Path) -> None:
    """Proves that the tests above fail if an alert doesn't fire."""
    wrong = unit_tests("KvCacheFull")[0]
    wrong["input_series"] = [{"series": f"vllm:kv_cache_usage_perc{{{REPLICA}}}", "values": "0.1x30"}]
    data = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [wrong]}
    (folder / "monitoring" / "wrong.yml").write_text(yaml.safe_dump(data))
    with pytest.raises(AssertionError, match="FAILED"):
        promtool(prometheus_image, folder, "test", "rules", "/etc/stackgen/wrong.yml")
