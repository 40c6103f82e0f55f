"""The Hub's answers, from the stand-in; the real one is never asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stackgen.check.huggingface import HubAnswer, ask_hub
from stackgen.doctor.facts import GIB, Disk
from tests.doctor.hosts import CONFIG, EIGHT_80, NO_GPU, bad, findings, only, write_model, write_stack
from tests.hub.standin import Hub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = write_model(tmp_path / "published")
    (folder / "pytorch_model.bin").write_bytes(bytes(5000))
    server = Hub({"org/open": folder, "org/closed": folder}, gated=("org/closed",), tokens={"yes": True, "no": False})
    yield server
    server.close()


def test_an_open_model_with_its_size_and_commit(hub: Hub, tmp_path: Path) -> None:
    answer = ask_hub("org/open", endpoint=hub.url)
    safe = sum(f.stat().st_size for f in (tmp_path / "published").iterdir() if f.suffix != ".bin")
    assert (answer.state, answer.bytes, answer.commit) == ("ok", safe, hub.commit("org/open"))
    assert answer.config == CONFIG
    only_one = ask_hub("org/open", endpoint=hub.url, file="pytorch_model.bin")
    assert only_one.bytes == 5000


@pytest.mark.parametrize(
    ("model", "revision", "token", "state"),
    [
        ("org/none", None, "", "missing"),
        ("org/none", None, "yes", "missing"),
        ("org/open", "v9", "", "revision"),
        ("org/open", None, "stale", "token"),
        ("org/closed", None, "", "gated"),
        ("org/closed", None, "no", "gated"),
        ("org/closed", None, "yes", "ok"),
    ],
)
def test_what_is_in_the_way(hub: Hub, model: str, revision: str | None, token: str, state: str) -> None:
    answer = ask_hub(model, revision, token, hub.url)
    assert answer.state == state
    assert token not in answer.detail or not token


def test_no_hub_a_full_one_and_a_strange_one(hub: Hub, free_port: int) -> None:
    assert ask_hub("org/open", endpoint=f"http://127.0.0.1:{free_port}", timeout=2).state == "unreachable"
    hub.fail(429)
    assert ask_hub("org/open", endpoint=hub.url).state == "limited"
    hub.fail(503)
    assert ask_hub("org/open", endpoint=hub.url).state == "strange"


@pytest.mark.parametrize(
    ("answer", "id"),
    [
        (HubAnswer("token", "HTTP 401"), "SG-P061"),
        (HubAnswer("gated", "HTTP 401"), "SG-P061"),
        (HubAnswer("missing", "HTTP 401"), "SG-P062"),
        (HubAnswer("revision", "HTTP 404"), "SG-P062"),
        (HubAnswer("ok", files=("model.gguf",)), "SG-P062"),
    ],
)
def test_each_answer_has_its_finding(answer: HubAnswer, id: str, tmp_path: Path) -> None:
    path = write_stack(tmp_path, gpus="none", model="org/m", revision="v9")
    found = findings(NO_GPU, path, {"org/m": answer})
    only(found, id, "fail")


def test_a_healthy_answer_a_limit_and_no_answer(tmp_path: Path) -> None:
    path = write_stack(tmp_path, gpus="none", model="org/m", revision="v9")
    good = HubAnswer("ok", "", False, GIB, "abc", ("config.json", "model.safetensors"))
    assert not bad(findings(NO_GPU, path, {"org/m": good}), "fail", "warn", "unknown")
    assert bad(findings(NO_GPU, path, {"org/m": HubAnswer("limited", "HTTP 429")})) == {"SG-P060"}
    for nothing in (None, HubAnswer("unreachable", "no route")):
        found = findings(NO_GPU, path, {"org/m": nothing}, offline=nothing is None)
        assert not bad(found) and "SG-P060" in bad(found, "unknown")
        assert not {"SG-P061", "SG-P062"} & {one.id for one in found}


def test_the_hub_s_sizes_fill_disk_and_cards(tmp_path: Path) -> None:
    path = write_stack(tmp_path, gpus=[0], model="org/m", revision="v9")
    answer = HubAnswer("ok", "", False, 100 * GIB, "abc", ("config.json",), CONFIG)
    only(findings(EIGHT_80, path, {"org/m": answer}), "SG-P059", "fail")
    small = replace(EIGHT_80, docker_disk=Disk("/var/lib/docker", 50 * GIB, 1))
    found = findings(small, write_stack(tmp_path, gpus=[0, 1], model="org/m", revision="v9"), {"org/m": answer})
    assert "too small by 50.0 GiB" in only(found, "SG-P006", "fail").message


def test_the_hub_s_config_is_checked_against_the_cards(tmp_path: Path) -> None:
    path = write_stack(tmp_path, gpus=5, model="org/m", revision="v9")
    answer = HubAnswer("ok", "", False, GIB, "abc", ("config.json",), CONFIG | {"num_key_value_heads": 5})
    only(findings(EIGHT_80, path, {"org/m": answer}), "SG-P040", "fail")


def test_no_revision_is_told_with_the_commit(tmp_path: Path) -> None:
    path = write_stack(tmp_path, gpus="none", model="org/m")
    answer = HubAnswer("ok", "", False, GIB, "abcdef", ("config.json",))
    assert only(findings(NO_GPU, path, {"org/m": answer}), "SG-P064", "warn").fix == "revision: abcdef"
