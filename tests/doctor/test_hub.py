"""The Hub's answers, from a fake Hub; the real one is never contacted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stackgen.check.huggingface import HubLookup, look_up_model
from stackgen.doctor.collect import read_env_facts, read_hub_token
from stackgen.doctor.facts import GIB, Disk
from tests.doctor.hosts import (
    CONFIG,
    EIGHT_80,
    NO_GPU,
    ONE_24,
    findings,
    problem_ids,
    single_problem,
    write_model,
    write_stack,
)
from tests.hub.standin import Hub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = write_model(tmp_path / "published")
    (folder / "pytorch_model.bin").write_bytes(bytes(5000))
    server = Hub({"org/open": folder, "org/closed": folder}, gated=("org/closed",), tokens={"yes": True, "no": False})
    yield server
    server.close()


def test_public_model_is_found_with_download_size_commit_and_config(hub: Hub, tmp_path: Path) -> None:
    answer = look_up_model("org/open", endpoint=hub.url)
    safe = sum(f.stat().st_size for f in (tmp_path / "published").iterdir() if f.suffix != ".bin")
    assert (answer.state, answer.download_bytes, answer.commit) == ("ok", safe, hub.commit("org/open"))
    assert answer.config == CONFIG
    only_one = look_up_model("org/open", endpoint=hub.url, file="pytorch_model.bin")
    assert only_one.download_bytes == 5000


def test_all_parts_of_a_gguf_file_count_as_the_download(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "parts")
    for name, size in (("m-00001-of-00002.gguf", 3000), ("m-00002-of-00002.gguf", 4000), ("m-00001-of-00003.gguf", 1)):
        (folder / name).write_bytes(bytes(size))
    server = Hub({"org/parts": folder}, gated=(), tokens={})
    try:
        assert look_up_model("org/parts", endpoint=server.url, file="m-00001-of-00002.gguf").download_bytes == 7000
    finally:
        server.close()


def test_relative_token_file_is_read_from_the_stacks_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN_FILE", raising=False)
    (tmp_path / "token").write_text("hf_x\n")
    for value in ("token", "~/token"):
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / ".env").write_text(f"HF_TOKEN_FILE={value}\n")
        facts = read_env_facts(tmp_path)
        assert read_hub_token(facts) == "hf_x" and not facts.missing_files


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
def test_each_refusal_of_the_hub_has_its_state(
    hub: Hub, model: str, revision: str | None, token: str, state: str
) -> None:
    answer = look_up_model(model, revision, token, hub.url)
    assert answer.state == state
    assert token not in answer.detail or not token


def test_unreachable_rate_limiting_and_failing_hubs_have_their_states(hub: Hub, free_port: int) -> None:
    assert look_up_model("org/open", endpoint=f"http://127.0.0.1:{free_port}", timeout=2).state == "unreachable"
    hub.fail(429)
    assert look_up_model("org/open", endpoint=hub.url).state == "rate_limited"
    hub.fail(503)
    assert look_up_model("org/open", endpoint=hub.url).state == "unexpected"


@pytest.mark.parametrize(
    ("answer", "id"),
    [
        (HubLookup("token", "HTTP 401"), "SG-P061"),
        (HubLookup("gated", "HTTP 401"), "SG-P061"),
        (HubLookup("missing", "HTTP 401"), "SG-P062"),
        (HubLookup("revision", "HTTP 404"), "SG-P062"),
        (HubLookup("ok", files=("model.gguf",)), "SG-P062"),
    ],
)
def test_each_refusal_is_reported_by_its_own_check(answer: HubLookup, id: str, tmp_path: Path) -> None:
    path = write_stack(tmp_path, gpus="none", model="org/m", revision="v9")
    found = findings(NO_GPU, path, {"org/m": answer})
    single_problem(found, id, "fail")


def test_missing_answer_is_unknown_and_never_ok(tmp_path: Path) -> None:
    path = write_stack(tmp_path, gpus="none", model="org/m", revision="v9")
    good = HubLookup("ok", "", False, GIB, "abc", ("config.json", "model.safetensors"))
    assert not problem_ids(findings(NO_GPU, path, {"org/m": good}), "fail", "warn", "unknown")
    assert problem_ids(findings(NO_GPU, path, {"org/m": HubLookup("rate_limited", "HTTP 429")})) == {"SG-P060"}
    for nothing in (None, HubLookup("unreachable", "no route")):
        found = findings(NO_GPU, path, {"org/m": nothing}, offline=nothing is None)
        assert not problem_ids(found) and "SG-P060" in problem_ids(found, "unknown")
        assert not {"SG-P061", "SG-P062"} & {one.id for one in found}


def test_size_from_the_hub_is_compared_with_disk_and_gpus(tmp_path: Path) -> None:
    path = write_stack(tmp_path, gpus=[0], model="org/m", revision="v9")
    answer = HubLookup("ok", "", False, 100 * GIB, "abc", ("config.json",), CONFIG)
    single_problem(findings(EIGHT_80, path, {"org/m": answer}), "SG-P059", "fail")
    small = replace(EIGHT_80, docker_disk=Disk("/var/lib/docker", 50 * GIB, 1))
    found = findings(small, write_stack(tmp_path, gpus=[0, 1], model="org/m", revision="v9"), {"org/m": answer})
    assert "lacks 50.0 GiB of free space" in single_problem(found, "SG-P006", "fail").message


def test_config_from_the_hub_is_checked_against_the_gpus(tmp_path: Path) -> None:
    path = write_stack(tmp_path, gpus=5, model="org/m", revision="v9")
    answer = HubLookup("ok", "", False, GIB, "abc", ("config.json",), CONFIG | {"num_key_value_heads": 5})
    single_problem(findings(EIGHT_80, path, {"org/m": answer}), "SG-P040", "fail")


def test_missing_revision_is_reported_with_the_commit_to_pin(tmp_path: Path) -> None:
    path = write_stack(tmp_path, gpus="none", model="org/m")
    answer = HubLookup("ok", "", False, GIB, "abcdef", ("config.json",))
    assert single_problem(findings(NO_GPU, path, {"org/m": answer}), "SG-P064", "warn").fix == "set `revision: abcdef`"


@pytest.mark.parametrize("stored", [None, False, True])
def test_an_offline_gpt_oss_needs_its_vocabulary_in_the_storage(tmp_path: Path, stored: bool | None) -> None:
    path = write_stack(tmp_path, model="org/gpt-oss-20b", stack_storage={"path": "./store", "offline": True})
    store = tmp_path / "store"
    snapshot = store / "hub/models--org--gpt-oss-20b/snapshots/main"
    write_model(snapshot)
    (store / "tiktoken").mkdir()
    if stored:
        (store / "tiktoken/o200k_base.tiktoken").write_text("YQ== 0\n")
    host = replace(EIGHT_80, storage_root=None if stored is None else str(store))
    about = [one for one in findings(host, path) if one.id == "SG-P063" and "vocabulary" in one.message]
    (finding,) = about
    assert finding.status == {None: "unknown", False: "fail", True: "ok"}[stored]
    if stored is False:
        assert "into the storage as tiktoken/o200k_base.tiktoken" in finding.fix


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize(
    ("storage", "file", "fix"),
    [
        ("store", "Qwen3-8B/config.json", "set `model: STORE/Qwen3-8B` and `served_names: [Qwen/Qwen3-8B]`"),
        ("store", "Qwen/Qwen3-8B/config.json", "set `model: STORE/Qwen/Qwen3-8B`"),
        ("store/hub", "models--Qwen--Qwen3-8B/snapshots/abc/config.json", "set `storage.path` to STORE, the folder"),
        ("store", ".cache/huggingface/hub/models--Qwen--Qwen3-8B/snapshots/abc/config.json",
         "set `storage.path` to STORE/.cache/huggingface, the folder"),
        ("store", "models--Qwen--Qwen3-8B/snapshots/abc/config.json", "set `model` to a folder in STORE/models--"),
        # another model
        ("store", "Qwen3-4B/config.json", ""),
        ("store", "Qwen3-8B/README.md", ""),
    ],
)  # fmt: skip
def test_a_model_in_another_layout_of_the_storage_is_found(
    tmp_path: Path, storage: str, file: str, fix: str, offline: bool
) -> None:
    folder = tmp_path / storage
    stack_storage = {"path": f"./{storage}", "offline": offline}
    path = write_stack(tmp_path, model="Qwen/Qwen3-8B", served_names=[], stack_storage=stack_storage)
    (folder / file).parent.mkdir(parents=True)
    (folder / file).write_text("{}")
    found = findings(replace(EIGHT_80, storage_root=str(folder)), path)
    problems = [one for one in found if one.id == "SG-P063" and one.status != "ok"]
    expected = fix.replace("STORE", str(tmp_path / "store"))
    if not offline and not fix:
        assert not problems
        return
    (one,) = problems
    assert one.status == ("fail" if offline else "warn")
    assert one.fix.startswith(expected or "start the stack once with `storage.offline: false`")


def test_other_models_and_folders_of_the_users_own_need_no_vocabulary(tmp_path: Path) -> None:
    own = {"model": "org/gpt-oss-20b", "extra_env": {"TIKTOKEN_ENCODINGS_BASE": "/opt/encodings"}}
    models: list[dict[str, Any]] = [{"model": "org/m"}, own]
    for number, fields in enumerate(models):
        path = write_stack(tmp_path / str(number), stack_storage={"offline": True}, **fields)
        assert not [one for one in findings(EIGHT_80, path) if "vocabulary" in one.message]


def test_a_mirror_inside_the_container_itself_is_a_warning(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"model": "org/open", "stack_storage": {"hub_endpoint": "http://localhost:8765"}}
    answer = {"org/open": HubLookup("ok")}
    (found,) = [one for one in findings(ONE_24, write_stack(tmp_path, **fields), answer) if one.id == "SG-P060"]
    assert (found.status, found.place) == ("warn", "storage.hub_endpoint") and "the container itself" in found.message


def test_an_empty_token_file_is_no_token(tmp_path: Path) -> None:
    path = write_stack(tmp_path, model="meta-llama/Llama-3.1-8B-Instruct", tool_call_parser="llama3_json")
    (tmp_path / "token").write_text("\n")
    env = (tmp_path / ".env").read_text()
    (tmp_path / ".env").write_text(f"{env}HF_TOKEN_FILE=token\n")
    by_id = {one.id: one for one in findings(ONE_24, path)}
    assert by_id["SG-P074"].status == "warn" and "is empty" in by_id["SG-P074"].message
    assert "names no token" in by_id["SG-P069"].message
    gated = {"meta-llama/Llama-3.1-8B-Instruct": HubLookup("gated")}
    by_id = {one.id: one for one in findings(ONE_24, path, gated)}
    assert by_id["SG-P061"].message.endswith("is gated and needs a token")
    (tmp_path / ".env").write_text(f"{env}HF_TOKEN_FILE=/dev/null\n")
    assert {one.id: one.status for one in findings(ONE_24, path)}["SG-P074"] == "ok"
