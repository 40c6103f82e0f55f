"""From the stack file to the plan: names, ports, the download service, the start order, errors of the whole stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackgen import engines
from stackgen.errors import SpecError
from stackgen.plan import Bind, Dependency, EnvRef, Logging, Network, Plan, Service, Volume
from stackgen.providers.endpoints import targets_from_plan
from stackgen.resolve.pipeline import resolve
from stackgen.stack.load import build_spec, parse_stack
from stackgen.targets.compose import ComposeSite


def plan(*models: dict[str, Any], **fields: Any) -> Plan:
    entries = [{"model": f"org/m{index}", "engine": "vllm"} | model for index, model in enumerate(models)]
    return resolve(
        build_spec({"name": "demo", "models": entries, "gateway": False} | fields, "test"), ComposeSite(), "test"
    )


def names(stack: Plan) -> list[str]:
    return [service.name for service in stack.services]


def ports(stack: Plan) -> list[int]:
    return [port.host for service in stack.services for port in service.ports]


FC = {"engine": "fastchat"}


def test_ports_count_up_and_skip_explicit_ones() -> None:
    stack = plan({}, {"port": 8001}, {"replicas": 2}, {"port": 7000}, FC)
    assert ports(stack) == [8000, 8001, 8002, 8003, 7000, 8004]
    assert [endpoint.base_url for endpoint in stack.endpoints][:2] == [f"http://127.0.0.1:{p}/v1" for p in (8000, 8001)]


def test_a_port_used_twice_is_rejected() -> None:
    with pytest.raises(SpecError, match="port 9000 is used by two endpoints"):
        plan({"port": 9000}, {"port": 9000})
    with pytest.raises(SpecError, match="port 9000 is used by two endpoints"):
        plan({"port": 9000}, FC | {"port": 9000})


def test_running_out_of_ports_is_rejected() -> None:
    assert ports(plan({}, {}, port=65534)) == [65534, 65535]
    with pytest.raises(SpecError, match="no free port is left below 65536"):
        plan({}, {}, port=65535)


@pytest.mark.parametrize(
    ("bind", "host"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "[::1]"),
        ("::1", "[::1]"),
        ("[::1]", "[::1]"),
        ("10.0.0.5", "10.0.0.5"),
    ],
)
def test_endpoint_url_is_reachable_for_every_bind_address(bind: str, host: str) -> None:
    stack = plan({}, bind=bind)
    assert stack.endpoints[0].base_url == f"http://{host}:8000/v1"
    assert stack.service("vllm-m0").ports[0].address == bind


def test_service_names_come_from_the_first_served_name() -> None:
    assert names(plan({"model": "meta-llama/Llama-3.2-1B"}))[1:] == ["vllm-llama-3-2-1b"]
    assert names(plan({"served_names": ["org/My Model!", "x"]}))[1:] == ["vllm-my-model"]
    assert names(plan({"served_names": ["模型"]}))[1:] == ["vllm-model"]
    assert names(plan({"served_names": ["a" * 100]}))[1:] == ["vllm-" + "a" * 40]


def test_equal_service_names_get_a_number() -> None:
    assert names(plan({"model": "a/x"}, {"model": "b/x"}))[1:] == ["vllm-x", "vllm-x-2"]
    # a replica's number must not collide with another model's name
    services = names(plan({"served_names": ["m"], "replicas": 2}, {"served_names": ["m-2"]}))
    assert len(services) == len(set(services)) == 4


def test_a_model_may_be_named_like_a_fastchat_service() -> None:
    stack = plan(FC | {"served_names": ["api"]}, FC | {"served_names": ["controller"]})
    assert len(names(stack)) == len(set(names(stack)))
    assert stack.service("fastchat-controller").role == "controller"
    assert stack.service("fastchat-api").role == "api"


name = st.sampled_from(["m", "m-1", "m-2", "M", "a/m", "api", "controller", "api-2", "é", "-", "m.1"]) | st.text(
    max_size=4, min_size=1
)


@settings(max_examples=150, deadline=None)
@given(
    models=st.lists(
        st.fixed_dictionaries(
            {
                "engine": st.sampled_from(engines.names()),
                "served_names": st.lists(name, max_size=1),
                "replicas": st.integers(1, 3),
            }
        ),
        min_size=1,
        max_size=4,
    )
)
def test_service_names_and_ports_are_unique(models: list[dict[str, Any]]) -> None:
    models = [model | ({"file": "x.gguf"} if model["engine"] == "llamacpp" else {}) for model in models]
    try:
        stack = plan(*models)
    except SpecError:
        return
    assert len(names(stack)) == len(set(names(stack)))
    assert len(ports(stack)) == len(set(ports(stack)))
    # valid as names in Docker and as hosts in URLs
    assert all(one and one.replace("-", "").isalnum() and one.isascii() and one == one.lower() for one in names(stack))
    for service in stack.services:
        for dependency in service.depends_on:
            assert dependency.service in names(stack)


def test_a_served_name_used_by_two_models_is_rejected() -> None:
    with pytest.raises(SpecError, match=r"models\[1\]\.served_names: 'x' is already served by models\[0\]"):
        plan(FC | {"served_names": ["x"]}, FC | {"served_names": ["y", "x"]})
    with pytest.raises(SpecError, match=r"already served by models\[0\]"):
        plan({"model": "a/b"}, {"model": "a/b"})
    # a local model is served under its folder's name
    with pytest.raises(SpecError, match="'m' is already served by"):
        plan({"model": "./a/m/"}, {"model": "/b/m"})


def test_all_errors_of_the_stack_are_reported_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        plan(
            {"model": "a/b", "gpus": [0]},
            {"model": "a/b", "gpus": [0]},
            {"gpus": 2, "tensor_parallel_size": 4},
            {"engine": "llamacpp"},
            FC | {"dispatch_method": "lottery"},
            FC,
        )
    text = str(caught.value)
    for part in (
        "GPU 0 is used by",
        "is already served by",
        "tensor_parallel_size is",
        "set `file` to a GGUF file",
        "dispatch_method differs",
    ):
        assert part in text


def test_engines_wait_for_the_download_of_hub_models() -> None:
    stack = plan({"revision": "abc"}, {"model": "org/other", "replicas": 2, "gpus": 1}, {"model": "./local"})
    assert names(stack)[0] == "download"
    download = stack.services[0]
    assert download.command == ("--model", "org/m0", "--revision", "abc", "--model", "org/other")
    done = Dependency("download", "service_completed_successfully")
    waiting = {service.name for service in stack.services if done in service.depends_on}
    assert waiting == {"vllm-m0", "vllm-other", "vllm-other-2"}  # the local model doesn't wait
    assert download.restart == "no"
    assert download.health is None
    assert download.secrets == ("hf_token",)


def test_the_same_repository_is_downloaded_once() -> None:
    stack = plan({"model": "a/b", "served_names": ["x"]}, {"model": "a/b", "served_names": ["y"]})
    assert stack.services[0].command == ("--model", "a/b")


@pytest.mark.parametrize("stack", [({"model": "./x"},), ({"model": "./x"}, FC | {"model": "/y"})])
def test_local_models_need_no_download(stack: tuple[dict[str, Any], ...]) -> None:
    made = plan(*stack)
    assert "download" not in names(made)
    assert not made.secrets
    assert "models" not in dict(made.volumes)
    assert not any("download" in asset.path for asset in made.assets)


def test_offline_storage_skips_the_download_but_is_mounted() -> None:
    made = plan({}, storage={"offline": True})
    assert names(made) == ["vllm-m0"]
    assert not made.services[0].depends_on
    assert Volume("models", "/models", read_only=True) in made.services[0].mounts


def test_engines_mount_storage_read_only_and_download_writes_it() -> None:
    made = plan({}, FC, storage={"volume": "shared"})
    assert ("models", "shared") in made.volumes
    sources = {
        mount.name
        for s in made.services
        for mount in s.mounts
        if isinstance(mount, Volume) and mount.target == "/models"
    }
    assert sources == {"models"}
    # only the download may change the weights
    for service in made.services:
        for mount in service.mounts:
            if isinstance(mount, Volume) and mount.target == "/models":
                assert mount.read_only == (service.role != "download")
    host = plan({}, storage={"path": "/srv/weights", "user": "1000:1000", "hub_endpoint": "https://hub.example"})
    assert not [key for key, _ in host.volumes if key == "models"]
    download = host.services[0]
    assert Bind("/srv/weights", "/models", False) in download.mounts
    assert download.user == "1000:1000"
    assert not download.cap_add
    assert ("HF_ENDPOINT", "https://hub.example") in download.environment


@pytest.mark.parametrize(
    ("model", "storage", "expected"),
    [
        # upstream's image and stackgen's own start as root
        ({}, {}, ("", ("--owner", "2000:0"), ("CHOWN", "SETGID", "SETUID"))),
        (FC, {}, ("", ("--owner", "2000:0"), ("CHOWN", "SETGID", "SETUID"))),
        # an image from the stack file may start as another user
        ({"image": "me/x:1"}, {}, ("0:0", ("--owner", "2000:0"), ("CHOWN", "SETGID", "SETUID"))),
        # a folder of the host keeps its owner
        ({}, {"path": "/srv/weights"}, ("", ("--owner", "keep"), ("SETGID", "SETUID"))),
        ({}, {"path": "/srv/weights", "user": "7:8"}, ("7:8", (), ())),
        ({}, {"user": "0:0"}, ("0:0", (), ("DAC_READ_SEARCH",))),
    ],
)
def test_download_runs_as_the_owner_of_the_store(
    model: dict[str, Any], storage: dict[str, Any], expected: tuple[str, tuple[str, ...], tuple[str, ...]]
) -> None:
    download = plan(model, storage=storage).service("download")
    assert (download.user, download.entrypoint[2:], download.cap_add) == expected
    assert not any("TOKEN" in name for name, _ in download.environment)


@pytest.mark.parametrize(
    ("model", "opens"),
    [({}, True), (FC, False), ({"engine": "llamacpp", "file": "x.gguf"}, False)],
    ids=["vllm", "fastchat", "llamacpp"],
)
def test_only_engines_with_open_paths_are_reported_to_have_them(model: dict[str, Any], opens: bool) -> None:
    for bind in ("127.0.0.1", "0.0.0.0"):
        text = " ".join(plan({"revision": "abc"} | model, bind=bind, gateway=False).warnings)
        assert ("answer without a key" in text) == opens
        assert ("ports are open on" in text) == (bind == "0.0.0.0")


def test_all_models_of_the_hub_wait_for_one_download() -> None:
    """docs/explanation/restarts-and-health.md says what this means for a model that can't be downloaded."""
    made = plan({}, FC, {"engine": "fastchat"}, {"engine": "llamacpp", "file": "x.gguf"}, {"model": "./local"})
    assert [service.name for service in made.services if service.role == "download"] == ["download"]
    waits = {one.name for one in made.services if Dependency("download", "service_completed_successfully")
             in one.depends_on}  # fmt: skip
    assert waits == {"vllm-m0", "fastchat-m1", "fastchat-m2", "llamacpp-m3"}
    command = made.service("download").command
    assert [command[place + 1] for place, word in enumerate(command) if word == "--model"] == [
        "org/m0", "org/m1", "org/m2", "org/m3",
    ]  # fmt: skip


def test_only_the_download_service_gets_the_token_file() -> None:
    made = plan({}, FC)
    assert [service.name for service in made.services if service.secrets] == ["download"]
    assert made.secrets == (("hf_token", EnvRef("HF_TOKEN_FILE", default="/dev/null")),)
    assert not any("TOKEN" in key for s in made.services for key, _ in s.environment if s.role != "download")


def test_fastchat_services_start_in_order() -> None:
    made = plan(FC, FC | {"replicas": 2})
    controller, api = made.service("fastchat-controller"), made.service("fastchat-api")
    workers = [service for service in made.services if service.role == "worker"]
    assert controller.depends_on == ()
    for worker in workers:
        assert Dependency("fastchat-controller", "service_healthy") in worker.depends_on
    assert api.depends_on == tuple(Dependency(worker.name, "service_healthy", required=False) for worker in workers)
    order = names(made)
    assert order.index("fastchat-controller") < min(order.index(w.name) for w in workers) < order.index("fastchat-api")


def test_fastchat_network_is_internal() -> None:
    made = plan({}, FC)
    assert made.networks == (Network("fastchat", internal=True),)
    assert {s.name: s.networks for s in made.services if s.engine == "fastchat" and s.role != "api"} == {
        "fastchat-controller": ("fastchat",),
        "fastchat-m1": ("fastchat",),
    }
    assert made.service("fastchat-api").networks == ("default", "fastchat")
    # another engine must not reach the controller, which has no authentication
    assert "fastchat" not in made.service("vllm-m0").networks


def test_a_shared_image_is_built_by_one_service() -> None:
    for made in (
        plan(FC, FC),
        plan({"engine": "llamacpp", "file": "a"}, {"engine": "llamacpp", "file": "b"}),
        plan(FC, {}),
    ):
        built: dict[str, list[Service]] = {}
        for service in made.services:
            if service.build or not service.pull:
                built.setdefault(service.image, []).append(service)
        assert built
        for services in built.values():
            assert len([service for service in services if service.build]) == 1


def test_log_rotation_and_restart_policy_apply_to_every_service() -> None:
    made = plan({}, FC, restart="unless-stopped", logging={"max_size": "5m", "max_file": 2})
    assert {service.logging for service in made.services} == {Logging("5m", 2)}
    assert {service.restart for service in made.services if service.role != "download"} == {"unless-stopped"}


@pytest.mark.parametrize(
    ("models", "fields", "part"),
    [
        ([{}], {}, "org/m0 has no revision"),
        ([{"revision": "abc"}], {"bind": "0.0.0.0", "gateway": False}, "ports are open on 0.0.0.0"),
        ([{}], {"gateway": {"image": "me/haproxy"}}, "image me/haproxy is not pinned"),
        ([{"image": "me/vllm"}], {}, "image me/vllm is not pinned"),
        ([{"image": "me/vllm:latest"}], {}, "image me/vllm:latest is not pinned"),
        # the colon before a registry's port doesn't start a tag
        ([{"image": "registry:5000/vllm"}], {}, "is not pinned"),
        ([FC], {}, "trust_remote_code"),
    ],
)
def test_each_problem_has_its_warning(models: list[dict[str, Any]], fields: dict[str, Any], part: str) -> None:
    assert any(part in warning for warning in plan(*models, **fields).warnings)


def test_open_ports_do_not_warn_behind_the_gateway() -> None:
    for fields in ({"gateway": None}, {"gateway": True}):
        assert not any("ports are open" in text for text in plan({}, {}, bind="0.0.0.0", **fields).warnings)


def test_a_pinned_stack_has_no_warnings() -> None:
    made = plan(
        {"revision": "abc", "image": "me/vllm:1"},
        {"model": "./x", "image": "registry:5000/x:1"},
        bind="::1",
        gateway=True,
    )
    assert made.warnings == ()


def test_plans_are_deterministic_and_hashable() -> None:
    models = ({"gpus": 1, "replicas": 2}, FC, {"engine": "llamacpp", "file": "a"})
    assert plan(*models) == plan(*models)
    assert hash(plan(*models)) == hash(plan(*models))


@pytest.mark.parametrize(
    ("bind", "exposed"),
    [("127.0.0.1", False), ("127.0.0.2", False), ("::1", False), ("0.0.0.0", True), ("10.0.0.5", True)],
)
def test_endpoints_know_whether_other_machines_can_reach_them(bind: str, exposed: bool) -> None:
    """If they can, the check fails on paths that answer without the key, instead of warning."""
    stack = parse_stack(f"name: n\nbind: '{bind}'\nmodels: [{{model: o/m, engine: vllm, gpus: 1}}]")
    (endpoint,) = resolve(stack, ComposeSite()).endpoints
    assert endpoint.exposed is exposed
    (target,) = targets_from_plan(resolve(stack, ComposeSite()), Path("no-such-folder"))
    assert target.exposed is exposed
