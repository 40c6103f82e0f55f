"""llama.cpp's server: GGUF file, context size, image."""

from __future__ import annotations

from typing import Any

import pytest

from stackgen.errors import SpecError
from stackgen.plan import Bind, Build, EnvRef, Plan, Service
from stackgen.resolve.pipeline import resolve
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite


def plan(*models: dict[str, Any], **fields: Any) -> Plan:
    base = {"engine": "llamacpp", "file": "x.gguf"}
    entries = [{"model": f"org/m{index}"} | base | model for index, model in enumerate(models or ({},))]
    return resolve(
        build_spec({"name": "demo", "models": entries, "gateway": False} | fields, "test"), ComposeSite(), "test"
    )


def service(_stack: dict[str, Any] | None = None, **model: Any) -> Service:
    return next(one for one in plan(model, **(_stack or {})).services if one.role == "engine")


def after(command: tuple[str, ...], flag: str) -> str | None:
    return command[command.index(flag) + 1] if flag in command else None


def test_command_with_all_settings() -> None:
    made = service(
        gpus=1, served_names=["a", "b"], max_model_len="32k", max_num_seqs=4, gpu_layers=20, extra_args=["--jinja"]
    )
    assert made.command == (
        "llama-server",
        "--model",
        "/models/by-name/org/m0/main/x.gguf",
        "--alias",
        "a,b",
        "--host",
        "0.0.0.0",
        "--port",
        "8080",
        "--ctx-size",
        "128000",  # four slots of 32,000: the server divides its context among them
        "--parallel",
        "4",
        "--n-gpu-layers",
        "20",
        "--no-ui",
        "--jinja",
    )


def test_a_hub_repository_needs_a_file_name() -> None:
    with pytest.raises(
        SpecError, match=r"models\[1\]\.file: is missing, and .* only GGUF files \(set `file` to a GGUF file"
    ):
        plan({}, {"file": None, "replicas": 2})


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ({}, "/models/by-name/org/m0/main/x.gguf"),
        # a branch may contain a slash, but must be one folder
        ({"revision": "refs/pr/1"}, "/models/by-name/org/m0/refs%2Fpr%2F1/x.gguf"),
        ({"file": "sub/y.gguf"}, "/models/by-name/org/m0/main/sub/y.gguf"),
        ({"model": "./m.gguf", "file": None}, "/srv/m.gguf"),
        ({"model": "./folder"}, "/srv/folder/x.gguf"),
    ],
)
def test_path_of_the_gguf_file(model: dict[str, Any], path: str) -> None:
    assert after(service(**model).command, "--model") == path


def test_only_the_gguf_file_is_downloaded() -> None:
    made = plan({"revision": "abc"}, {"file": "b.gguf"})
    assert made.services[0].command == (
        "--model",
        "org/m0",
        "--revision",
        "abc",
        "--file",
        "x.gguf",
        "--model",
        "org/m1",
        "--file",
        "b.gguf",
    )
    assert Bind("./m.gguf", "/srv/m.gguf", True) in service(model="./m.gguf", file=None).mounts


@pytest.mark.parametrize(
    ("given", "size"),
    [(None, None), ("auto", None), (-1, None), (8192, "8192"), ("32k", "32000"), ("32K", "32768"), ("0.5k", "500")],
)
def test_context_size_is_a_plain_number(given: Any, size: str | None) -> None:
    assert after(service(max_model_len=given).command, "--ctx-size") == size


def test_all_layers_are_on_the_gpu_by_default() -> None:
    assert after(service(gpus=1).command, "--n-gpu-layers") == "all"
    assert after(service().command, "--n-gpu-layers") is None
    assert after(service(gpus=1, gpu_layers=0).command, "--n-gpu-layers") == "0"


def test_image_depends_on_the_hardware() -> None:
    cpu, gpu = service(), service(gpus=1)
    assert cpu.image.startswith("stackgen/llamacpp:")
    assert not cpu.pull
    assert "server-cuda" in gpu.image
    assert gpu.pull
    assert gpu.build is None
    with pytest.raises(SpecError, match="AMD") as caught:
        plan({"gpus": 2, "replicas": 2}, gpu_driver="amd")
    # once per model, not once per replica
    assert len(caught.value.mistakes) == 1
    assert service({"gpu_driver": "amd"}, gpus=1, image="me/rocm:1").image == "me/rocm:1"


@pytest.mark.parametrize(
    ("models", "folder"),
    [
        (({"gpus": 1},), "download"),
        (({"image": "me/rocm:1"},), "download"),
        # the server's own image is built anyway
        (({},), "llamacpp"),
        (({"gpus": 1}, {}), "llamacpp"),
        (({"gpus": 1, "model": "./x.gguf"},), ""),
    ],
)
def test_nothing_is_compiled_only_to_download(models: tuple[dict[str, Any], ...], folder: str) -> None:
    made = plan(*models)
    downloads = [one for one in made.services if one.role == "download"]
    assert [one.image.partition(":")[0] for one in downloads] == ([f"stackgen/{folder}"] if folder else [])
    contexts = {asset.path.partition("/")[0] for asset in made.assets if asset.path.endswith("/Dockerfile")}
    assert contexts == ({folder} if folder else set())
    if folder == "download":
        assert downloads[0].build and downloads[0].build.context == "./download" and not downloads[0].pull


@pytest.mark.parametrize(
    "models",
    [
        ({},),
        ({"gpus": 1}, {}),
        ({"model": "./x.gguf"}, {"model": "./y.gguf"}),
        ({"image": "me/x:1"}, {}),
    ],
)
def test_own_image_is_built_by_exactly_one_service(models: tuple[dict[str, Any], ...]) -> None:
    made = plan(*models)
    using = [one for one in made.services if one.image.startswith("stackgen/")]
    assert using
    assert [one.build for one in using if one.build] == [Build("./llamacpp")]


def test_key_is_in_the_environment_and_not_in_the_command() -> None:
    made = service()
    assert isinstance(dict(made.environment)["LLAMA_API_KEY"], EnvRef)
    assert "--api-key" not in made.command


def test_health_check_calls_the_service_directly() -> None:
    health = service().health
    assert health
    assert health.command == ("/bin/sh", "/stackgen/llamacpp_health.sh", "http://127.0.0.1:8080")


@pytest.mark.parametrize("length", [None, "auto"])
def test_slots_without_a_context_are_a_warning(length: str | None) -> None:
    found = plan({"max_num_seqs": 4, "max_model_len": length, "replicas": 2})
    # once for a model, not for each replica
    (text,) = [one for one in found.warnings if "max_num_seqs" in one]
    assert text.startswith("models[0].max_num_seqs: ") and "only 1/4" in text
    assert "4 slots divide the model's own context" in service(max_num_seqs=4, max_model_len=length).comment


@pytest.mark.parametrize("fields", [{"max_num_seqs": 4, "max_model_len": "8K"}, {"max_num_seqs": 1}, {}])
def test_a_whole_context_for_each_request_is_no_warning(fields: dict[str, Any]) -> None:
    assert not [one for one in plan(fields).warnings if "max_num_seqs" in one]
