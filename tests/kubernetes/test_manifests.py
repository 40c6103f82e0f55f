"""The manifests of all golden stacks: up to date, valid for the newest schemas, and without a secret."""

from __future__ import annotations

import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from scripts.examples import MANIFESTS, find_manifest_changes
from stackgen.cli import main as cli
from stackgen.targets.kubernetes import FOLDER
from tests.conftest import ROOT
from tests.kubernetes.custom_schemas import CUSTOM

by_stack = pytest.mark.parametrize("folder", MANIFESTS, ids=lambda folder: folder.name)
# of custom resources, whose schemas are not in Kubernetes itself
NOT_APPLIED = ("kustomization.yaml", "references.yaml")
CUSTOM_GROUPS = ("leaderworkerset.x-k8s.io", "monitoring.coreos.com", "keda.sh")


@cache
def objects(folder: Path) -> tuple[dict[str, Any], ...]:
    """All objects in the manifests of a golden stack."""
    files = [path for path in sorted((folder / FOLDER).glob("*.yaml")) if path.name not in NOT_APPLIED]
    found = [one for path in files for one in yaml.load_all(path.read_text(), yaml.CSafeLoader)]
    return tuple(one for one in found if one)


@by_stack
def test_manifests_are_fresh(folder: Path) -> None:
    stale = [one.path for one in find_manifest_changes(folder) if one.kind != "same"]
    assert not stale, f"run scripts/examples: {stale}"


@by_stack
def test_every_object_fits_the_newest_schemas(folder: Path) -> None:
    checked = [one for one in objects(folder) if one["apiVersion"].partition("/")[0] not in CUSTOM_GROUPS]
    assert {one["kind"] for one in checked} >= {"Deployment", "Service", "Job", "NetworkPolicy"}
    for one in checked:
        kubernetes_validate.validate(one, "1.37", strict=True)


@by_stack
def test_every_custom_object_has_only_known_fields(folder: Path) -> None:
    for one in objects(folder):
        if one["kind"] in CUSTOM:
            jsonschema.validate(one, CUSTOM[one["kind"]])
        if one["kind"] == "LeaderWorkerSet":
            for template in ("leaderTemplate", "workerTemplate"):
                spec = one["spec"]["leaderWorkerTemplate"][template]
                made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"} | spec["metadata"]}
                kubernetes_validate.validate(made | {"spec": spec["spec"]}, "1.37", strict=True)


def test_golden_stacks_have_every_custom_kind() -> None:
    kinds = {one["kind"] for folder in MANIFESTS for one in objects(folder)}
    assert kinds >= {*CUSTOM, "HorizontalPodAutoscaler", "ResourceClaimTemplate", "PodDisruptionBudget"}


@by_stack
def test_kustomization_names_exactly_the_files_in_the_folder(folder: Path) -> None:
    """The files that git does not have are copies of templates; `render` writes them."""
    kustomization = yaml.safe_load((folder / FOLDER / "kustomization.yaml").read_text())
    manifests = {path.name for path in (folder / FOLDER).glob("*.yaml")} - set(NOT_APPLIED)
    assert set(kustomization["resources"]) == manifests


def test_render_writes_manifests_that_contain_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(ROOT / "compose/vllm-one-gpu/stack.yaml", tmp_path)
    assert cli.main(["render", str(tmp_path), "--target", "kubernetes"]) == 0
    env = dict(re.findall(r"(?m)^(\w+)=(.+)$", (tmp_path / ".env").read_text()))
    output = tmp_path / FOLDER
    secrets = {path.name: path for path in (output / "secrets").iterdir()}
    assert set(secrets) == {"engine.env", "STACKGEN_API_KEY", "keys.map", "hf_token"}
    assert secrets["engine.env"].read_text() == f"STACKGEN_ENGINE_KEY={env['STACKGEN_ENGINE_KEY']}\n"
    assert all(path.stat().st_mode & 0o077 == 0 for path in (output / "secrets", *secrets.values()))
    assert "kubernetes/secrets/" in (tmp_path / ".gitignore").read_text()
    for path in output.rglob("*"):
        if path.is_file() and path.parent.name != "secrets":
            assert not [name for name, value in env.items() if len(value) > 20 and value in path.read_text()]
    # a second time, nothing changes
    capsys.readouterr()
    assert cli.main(["render", str(tmp_path), "--target", "kubernetes", "--check"]) == 0
    assert "up to date" in capsys.readouterr().out


def test_compose_and_kubernetes_live_side_by_side(tmp_path: Path) -> None:
    """Each target has its own lock file, so that neither removes the files of the other."""
    shutil.copy(ROOT / "compose/vllm-one-gpu/stack.yaml", tmp_path)
    for target in ("compose", "kubernetes", "compose"):
        assert cli.main(["render", str(tmp_path), "--target", target, "--no-validate"]) == 0
    assert (tmp_path / "compose.yaml").exists()
    assert (tmp_path / FOLDER / "kustomization.yaml").exists()


@pytest.mark.parametrize("command", ["update", "scale m=2", "up --runtime process"])
def test_commands_for_one_machine_refuse_a_stack_for_a_cluster(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "compose/vllm-one-gpu/stack.yaml").read_text()
    (tmp_path / "stack.yaml").write_text(f"{text}target: kubernetes\n")
    assert cli.main(["render", str(tmp_path)]) == 0
    assert (tmp_path / FOLDER / "kustomization.yaml").exists()
    assert not (tmp_path / "compose.yaml").exists()
    capsys.readouterr()
    assert cli.main([*command.split(), str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert "target kubernetes" in shown
    assert "`stackgen up`, `check`, `ask`, `status`, `logs`, `keys`, `doctor`, `diagnose` and `down`" in shown


@by_stack
def test_counts_of_keys_survive_a_restart_of_the_gateways_container(folder: Path) -> None:
    """docs/how-to/run-on-kubernetes.md, "Limits of keys": an emptyDir, and an overlap of 50 s during a rollout."""
    gateway = next(
        one for one in objects(folder) if (one["kind"], one["metadata"]["name"]) == ("Deployment", "gateway")
    )
    pod = gateway["spec"]["template"]["spec"]
    (name,) = (one["name"] for one in pod["containers"][0]["volumeMounts"] if one["mountPath"] == "/tmp")
    assert next(one for one in pod["volumes"] if one["name"] == name) == {"name": name, "emptyDir": {}}
    assert pod["terminationGracePeriodSeconds"] == 50
    assert gateway["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
