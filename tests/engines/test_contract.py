"""The contract of all engines at all sites: one module per engine, and no special cases elsewhere."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stackgen import engines
from stackgen.errors import SpecError
from stackgen.plan import EnvRef, Plan, Service, Site
from stackgen.resolve.pipeline import resolve
from stackgen.resources import templates_dir
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite
from stackgen.targets.process import ProcessSite

# required fields besides `model` and `engine`; a new engine adds at most one line here
NEEDS: dict[str, dict[str, Any]] = {"llamacpp": {"file": "x.gguf"}, "sglang": {"image": "me/sglang-cpu:0.5.23"}}
# engines that serve a model under one name
ONE_NAME = {"sglang"}
SITES = {"compose": lambda: ComposeSite(), "process": lambda: ProcessSite(Path("/stack"), Path("/state"))}

pytestmark = [
    pytest.mark.parametrize("site", SITES),
    pytest.mark.parametrize("engine", engines.names()),
]


def plan(engine: str, site: str, *models: dict[str, Any], **fields: Any) -> Plan:
    base = {"engine": engine} | NEEDS.get(engine, {})
    entries = [{"model": f"org/m{index}"} | base | model for index, model in enumerate(models or ({},))]
    made: Site = SITES[site]()
    return resolve(build_spec({"name": "demo", "models": entries, "gateway": False} | fields, "test"), made, "test")


def serving(made: Plan) -> list[Service]:
    """The services that load a model."""
    return [service for service in made.services if service.role in ("engine", "worker")]


def test_names_and_dialect_agree(engine: str, site: str) -> None:
    one = engines.get(engine)
    assert one.name == engine == one.dialect.name
    assert one.Model.model_fields["engine"].annotation.__args__ == (engine,)  # type: ignore[union-attr]
    assert {endpoint.dialect.name for endpoint in plan(engine, site).endpoints} == {engine}
    for pattern, phase in one.phases:
        re.compile(pattern)
        assert phase
    assert any(phase == "ready" for _, phase in one.phases)


def test_endpoints_have_service_url_and_names(engine: str, site: str) -> None:
    names = ("a",) if engine in ONE_NAME else ("a", "b")
    made = plan(engine, site, {"served_names": names})
    assert made.endpoints
    for endpoint in made.endpoints:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", endpoint.base_url)
        assert endpoint.models == names
        assert made.service(endpoint.service).ports
        assert endpoint.api_key == "STACKGEN_API_KEY"
        assert set(endpoint.workers) <= {service.name for service in made.services}
        port = made.service(endpoint.service).ports[0].host
        assert endpoint.base_url.endswith(f":{port}/v1")


def test_every_service_has_a_health_check_of_its_own_port(engine: str, site: str) -> None:
    made = plan(engine, site, {}, {"gpus": 1})
    for service in made.services:
        assert (service.health is None) == (service.role == "download")
        assert service.engine == engine
        assert service.comment
        if service.health:
            # never through a published port, which would check Docker's proxy
            assert service.health.timeout < 100
            assert service.health.start_period >= 60
            assert service.entrypoint == ("/bin/sh", service.entrypoint[1])
            assert service.entrypoint[1].endswith("/supervise.sh")


def test_environment_names_are_valid_and_keys_are_references(engine: str, site: str) -> None:
    made = plan(engine, site, {"gpus": 1}, {})
    for service in made.services:
        names = [name for name, _ in service.environment]
        assert len(names) == len(set(names)), service.name
        for name, value in service.environment:
            assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)
            if re.search(r"KEY$|TOKEN$|SECRET|PASSWORD", name):
                assert isinstance(value, EnvRef), name
    guarded = [
        s
        for s in made.services
        if any(value == EnvRef("STACKGEN_API_KEY", getattr(value, "required", "")) for _, value in s.environment)
    ]
    assert guarded
    assert {service.name for service in guarded} == {endpoint.service for endpoint in made.endpoints}
    for service in made.services:  # nor does it stand where `ps` shows it
        assert not any("key" in word.lower() and "STACKGEN" in word for word in service.command)


def test_served_names_are_in_the_command(engine: str, site: str) -> None:
    names = ["first"] if engine in ONE_NAME else ["first", "second"]
    for service in serving(plan(engine, site, {"served_names": names})):
        parts = [part for argument in service.command for part in argument.split(",")]
        places = [parts.index(name) for name in names]
        assert places == sorted(places)
    # without served names, the id is the name
    for service in serving(plan(engine, site)):
        assert any("org/m0" in word.split(",") for word in service.command)


def test_local_models_need_no_download(engine: str, site: str) -> None:
    made = plan(engine, site, {"model": "./weights"})
    assert not [service for service in made.services if service.role == "download"]
    where = SITES[site]().local_path("./weights")
    for service in serving(made):
        assert any(word == where or word.startswith(where + "/") for word in service.command)
        assert any(getattr(mount, "target", "") == where or site == "process" for mount in service.mounts)


def test_each_replica_is_a_service_with_its_own_gpus(engine: str, site: str) -> None:
    made = plan(engine, site, {"replicas": 3, "gpus": 2})
    services = serving(made)
    first = services[0].name
    # the first has no number, so that adding a second one doesn't rename and restart it
    assert [service.name for service in services] == [first, f"{first}-2", f"{first}-3"]
    claims = [service.gpus.ids for service in services if service.gpus]
    assert claims == [("0", "1"), ("2", "3"), ("4", "5")]
    # they differ only in name, port and GPUs
    bare = [
        replace(
            s, name="", comment="", gpus=None, ports=(), command=(), environment=(), health=None, build=None, pull=True
        )
        for s in services
    ]
    assert len(set(bare)) == 1
    listening = [service.ports[0].host for service in services if service.ports]
    assert len(listening) == len(set(listening))


def test_extra_args_come_last(engine: str, site: str) -> None:
    """The last of two equal flags wins, so extra_args override stackgen's flags."""
    extra = ("--first", "a b", "--seed=1", "")
    for service in serving(plan(engine, site, {"extra_args": extra, "gpus": 1})):
        assert service.command[-len(extra) :] == extra


def test_extra_env_wins(engine: str, site: str) -> None:
    for service in serving(plan(engine, site, {"extra_env": {"HOME": "/mine", "NEW": "1"}})):
        assert dict(service.environment)["HOME"] == "/mine"
        assert dict(service.environment)["NEW"] == "1"


def test_per_model_overrides_reach_the_service(engine: str, site: str) -> None:
    given = {"image": "me/mine:1", "user": "7:8", "read_only": False, "shm_size": "3g", "cpuset": "0-3"}
    made = plan(engine, site, {"model": "./x"} | given)
    for service in serving(made):
        assert (service.image, service.user, service.read_only, service.shm_size, service.cpuset) == tuple(
            given.values()
        )
        assert service.build is None
        assert service.pull
    for service in serving(plan(engine, site, {"ipc": "host"})):
        assert (service.ipc, service.shm_size) == ("host", "")  # /dev/shm is the host's then


def test_services_are_hardened_by_default(engine: str, site: str) -> None:
    for service in plan(engine, site, {"gpus": 1}, {}).services:
        # hooks of the NVIDIA Container Toolkit write to the root file system
        assert service.read_only == (not service.gpus)
        assert not service.image.endswith(":latest")
        assert ":" in service.image
        # download.py starts as root, and becomes the user who owns the store
        becomes_owner = service.role == "download" and site == "compose"
        assert service.cap_add == (("CHOWN", "SETGID", "SETUID") if becomes_owner else ())
        for port in service.ports:
            assert port.address == "127.0.0.1"
        assert not any("trust" in word for word in service.command)


def test_read_only_overrides_the_default_with_and_without_gpus(engine: str, site: str) -> None:
    for wanted in (True, False):
        for gpus in ("none", 1):
            services = serving(plan(engine, site, {"gpus": gpus, "read_only": wanted}))
            assert [service.read_only for service in services] == [wanted]


def test_start_period_depends_on_start_timeout_or_model_size(engine: str, site: str, tmp_path: Path) -> None:
    def period(**model: Any) -> int:
        health = serving(plan(engine, site, model))[0].health
        assert health
        return health.start_period

    assert period(start_timeout=77) == 77
    assert period(model="org/x-70B") > period(model="org/x-7B") > period(model="org/x-1B")
    assert period(model="org/x-8x7B") > period(model="org/x-7B")
    assert period(model="org/no-size") == period(model="org/no-size", gpus=1) == 600
    # the weights fit into the GPUs: 640 GB at 20 s per GB
    assert period(model="org/no-size", gpus=8) == 12980
    assert period(model="org/x-7B", gpus=8) == period(model="org/x-7B")
    # `17B` is the active part of a mixture of experts, of which the catalog knows the size: 218 GB
    assert period(model="meta-llama/Llama-4-Scout-17B-16E-Instruct", gpus=8) == 4540
    assert period(model="org/x-17B-128E-Instruct", gpus=8) == 12980
    assert period(model="deepseek-ai/DeepSeek-V3.1", gpus=8) == 13600
    # at 16 bits, although the weights have 4
    assert period(model="openai/gpt-oss-120b") == 4980
    # the shortest part of the start of a small model is loading
    assert period(model="org/x-135M") == 600
    # the files of a local model, which are sparse here
    for name, size in (("large", 300), ("x-1B", 300), ("small", 1)):
        folder = tmp_path / name
        folder.mkdir()
        for number in (1, 2):
            with (folder / f"part-{number}.gguf").open("wb") as file:
                file.truncate(size * 10**9)
        if engine == "llamacpp":
            half = {"file": "part-1.gguf"}
            assert period(model=str(folder), **half) == (600 if name == "small" else 9600)
            alone = period(model=str(folder / "part-2.gguf"), file=None)
            assert alone == (600 if name == "small" else 9600)
        else:
            assert period(model=str(folder)) == (600 if name == "small" else 19200)
    assert period(model=str(tmp_path / "absent")) == 600


def test_assets_exist_and_scripts_are_at_the_paths_of_the_site(engine: str, site: str) -> None:
    made = plan(engine, site)
    for asset in made.assets:
        assert (templates_dir() / asset.template).is_file()
    if site == "process":
        for service in made.services:
            for word in (*service.entrypoint, *(service.health.command if service.health else ())):
                assert not word.startswith("/stackgen/"), "a path that only a container has"


def test_unusual_gpu_requests_give_a_plan_or_errors(engine: str, site: str) -> None:
    """Unusual requests end in a plan or in errors, never in a crash."""
    for gpus in (1, 3, [0, 5], ["GPU-a"], "all", "none"):
        for driver in ("nvidia", "cdi", "amd"):
            try:
                made = plan(engine, site, {"gpus": gpus}, gpu_driver=driver)
            except SpecError as error:
                errors = error.mistakes
                assert errors
            else:
                assert serving(made)
