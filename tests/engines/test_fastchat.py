"""FastChat's controller, API server and workers: addresses, the key, and the limits of one controller."""

from __future__ import annotations

from typing import Any

import pytest

from stackgen import engines
from stackgen.errors import SpecError
from stackgen.plan import Build, Dependency, EnvRef, Plan, Service
from stackgen.resolve.pipeline import resolve
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite


def plan(*models: dict[str, Any], **fields: Any) -> Plan:
    entries = [{"model": f"org/m{index}", "engine": "fastchat"} | model for index, model in enumerate(models or ({},))]
    return resolve(
        build_spec({"name": "demo", "models": entries, "gateway": False} | fields, "test"), ComposeSite(), "test"
    )


def worker(_stack: dict[str, Any] | None = None, **model: Any) -> Service:
    return next(one for one in plan(model, **(_stack or {})).services if one.role == "worker")


def after(command: tuple[str, ...], flag: str) -> str | None:
    return command[command.index(flag) + 1] if flag in command else None


def test_worker_with_all_settings() -> None:
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


def test_worker_on_the_cpu() -> None:
    made = worker()
    assert after(made.command, "--device") == "cpu"
    assert "--num-gpus" not in made.command
    assert made.gpus is None


def test_workers_register_under_their_service_names() -> None:
    """Other containers can reach them by no other name; FastChat's default is localhost."""
    made = plan({"replicas": 2}, {})
    for one in made.services:
        if one.role == "worker":
            assert after(one.command, "--worker-address") == f"http://{one.name}:21002"
            assert after(one.command, "--controller-address") == "http://fastchat-controller:21001"
            assert one.health
            assert f"http://{one.name}:21002" in one.health.command
            assert dict(one.environment)["FASTCHAT_WORKER_HEART_BEAT_INTERVAL"] == "5"
    assert dict(made.service("fastchat-controller").environment)["FASTCHAT_CONTROLLER_HEART_BEAT_EXPIRATION"] == "15"


def test_only_the_api_server_has_the_key() -> None:
    made = plan({}, {})
    for one in made.services:
        arguments = " ".join((*one.entrypoint, *one.command, *(one.health.command if one.health else ())))
        assert "--api-keys" not in arguments  # visible in the process list
        keys = [name for name, value in one.environment if isinstance(value, EnvRef) and "KEY" in value.name]
        assert keys == (["STACKGEN_API_KEY"] if one.role == "api" else [])
        # FastChat can't use the variable (SG-F001)
        assert "API_KEYS" not in dict(one.environment)


def test_api_server_waits_for_all_workers_and_names() -> None:
    made = plan({"served_names": ["a", "b"], "replicas": 2}, {"served_names": ["c"]})
    api = made.service("fastchat-api")
    assert api.depends_on == tuple(
        Dependency(name, "service_healthy", required=False) for name in ("fastchat-a", "fastchat-a-2", "fastchat-c")
    )
    assert after(api.command, "--expect-models") == "a,b,c"
    assert api.health
    assert api.health.command[-3:] == ("a", "b", "c")
    assert [endpoint.models for endpoint in made.endpoints] == [("a", "b", "c")]
    assert made.endpoints[0].workers == ("fastchat-a", "fastchat-a-2", "fastchat-c")


def test_all_models_share_one_controller_and_api_server() -> None:
    made = plan({}, {"replicas": 3}, {})
    roles = [one.role for one in made.services]
    assert (roles.count("controller"), roles.count("api"), roles.count("worker")) == (1, 1, 5)
    assert [one.name for one in made.services if one.ports] == ["fastchat-api"]


def test_conflicting_controller_settings_are_rejected() -> None:
    with pytest.raises(SpecError, match="one controller, but dispatch_method differs: lottery, shortest_queue"):
        plan({"dispatch_method": "lottery"}, {})
    with pytest.raises(SpecError, match="one API server, but port differs: 8001, 8002"):
        plan({"port": 8001}, {"port": 8002})
    assert plan({"port": 9000}, {}).service("fastchat-api").ports[0].host == 9000
    lottery = plan({"dispatch_method": "lottery"}, {"dispatch_method": "lottery"}).service("fastchat-controller")
    assert after(lottery.command, "--dispatch-method") == "lottery"


def test_a_comma_in_a_served_name_is_rejected() -> None:
    with pytest.raises(SpecError, match="'a,b' contains a comma"):
        plan({"served_names": ["a,b"]})


def test_amd_gpus_are_rejected() -> None:
    with pytest.raises(SpecError, match="no AMD variant"):
        plan({"gpus": 1}, gpu_driver="amd")
    assert plan({}, gpu_driver="amd").services


def test_fastchat_services_share_one_image_per_variant() -> None:
    for gpus, variant in (("none", "cpu"), (1, "cuda")):
        made = plan({"gpus": gpus}, {})
        assert len({one.image for one in made.services}) == 1
        assert f"-{variant}-" in made.services[0].image
        assert [one.build for one in made.services if one.build] == [Build("./fastchat", (("VARIANT", variant),))]
    assert "fastchat/Dockerfile" in {asset.path for asset in made.assets}


def test_a_custom_image_is_pulled_and_not_built() -> None:
    made = plan({"image": "me/fastchat:1"})
    assert {one.image for one in made.services} == {"me/fastchat:1"}
    assert all(one.build is None and one.pull for one in made.services)


def test_processes_that_ignore_sigterm_get_an_init() -> None:
    assert all(one.init for one in plan().services if one.role != "download")


def test_remote_code_is_warned_about() -> None:
    assert any("trust_remote_code" in warning for warning in plan().warnings)


@pytest.mark.parametrize("gateway", [False, True])
def test_the_launcher_has_a_better_api_than_plain_fastchat(gateway: bool) -> None:
    (endpoint,) = plan({}, gateway=gateway).endpoints
    plain, own = engines.get("fastchat").dialect, endpoint.dialect
    # servers that somebody else has started are judged as plain FastChat
    assert (plain.stream_usage, plain.liveness_path) == (False, None) and "tools" in plain.ignores
    assert (own.name, own.stream_usage, own.liveness_path, own.ignores) == ("fastchat", True, "/health", ())
    assert {one.check for one in own.deviations} == {"errors"}
    assert set(own.deviations) < set(plain.deviations)
