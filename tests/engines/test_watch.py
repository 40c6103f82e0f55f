"""Which services get the watch for hangs, with which settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stackgen.errors import SpecError
from stackgen.plan import Plan
from stackgen.resolve.pipeline import resolve
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite
from stackgen.targets.process import ProcessSite

MODELS: dict[str, dict[str, Any]] = {
    "vllm": {"model": "org/m", "engine": "vllm"},
    "fastchat": {"model": "org/m", "engine": "fastchat"},
    "llamacpp": {"model": "org/m", "engine": "llamacpp", "file": "m.gguf"},
}
COMMANDS = {
    "vllm": "python3 /stackgen/watch.py vllm http://127.0.0.1:8000",
    "fastchat": "python3 /stackgen/watch.py fastchat http://127.0.0.1:21002",
    "llamacpp": "bash /stackgen/llamacpp_watch.sh http://127.0.0.1:8080",
}


def plan(engine: str, site: ComposeSite | ProcessSite | None = None, **fields: Any) -> Plan:
    spec = build_spec({"name": "demo", "models": [MODELS[engine] | fields]}, "test")
    return resolve(spec, site or ComposeSite(), "test")


def watches(one: Plan) -> dict[str, Any]:
    """The watch of each service that has one."""
    found = {service.name: dict(service.environment).get("STACKGEN_WATCH") for service in one.services}
    return {name: watch for name, watch in found.items() if watch}


@pytest.mark.parametrize("engine", MODELS)
def test_every_replica_is_watched_and_only_replicas(engine: str) -> None:
    found = watches(plan(engine, replicas=2))
    assert list(found.values()) == [f"{COMMANDS[engine]} 25"] * 2
    assert all(name.startswith(f"{engine}-m") for name in found)


@pytest.mark.parametrize("engine", MODELS)
def test_the_scripts_of_the_watch_are_rendered(engine: str) -> None:
    paths = {asset.path for asset in plan(engine).assets}
    assert COMMANDS[engine].split()[1].replace("/stackgen/", "scripts/") in paths


@pytest.mark.parametrize("engine", MODELS)
def test_the_timeout_can_be_set_and_the_watch_switched_off(engine: str) -> None:
    assert list(watches(plan(engine, hang_timeout=90)).values()) == [f"{COMMANDS[engine]} 90"]
    assert not watches(plan(engine, restart_hung=False))


@pytest.mark.parametrize("seconds", [9, 3601])
def test_a_timeout_that_is_no_use_is_refused(seconds: int) -> None:
    with pytest.raises(SpecError, match="hang_timeout"):
        plan("vllm", hang_timeout=seconds)


def test_local_processes_have_no_watch(tmp_path: Path) -> None:
    # nothing would start it: supervise.sh runs only in containers
    assert not watches(plan("vllm", ProcessSite(tmp_path, tmp_path / "state")))


def test_a_variable_of_the_user_replaces_the_watch() -> None:
    own = {"STACKGEN_WATCH": "/own/watch"}
    assert list(watches(plan("vllm", extra_env=own)).values()) == ["/own/watch"]
