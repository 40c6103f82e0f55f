"""Labels, groups, mounts, networks and files of a model reach its containers, and only those."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stackgen import engines
from stackgen.cli.main import main
from stackgen.errors import SpecError
from stackgen.resolve.pipeline import resolve
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite
from stackgen.targets.process import ProcessSite

EXTRAS: dict[str, Any] = {
    "labels": {"traefik.enable": "true", "cost": "a: $x"},
    "networks": ["edge", "logging"],
    "mounts": [{"source": "./data", "target": "/data"}, {"source": "/srv/out", "target": "/out", "read_only": False}],
    "group_add": ["992", "render"],
}


def compose_config(folder: Path, *models: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """What Compose reads from the rendered file."""
    (folder / "stack.yaml").write_text(json.dumps({"name": "n", "models": models, **fields}), encoding="utf-8")
    assert main(["render", str(folder), "--no-validate"]) == 0
    (folder / ".env").write_text("STACKGEN_API_KEY=sk-a\nSTACKGEN_ENGINE_KEY=sk-b\n")
    args = ["docker", "compose", "-f", str(folder / "compose.yaml"), "config", "--format", "json"]
    done = subprocess.run(args, capture_output=True, text=True, check=True, timeout=60)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("engine", engines.names())
def test_extras_reach_every_container_of_the_model_and_no_other(tmp_path: Path, engine: str) -> None:
    model = {"engine": engine, "model": "./w", "served_names": ["mine"], "replicas": 2} | EXTRAS
    if engine == "llamacpp":
        model["file"] = "x.gguf"
    if engine == "sglang":
        model["image"] = "me/sglang-cpu:1"
    found = compose_config(tmp_path, model, {"engine": "vllm", "model": "./v"})
    services = found["services"]
    mine = {f"{engine}-mine", f"{engine}-mine-2"}
    assert mine < set(services)
    for name, service in services.items():
        targets = {mount["target"]: mount for mount in service.get("volumes", ())}
        has = (
            service.get("labels") == {"traefik.enable": "true", "cost": "a: $$x"},
            {"edge", "logging"} <= set(service["networks"]),
            {"/data", "/out"} <= set(targets),
            service.get("group_add") == ["992", "render"],
        )
        assert has == (name in mine,) * 4, name
        if name in mine:
            assert targets["/data"]["source"] == str(tmp_path / "data") and targets["/data"]["read_only"]
            assert not targets["/out"].get("read_only")
            # without its own network, the other services could not reach it
            assert {"default", "fastchat"} & set(service["networks"])
    assert {name for name, network in found["networks"].items() if network.get("external")} == {"edge", "logging"}


def test_amd_keeps_its_group(tmp_path: Path) -> None:
    model = {"engine": "vllm", "model": "./w", "gpus": 1, "group_add": ["992"]}
    services = compose_config(tmp_path, model, gpu_driver="amd", gateway=False)["services"]
    assert services["vllm-w"]["group_add"] == ["video", "992"]


@pytest.mark.parametrize(
    ("args", "expected", "mounted"),
    [
        (["--tool-parser-plugin", "./parser.py"], ["--tool-parser-plugin", "/srv/parser.py"], {"/srv/parser.py"}),
        (["--tool-parser-plugin=./parser.py"], ["--tool-parser-plugin=/srv/parser.py"], {"/srv/parser.py"}),
        (["--middleware", "../x/m.py", "--log", "./a=b"], ["--middleware", "/srv/up/x/m.py", "--log", "/srv/a=b"],
         {"/srv/up/x/m.py", "/srv/a=b"}),
        # an absolute path may be one of the image
        (["--chat-template", "/opt/examples/t.jinja"], ["--chat-template", "/opt/examples/t.jinja"], set()),
        (["--json", '{"a": "./b"}'], ["--json", '{"a": "./b"}'], set()),
    ],
)  # fmt: skip
def test_files_in_flags_are_mounted(tmp_path: Path, args: list[str], expected: list[str], mounted: set[str]) -> None:
    folder = tmp_path / "stack"
    folder.mkdir()
    services = compose_config(folder, {"engine": "vllm", "model": "org/m", "extra_args": args})["services"]
    service = services["vllm-m"]
    assert service["command"][-len(args) :] == expected
    assert {one["target"] for one in service["volumes"] if one["target"].startswith("/srv/")} == mounted


def test_a_local_process_gets_the_path_on_this_machine(tmp_path: Path) -> None:
    model = {"engine": "vllm", "model": "org/m", "extra_args": ["--tool-parser-plugin", "./parser.py"]}
    made = resolve(build_spec({"name": "n", "models": [model]}, "test"), ProcessSite(tmp_path, tmp_path / "s"), "test")
    assert made.service("vllm-m").command[-1] == str(tmp_path / "parser.py")


@pytest.mark.parametrize(
    "extra", [{"networks": ["a b"]}, {"labels": {"a $b": "c"}}, {"mounts": [{"source": "./a", "target": "b"}]}]
)
def test_invalid_extras_are_errors(extra: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        build_spec({"name": "n", "models": [{"engine": "vllm", "model": "org/m"} | extra]}, "test")


def test_a_doubled_dollar_is_warned_about_and_stays() -> None:
    """Compose reads `$$` as one `$`; people copy such labels, and the warning must not show the hash in them."""
    model = {"model": "org/m", "engine": "vllm", "labels": {"auth": "user:$$apr1$$x", "other": "a$b"},
             "extra_env": {"A": "$$"}}  # fmt: skip
    plan = resolve(build_spec({"name": "s", "models": [model]}, "test"), ComposeSite(), "test")
    found = [one for one in plan.warnings if "`$$`" in one]
    assert [one.split()[0] for one in found] == ["models[0].labels.auth", "models[0].extra_env.A"]
    assert "apr1" not in "".join(found)
    assert dict(plan.services[-1].labels)["auth"] == "user:$$apr1$$x"
