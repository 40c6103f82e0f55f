"""From plan to text: fresh examples, reproducible bytes, and rules for every rendered service."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.examples import complete_copy
from stackgen import engines
from stackgen.cli import main as cli
from stackgen.plan import Plan
from stackgen.render.templating import RenderedFile, render
from stackgen.resolve.pipeline import resolve
from stackgen.resources import templates_dir
from stackgen.stack.folder import open_stack
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite
from tests.conftest import ROOT

EXAMPLES = sorted(path.parent for path in ROOT.glob("compose/*/stack.yaml"))
by_example = pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
# required fields besides model and engine
NEEDS: dict[str, dict[str, Any]] = {"llamacpp": {"file": "x.gguf"}, "sglang": {"image": "me/sglang:1"}}


def plan(*models: dict[str, Any], **fields: Any) -> Plan:
    entries = [{"model": f"org/m{index}", "engine": "vllm"} | model for index, model in enumerate(models)]
    return resolve(build_spec({"name": "demo", "models": entries} | fields, "test"), ComposeSite(), "test")


def compose(made: Plan) -> dict[str, Any]:
    """The Compose file, parsed."""
    data = yaml.safe_load(render(made)[0].text)
    assert isinstance(data, dict)
    return data


def everything() -> Plan:
    """A stack with every engine, replicas, GPUs and CPU."""
    models = [
        {"engine": name} | NEEDS.get(name, {}) | extra
        for name in engines.names()
        for extra in ({}, {"gpus": 1, "replicas": 2})
    ]
    return plan(*models)


def test_all_promised_examples_exist() -> None:
    promised = {"vllm-one-gpu", "vllm-tensor-parallel-4", "vllm-two-models", "vllm-cpu", "fastchat-one-gpu",
              "fastchat-two-models", "fastchat-cpu"}  # fmt: skip
    assert promised <= {folder.name for folder in EXAMPLES}


@by_example
def test_examples_are_fresh(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["render", str(complete_copy(folder, tmp_path / "copy")), "--check", "--no-validate"])
    assert code == 0, capsys.readouterr().out


def test_examples_script_reports_fresh_examples() -> None:
    done = subprocess.run(
        [str(ROOT / "scripts/examples"), "--check", "--no-validate"],
        env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("up to date") == len(EXAMPLES)


@by_example
def test_lock_file_matches_the_rendered_files(folder: Path, tmp_path: Path) -> None:
    copy = complete_copy(folder, tmp_path / "copy")
    done = subprocess.run(["sha256sum", "-c", "--strict", "stackgen.lock"], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@by_example
def test_rendering_is_deterministic(folder: Path) -> None:
    assert open_stack(str(folder)).files() == open_stack(str(folder)).files()


def test_rendering_does_not_depend_on_the_hash_seed() -> None:
    """The order of sets differs between processes."""
    texts = set()
    for seed in ("0", "1", "77"):
        command = [sys.executable, "-m", "stackgen", "render", "compose/fastchat-two-models", "--stdout"]
        env = os.environ | {"PYTHONHASHSEED": seed}
        texts.add(subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=True).stdout)
    assert len(texts) == 1


@by_example
def test_no_obsolete_version_and_no_unknown_top_level(folder: Path) -> None:
    data = yaml.safe_load((folder / "compose.yaml").read_text("utf-8"))
    assert set(data) <= {"name", "services", "networks", "volumes", "secrets"}
    assert data["name"] == yaml.safe_load((folder / "stack.yaml").read_text("utf-8"))["name"]


@by_example
def test_no_file_contains_a_key_or_token(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".whl":
            text = path.read_text("utf-8")
            assert not re.search(r"\b(sk-|hf_)[A-Za-z0-9_-]{16,}", text), path
            # keys in an environment are references to .env
            for value in re.findall(r"(?m)^\s*\w*(?:API_KEY|TOKEN|SECRET|PASSWORD)\w*:\s*(.+)$", text):
                assert value.startswith(('"${', "/run/secrets/")), (path, value)


def test_environment_and_env_files_do_not_leak_into_rendered_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = "sk-very-secret-value-0123456789"
    monkeypatch.setenv("STACKGEN_API_KEY", secret)
    monkeypatch.setenv("HF_TOKEN", secret)
    monkeypatch.setenv("HF_TOKEN_FILE", "/path/" + secret)
    (tmp_path / ".env").write_text(f"STACKGEN_API_KEY={secret}\n")
    (tmp_path / "stack.yaml").write_text(
        "name: a\nmodels: [{model: x/y, engine: vllm}, {model: x/z, engine: fastchat}]\n"
    )
    assert cli.main(["render", str(tmp_path)]) == 0
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.name != ".env":
            assert secret not in path.read_text("utf-8")


@pytest.mark.parametrize(
    "made", [everything(), *(open_stack(str(folder)).plan for folder in EXAMPLES)], ids=lambda made: made.name
)
def test_every_service_is_hardened_and_supervised(made: Plan) -> None:
    data = compose(made)
    assert len(data["services"]) == len(made.services)
    for name, service in data["services"].items():
        one_shot = made.service(name).role == "download"
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert "privileged" not in service
        # hooks of the NVIDIA Container Toolkit write to the root file system
        assert service.get("read_only", False) is not ("deploy" in service or "devices" in service), name
        assert ("healthcheck" in service) != one_shot, name
        assert service["logging"] == {"driver": "json-file", "options": {"max-size": "20m", "max-file": "5"}}
        # an engine that can't start must stop trying; services next to it restart forever
        usual = "on-failure:3" if made.service(name).engine else "unless-stopped"
        assert service["restart"] == ("no" if one_shot else usual), name
        assert not service["image"].endswith(":latest")
        assert ":" in service["image"], name
        # without stackgen, `docker compose up` must pull the image, build it, or use one that another service builds
        assert ("build" in service) or made.service(name).pull or service["pull_policy"] == "never"
        if not one_shot:
            check = service["healthcheck"]
            assert check["test"][0] == "CMD"
            assert {"interval", "timeout", "retries", "start_period", "start_interval"} <= set(check)


@pytest.mark.parametrize(
    "made", [everything(), *(open_stack(str(folder)).plan for folder in EXAMPLES)], ids=lambda made: made.name
)
def test_only_authenticated_services_publish_ports_and_only_on_loopback(made: Plan) -> None:
    data = compose(made)
    internal = {name for name, network in (data.get("networks") or {}).items() if network.get("internal")}
    published = 0
    for name, service in data["services"].items():
        role = made.service(name).role
        if role in ("controller", "worker"):
            assert "ports" not in service, name
            assert set(service["networks"]) <= internal, name
            assert service["networks"], name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")
            published += role not in ("monitoring", "ui")
        if role == "download":
            assert "ports" not in service
        # only published services need the clients' key
        has_key = any("STACKGEN_API_KEY" in str(value) for value in service.get("environment", {}).values())
        if role not in ("monitoring", "ui"):
            assert has_key == bool(service.get("ports")), name
    assert published == len({endpoint.base_url for endpoint in made.endpoints})


@pytest.mark.parametrize(
    "made", [everything(), *(open_stack(str(folder)).plan for folder in EXAMPLES)], ids=lambda made: made.name
)
def test_gpu_reservations_have_either_ids_or_a_count(made: Plan) -> None:
    claims: list[str] = []
    for name, service in compose(made)["services"].items():
        devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        assert bool(devices) == (made.service(name).gpus is not None)
        for device in devices:
            assert ("device_ids" in device) != ("count" in device), name  # neither would mean all
            assert device["capabilities"] == ["gpu"]
            assert all(isinstance(one, str) for one in device.get("device_ids", []))
            # GPU monitoring uses no GPU memory
            claims += device.get("device_ids", []) if made.service(name).role != "monitoring" else []
        assert "replicas" not in service.get("deploy", {})  # all of them would get the same cards
    assert len(claims) == len(set(claims))


@pytest.mark.parametrize("name", ["vllm-two-models", "fastchat-two-models"])
def test_two_models_get_one_gpu_each(name: str) -> None:
    data = yaml.safe_load((ROOT / "compose" / name / "compose.yaml").read_text("utf-8"))
    claims = [
        tuple(service["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"])
        for service in data["services"].values()
        if "deploy" in service
    ]
    assert sorted(claims) == [("0",), ("1",)]


def test_each_gpu_driver_has_its_compose_syntax() -> None:
    amd = compose(plan({"gpus": [0]}, gpu_driver="amd"))["services"]["vllm-m0"]
    assert amd["devices"] == ["/dev/kfd", "/dev/dri"]
    assert "deploy" not in amd
    assert amd["environment"]["ROCR_VISIBLE_DEVICES"] == "0"
    assert "no-new-privileges:true" in amd["security_opt"]
    cdi = compose(plan({"gpus": [0]}, gpu_driver="cdi"))["services"]["vllm-m0"]
    assert cdi["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "cdi", "device_ids": ["nvidia.com/gpu=0"], "capabilities": ["gpu"]}
    ]
    every = compose(plan({"gpus": "all", "tensor_parallel_size": 2}))["services"]["vllm-m0"]
    assert every["deploy"]["resources"]["reservations"]["devices"][0]["count"] == "all"


def test_rendered_files_read_as_hand_written() -> None:
    text = render(everything())[0].text
    assert text.startswith("# Generated by stackgen from stack.yaml. Start with `docker compose up -d`")
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert not re.search(r"[ \t]\n", text)
    assert "\n\n\n" not in text
    assert "\t" not in text
    for service in everything().services:
        assert f"  # {service.comment}\n  {service.name}:\n" in text


def test_every_mounted_script_is_rendered() -> None:
    made = everything()
    files = {file.path for file in render(made)}
    for service in made.services:
        arguments = [*service.entrypoint, *service.command, *(service.health.command if service.health else ())]
        scripts = {one.removeprefix("/stackgen/") for one in arguments if one.startswith("/stackgen/")}
        assert {f"scripts/{script}" for script in scripts} <= files
        if service.build:
            assert f"{service.build.context.removeprefix('./')}/Dockerfile" in files


def test_the_header_names_the_source_on_one_line() -> None:
    text = render(plan({}), "evil\nservices: {}\n#.yaml")[0].text
    assert text.splitlines()[0].startswith("# Generated by stackgen from evil services")
    assert yaml.safe_load(text)["services"]


def test_assets_are_copied_unchanged() -> None:
    """Template syntax is not interpreted: Dockerfiles and scripts contain braces and dollars of their own."""
    made = everything()
    texts = {file.path: file.text for file in render(made)}
    for asset in made.assets:
        assert texts[asset.path] == (templates_dir() / asset.template).read_text("utf-8")


def test_files_stay_in_their_folder() -> None:
    for file in render(everything()):
        assert isinstance(file, RenderedFile)
        assert not Path(file.path).is_absolute()
        assert ".." not in Path(file.path).parts
