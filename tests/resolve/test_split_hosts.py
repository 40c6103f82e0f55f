"""One replica of vLLM on several machines of `hosts`: what each machine gets. tests/live has it running."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.cli import main as cli
from stackgen.errors import SpecError
from stackgen.resolve.hosts import resolve
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite
from tests.resolve.test_hosts import env, server_lines, services

BIG = {"model": "org/big", "engine": "vllm", "gpus": 4, "host": ["box1", "box2"], "split_hosts": True}
HOSTS = {"front": {}, "box1": {"address": "10.0.0.2"}, "box2": {"address": "fd00::3"}}


def stack(*models: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": "lab", "hosts": HOSTS, "models": list(models) or [BIG]} | fields


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    # the second model of the file also runs on one machine, and its ports must not depend on the machine
    models = [BIG, BIG | {"model": "org/other", "host": ["box2", "front"], "gpus": 1},
              {"model": "org/small", "engine": "vllm", "gpus": 1}]  # fmt: skip
    hosts = HOSTS | {"front": {"address": "10.0.0.1"}}
    (tmp_path / "stack.yaml").write_text(yaml.safe_dump(stack(*models, hosts=hosts, monitoring=True), sort_keys=False))
    assert cli.main(["render", str(tmp_path), "--no-validate"]) == 0
    return tmp_path


def flags(service: dict[str, Any]) -> dict[str, str]:
    words = [str(word) for word in service["command"]]
    return {word: words[place + 1] if place + 1 < len(words) else "" for place, word in enumerate(words)
            if word.startswith("--")}  # fmt: skip


def test_machines_get_the_ranks_of_one_engine(lab: Path) -> None:
    first, second = services(lab / "box1")["vllm-big"], services(lab / "box2")["vllm-big"]
    for rank, service in enumerate((first, second)):
        found = flags(service)
        assert (found["--nnodes"], found["--node-rank"]) == ("2", str(rank))
        assert (found["--master-addr"], found["--master-port"]) == ("10.0.0.2", "29501")
        assert (found["--tensor-parallel-size"], found["--pipeline-parallel-size"]) == ("4", "2")
        assert service["network_mode"] == "host"
        assert not service.keys() & {"ports", "networks"}
    assert "--headless" not in flags(first) and "--headless" in flags(second)


def test_engine_listens_at_the_private_address_and_the_gateway_of_its_machine_uses_it(lab: Path) -> None:
    found = flags(services(lab / "box1")["vllm-big"])
    assert (found["--host"], found["--port"]) == ("10.0.0.2", "29502")
    assert [line.split()[:2] for line in server_lines(lab / "box1")["vllm-big"]] == [["vllm-big", "10.0.0.2:29502"]]
    assert [line.split()[:2] for line in server_lines(lab / "front")["vllm-big"]] == [["box1", "10.0.0.2:8000"]]
    # an address with colons; and both machines use the ports of the second model
    assert flags(services(lab / "box2")["vllm-other"])["--master-port"] == "29503"
    assert flags(services(lab / "front")["vllm-other"])["--master-addr"] == "fd00::3"
    assert [line.split()[1] for line in server_lines(lab / "box2")["vllm-other"]] == ["[fd00::3]:29504"]
    assert services(lab / "box2")["vllm-other"]["healthcheck"]["test"][-1] == "http://[fd00::3]:29504"


def test_ranks_wait_for_the_first_machine_and_are_watched(lab: Path) -> None:
    second = services(lab / "box2")["vllm-big"]
    assert second["command"][:5] == ["python3", "/stackgen/group_node.py", "run", "10.0.0.2", "29501"]
    assert second["command"][5:7] == ["vllm", "serve"]
    assert second["healthcheck"]["test"] == ["CMD", "python3", "/stackgen/group_health.py", "10.0.0.2", "29501"]
    variables = second["environment"]
    assert variables["STACKGEN_WATCH"] == "python3 /stackgen/group_node.py watch 10.0.0.2 29501 20"
    assert variables["STACKGEN_SETUP"].startswith("python3 /stackgen/group_node.py setup fd00::3 ")
    assert variables["VLLM_HOST_IP"] == "fd00::3"
    # it answers no requests, so nothing needs a key of it
    assert "VLLM_API_KEY" not in variables
    assert second["restart"] == "unless-stopped"
    for name in ("group_node.py", "group_health.py"):
        assert (lab / "box2" / "scripts" / name).exists()


def test_prometheus_reads_the_machine_that_answers(lab: Path) -> None:
    text = (lab / "box1" / "monitoring" / "prometheus.yml").read_text()
    assert "10.0.0.2:29502" in text and "9465" not in text
    assert "29501" not in (lab / "front" / "monitoring" / "prometheus.yml").read_text()


def test_machine_that_only_computes_has_no_gateway(tmp_path: Path) -> None:
    (tmp_path / "stack.yaml").write_text(yaml.safe_dump(stack(), sort_keys=False))
    assert cli.main(["render", str(tmp_path), "--no-validate"]) == 0
    assert set(services(tmp_path / "box2")) == {"download", "vllm-big"}
    assert "STACKGEN_API_KEY" not in (tmp_path / "box2" / "compose.yaml").read_text()
    assert set(services(tmp_path / "box1")) == {"download", "vllm-big", "gateway"}
    assert env(tmp_path / "front")["STACKGEN_ENGINE_KEY"] == env(tmp_path / "box1")["STACKGEN_API_KEY"]


def test_sizes_on_the_cpu_are_one_stage_for_each_machine() -> None:
    data = stack(BIG | {"gpus": "none"}, host="box1")
    plan = resolve(build_spec(data, "stack.yaml"), ComposeSite(), "stack.yaml")
    command = plan.service("vllm-big").command
    assert "--tensor-parallel-size" not in command
    assert command[command.index("--pipeline-parallel-size") + 1] == "2"


@pytest.mark.parametrize(
    ("data", "where", "what"),
    [
        (stack(BIG | {"host": "box1"}), "models[0].split_hosts", "at least two machines"),
        (stack(BIG | {"replicas": 2}), "models[0].replicas", "one replica"),
        (stack(BIG | {"gpus": "all", "tensor_parallel_size": 4}), "models[0].gpus", "`all`"),
        (stack(BIG | {"networks": ["other"]}), "models[0].networks", "no effect"),
        (stack(BIG | {"host": ["front", "box1"]}), "hosts.front.address", "is missing"),
        (stack(BIG | {"data_parallel_size": 2}), "models[0]", "data parallelism"),
        ({"name": "x", "models": [BIG | {"host": []}]}, "models[0].split_hosts", "needs `hosts`"),
        (stack(hosts=HOSTS | {"box1": {"address": "8.8.8.8"}}), "hosts.box1.address", "public address"),
    ],
    ids=["one machine", "replicas", "all", "networks", "no address", "data parallel", "no hosts", "public"],
)  # fmt: skip
def test_mistakes_name_field_and_reason(data: dict[str, Any], where: str, what: str) -> None:
    with pytest.raises(SpecError) as error:
        resolve(build_spec(data | ({"host": "box1"} if "hosts" in data else {}), "stack.yaml"), ComposeSite(), "x")
    assert where in str(error.value) and what in str(error.value)
