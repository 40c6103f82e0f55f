"""llama.cpp's router mode: a folder of GGUF files. `tests/live/test_llamacpp_router.py` runs the real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stackgen.engines._llamacpp_router import list_gguf_models
from stackgen.errors import SpecError
from stackgen.plan import Bind, Plan
from stackgen.resolve.pipeline import resolve
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as the README of llama-server describes it, with files that the server leaves out."""
    models = tmp_path / "gguf"
    for name in ("a-Q4_1.gguf", "vision/vision.gguf", "vision/mmproj-F16.gguf", "big/b-00001-of-00002.gguf",
                 "big/b-00002-of-00002.gguf", "mmproj-x.gguf", "mtp-x.gguf", "readme.txt", "empty/readme.txt",
                 "deep/er/c.gguf"):  # fmt: skip
        path = models / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"GGUF")
    (tmp_path / "outside.gguf").write_bytes(b"GGUF")
    (models / "link.gguf").symlink_to("../outside.gguf")
    (models / "inside.gguf").symlink_to("a-Q4_1.gguf")
    return models


def plan(folder: Path, stack: dict[str, Any] | None = None, **model: Any) -> Plan:
    entry = {"engine": "llamacpp", "models_dir": "./gguf", "served_names": ["a-Q4_1", "big"]} | model
    data = {"name": "demo", "models": [{k: v for k, v in entry.items() if v is not None}], "gateway": False}
    return resolve(build_spec(data | (stack or {}), "test"), ComposeSite(folder.parent, folder.parent), "test")


def mistakes(folder: Path, **model: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        plan(folder, **model)
    return [str(one) for one in caught.value.mistakes]


def test_the_names_are_those_of_the_server(folder: Path) -> None:
    # a link out of the folder leads nowhere in the container
    assert list_gguf_models(folder) == ("a-Q4_1", "big", "inside", "vision")


def test_a_router_serves_the_folder_with_one_model_in_memory(folder: Path) -> None:
    made = plan(folder, max_model_len=1024, max_num_seqs=2, hang_timeout=30)
    service = next(one for one in made.services if one.role == "engine")
    command = " ".join(service.command)
    assert "--models-dir /srv/gguf --models-max 1 --offline" in command
    assert "--model " not in command and "--alias" not in command
    # the server divides its context among the slots
    assert "--ctx-size 2048 --parallel 2" in command
    assert Bind("./gguf", "/srv/gguf", True) in service.mounts
    assert "2 x 1,024 tokens" in service.comment and "1 of 2 models" in service.comment
    assert service.health and service.health.command[-1] == "router"
    environment = dict(service.environment)
    assert str(environment["STACKGEN_DRAIN"]).endswith(" router")
    # a model is a process of its own
    assert environment["STACKGEN_WATCH"] == "bash /stackgen/llamacpp_router_watch.sh http://127.0.0.1:8080 30"
    assert "scripts/llamacpp_router_watch.sh" in {one.path for one in made.assets}
    assert not [one for one in plan(folder, models_dir=None, model="./gguf/a.gguf").assets if "router" in one.path]
    assert not any(one.role == "download" for one in made.services)
    (endpoint,) = made.endpoints
    assert endpoint.models == ("a-Q4_1", "big")
    assert endpoint.dialect.unknown_model == (400, 400) and not endpoint.dialect.reports_first_name


def test_requests_share_the_context_without_slots(folder: Path) -> None:
    service = next(one for one in plan(folder, max_model_len="4K").services if one.role == "engine")
    assert "all requests share 4,096 tokens" in service.comment
    assert "--parallel" not in service.command


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"served_names": None}, "models[0].served_names: is required with models_dir"),
        ({"served_names": None}, "set `served_names: [a-Q4_1, big, inside, vision]`"),
        ({"served_names": ["big", "a"]}, "models[0].served_names[1]: ./gguf contains no model 'a'"),
        ({"model": "org/m"}, "has both `model` and `models_dir`"),
        ({"models_dir": "org/gguf"}, "'org/gguf' is not a local folder"),
        ({"file": "a.gguf"}, "models[0].file: has no effect with models_dir"),
        ({"models_dir": None, "model": "./gguf/a.gguf", "models_max": 2}, "has no effect without models_dir"),
        ({"models_dir": None}, "models[0].model: is missing"),
        ({"models_max": 0}, "models[0].models_max"),
        ({"extra_args": ["--models-max", "3"]}, "repeats --models-max, which `models_max` sets"),
        ({"extra_args": ["--parallel", "3"]}, "set max_num_seqs"),
    ],
)
def test_what_a_router_can_not_do_is_an_error(folder: Path, fields: dict[str, Any], part: str) -> None:
    more = {"models_max": 1} if "extra_args" in fields else {}
    found = mistakes(folder, **fields | more)
    assert len(found) == 1 and part in found[0], found


def test_a_folder_on_another_machine_can_be_rendered(folder: Path) -> None:
    assert plan(folder, models_dir="/data/gguf", served_names=["x"]).endpoints[0].models == ("x",)
