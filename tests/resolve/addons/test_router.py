"""`cache_aware` in the plan and in the rendered configuration. tests/live runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stackgen.errors import SpecError
from stackgen.images.tags import cpu_image_tag
from stackgen.plan import Plan
from stackgen.render.templating import render
from stackgen.resolve.pipeline import resolve
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite
from stackgen.targets.process import ProcessSite
from tests.resolve.addons.test_fallback import accepted

AWARE = {"replicas": 2, "cache_aware": True}


def plan(*models: dict[str, Any], **fields: Any) -> Plan:
    entries = [{"model": f"org/m{index}", "engine": "vllm"} | model for index, model in enumerate(models)]
    return resolve(build_spec({"name": "demo", "models": entries} | fields, "test"), ComposeSite(), "test")


def files(made: Plan) -> dict[str, str]:
    return {file.path: file.text for file in render(made)}


def mistakes(*models: dict[str, Any], **fields: Any) -> list[tuple[str, str]]:
    with pytest.raises(SpecError) as caught:
        plan(*models, **fields)
    return [(one.path, one.message) for one in caught.value.mistakes]


def test_no_router_without_cache_aware_models() -> None:
    made = plan({"replicas": 2}, {})
    assert not any(service.role == "router" or service.networks for service in made.services)
    assert made.networks == ()
    assert "router" not in files(made)["gateway/haproxy.cfg"]
    assert not any("--enable-scale-out" in service.command for service in made.services)


def test_router_knows_its_replicas_and_no_key() -> None:
    made = plan(AWARE | {"replicas": 3}, {}, gateway=True)
    router = made.service("router-m0")
    urls = router.command[router.command.index("--worker-urls") + 1 :][:4]
    assert urls == ("http://vllm-m0:8000", "http://vllm-m0-2:8000", "http://vllm-m0-3:8000", "--policy")
    assert router.command[router.command.index("--policy") + 1] == "cache_aware"
    assert router.command[router.command.index("--health-check-interval-secs") + 1] == "2"
    # it forwards the key that the gateway sends
    assert router.environment == () and "key" not in " ".join(router.command)
    assert (router.image, router.read_only, router.user) == (cpu_image_tag("vllm-router"), True, "1000:1000")
    assert {"vllm-router/Dockerfile", "vllm-router/requirements.txt"} <= set(files(made))


def test_replicas_keep_idle_connections_longer_than_the_router() -> None:
    name = "VLLM_HTTP_TIMEOUT_KEEP_ALIVE"
    made = plan(AWARE, {}, AWARE | {"extra_env": {name: "600"}})
    keep_alive = {one.name: dict(one.environment).get(name) for one in made.services if one.name.startswith("vllm-")}
    assert keep_alive == {"vllm-m0": "120", "vllm-m0-2": "120", "vllm-m1": None, "vllm-m2": "600", "vllm-m2-2": "600"}


def test_only_gateway_and_replicas_can_reach_the_router() -> None:
    made = plan(AWARE, {}, {"engine": "fastchat"})
    assert {service.name for service in made.services if "routing" in service.networks} == {
        "vllm-m0", "vllm-m0-2", "router-m0", "gateway"}  # fmt: skip
    assert made.service("router-m0").networks == ("routing",) and made.service("router-m0").ports == ()
    assert made.service("vllm-m0").networks == made.service("gateway").networks == ("default", "routing")
    assert made.service("vllm-m1").networks == ()
    assert {network.name: network.internal for network in made.networks}["routing"]


def test_replicas_let_the_router_tokenize_prompts() -> None:
    made = plan(AWARE, {})
    flagged = {service.name for service in made.services if "--enable-scale-out" in service.command}
    assert flagged == {"vllm-m0", "vllm-m0-2"}


def test_requests_go_to_the_router_with_replicas_as_backup() -> None:
    config = files(plan(AWARE | {"max_num_seqs": 5}, {}))["gateway/haproxy.cfg"]
    behind = config.split("\nbackend router-m0\n")[1].split("\nbackend ")[0]
    first, second, third = [line.split() for line in behind.splitlines() if line.startswith("    server ")]
    assert first[1:3] == ["router-m0", "router-m0:30000"] and "check" in first and "backup" not in first
    assert first[first.index("maxconn") + 1] == "10"
    for line, name in ((second, "vllm-m0"), (third, "vllm-m0-2")):
        assert line[1:3] == [name, f"{name}:8000"] and line[-1] == "backup"
        assert line[line.index("track") + 1] == f"vllm-m0/{name}" and line[line.index("maxconn") + 1] == "5"
    assert "uri /readiness" in behind and "option allbackups" in behind
    # the replicas determine whether the model is up, not the router
    assert "nbsrv(router-m0)" not in config and "nbsrv(vllm-m0)" in config
    # the router drops the key on other paths
    routes = [line for line in config.splitlines() if "str(router-m0)" in line]
    # for clients, and for the process for large bodies
    assert len(routes) == 2 and len(set(routes)) == 1
    route = routes[0]
    assert "{ path /v1/chat/completions /v1/completions }" in route


def test_all_routers_share_one_image() -> None:
    made = plan(AWARE, AWARE, AWARE | {"served_names": ["x/m0"]})
    routers = [service for service in made.services if service.role == "router"]
    assert [service.name for service in routers] == ["router-m0", "router-m1", "router-m0-2"]
    assert [bool(service.build) for service in routers] == [True, False, False]
    assert not any(service.pull for service in routers)


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        ({"cache_aware": True}, {"gateway": True}, "two replicas"),
        (AWARE, {"gateway": False}, "needs the gateway"),
    ],
)
def test_cache_aware_without_replicas_or_gateway_is_rejected(
    model: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    ((path, text),) = mistakes(model, **fields)
    assert path == "models[0].cache_aware" and message in text


def test_other_engines_reject_cache_aware() -> None:
    ((path, _),) = mistakes({"engine": "fastchat", "replicas": 2, "cache_aware": True})
    assert path == "models[0].cache_aware"


def test_local_processes_warn_that_the_router_is_not_used(tmp_path: Path) -> None:
    entry = {"model": "./m", "engine": "vllm", **AWARE}
    made = resolve(build_spec({"name": "demo", "models": [entry]}, "test"), ProcessSite(tmp_path, tmp_path), "test")
    assert any("without the gateway" in text for text in made.warnings)
    assert not any(service.role == "router" for service in made.services)


@pytest.mark.docker
def test_haproxy_accepts_the_rendered_configuration(haproxy_image: str, tmp_path: Path) -> None:
    both = {"fallback": "together:org/model"}
    accepted(files(plan(AWARE | both, {}, {"engine": "fastchat"}, AWARE)), haproxy_image, tmp_path)
