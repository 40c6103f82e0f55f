"""What newcomers want, as a stack file written from the README and the documentation, and what must come out of it.

The wishes are from public issues; each file in stacks/ quotes one and names its source. A wish must render at the first
try, and `docker compose config` must accept it. The table EXPECTED says what the rendered stack must contain.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.cli.main import main
from stackgen.stack.envfile import read_env

STACKS = Path(__file__).parent / "stacks"


@dataclass(frozen=True)
class Wish:
    """A rendered stack in `folder`, and what `stackgen render` printed."""

    folder: Path
    printed: str

    @cached_property
    def services(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = yaml.safe_load((self.folder / "compose.yaml").read_text())["services"]
        return found

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def arguments(self, service: str) -> str:
        """The command of a service, with spaces around every argument."""
        return f" {' '.join(map(str, self.services[service]['command']))} "

    def gpus(self, service: str) -> Any:
        """The ids or the number of GPUs that a service reserves; None without GPUs."""
        devices = self.services[service].get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices")
        return devices and devices[0].get("device_ids", devices[0].get("count"))

    def published(self) -> set[str]:
        return {str(port) for one in self.services.values() for port in one.get("ports", ())}

    def mounts(self, service: str) -> dict[str, str]:
        return {one["target"]: one["source"] for one in self.services[service]["volumes"]}


def two_models_one_gpu(wish: Wish) -> None:
    assert wish.gpus("vllm-qwen3-8b-awq") == wish.gpus("vllm-bge-m3") == ["0"]
    assert " --gpu-memory-utilization 0.55 " in wish.arguments("vllm-qwen3-8b-awq")
    # each measures the free memory of the GPU while it starts, so they must not start at the same time
    assert wish.services["vllm-bge-m3"]["depends_on"]["vllm-qwen3-8b-awq"] == {"condition": "service_healthy"}
    assert wish.published() == {"127.0.0.1:8000:8000"}


def two_replicas(wish: Wish) -> None:
    assert [wish.gpus(name) for name in ("vllm-qwen", "vllm-qwen-2")] == [["0"], ["1"]]
    # both read one copy of the weights, and neither can change it
    stores = [one for name in ("vllm-qwen", "vllm-qwen-2") for one in wish.services[name]["volumes"]]
    assert (
        sum(one == {"type": "volume", "source": "models", "target": "/models", "read_only": True} for one in stores)
        == 2
    )
    assert wish.published() == {"127.0.0.1:8000:8000"}
    config = wish.read("gateway/haproxy.cfg")
    assert "server vllm-qwen vllm-qwen:8000" in config and "server vllm-qwen-2 vllm-qwen-2:8000" in config


def big_model_four_gpus(wish: Wish) -> None:
    (service,) = [name for name in wish.services if name != "download"]
    arguments = wish.arguments(service)
    assert wish.gpus(service) == 4 and " --tensor-parallel-size 4 " in arguments
    # vLLM reads 32K as 32,768 tokens
    assert " --kv-cache-dtype fp8 " in arguments and " --max-model-len 32K " in arguments
    # NCCL needs shared memory, of which Docker gives 64 MB
    assert int(wish.services[service]["shm_size"].removesuffix("g")) >= 4


def tools_and_reasoning(wish: Wish) -> None:
    arguments = wish.arguments("vllm-qwen3-8b")
    assert " --enable-auto-tool-choice --tool-call-parser hermes " in arguments
    assert " --reasoning-parser qwen3 " in arguments and "--enable-reasoning" not in arguments


def gated_model(wish: Wish) -> None:
    text = wish.read("compose.yaml")
    # only the download sees the token, as a file
    assert "HF_TOKEN:" not in text and 'file: "${HF_TOKEN_FILE:-/dev/null}"' in text
    assert [name for name, one in wish.services.items() if one.get("secrets")] == ["download"]
    assert "HF_TOKEN_FILE" in wish.read(".env")


def no_internet(wish: Wish) -> None:
    # nothing is downloaded, and nothing is reported to vLLM's makers
    assert list(wish.services) == ["vllm-qwen3-8b"]
    assert wish.services["vllm-qwen3-8b"]["environment"]["VLLM_NO_USAGE_STATS"] == "1"
    assert "./Qwen3-8B" in wish.mounts("vllm-qwen3-8b").values()


def fastchat_two_models(wish: Wish) -> None:
    assert [wish.gpus(name) for name in ("fastchat-vicuna", "fastchat-mistral")] == [["0"], ["1"]]
    # one controller and one API server for both, and only the gateway is published
    assert {*wish.services} == {
        "download", "fastchat-controller", "fastchat-vicuna", "fastchat-mistral", "fastchat-api", "gateway",
    }  # fmt: skip
    assert wish.published() == {"127.0.0.1:8000:8000"}
    models = wish.read("gateway/models.map")
    assert all(name.encode().hex().upper() in models for name in ("vicuna", "mistral"))


def fastchat_llama_prompt(wish: Wish) -> None:
    # FastChat 0.2.36 has no template of Llama 3; the launcher takes the model's own
    assert "--conv-template" not in wish.arguments("fastchat-llama-3-1-8b-instruct")
    assert " /opt/stackgen/launch.py worker " in wish.arguments("fastchat-llama-3-1-8b-instruct")
    assert "chat_template" in wish.read("fastchat/conversations.py")


def cpu_laptop(wish: Wish) -> None:
    (service,) = [name for name in wish.services if name != "download"]
    assert wish.gpus(service) is None and "-cpu-" in wish.services[service]["image"]
    assert " --ctx-size 8192 " in wish.arguments(service) and "Qwen3-0.6B-Q8_0.gguf" in wish.arguments(service)


def mi300x(wish: Wish) -> None:
    (service,) = [name for name in wish.services if name != "download"]
    assert wish.services[service]["devices"] == ["/dev/kfd", "/dev/dri"]
    assert "rocm" in wish.services[service]["image"] and "deploy" not in wish.services[service]


def lan_tls_two_keys(wish: Wish) -> None:
    assert wish.published() == {"0.0.0.0:8000:8000"}
    assert "bind :8000 ssl crt /tls/site.crt" in wish.read("gateway/haproxy.cfg")
    certificate = [
        "openssl",
        "x509",
        "-noout",
        "-ext",
        "subjectAltName",
        "-in",
        str(wish.folder / "gateway/tls/site.crt"),
    ]
    names = subprocess.run(certificate, capture_output=True, text=True, check=True).stdout
    assert "gpu1.example.com" in names and "192.168.1.20" in names
    assert "\nben 60\n" in wish.read("gateway/rates.map") + "\n"
    # each person gets a key of their own, and only its hash is saved
    for name in ("anna", "ben"):
        # 1: without a Docker engine, no gateway can load the key
        assert main(["keys", "new", name, "--stack", str(wish.folder)]) in (0, 1)
    assert [line.split()[1] for line in wish.read("gateway/keys.map").splitlines()[2:]] == ["default", "anna", "ben"]


def two_lora_adapters(wish: Wish) -> None:
    arguments = wish.arguments("vllm-qwen3-8b")
    assert " --enable-lora " in arguments and " --lora-modules sql=" in arguments and " support=" in arguments
    # the larger of both ranks, which vLLM does not read from the adapters
    assert " --max-lora-rank 64 " in arguments
    assert {"./adapters/sql", "./adapters/support"} <= set(wish.mounts("vllm-qwen3-8b").values())


def chat_page(wish: Wish) -> None:
    page = wish.services["open-webui"]
    assert "127.0.0.1:3080:8080" in page["ports"] and page["environment"]["WEBUI_AUTH"] == "True"
    assert page["environment"]["OPENAI_API_KEY"].startswith("${")


def fallback_to_a_cloud(wish: Wish) -> None:
    config = wish.read("gateway/haproxy.cfg")
    assert "server together api.together.ai:443 " in config
    assert "leave this machine" in wish.printed
    text = wish.read("compose.yaml")
    assert "TOGETHER_API_KEY" in text and f"{b'llama'.hex().upper()} fallback-" in wish.read("gateway/fallbacks.map")


def gpu_by_uuid(wish: Wish) -> None:
    assert wish.gpus("vllm-qwen3-8b") == ["GPU-441f29f8-b53a-1c18-174a-dd2066ebd468"]
    # inside the container, the GPU is number 0
    assert "CUDA_VISIBLE_DEVICES" not in wish.services["vllm-qwen3-8b"]["environment"]


def home_two_4090(wish: Wish) -> None:
    (service,) = [name for name in wish.services if name != "download"]
    assert wish.gpus(service) == ["0", "1"] and " --tensor-parallel-size 2 " in wish.arguments(service)


def lab_twenty_users(wish: Wish) -> None:
    engines = [name for name in wish.services if name.startswith("vllm-")]
    taken = [id for name in engines for id in wish.gpus(name)]
    assert sorted(taken) == list("01234567")
    # everybody has a budget of tokens, which the gateway counts
    budgets = dict(line.split() for line in wish.read("gateway/budgets.map").splitlines()[1:])
    assert len(budgets) == 20 and budgets["grace"] == "2000000"
    assert "filter lua.count-tokens" in wish.read("gateway/haproxy.cfg")
    # the guest may use one model, until a day
    assert [line.split()[0] for line in wish.read("gateway/restricted.map").splitlines()[1:]] == ["tony"]
    assert wish.read("gateway/expiries.map").splitlines()[1].startswith("tony ")
    # one command creates a key for everybody, each in a file that only its reader gets
    people = wish.folder / "people"
    assert main(["keys", "new", "--missing", "--write-to", str(people), str(wish.folder)]) in (0, 1)
    assert len(list(people.glob("*.key"))) == 20 and len(wish.read("gateway/keys.map").splitlines()) == 23
    # monitoring stays on this machine; only the gateway is open
    assert {one for one in wish.published() if not one.startswith("127.0.0.1:")} == {"0.0.0.0:8000:8000"}


EXPECTED: dict[str, Callable[[Wish], None]] = {
    one.__name__.replace("_", "-"): one
    for one in (
        two_models_one_gpu, two_replicas, big_model_four_gpus, tools_and_reasoning, gated_model, no_internet,
        fastchat_two_models, fastchat_llama_prompt, cpu_laptop, mi300x, lan_tls_two_keys, two_lora_adapters, chat_page,
        fallback_to_a_cloud, gpu_by_uuid, home_two_4090, lab_twenty_users,
    )
}  # fmt: skip
# what the machine has, besides stack.yaml
FILES: dict[str, dict[str, dict[str, Any]]] = {
    "no-internet": {"Qwen3-8B/config.json": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}},
    "two-lora-adapters": {
        f"adapters/{name}/adapter_config.json": {"base_model_name_or_path": "Qwen/Qwen3-8B", "r": rank}
        for name, rank in (("sql", 16), ("support", 64))
    },
}


def write(name: str, tmp_path: Path) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "stack.yaml").write_text((STACKS / f"{name}.yaml").read_text())
    for path, data in FILES.get(name, {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(data))
        (folder / path).with_suffix(".safetensors").touch()
    return folder


@pytest.fixture
def wish(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Wish:
    """The stack of the wish with this name, rendered as a newcomer renders it."""
    for name in [one for one in os.environ if one.startswith(("STACKGEN_", "HF_", "TOGETHER"))]:
        monkeypatch.delenv(name)
    folder = write(request.param, tmp_path)
    assert main(["render", str(folder)]) == 0, capfd.readouterr().err
    return Wish(folder, "".join(capfd.readouterr()))


def test_every_wish_has_an_expectation() -> None:
    assert {path.stem for path in STACKS.glob("*.yaml")} == {*EXPECTED, "cluster-three-nodes"}


@pytest.mark.parametrize("wish", sorted(EXPECTED), indirect=True)
def test_wish_comes_true(wish: Wish) -> None:
    EXPECTED[wish.folder.name](wish)
    # what holds for every stack: no key in clear text, private files, and the next step
    secrets = {value for name, value in read_env(wish.folder).items() if name.endswith("_KEY")}
    assert secrets and (wish.folder / ".env").stat().st_mode & 0o777 == 0o600
    rendered = [path for path in wish.folder.rglob("*") if path.is_file() and path.name != ".env"]
    assert not [path for path in rendered if any(key in path.read_text(errors="replace") for key in secrets)]
    assert ".env" in wish.read(".gitignore").split()
    # other machines reach only what the stack file opens
    if "bind: 0.0.0.0" not in wish.read("stack.yaml"):
        assert all(port.startswith("127.0.0.1:") for port in wish.published())
    assert re.search(r"next(, after the to-dos)?: `stackgen up", wish.printed)


def test_a_model_across_three_machines_is_refused_with_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write("cluster-three-nodes", tmp_path)
    assert main(["render", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "models[0].gpus: 24 GPUs" in error and "a stack runs on one machine" in error
    assert not (folder / "compose.yaml").exists()
    # the way out that the message names
    assert "set `target: kubernetes`" in error
    with (folder / "stack.yaml").open("a") as file:
        file.write("target: kubernetes\n")
    assert main(["render", str(folder), "--no-validate"]) == 0


@pytest.mark.compose
@pytest.mark.parametrize("wish", sorted(EXPECTED), indirect=True)
def test_compose_accepts_the_wish(wish: Wish) -> None:
    # without the user's own keys, Compose asks for them
    with (wish.folder / ".env").open("a") as env:
        env.write("TOGETHER_API_KEY=not-a-key\n")
    done = subprocess.run(["docker", "compose", "config", "--quiet"], cwd=wish.folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
