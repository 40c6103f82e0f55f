"""Docker, disk, memory, CPU, ports and keys: each fault is found by exactly its own check."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackgen.doctor.facts import GIB, Container, Disk, Listener, is_version_at_least, parse_version
from stackgen.doctor.table import CHECKS, exit_code
from stackgen.doctor.text import as_text
from stackgen.runtimes.observation.machine import (
    parse_cpu_flags,
    parse_local_addresses,
    parse_meminfo,
    parse_tcp_listeners,
)
from tests.cli.test_plan_offers import write_public_model
from tests.doctor.hosts import (
    AMD,
    EIGHT_80,
    MIXED,
    NO_DOCKER,
    NO_GPU,
    NOTHING_KNOWN,
    ONE_24,
    findings,
    make_host,
    problem_ids,
    single_problem,
    write_stack,
)  # fmt: skip

CPU = NO_GPU


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STACKGEN_API_KEY", raising=False)
    monkeypatch.delenv("HF_TOKEN_FILE", raising=False)


@pytest.mark.parametrize("machine", [ONE_24, EIGHT_80, MIXED])
def test_healthy_machine_with_a_stack_has_no_problem(machine: Any, tmp_path: Path) -> None:
    found = findings(machine, write_stack(tmp_path))
    assert not problem_ids(found), found
    assert exit_code(found) == 0


@pytest.mark.parametrize("machine", [ONE_24, EIGHT_80, MIXED, NO_GPU, AMD])
def test_healthy_machine_without_a_stack_has_no_problem(machine: Any) -> None:
    assert not problem_ids(findings(machine, None))


def test_healthy_machine_without_gpus_can_serve_on_the_cpu(tmp_path: Path) -> None:
    found = findings(CPU, write_stack(tmp_path, gpus="none"))
    assert not problem_ids(found, "fail", "warn", "unknown"), found


PLANTED = [
    ("SG-P001", "fail", {"engine_state": "denied", "engine": None, "engine_error": "Permission denied"}),
    ("SG-P001", "fail", {"engine_state": "missing", "engine": None, "engine_error": "No such file"}),
    ("SG-P001", "fail", {"engine_state": "silent", "engine": None, "engine_error": "timed out"}),
    ("SG-P002", "fail", {"engine": "20.10.24"}),
    ("SG-P002", "fail", {"engine": "24.0.7"}),
    ("SG-P003", "fail", {"compose": None, "compose_missing": True}),
    ("SG-P003", "fail", {"compose": "v2.17.3"}),
    ("SG-P003", "warn", {"compose": "2.21.0"}),
    ("SG-P004", "warn", {"buildx": "0.11.2"}),
    ("SG-P005", "warn", {"cgroup": 1}),
    ("SG-P006", "fail", {"docker_disk": Disk("/var/lib/docker", GIB // 2, 1)}),
    ("SG-P006", "warn", {"docker_disk": Disk("/var/lib/docker", 4 * GIB, 1), "images": ()}),
    ("SG-P007", "fail", {"memory_total": 4 * GIB, "memory_available": 3 * GIB}),
    ("SG-P007", "warn", {"memory_available": 2 * GIB}),
    ("SG-P009", "fail", {"cpu_flags": frozenset({"sse4_2"})}),
    ("SG-P009", "warn", {"cpu_flags": frozenset({"avx2"})}),
    ("SG-P009", "fail", {"cpu_arch": "arm64"}),
    ("SG-P020", "fail", {"listeners": (Listener("127.0.0.1", 8000, "python3 (pid 77)"),)}),
    ("SG-P020", "fail", {"listeners": (Listener("::", 8000),)}),
    ("SG-P020", "fail", {"containers": (Container("other-api-1", "other", (("0.0.0.0", 8000),)),)}),
]


@pytest.mark.parametrize(("id", "status", "fields"), PLANTED)
def test_each_fault_of_a_machine_is_found_by_its_own_check(
    id: str, status: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    found = findings(replace(CPU, **fields), write_stack(tmp_path, gpus="none"))
    finding = single_problem(found, id, status)
    machine = next(check.machine for check in CHECKS if check.id == id)
    assert exit_code(found) == (0 if status == "warn" else 3 if machine else 1)
    if id == "SG-P020":
        assert "used by" in finding.evidence and "8001" in finding.fix


def test_ports_held_by_the_stack_itself_are_ok(tmp_path: Path) -> None:
    own = (Container("t-vllm-m-1", "t", (("127.0.0.1", 8000),)),)
    machine = replace(CPU, containers=own, listeners=(Listener("127.0.0.1", 8000, "docker-proxy (pid 5)"),))
    assert not problem_ids(findings(machine, write_stack(tmp_path, gpus="none")))


def test_port_on_another_address_is_free(tmp_path: Path) -> None:
    machine = replace(CPU, listeners=(Listener("192.168.1.5", 8000, "nginx (pid 9)"),))
    assert not problem_ids(findings(machine, write_stack(tmp_path, gpus="none")))


def test_machine_without_docker_is_not_ready(tmp_path: Path) -> None:
    found = findings(NO_DOCKER, write_stack(tmp_path, gpus="none"))
    assert problem_ids(found, "fail") == {"SG-P001", "SG-P003"}
    assert exit_code(found) == 3


def test_unknown_facts_are_never_ok(tmp_path: Path) -> None:
    found = findings(NOTHING_KNOWN, write_stack(tmp_path / "gpu", gpus=2))
    known_from_files = {"SG-P008", "SG-P021", "SG-P022", "SG-P05", "SG-P07", "SG-P08", "SG-P04", "SG-P090"}
    assert not problem_ids(found, "fail")
    good = {one.id for one in found if one.status == "ok" and not one.id.startswith(tuple(known_from_files))}
    assert good == set()
    assert {"SG-P001", "SG-P003", "SG-P020", "SG-P030", "SG-P033"} <= problem_ids(found, "unknown")


@pytest.mark.parametrize(
    ("id", "status", "fields"),
    [
        ("SG-P008", "fail", {"shm_size": "64m"}),
        ("SG-P008", "fail", {"ipc": "private"}),
        ("SG-P010", "fail", {"cpuset": "0-31"}),
        ("SG-P021", "fail", {"stack_bind": "10.9.8.7"}),
        ("SG-P022", "warn", {"stack_bind": "0.0.0.0"}),
        ("SG-P022", "warn", {"stack_bind": "0.0.0.0", "stack_gateway": False}),
        ("SG-P073", "warn", {"key": "hunter2"}),
        ("SG-P073", "warn", {"key": "sk-" + "a" * 40}),
        ("SG-P072", "fail", {"key": ""}),
        ("SG-P072", "fail", {"key": "changeme"}),
        ("SG-P072", "fail", {"key": "<your key>"}),
        ("SG-P072", "fail", {"key": "sk-replace-with-your-own"}),
        ("SG-P072", "fail", {"key": "sk-your-key-here"}),
        ("SG-P072", "fail", {"key": "token-api-123"}),
        ("SG-P072", "fail", {"key": "token-abc123"}),
        ("SG-P072", "fail", {"key": "sk-xxxxxxxx"}),
        ("SG-P072", "fail", {"key": "${OPENAI_API_KEY}"}),
        ("SG-P082", "warn", {"image": "registry.local/vllm"}),
        ("SG-P058", "fail", {"chat_template": "./none.jinja"}),
    ],
)
def test_each_fault_of_a_stack_is_found_by_its_own_check(
    id: str, status: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    found = findings(CPU, write_stack(tmp_path, gpus="none", **fields))
    wrong = {(one.id, one.status) for one in found if one.status in ("fail", "warn")}
    # an address that other machines can reach is also reported as exposed
    assert wrong - ({("SG-P022", "warn")} if id == "SG-P021" else set()) == {(id, status)}
    assert exit_code(found) == (1 if status == "fail" else 0)


FEATURES = [
    ("    gpus: all\n", "gpus", "2.29.7", "2.30.0"),
    ("configs:\n  a:\n    content: x\n", "configs.content", "2.23.0", "2.23.1"),
    ("    depends_on:\n      b:\n        condition: service_started\n        restart: true\n", "depends_on.restart",
     "2.16.0", "2.17.0"),
    ("    build:\n      additional_contexts: {a: ./b}\n", "build.additional_contexts", "2.16.0", "2.17.0"),
    ("models:\n  a: {model: b}\n", "models", "2.37.3", "2.38.0"),
    ("    pre_start: []\n", "pre_start", "5.2.0", "5.3.0"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "name", "old", "new"), FEATURES)
def test_unsupported_compose_feature_is_reported_with_its_line(
    text: str, name: str, old: str, new: str, tmp_path: Path
) -> None:
    """Users may edit the file: its content on disk counts, not what would be rendered."""
    path = write_stack(tmp_path, gpus="none")
    compose = tmp_path / "compose.yaml"
    lines = compose.read_text().count("\n")
    compose.write_text(compose.read_text() + text)
    (found,) = [one for one in findings(replace(CPU, compose=old), path) if one.id == "SG-P003"]
    assert (
        found.status == "fail" and name in found.message and f"needs Compose {new.removesuffix('.0')}" in found.evidence
    )
    assert all(
        int(number) > lines for number in re.findall(rf"{re.escape(name)} \(compose.yaml line (\d+)", found.evidence)
    )
    (found,) = [one for one in findings(replace(CPU, compose=new), path) if one.id == "SG-P003"]
    assert name not in found.message


def test_only_features_in_use_need_a_version(tmp_path: Path) -> None:
    path = write_stack(tmp_path, gpus="none")
    compose = tmp_path / "compose.yaml"
    finding = single_problem(findings(replace(CPU, compose="2.19.1"), path), "SG-P003", "fail")
    line = 1 + compose.read_text().splitlines().index("      start_interval: 2s")
    assert f"healthcheck.start_interval (compose.yaml line {line}) needs Compose 2.20.2" in finding.evidence
    # Compose below 2.24 drops what the engine lacks; newer versions refuse
    old = findings(replace(CPU, engine="24.0.7", compose="2.21.0"), path)
    assert problem_ids(old, "warn") == {"SG-P002", "SG-P003"} and not problem_ids(old, "fail")
    assert "start_interval" in single_problem(findings(replace(CPU, engine="24.0.7"), path), "SG-P002", "fail").message
    compose.write_text("\n".join(one for one in compose.read_text().splitlines() if "start_interval" not in one))
    assert problem_ids(findings(replace(CPU, engine="24.0.7", compose="2.19.1"), path)) == {"SG-P003", "SG-P081"}


def test_missing_and_unpinned_images_are_reported(tmp_path: Path) -> None:
    path = write_stack(tmp_path, gpus="none", image="registry.local/vllm:latest")
    found = findings(CPU, path)
    assert single_problem(found, "SG-P082", "warn").place == "models[0].image"
    finding = next(one for one in found if one.id == "SG-P083")
    assert finding.status == "unknown" and finding.fix.startswith("`docker pull registry.local/vllm:latest` ")
    here = replace(CPU, images=("registry.local/vllm:latest",))
    assert "registry.local/vllm:latest is present" in next(o for o in findings(here, path) if o.id == "SG-P083").message
    built = findings(CPU, write_stack(tmp_path / "own", gpus="none", engine="fastchat"))
    finding = next(one for one in built if one.id == "SG-P083")
    assert finding.status == "ok" and "built at the first start" in finding.message


def test_a_missing_image_without_internet_access_must_be_brought_along(tmp_path: Path) -> None:
    for number, (storage, offline, status) in enumerate((
        ({}, True, "warn"),
        ({"path": str(tmp_path), "offline": True}, False, "warn"),
        ({"path": str(tmp_path), "offline": True}, True, "fail"),
    )):  # fmt: skip
        path = write_stack(tmp_path / str(number), gpus="none", image="me/vllm:1", stack_storage=storage)
        found = [one for one in findings(CPU, path, offline=offline) if one.id == "SG-P083"]
        assert [one.status for one in found] == [status]
        assert "`docker load`" in found[0].fix and "`stackgen bundle create`" in found[0].fix
        present = findings(replace(CPU, images=("me/vllm:1",)), path, offline=offline)
        assert [one.status for one in present if one.id == "SG-P083"] == ["ok"]


def test_weak_key_on_an_exposed_port_fails(tmp_path: Path) -> None:
    found = findings(CPU, write_stack(tmp_path, gpus="none", key="hunter2", stack_bind="0.0.0.0"))
    assert problem_ids(found, "fail") == {"SG-P073"}
    assert "hunter2" not in repr(found)


def test_missing_env_open_mode_and_wrong_token_file_are_reported(tmp_path: Path) -> None:
    path = write_stack(tmp_path, gpus="none")
    env = tmp_path / ".env"
    os.chmod(env, 0o644)
    assert "0644" in single_problem(findings(CPU, path), "SG-P071", "warn").evidence
    text = env.read_text()
    env.write_text(text + "HF_TOKEN_FILE=/nowhere/token\n")
    os.chmod(env, 0o600)
    single_problem(findings(CPU, path), "SG-P074", "fail")
    env.write_text(text + "HF_TOKEN_FILE=hf_secretsecretsecret\n")
    found = findings(CPU, path)
    single_problem(found, "SG-P074", "fail")
    assert "hf_secret" not in repr(found)
    env.write_text(text + "HF_TOKEN=hf_secretsecretsecret\n")
    found = findings(CPU, path)
    assert "the download does not read HF_TOKEN" in single_problem(found, "SG-P074", "warn").message
    assert "hf_secret" not in repr(found)
    env.unlink()
    single_problem(findings(CPU, path), "SG-P070", "warn")


def test_hand_edits_and_missing_renderings_are_told_apart(tmp_path: Path) -> None:
    path = write_stack(tmp_path, gpus="none")
    compose = tmp_path / "compose.yaml"
    compose.write_text(compose.read_text() + "# mine\n")
    assert "by hand" in single_problem(findings(CPU, path), "SG-P081", "warn").message
    compose.unlink()
    assert "not rendered yet" in single_problem(findings(CPU, path), "SG-P081", "warn").message


def test_errors_in_the_stack_file_are_reported_next_to_those_of_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "stack.yaml"
    path.write_text("name: t\nmodels:\n  - model: a/b\n    engine: vllm\n    gpuz: 1\n")
    found = findings(replace(CPU, cgroup=1), path)
    assert problem_ids(found, "fail") == {"SG-P080"} and problem_ids(found, "warn") == {"SG-P005"}
    finding = next(one for one in found if one.id == "SG-P080")
    assert finding.place == "models[0].gpuz" and finding.evidence == f"{path}:5" and "gpus" in finding.fix
    assert (finding.line, finding.column) == (5, 5)


def test_findings_name_the_line_of_their_field(tmp_path: Path) -> None:
    path = tmp_path / "stack.yaml"
    path.write_text("name: t\nmodels:\n  - &a {model: a/b, engine: vllm, gpus: [7]}\n")
    found = [one for one in findings(CPU, path) if one.place]
    assert {(one.line, one.column) for one in found if one.place.startswith("models[0].gpus")} == {(3, 35)}
    # a field that the file lacks has the place of its parent, and none at the top
    assert {one.line for one in found if one.place.startswith("models[0].")} == {3}
    assert {one.line for one in found if one.place == "gpu_driver"} <= {None}
    assert f"{path}:3: models[0].gpus: " in as_text(findings(CPU, path), str(path), verbose=True)


def test_ids_and_names_of_checks_are_unique() -> None:
    assert len({check.id for check in CHECKS}) == len({check.name for check in CHECKS}) == len(CHECKS)


@given(st.text())
def test_any_text_is_parsed_as_a_version_without_an_exception(text: str) -> None:
    found = parse_version(text)
    assert found is None or len(found) <= 4
    assert is_version_at_least(text, 2, 24) in (None, True, False)


def test_versions_are_parsed_as_the_programs_print_them() -> None:
    assert parse_version("28.5.2+dfsg4") == (28, 5, 2)
    assert parse_version("v2.40.3-desktop.1") == (2, 40, 3)
    assert parse_version("github.com/docker/buildx 0.29.1+ds1 0.29.1+ds1-4") == (0, 29, 1)
    assert is_version_at_least("5.0.1", 2, 20, 2) and not is_version_at_least("2.9.0", 2, 24)


@given(st.text())
def test_any_text_in_proc_is_parsed_without_an_exception(text: str) -> None:
    for address, port, _ in parse_tcp_listeners(text):
        assert address and 0 <= port < 65536
    assert len(parse_meminfo(text)) == 2
    assert all(parse_local_addresses(text)) and (parse_cpu_flags(text) is None or True)


@given(st.text(alphabet="0123456789ABCDEFabcdef: \n"), st.integers(0, 65535))
def test_listening_ports_are_parsed(noise: str, port: int) -> None:
    four = f"   0: 0100007F:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 4711 1 x"
    six = f"   1: {'0' * 32}:{port:04X} {'0' * 32}:0000 0A 00000000:00000000 00:00000000 00000000  0 0 4712 1 x"
    other = four.replace(" 0A ", " 01 ")
    found = parse_tcp_listeners("\n".join(["  sl  local_address", four, six, other, noise]))
    assert found[:2] == [("127.0.0.1", port, "4711"), ("::", port, "4712")]


def test_memory_is_parsed_in_bytes() -> None:
    assert parse_meminfo("MemTotal:  1024 kB\nMemFree: 1 kB\nMemAvailable: 512 kB\n") == (2**20, 2**19)
    assert make_host().memory_total == 256 * GIB


def test_memory_on_the_cpu_is_the_estimate_of_fit(tmp_path: Path) -> None:
    """A public model with 15.3 GiB of weights in 16 bits: as float32, it takes twice as much."""
    write_public_model(tmp_path / "public", "Qwen/Qwen3-8B")
    machine = replace(CPU, memory_total=24 * GIB, memory_available=23 * GIB)

    def memory(**fields: Any) -> Any:
        path = write_stack(tmp_path / "stack", model="../public", gpus="none", **fields)
        (found,) = [one for one in findings(machine, path) if one.id == "SG-P007"]
        return found

    found = memory()
    # weights, 4 GiB of KV cache, and 1.4 GiB and the logits of 128 requests for the processes
    assert found.status == "ok" and "public: 20.8 GiB" in found.evidence
    assert memory(dtype="float32").status == "fail"
    assert memory(dtype="float32").fix == "reduce `cpu_kv_cache_gib` or `replicas`, or use a smaller model"
    # FastChat computes in float32 on the CPU unless `dtype` says otherwise
    assert memory(engine="fastchat").status == "fail"
    assert memory(engine="fastchat", dtype="bfloat16").status in ("ok", "warn")
