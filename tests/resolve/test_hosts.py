"""A stack on several machines: what `render` writes for each of them. tests/live/test_hosts.py runs it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.bundle.stack_copy import copy_stack
from stackgen.cli import main as cli
from stackgen.errors import SpecError, StackgenError
from stackgen.resolve.hosts import resolve
from stackgen.stack.edit import write_stack_file
from stackgen.stack.folder import open_stack
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite
from stackgen.targets.kubernetes import KubernetesSite

VLLM = {"model": "org/a", "engine": "vllm", "gpus": 1}
LAB = """\
# the lab
name: lab
bind: 192.168.1.5
ui: open-webui
gateway: {tls: generate, keys: [{name: ann}], timeout: 900}
hosts:
  front: {address: 10.0.0.1}
  box1: {address: 10.0.0.2, gpus: 8, port: 9000}
  box2: {address: "fd00::3", storage_path: /data/models}
models:
  - {model: org/a, engine: vllm, gpus: 2, replicas: 2, host: [box1, box2], fallback: "together:org/a"}
  - {model: org/b, engine: fastchat, gpus: 1, worker_concurrency: 5, host: box2}
  - {model: org/c, engine: llamacpp, file: c.gguf}
"""


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    (tmp_path / "stack.yaml").write_text(LAB)
    assert cli.main(["render", str(tmp_path), "--no-validate"]) == 0
    return tmp_path


def services(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    return found


def server_lines(folder: Path) -> dict[str, list[str]]:
    """The servers of each backend of HAProxy: name, address, weight and limit."""
    found: dict[str, list[str]] = {}
    for line in (folder / "gateway" / "haproxy.cfg").read_text().splitlines():
        # HAProxy's quotes are those of a shell
        words = shlex.split(line) if line.split()[:1] == ["server"] else line.split()
        if words[:1] == ["backend"]:
            lines = found.setdefault(words[1], [])
        elif words[:1] == ["server"]:
            lines.append(" ".join(words[1:]))
    return found


def env(folder: Path) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in (folder / ".env").read_text().splitlines() if line[:1].isalpha())


def mistakes(**fields: Any) -> str:
    hosts = {"front": {}, "box": {"address": "10.0.0.2"}}
    data = {"name": "s", "host": "front", "hosts": hosts, "models": [VLLM | {"host": "box"}]} | fields
    with pytest.raises(SpecError) as error:
        resolve(build_spec(data, "stack.yaml"), ComposeSite(), "stack.yaml")
    return str(error.value)


def test_each_machine_has_its_models_and_one_published_address(lab: Path) -> None:
    assert set(services(lab / "front")) == {"download", "llamacpp-c", "gateway", "open-webui"}
    assert set(services(lab / "box1")) == {"download", "vllm-a", "vllm-a-2", "gateway"}
    assert {"vllm-a", "vllm-a-2", "fastchat-controller"} < set(services(lab / "box2"))
    published = {name: [one for service in services(lab / name).values() for one in service.get("ports", ())]
                 for name in ("front", "box1", "box2")}  # fmt: skip
    assert published["box1"] == ["10.0.0.2:9000:8000"] and published["box2"] == ["[fd00::3]:8000:8000"]
    assert published["front"] == ["192.168.1.5:8000:8000", "127.0.0.1:3080:8080"]
    assert "/data/models" in (lab / "box2" / "compose.yaml").read_text()
    assert not (lab / "compose.yaml").exists()


def test_the_first_machine_balances_over_all_of_them(lab: Path) -> None:
    lines = server_lines(lab / "front")
    # 2 replicas with 256 requests each
    assert lines["vllm-a"] == ["box1 10.0.0.2:9000 weight 2 maxconn 512 tcp-ut 8s",
                               "box2 [fd00::3]:8000 weight 2 maxconn 512 tcp-ut 8s"]  # fmt: skip
    assert lines["fastchat-b"] == ["box2 [fd00::3]:8000 weight 1 maxconn 4 tcp-ut 8s"]
    assert lines["llamacpp-c"] == ["llamacpp-c llamacpp-c:8080"]
    assert "fallback-vllm-a" in lines and "fallback-vllm-a" not in server_lines(lab / "box1")
    front, box = ((lab / name / "gateway" / "haproxy.cfg").read_text() for name in ("front", "box1"))
    # the box is asked for this model, and answers this question
    assert f"uri '/health?model={b'org/a'.hex().upper()}'" in front and "url_param(model)" in box
    # with a wrong key, the box is down for the front, and its models get status 503 instead of 401
    assert box.index("url_param(model),map_str") > box.index('"invalid_api_key"')
    assert "url_param" not in front and "ssl crt" in front and "ssl crt" not in box
    # a long answer is not cut off by the second gateway
    assert "timeout server 900s" in front and "timeout server 900s" in box


def test_the_machines_share_one_key_that_no_client_has(lab: Path) -> None:
    front, box1, box2 = (env(lab / name) for name in ("front", "box1", "box2"))
    assert front["STACKGEN_ENGINE_KEY"] == box1["STACKGEN_API_KEY"] == box2["STACKGEN_API_KEY"]
    others = [front["STACKGEN_API_KEY"], box1["STACKGEN_ENGINE_KEY"], box2["STACKGEN_ENGINE_KEY"]]
    assert len({*others, front["STACKGEN_ENGINE_KEY"]}) == 4
    assert (lab / "box1" / ".env").stat().st_mode & 0o777 == 0o600


def test_a_lost_key_is_reported_and_not_replaced(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lab / "box1" / ".env"
    path.write_text(path.read_text().replace("STACKGEN_API_KEY=", "STACKGEN_API_KEY=other"))
    assert cli.main(["render", str(lab), "--no-validate"]) != 0
    text = capsys.readouterr().err
    assert "different keys" in text and "STACKGEN_ENGINE_KEY" in text
    assert env(lab / "box1")["STACKGEN_API_KEY"] not in text and env(lab / "front")["STACKGEN_ENGINE_KEY"] not in text


def test_a_folder_stands_alone_on_its_machine(lab: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    text = (lab / "box1" / "stack.yaml").read_text()
    assert "# the lab" in text and "host: box1\n" in text
    moved = tmp_path_factory.mktemp("elsewhere") / "stack"
    (lab / "box1").rename(moved)
    assert cli.main(["render", str(moved), "--no-validate", "--check"]) == 0
    assert open_stack(str(moved)).plan.endpoints[0].base_url == "http://10.0.0.2:9000/v1"


def test_a_machine_that_has_been_started_can_be_checked(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # `up` records the times of the start there, and local processes, which a stack with hosts can't have, their state
    (lab / "box1" / ".stackgen").mkdir(exist_ok=True)
    capsys.readouterr()
    assert cli.main(["check", str(lab / "box1"), "--timeout", "1"]) == 1
    assert "NOT healthy: " in capsys.readouterr().out


def test_commands_for_one_machine_name_the_folders(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("up", "check", "status"):
        assert cli.main([command, str(lab)]) != 0
        text = capsys.readouterr().err
        assert str(lab) in text
    assert cli.main(["render", str(lab), "--stdout"]) != 0
    assert str(lab / "front") in capsys.readouterr().err
    assert cli.main(["render", str(lab), "--no-validate", "--json", "--check"]) == 0
    assert set(json.loads(capsys.readouterr().out)["hosts"]) == {"front", "box1", "box2"}


def test_no_command_edits_the_copy_of_a_machine(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (lab / "box1" / "stack.yaml").read_text()
    assert cli.main(["scale", "org/a=3", str(lab / "box1")]) != 0
    assert "change the original stack.yaml" in capsys.readouterr().err
    with pytest.raises(StackgenError, match="is a copy"):
        write_stack_file(lab / "box1" / "stack.yaml", before, before.replace("gpus: 2", "gpus: 4"))
    assert (lab / "box1" / "stack.yaml").read_text() == before


def test_a_bundle_of_one_machine_is_refused(lab: Path) -> None:
    with pytest.raises(StackgenError, match="this stack has `hosts`"):
        copy_stack(open_stack(str(lab / "box1")), {})


def test_a_first_machine_needs_no_models() -> None:
    data = {"name": "s", "host": "front", "hosts": BOTH, "models": [VLLM | {"host": "box"}], "monitoring": True,
            "ui": "open-webui"}  # fmt: skip
    plan = resolve(build_spec(data, "stack.yaml"), ComposeSite(), "stack.yaml")
    assert {"gateway", "open-webui", "prometheus", "grafana"} <= {one.name for one in plan.services}
    assert [one.role for one in plan.services if one.role == "engine"] == []
    [endpoint] = plan.endpoints
    assert endpoint.remote and endpoint.remote.host == "box"


def test_two_renders_write_the_same(lab: Path) -> None:
    before = {path: path.read_bytes() for path in lab.rglob("*") if path.is_file()}
    assert cli.main(["render", str(lab), "--no-validate"]) == 0
    assert {path: path.read_bytes() for path in lab.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("address", "reason"),
    [("0.0.0.0", "all interfaces"), ("::", "all interfaces"), ("127.0.0.1", "can't reach"),
     ("169.254.1.1", "can't reach"), ("8.8.8.8", "public address"), ("2001:4860:4860::8888", "public address"),
     ("::ffff:8.8.8.8", "public address"), ("box.example.com", "must be an IP address"), (5, "must be an IP address")],
)  # fmt: skip
def test_addresses_that_are_public_or_unreachable_are_refused(address: Any, reason: str) -> None:
    text = mistakes(hosts={"front": {}, "box": {"address": address}})
    assert "hosts.box.address" in text and reason in text


@pytest.mark.parametrize("address", ["10.1.2.3", "192.168.0.9", "172.16.0.1", "100.64.0.7", "fd12::1"])
def test_addresses_of_private_networks_and_vpns_are_accepted(address: str) -> None:
    data = {"name": "s", "host": "box", "hosts": {"front": {}, "box": {"address": address}},
            "models": [VLLM | {"host": "box"}]}  # fmt: skip
    plan = resolve(build_spec(data, "stack.yaml"), ComposeSite(), "stack.yaml")
    assert plan.service("gateway").ports[0].address == address


BOTH = {"front": {}, "box": {"address": "10.0.0.2"}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"hosts": {"front": {}, "box": {}}}, "hosts.box.address: is missing"),
        ({"hosts": {**BOTH, "box2": {"address": "10.0.0.2"}}}, "box2.address: 10.0.0.2 is also the address of box"),
        ({"hosts": {**BOTH, "box2": {"address": "10.0.0.3"}}}, "hosts.box2: runs no model"),
        ({"hosts": {"front": {"port": 9}, "box": {"address": "10.0.0.2"}}}, "hosts.front.port: has no effect"),
        ({"hosts": {"front": {}, "box": {"address": "10.0.0.2", "gpus": 1}},
          "models": [VLLM | {"gpus": 2, "host": "box"}]},
         "hosts.box.gpus: is 1, but the models on this host need 2"),
        ({"models": [VLLM | {"host": "bx"}]}, "models[0].host: 'bx' is not a machine in `hosts` (choose one of front, "
            "box)"),
        ({"models": [VLLM | {"host": ["box", "box"]}]}, "models[0].host: lists a host twice"),
        ({"models": [VLLM | {"host": "box", "gpus": "auto"}]}, "models[0].gpus: the GPUs of `auto` are not chosen yet"),
        ({"models": [VLLM | {"host": ["front", "box"], "cache_aware": True, "replicas": 2}]},
         "models[0].cache_aware: works on one host only"),
        ({"gateway": False}, "gateway: can't be disabled with `hosts`"),
        ({"hosts": {"front": {}, "gateway": {"address": "10.0.0.2"}}, "models": [VLLM | {"host": "gateway"}]},
         "hosts.gateway: is also the name of a service"),
        ({"host": "other"}, "host: 'other' is not a machine in `hosts`"),
        ({"hosts": {}}, "host: has no effect without `hosts`"),
        ({"hosts": {}}, "models[0].host: needs `hosts`"),
        ({"models": [VLLM | {"host": "box", "served_names": ["x", "y"]}, VLLM | {"served_names": ["y"]}]},
         "models[1].served_names: 'y' is already served by models[0]"),
    ],
)  # fmt: skip
def test_mistakes_name_the_field_and_the_way_out(fields: dict[str, Any], expected: str) -> None:
    assert expected in mistakes(**fields)


def test_mistakes_name_the_models_by_their_place_in_the_file() -> None:
    wrong = {"model": "org/b", "engine": "vllm", "gpus": 3, "tensor_parallel_size": 2}
    models = [VLLM, VLLM | {"model": "org/c", "host": "box"}, wrong | {"host": "box"}]
    assert "models[2]" in mistakes(models=models) and "models[2]" in mistakes(models=models, host="box")
    assert "models[2]" in mistakes(models=[VLLM | {"host": "box"}, VLLM | {"model": "org/c"}, wrong])


def test_equal_models_on_different_machines_are_replicas() -> None:
    models = [VLLM | {"served_names": ["x"]}, VLLM | {"served_names": ["x"], "host": "box", "gpus": 4}]
    data = {"name": "s", "host": "front", "hosts": BOTH, "models": models}
    plan = resolve(build_spec(data, "stack.yaml"), ComposeSite(), "stack.yaml")
    [endpoint] = plan.endpoints
    assert endpoint.replicas == ("vllm-x",) and endpoint.remote is None


def test_other_targets_refuse_hosts() -> None:
    data = {"name": "s", "host": "front", "hosts": BOTH, "models": [VLLM | {"host": "box"}]}
    with pytest.raises(SpecError, match="works only with Docker Compose"):
        resolve(build_spec(data, "stack.yaml"), KubernetesSite(), "stack.yaml")


def test_render_ends_with_the_commands_for_plain_compose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "stack.yaml").write_text(LAB)
    assert cli.main(["render", str(tmp_path), "--no-validate"]) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    # Compose doesn't create external volumes, and none of them may be missing
    for host in ("front", "box1", "box2"):
        volumes = yaml.safe_load((tmp_path / host / "compose.yaml").read_text())["volumes"].values()
        for name in (one["name"] for one in volumes if one.get("external")):
            assert last.count(f"`docker volume create {name}`") == 1
    assert last.startswith("next: copy each folder") and last.endswith("`docker compose up -d` in that folder")
