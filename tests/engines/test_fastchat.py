"""FastChat's trio: who knows whom, where the key goes, and what one controller can't do."""

from __future__ import annotations

from typing import Any

import pytest

from stackgen.errors import SpecError
from stackgen.plan import Build, Dependency, EnvRef, Plan, Service
from stackgen.resolve.pipeline import resolve
from stackgen.stack.load import build
from stackgen.targets.compose import ComposeSite


def plan(*models: dict[str, Any], **fields: Any) -> Plan:
    entries = [{"model": f"org/m{index}", "engine": "fastchat"} | model for index, model in enumerate(models or ({},))]
    return resolve(build({"name": "demo", "models": entries, "gateway": False} | fields, "test"), ComposeSite(), "test")


def worker(_stack: dict[str, Any] | None = None, **model: Any) -> Service:
    return next(one for one in plan(model, **(_stack or {})).services if one.role == "worker")


def after(command: tuple[str, ...], flag: str) -> str | None:
    return command[command.index(flag) + 1] if flag in command else None


def test_the_whole_worker() -> None:
    made = worker(
        gpus=[0, 1],
        revision="abc",
        served_names=["a", "b"],
        conv_template="vicuna_v1.1",
        worker_concurrency=7,
        dtype="float16",
        load_8bit=True,
        cpu_offloading=True,
        max_gpu_memory="13GiB",
        extra_args=["--x"],
    )
    assert made.command == (
        "python3",
        "/opt/stackgen/launch.py",
        "worker",
        "--host",
        "0.0.0.0",
        "--port",
        "21002",
        "--worker-address",
        "http://fastchat-a:21002",
        "--controller-address",
        "http://fastchat-controller:21001",
        "--model-path",
        "org/m0",
        "--revision",
        "abc",
        "--model-names",
        "a,b",
        "--conv-template",
        "vicuna_v1.1",
        "--limit-worker-concurrency",
        "7",
        "--device",
        "cuda",
        "--num-gpus",
        "2",
        "--max-gpu-memory",
        "13GiB",
        "--dtype",
        "float16",
        "--load-8bit",
        "--cpu-offloading",
        "--x",
    )


def test_the_cpu() -> None:
    made = worker()
    assert after(made.command, "--device") == "cpu"
    assert "--num-gpus" not in made.command
    assert made.gpus is None


def test_workers_register_under_their_service_names() -> None:
    """Another container reaches them by no other name; FastChat's default is localhost."""
    made = plan({"replicas": 2}, {})
    for one in made.services:
        if one.role == "worker":
            assert after(one.command, "--worker-address") == f"http://{one.name}:21002"
            assert after(one.command, "--controller-address") == "http://fastchat-controller:21001"
            assert one.health
            assert f"http://{one.name}:21002" in one.health.command
            assert dict(one.environment)["FASTCHAT_WORKER_HEART_BEAT_INTERVAL"] == "5"
    assert dict(made.service("fastchat-controller").environment)["FASTCHAT_CONTROLLER_HEART_BEAT_EXPIRATION"] == "15"


def test_the_key_is_in_the_api_servers_environment_alone() -> None:
    made = plan({}, {})
    for one in made.services:
        words = " ".join((*one.entrypoint, *one.command, *(one.health.command if one.health else ())))
        assert "--api-keys" not in words  # it would show in the process list
        keys = [name for name, value in one.environment if isinstance(value, EnvRef) and "KEY" in value.name]
        assert keys == (["STACKGEN_API_KEY"] if one.role == "api" else [])
        # plain text in it crashes FastChat, a list leaves it open
        assert "API_KEYS" not in dict(one.environment)


def test_the_api_server_waits_for_every_worker_and_expects_every_name() -> None:
    made = plan({"served_names": ["a", "b"], "replicas": 2}, {"served_names": ["c"]})
    api = made.service("fastchat-api")
    assert api.depends_on == tuple(
        Dependency(name, "service_healthy") for name in ("fastchat-a", "fastchat-a-2", "fastchat-c")
    )
    assert after(api.command, "--expect-models") == "a,b,c"
    assert api.health
    assert api.health.command[-3:] == ("a", "b", "c")
    assert [endpoint.models for endpoint in made.endpoints] == [("a", "b", "c")]
    assert made.endpoints[0].workers == ("fastchat-a", "fastchat-a-2", "fastchat-c")


def test_one_controller_and_one_api_server_for_all() -> None:
    made = plan({}, {"replicas": 3}, {})
    roles = [one.role for one in made.services]
    assert (roles.count("controller"), roles.count("api"), roles.count("worker")) == (1, 1, 5)
    assert [one.name for one in made.services if one.ports] == ["fastchat-api"]


def test_what_one_controller_can_not_do() -> None:
    with pytest.raises(SpecError, match="one controller, but dispatch_method differs: lottery, shortest_queue"):
        plan({"dispatch_method": "lottery"}, {})
    with pytest.raises(SpecError, match="one API server, but port differs: 8001, 8002"):
        plan({"port": 8001}, {"port": 8002})
    assert plan({"port": 9000}, {}).service("fastchat-api").ports[0].host == 9000
    lottery = plan({"dispatch_method": "lottery"}, {"dispatch_method": "lottery"}).service("fastchat-controller")
    assert after(lottery.command, "--dispatch-method") == "lottery"


def test_a_comma_would_split_a_name() -> None:
    with pytest.raises(SpecError, match="'a,b' holds a comma"):
        plan({"served_names": ["a,b"]})


def test_amd_has_no_image() -> None:
    with pytest.raises(SpecError, match="no AMD variant"):
        plan({"gpus": 1}, gpu_driver="amd")
    assert plan({}, gpu_driver="amd").services


def test_one_image_for_the_trio_in_two_variants() -> None:
    for gpus, variant in ((0, "cpu"), (1, "cuda")):
        made = plan({"gpus": gpus}, {})
        assert len({one.image for one in made.services}) == 1
        assert f"-{variant}-" in made.services[0].image
        assert [one.build for one in made.services if one.build] == [Build("./fastchat", (("VARIANT", variant),))]
    assert "fastchat/Dockerfile" in {asset.path for asset in made.assets}


def test_an_image_of_the_users_is_neither_built_nor_forbidden_to_pull() -> None:
    made = plan({"image": "me/fastchat:1"})
    assert {one.image for one in made.services} == {"me/fastchat:1"}
    assert all(one.build is None and one.pull for one in made.services)


def test_processes_that_ignore_sigterm_get_an_init() -> None:
    assert all(one.init for one in plan().services if one.role != "download")


def test_it_warns_of_remote_code() -> None:
    assert any("trust_remote_code" in warning for warning in plan().warnings)
