"""What `render` says about the cluster, and the labels by which Prometheus and Grafana select objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.cli import main as cli

REVISION = "be673f326cab4cd22ccfef76109faf68e41aa5f1"
MODEL = {"model": "Qwen/Qwen3-8B", "engine": "vllm", "revision": REVISION, "gpus": 1}


def render(folder: Path, capsys: pytest.CaptureFixture[str], model: dict[str, Any], **fields: Any) -> str:
    data = {"name": "lab", "target": "kubernetes", "models": [MODEL | model], **fields}
    (folder / "stack.yaml").write_text(json.dumps(data))
    capsys.readouterr()
    assert cli.main(["render", str(folder), "--json"]) == 0
    return "\n".join(json.loads(capsys.readouterr().out)["to_do"])


def test_render_lists_what_this_stack_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = render(
        tmp_path, capsys, {"gpus": 16, "kubernetes": {"max_replicas": 2}}, gateway={"tls": "generate"}, monitoring=True,
        kubernetes={"tls_secret": "gateway-certificate", "registry": "registry.example.com/llm",
                    "image_pull_secrets": ["registry-login"],
                    "autoscaling": {"by": "keda", "prometheus": "http://p:9090"}, "weights": {"claim": "shared"}},
    )  # fmt: skip
    assert "`kubectl -n lab create secret tls gateway-certificate --cert site.crt --key site.key`" in text
    assert (
        "push registry.example.com/llm/stackgen/exporter:" in text
        and "create secret docker-registry registry-login" in text
    )
    for need in ("device plugin of NVIDIA", "LeaderWorkerSet", "Prometheus operator", "KEDA", "Claim shared"):
        assert need in text
    assert "monitoring_labels" in text and text.endswith(f"`stackgen doctor {tmp_path}`")


def test_render_lists_nothing_that_the_stack_does_not_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert render(tmp_path, capsys, {"gpus": "none"}) == ""
    text = render(tmp_path, capsys, {}, kubernetes={"gpus_by": "dra"})
    assert "DRA driver" in text and len(text.splitlines()) == 2


def test_render_names_the_assumed_size_of_nodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = render(tmp_path, capsys, {"gpus": 8})
    assert "assume nodes with 8 GPUs, and a replica of Qwen/Qwen3-8B needs 8" in text
    assert "set `kubernetes.gpus_per_node`" in text
    assert "gpus_per_node" not in render(tmp_path, capsys, {"gpus": 8}, kubernetes={"gpus_per_node": 4})
    assert "gpus_per_node" not in render(tmp_path, capsys, {"gpus": 4})


@pytest.mark.parametrize("kind", ["LoadBalancer", "NodePort", "ClusterIP"])
def test_render_warns_of_plain_http_outside_the_cluster(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def warned(**fields: Any) -> bool:
        render(tmp_path, capsys, {}, **fields)
        assert cli.main(["render", str(tmp_path)]) == 0
        return f"`kubernetes.service_type: {kind}` opens the gateway" in capsys.readouterr().err

    assert warned(kubernetes={"service_type": kind}) is (kind != "ClusterIP")
    assert not warned(kubernetes={"service_type": kind, "tls_secret": "c"}, gateway={"tls": "generate"})


def test_render_lists_the_labels_of_nodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    selector = {"llm": "small", "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    text = render(tmp_path, capsys, {"kubernetes": {"node_selector": selector}})
    assert "`kubectl label node NODE LABEL` with llm=small\n" in text


def test_the_token_of_a_gated_model_reaches_the_secret_after_another_render(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gated = {"model": "meta-llama/Llama-3.1-8B-Instruct"}
    assert "and run `stackgen render` again" in render(tmp_path, capsys, gated)
    (tmp_path / "token").write_text("hf_x")
    with (tmp_path / ".env").open("a") as file:
        file.write(f"HF_TOKEN_FILE={tmp_path / 'token'}\n")
    assert "is gated" not in render(tmp_path, capsys, gated)
    assert (tmp_path / "kubernetes" / "secrets" / "hf_token").read_text() == "hf_x"


def test_labels_are_on_monitors_rules_and_dashboards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = {"release": "prom", "app.kubernetes.io/part-of": "other"}
    text = render(
        tmp_path, capsys, {}, monitoring=True,
        kubernetes={"registry": "r.example.com", "monitoring_labels": own, "dashboard_labels": {"show": "yes"}},
    )  # fmt: skip
    assert "monitoring_labels" not in text
    output = tmp_path / "kubernetes"
    objects = list(yaml.safe_load_all((output / "monitoring.yaml").read_text()))
    assert {one["kind"] for one in objects} == {"PodMonitor", "ServiceMonitor", "PrometheusRule"}
    for one in objects:
        # `up` and `down` find objects by stackgen's own labels
        labels = one["metadata"]["labels"]
        assert (labels["release"], labels["app.kubernetes.io/part-of"]) == ("prom", "lab")
    maps = yaml.safe_load((output / "kustomization.yaml").read_text())["configMapGenerator"]
    found = {one["name"]: one["options"]["labels"] for one in maps}
    dashboards = [labels for name, labels in found.items() if name.startswith("dashboard-")]
    assert dashboards and all(one["show"] == "yes" and "grafana_dashboard" not in one for one in dashboards)
    assert "show" not in found["gateway"]


def warnings(folder: Path, capsys: pytest.CaptureFixture[str], *models: dict[str, Any], **fields: Any) -> str:
    data = {"name": "lab", "target": "kubernetes", "models": [MODEL | one for one in models], **fields}
    (folder / "stack.yaml").write_text(json.dumps(data))
    capsys.readouterr()
    assert cli.main(["render", str(folder), "--json"]) == 0
    return "\n".join(json.loads(capsys.readouterr().out)["warnings"])


@pytest.mark.parametrize(
    ("models", "size", "need"),
    [
        # the catalog knows what the names do not contain
        (["deepseek-ai/DeepSeek-V3.1", "Qwen/Qwen3-8B"], "200Gi", "about 649.8 GiB (estimated), but "),
        (["deepseek-ai/DeepSeek-V3.1"], "650Gi", "Set it to 700Gi or more"),
        (["deepseek-ai/DeepSeek-V3.1"], "1Ti", ""),
        (["meta-llama/Llama-4-Scout-17B-16E-Instruct"], "60Gi", "about 203.0 GiB"),
        (["openai/gpt-oss-120b"], "200Gi", ""),
        (["Qwen/Qwen3-8B", "acme/unknown"], "10Gi", "at least 15.3 GiB"),
    ],
)
def test_a_claim_is_compared_with_the_sizes_that_render_prints(
    models: list[str], size: str, need: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = warnings(tmp_path, capsys, *({"model": one} for one in models), kubernetes={"weights": {"size": size}})
    assert need in text and ("the weights need" in text) is bool(need)
    own = warnings(tmp_path, capsys, *({"model": one} for one in models), kubernetes={"weights": {"claim": "own"}})
    assert "weights need" not in own and "unknown" not in own


def test_an_unknown_size_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = warnings(tmp_path, capsys, {"model": "acme/unknown"}, {"model": "acme/Maverick-17B-128E-Instruct"})
    assert "the size of the weights of acme/unknown, acme/Maverick-17B-128E-Instruct is unknown" in text
    assert "weights need" not in text
    gguf = {"engine": "llamacpp", "model": "acme/Qwen3-4B-GGUF", "file": "Qwen3-4B-Q4_K_M.gguf"}
    # at 16 bits, its file would fit
    assert "unknown" not in warnings(tmp_path, capsys, gguf)
    assert "unknown" in warnings(tmp_path, capsys, gguf, kubernetes={"weights": {"size": "5Gi"}})


def test_named_gpus_are_only_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = {"model": "Qwen/Qwen3-4B", "gpus": ["GPU-aa", "GPU-bb"], "replicas": 2}
    text = warnings(tmp_path, capsys, {"gpus": [4, 5]}, two, {"model": "Qwen/Qwen3-1.7B", "gpus": 1})
    assert "models[0].gpus names GPUs" in text and "Write `gpus: 2`" in text
    assert "models[1].gpus names GPUs" in text and "each replica gets 1 of the free GPUs" in text
    assert "models[2].gpus" not in text
    (tmp_path / "stack.yaml").write_text((tmp_path / "stack.yaml").read_text().replace('["GPU-aa", ', '["GPU-a", 7, '))
    assert cli.main(["render", str(tmp_path)]) == 2
    assert "models[1].gpus: the number of GPUs (3) can't be divided evenly" in capsys.readouterr().err
