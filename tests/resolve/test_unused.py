"""No field of a stack file is ignored in silence: it changes the plan, or a warning or an error names it.

Each field is set in stacks of each engine, with and without GPUs, gateway and Hub.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from stackgen import engines
from stackgen.cli import main as cli
from stackgen.errors import SpecError
from stackgen.plan import Plan
from stackgen.resolve.hosts import resolve
from stackgen.spec import GatewaySpec, MonitoringSpec, StackSpec, StorageSpec, UiSpec
from stackgen.spec.addons import TlsSpec
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite
from stackgen.targets.kubernetes import KubernetesSite

# another value than the default, for every optional field of a model
MODEL: dict[str, Any] = {
    "revision": "abc", "served_names": ["zz"], "gpus": [0], "share_gpus": True, "gpu_memory_utilization": 0.5,
    "replicas": 2, "dtype": "float16", "trust_remote_code": True, "port": 9100, "extra_args": ["--seed", "1"],
    "extra_env": {"A": "b"}, "image": "x/y:1", "user": "1:1", "read_only": "other", "shm_size": "9g", "ipc": "host",
    "cpuset": "0-1", "labels": {"a": "b"}, "networks": ["n"], "mounts": [{"source": "./m2", "target": "/z"}],
    "group_add": ["5"], "start_timeout": 77, "restart_hung": False, "hang_timeout": 77, "fallback": "together:x/y",
    "tensor_parallel_size": 2, "pipeline_parallel_size": 2, "max_model_len": 2048, "quantization": "awq",
    "kv_cache_dtype": "fp8", "max_num_seqs": 7, "enforce_eager": True, "chat_template": "./a.jinja",
    "tool_call_parser": "hermes", "reasoning_parser": "qwen3", "max_lora_rank": 64, "max_loras": 3, "cache_aware": True,
    "split_hosts": True,
    "lora_adapters": [{"name": "l", "path": "a/b", "revision": "c"}], "cpu_kv_cache_gib": 9,
    "conv_template": "vicuna_v1.1", "worker_concurrency": 9, "dispatch_method": "lottery", "load_8bit": True,
    "cpu_offloading": True, "max_gpu_memory": "13GiB", "file": "other.gguf", "gpu_layers": 3,
    "cpu_offload_gib": 2, "expert_parallel": True, "kv_cache_memory": "3g", "limit_mm_per_prompt": {"image": 2},
    "load_format": "safetensors", "max_num_batched_tokens": 4096, "models_dir": "./ggufs", "models_max": 3,
    "prefix_caching": False, "sleep_mode": True, "speculative": {"method": "ngram", "num_speculative_tokens": 3},
    "engine_version": "0.33.0", "host": "box", "mem_fraction_static": 0.7, "data_parallel_size": 2,
    "chunked_prefill_size": 99,
}  # fmt: skip
STACK: dict[str, Any] = {
    "port": 9000, "bind": "127.0.0.2", "gpu_driver": "cdi", "cpu_arch": "arm64", "storage.volume": "vv",
    "storage.path": "./store", "storage.hub_endpoint": "http://h", "storage.user": "5:5", "restart": "always",
    "logging.max_size": "7m", "logging.max_file": 3, "proxy": "http://p:3128", "ca_certificates": "./ca.pem",
    "gateway.keys": [{"name": "k"}], "gateway.key_defaults": {"requests_per_minute": 9},
     "gateway.count_tokens": True, "gateway.tls": {}, "gateway.tls.names": ["x.org"],
    "gateway.tls.certificate": "./c.pem", "gateway.tls.key": "./k.pem", "gateway.tls.redirect_port": 8081,
    "gateway.allow": ["/tokenize"], "gateway.cors": ["*"], "gateway.max_body": "9m", "gateway.timeout": 77,
    "gateway.routing": "prefix", "gateway.prefix_bytes": 99, "gateway.max_queue": 7, "gateway.queue_timeout": 7,
    "gateway.image": "h/a:1", "monitoring.grafana_port": 3333, "monitoring.prometheus_port": 9999,
    "monitoring.retention": "3d", "monitoring.scrape_interval": 20, "monitoring.check_interval": 99,
    "monitoring.reload_interval": 99, "monitoring.alertmanager": "http://alerts:9093",
    "monitoring.ttft_target": 9.0, "monitoring.prometheus_image": "p/p:1",
    "monitoring.grafana_image": "g/g:1", "monitoring.exporter_image": "e/e:1", "monitoring.dcgm_image": "d/d:1",
    "ui.port": 3333, "ui.bind": "127.0.0.2", "ui.sign_up": True, "ui.admin_email": "a@b",
    "ui.direct_connections": True, "ui.image": "u/u:1",
    "hosts": {"front": {}, "box": {"address": "10.0.0.2"}}, "host": "front",
}  # fmt: skip
# with the reason why a plan need not change
WITHOUT_EFFECT = {
    "endpoints": "names servers for `check` and `ask`, not for the stack",
    "storage.offline": "may be set before the first model comes from the Hub",
    "gateway.enabled": "keeps the settings of an add-on", "monitoring.enabled": "keeps the settings of an add-on",
    "gateway.tls.names": "a generated certificate is no part of the plan", "ui.kind": "has one value",
    "target": "is the same stack elsewhere", "kubernetes": "is for the target `kubernetes`",
}  # fmt: skip
FOLDER = Path("/srv/stack")


def stacks() -> Iterator[tuple[str, dict[str, Any]]]:
    for engine, gpus, local, gateway in product(engines.names(), (False, True), (False, True), (False, True, "two")):
        model: dict[str, Any] = {"engine": engine, "model": "./m" if local else "org/M-1B"}
        model |= {"gpus": 2} if gpus else {}
        model |= {"file": "q.gguf"} if engine == "llamacpp" else {}
        model |= {"replicas": 2} if gateway == "two" else {}
        # SGLang's project publishes no CPU image
        model |= {"image": "me/sglang-cpu:1"} if engine == "sglang" and not gpus else {}
        data: dict[str, Any] = {"name": "s", "models": [model], "gateway": {} if gateway else False}
        name = f"{engine}-{'gpu' if gpus else 'cpu'}-{'local' if local else 'hub'}"
        # add-ons once for each engine
        data |= {"monitoring": {}, "ui": {}} if gateway is True and not local else {}
        yield f"{name}-{'no-gateway' if gateway is False else 'replicas' if gateway == 'two' else 'gateway'}", data


def plan_of(data: dict[str, Any]) -> tuple[Plan | None, str]:
    """The plan without its warnings, and all messages."""
    try:
        plan = resolve(build_spec(data, "stack.yaml"), ComposeSite(FOLDER, FOLDER))
    except SpecError as error:
        return None, str(error)
    return replace(plan, warnings=()), "\n".join(plan.warnings)


def put(data: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        data = data.setdefault(name, {})
    data[last] = value


def test_the_table_has_every_optional_field() -> None:
    fields = {field for name in engines.names() for field in engines.get(name).Model.model_fields}
    assert fields - {"model", "engine", "kubernetes"} == set(MODEL)
    nested = {"storage": StorageSpec, "gateway": GatewaySpec, "gateway.tls": TlsSpec, "monitoring": MonitoringSpec,
              "ui": UiSpec}  # fmt: skip
    known = {f"{path}.{field}" for path, spec in nested.items() for field in spec.model_fields}
    known |= {field for field in StackSpec.model_fields if field not in ("name", "models", "logging", *nested)}
    assert known | {"logging.max_size", "logging.max_file"} == set(STACK) | set(WITHOUT_EFFECT)


@pytest.mark.parametrize(("name", "data"), [*stacks()], ids=lambda one: one if isinstance(one, str) else "")
def test_no_field_is_ignored_in_silence(name: str, data: dict[str, Any]) -> None:
    before, said = plan_of(data)
    assert before, said
    model = data["models"][0]
    fields = engines.get(model["engine"]).Model.model_fields
    silent = []
    for path, value in [*((f"models[0].{field}", one) for field, one in MODEL.items() if field in fields),
                        *STACK.items()]:  # fmt: skip
        # an add-on without its section, or switched off, keeps no settings
        if path in WITHOUT_EFFECT or (path.startswith(("gateway.", "monitoring.", "ui.")) and not isinstance(
            data.get(path.partition(".")[0]), dict
        )):  # fmt: skip
            continue
        changed = copy.deepcopy(data)
        if path.startswith("models"):
            # the default of read_only depends on the GPUs
            changed["models"][0][path.rpartition(".")[2]] = "gpus" in model if value == "other" else value
        else:
            put(changed, path, value)
        after, texts = plan_of(changed)
        if after == before and f"{path} has no effect" not in texts:
            silent.append(path)
    # these are the defaults of such stacks
    same = {"models[0].replicas"} if "replicas" in model else set()
    same |= {"models[0].tensor_parallel_size"} if model["engine"] in ("vllm", "sglang") and "gpus" in model else set()
    assert set(silent) <= same, silent


@pytest.mark.parametrize(
    ("settings", "warned"), [({}, True), ({"kubernetes": {"service_type": "LoadBalancer"}}, False)]
)
def test_an_address_of_the_machine_opens_no_port_of_a_cluster(settings: dict[str, Any], warned: bool) -> None:
    stack = {"name": "x", "bind": "0.0.0.0", "models": [{"model": "org/n-1B", "engine": "vllm", "gpus": 1}]} | settings
    plan = resolve(build_spec(stack, "stack.yaml"), KubernetesSite())
    assert any(one.startswith("bind opens no port outside a Kubernetes cluster") for one in plan.warnings) is warned


def test_settings_for_kubernetes_in_a_stack_for_compose_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "name: demo\nkubernetes: {gpus_per_node: 4}\nmodels: [{model: org/m-1B, engine: vllm, gpus: 1}]\n"
    for line, count in (("", 1), ("target: compose\n", 0), ("target: kubernetes\n", 0)):
        (tmp_path / "stack.yaml").write_text(line + text)
        assert cli.main(["render", str(tmp_path), "--no-validate"]) == 0
        assert capsys.readouterr().err.count("kubernetes has no effect") == count


@pytest.mark.parametrize(("model", "file", "count"), [
    ("org/m-4B-GGUF", "m-4B-Q4_K_M.gguf", 0), ("org/m-8B-GGUF", "m-8B-Q4_K_M.gguf", 0),
    ("org/m-14B-GGUF", "m-14B-Q4_K_M.gguf", 1), ("org/m-4B-GGUF", "m-4B-F16.gguf", 1),
])  # fmt: skip
def test_a_quantized_file_is_smaller_on_the_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, file: str, count: int
) -> None:
    text = f"name: demo\nmodels: [{{model: {model}, engine: llamacpp, file: {file}, gpus: none}}]\n"
    (tmp_path / "stack.yaml").write_text(text)
    assert cli.main(["render", str(tmp_path), "--no-validate"]) == 0
    assert capsys.readouterr().err.count("runs on the CPU") == count
