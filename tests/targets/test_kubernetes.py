"""The target Kubernetes: the plans of all engines at its site, its quoting, and what a cluster can't do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stackgen import engines
from stackgen.cli import main as cli
from stackgen.errors import SpecError
from stackgen.kubernetes.manifests import render_manifests
from stackgen.kubernetes.monitoring import scope
from stackgen.kubernetes.probes import find_markers
from stackgen.kubernetes.rules import find_mistakes
from stackgen.plan import Plan
from stackgen.render.templating import RenderedFile
from stackgen.resolve.pipeline import resolve
from stackgen.resources import templates_dir
from stackgen.stack.folder import model_settings
from stackgen.stack.load import build_spec
from stackgen.targets.kubernetes import KubernetesSite, escape, format_scalar
from tests.engines.test_contract import NEEDS

by_engine = pytest.mark.parametrize("engine", engines.names())


def plan(*models: dict[str, Any], **fields: Any) -> Plan:
    entries = [
        {"model": f"org/m{index}"} | NEEDS.get(model.get("engine", "vllm"), {}) | {"engine": "vllm"} | model
        for index, model in enumerate(models or ({},))
    ]
    spec = build_spec({"name": "demo", "models": entries} | fields, "test")
    return resolve(spec, KubernetesSite(Path("/stack"), spec.namespace), "test")


def render(*models: dict[str, Any], **fields: Any) -> tuple[RenderedFile, ...]:
    entries = [{"model": f"org/m{index}", "engine": "vllm"} | model for index, model in enumerate(models)]
    spec = build_spec({"name": "demo", "models": entries} | fields, "test")
    made = resolve(spec, KubernetesSite(Path("/stack"), spec.namespace), "test")
    return render_manifests(made, spec.cluster, model_settings(spec, made), namespace="demo", port=8000, source="x")


def objects(files: tuple[RenderedFile, ...]) -> list[dict[str, Any]]:
    skipped = ("kustomization.yaml", "references.yaml")
    return [
        one
        for file in files
        if "/" not in file.path and file.path not in skipped
        for one in yaml.load_all(file.text, yaml.CSafeLoader)
        if one
    ]


def mistakes(*models: dict[str, Any], **fields: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        plan(*models, **fields)
    return [one.path for one in caught.value.mistakes]


@by_engine
def test_replicas_of_a_model_are_one_service_behind_the_gateway(engine: str) -> None:
    made = plan({"engine": engine, "replicas": 3, "gpus": 2})
    [service] = [one for one in made.services if one.role in ("engine", "worker")]
    assert (service.replicas, service.gpus.count if service.gpus else 0) == (3, 2)
    assert [one.role for one in made.services][-1] == "gateway"
    assert {one.base_url for one in made.endpoints} == {"http://gateway.demo.svc.cluster.local:8000/v1"}


@by_engine
def test_all_engines_render_without_a_mistake(engine: str) -> None:
    made = {"engine": engine} | NEEDS.get(engine, {})
    files = render(made | {"gpus": 1, "replicas": 2}, made | {"model": "org/b"}, monitoring=True)
    assert [str(one) for one in find_mistakes(objects(files))] == []
    kinds = {one["kind"] for one in objects(files)}
    assert kinds >= {"Deployment", "Service", "Job", "PersistentVolumeClaim", "NetworkPolicy", "PodMonitor"}


def test_a_model_larger_than_a_node_runs_on_several_nodes() -> None:
    [service] = [one for one in plan({"gpus": 16}).services if one.role == "engine"]
    assert service.group
    assert service.gpus
    assert (service.group.size, service.gpus.count) == (2, 8)
    words = service.command
    assert words[words.index("--tensor-parallel-size") + 1] == "8"
    assert words[words.index("--pipeline-parallel-size") + 1] == "2"
    assert words[words.index("--nnodes") + 1] == "2"
    assert service.group.command == (*words, "--headless")
    # with other nodes, the same model fits on one
    [one] = [one for one in plan({"gpus": 16}, kubernetes={"gpus_per_node": 16}).services if one.role == "engine"]
    assert one.group is None


@pytest.mark.parametrize(
    ("model", "fields", "path"),
    [
        ({"model": "./weights"}, {}, "models[0].model"),
        ({"gpus": "all"}, {}, "models[0].gpus"),
        ({"gpus": 15}, {}, "models[0].gpus"),
        ({"gpus": 16, "engine": "fastchat"}, {}, "models[0].gpus"),
        ({"gpus": 16, "extra_args": ["--data-parallel-size", "2"]}, {}, "models[0].extra_args[0]"),
        ({"ipc": "host"}, {}, "models[0].ipc"),
        ({"networks": ["other"]}, {}, "models[0].networks"),
        ({"group_add": ["render"]}, {}, "models[0].group_add[0]"),
        ({"user": "root"}, {}, "models[0].user"),
        ({"extra_args": ["--config", "./x.yaml"]}, {}, "models[0].extra_args[1]"),
        ({"replicas": 2, "cache_aware": True}, {}, "models[0].cache_aware"),
        ({"kubernetes": {"max_replicas": 2}}, {}, "models[0].kubernetes.max_replicas"),
        ({"kubernetes": {"gpu_memory": "80Gi"}}, {}, "models[0].kubernetes.gpu_memory"),
        ({"kubernetes": {"resources": {"nvidia.com/gpu": 1}}}, {}, "models[0].kubernetes.resources.nvidia.com/gpu"),
        ({"kubernetes": {"resources": {"nvidia.com/mig-1g.10gb": 1}}}, {},
         "models[0].kubernetes.resources.nvidia.com/mig-1g.10gb"),
        ({"kubernetes": {"resources": {"x.kubernetes.io/y": 1}}}, {}, "models[0].kubernetes.resources"),
        ({"gpus": "none", "kubernetes": {"gpu_resource": "nvidia.com/mig-1g.10gb"}}, {},
         "models[0].kubernetes.gpu_resource"),
        ({"kubernetes": {"gpu_resource": "nvidia.com/mig-1g.10gb"}}, {"kubernetes": {"gpus_by": "dra"}},
         "models[0].kubernetes.gpu_resource"),
        ({}, {"gateway": False}, "gateway"),
        ({}, {"gateway": {"tls": "generate"}}, "gateway.tls"),
        ({}, {"ui": "open-webui"}, "ui"),
        ({}, {"storage": {"path": "/srv/models"}}, "storage.path"),
        ({}, {"kubernetes": {"autoscaling": {"by": "keda"}}}, "kubernetes.autoscaling.prometheus"),
        ({}, {"kubernetes": {"tls_secret": "x"}}, "kubernetes.tls_secret"),
    ],
)  # fmt: skip
def test_what_a_cluster_cannot_do_is_an_error_with_its_place(
    model: dict[str, Any], fields: dict[str, Any], path: str
) -> None:
    assert path in mistakes(model, **fields)


def test_pods_request_the_devices_and_annotations_of_the_stack_file() -> None:
    settings = {"gpu_resource": "nvidia.com/mig-3g.40gb", "resources": {"rdma/hca": 2}, "annotations": {"a/b": "c"},
                "tolerations": [{"key": "rdma"}]}  # fmt: skip
    found = objects(render({"gpus": 1, "kubernetes": settings}, kubernetes={"annotations": {"a/b": "all", "d": "e"}}))
    pods = {one["metadata"]["name"]: one["spec"]["template"] for one in found if one["kind"] == "Deployment"}
    [engine] = [pod for name, pod in pods.items() if name.startswith("vllm")]
    resources = engine["spec"]["containers"][0]["resources"]
    for part in (resources["requests"], resources["limits"]):
        assert part["nvidia.com/mig-3g.40gb"] == "1" and part["rdma/hca"] == "2" and "nvidia.com/gpu" not in part
    assert engine["metadata"]["annotations"] == {"a/b": "c", "d": "e"}
    assert {"key": "rdma", "operator": "Exists"} in engine["spec"]["tolerations"]
    assert pods["gateway"]["metadata"]["annotations"] == {"a/b": "all", "d": "e"}
    assert "rdma/hca" not in pods["gateway"]["spec"]["containers"][0]["resources"]["requests"]


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=40))
def test_every_text_survives_yaml(text: str) -> None:
    assert yaml.load(f"a: [{{ b: {format_scalar(text)} }}]", yaml.CSafeLoader) == {"a": [{"b": text}]}


@given(st.text("$()APOD_I{}x", max_size=12))
def test_the_kubelet_expands_no_text_of_the_user(text: str) -> None:
    """The kubelet's rules: `$$` is `$`, `$(NAME)` a reference, and any other `$` stays."""
    escaped, position, read = escape(text), 0, ""
    while position < len(escaped):
        if escaped.startswith("$$", position):
            read, position = read + "$", position + 2
        elif escaped.startswith("$(POD_IP)", position):
            read, position = read + "$(POD_IP)", position + len("$(POD_IP)")
        else:
            assert not escaped.startswith("$(", position)
            read, position = read + escaped[position], position + 1
    assert read == text


def test_alerts_concern_only_the_namespace_of_the_stack() -> None:
    expression = 'sum by (model) (deriv(vllm:num_requests_waiting[10m])) > 0 and up{job="vllm"} == 0'
    assert scope(expression, "x") == (
        'sum by (model) (deriv(vllm:num_requests_waiting{namespace="x"}[10m])) > 0 '
        'and up{namespace="x",job="vllm"} == 0'
    )
    [rules] = [one for one in objects(render({}, monitoring=True)) if one["kind"] == "PrometheusRule"]
    for group in rules["spec"]["groups"]:
        for alert in group["rules"]:
            assert 'namespace="demo"' in alert["expr"], alert
            assert "docker" not in alert["annotations"]["action"], alert


@pytest.mark.parametrize(
    "words", [["--model", "a/b"], ["--model", "a/b", "--revision", "x/y", "--file", "q.gguf", "--file", "m.gguf"]]
)
def test_pods_wait_for_the_file_that_the_download_writes(words: list[str], tmp_path: Path) -> None:
    program = (
        "import json, sys, download as d\nmodels = []\nwords = json.loads(sys.argv[1])\n"
        "for option, value in zip(words[::2], words[1::2]):\n"
        "    if option == '--model': models.append(d.Model(value))\n"
        "    elif option == '--revision': models[-1].revision = value\n"
        "    else: models[-1].patterns.append(value)\n"
        "print(models[0].marker())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(templates_dir() / "images/common"), "HF_HUB_CACHE": "/models/hub"}
    done = subprocess.run([sys.executable, "-c", program, json.dumps(words)], env=environment, capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert find_markers(words) == (done.stdout.strip(),)


def test_a_job_has_another_name_if_its_content_changes() -> None:
    names = {
        one["metadata"]["name"]
        for models in ([{}], [{}, {}], [{}])
        for one in objects(render(*models)) if one["kind"] == "Job"
    }  # fmt: skip
    assert len(names) == 2


@pytest.mark.parametrize(
    ("model", "message"),
    [({"labels": {"a/b/c": "x"}}, "'a/b/c' is not a valid key for a label"),
     ({"extra_env": {"TEXT": "$(HOME)"}}, ""), ({"extra_args": ["--x=$(HOME)"]}, "")],
)  # fmt: skip
def test_manifests_are_checked_before_they_are_written(
    model: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"model": "org/m", "engine": "vllm", "revision": "a" * 40} | model
    (tmp_path / "stack.yaml").write_text(yaml.safe_dump({"name": "demo", "models": [entry]}))
    code = cli.main(["render", str(tmp_path), "--target", "kubernetes"])
    shown = capsys.readouterr().err
    assert (code == 0) == (not message), shown
    assert message in shown
    assert (tmp_path / "kubernetes").exists() == (not message)
    assert cli.main(["render", str(tmp_path), "--target", "kubernetes", "--no-validate"]) == 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"weights": {"storage_class": "files"}}, {"models": "files", "vllm-cache": "files"}),
        ({"weights": {"storage_class": "files"}, "cache": {"storage_class": "fast"}},
         {"models": "files", "vllm-cache": "fast"}),
        ({}, {"models": None, "vllm-cache": None}),
    ],
)  # fmt: skip
def test_claims_for_compile_caches_have_the_class_of_the_weights_by_default(
    settings: dict[str, Any], expected: dict[str, str | None]
) -> None:
    found = objects(render({"gpus": 1}, kubernetes=settings))
    claims = [one for one in found if one["kind"] == "PersistentVolumeClaim"]
    assert {one["metadata"]["name"]: one["spec"].get("storageClassName") for one in claims} == expected


def test_an_image_that_no_registry_has_is_a_warning() -> None:
    entry = {"engine": "llamacpp"}
    with_registry = plan(entry, kubernetes={"registry": "registry.example.com/x"})
    assert any("is an image that stackgen builds, so no registry has it" in one for one in plan(entry).warnings)
    assert not any("no registry has it" in one for one in (*with_registry.warnings, *plan({"gpus": 1}).warnings))
