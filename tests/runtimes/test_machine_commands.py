"""`stackgen list`, `storage` and `gpus` on a machine without a Docker engine: stack files, folders and GPU tools."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from stackgen.cli.main import main
from stackgen.errors import MachineError
from stackgen.runtimes.compose import store, volumes
from stackgen.runtimes.compose.volumes import SharedVolume
from stackgen.runtimes.observation import amd_tools, gpu_holders, inventory, storage_use
from stackgen.runtimes.observation.gpu_holders import container_of, find_holders
from stackgen.runtimes.observation.inventory import ServiceRow, summarize

IMAGE = "example.org/vllm:v0.32.0"


@pytest.fixture(autouse=True)
def no_docker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Docker does not answer, whatever runs on this machine, and the user has no stack."""

    def refuse(*_: object, **__: object) -> Any:
        raise MachineError("the Docker engine does not answer")

    for module in (inventory, store, gpu_holders):
        monkeypatch.setattr(module, "connect", refuse)
    monkeypatch.setattr(storage_use, "list_shared_volumes", refuse)
    # local processes of other stacks on this machine
    monkeypatch.setattr(inventory, "_supervised", lambda: ())
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def write_stack(folder: Path, **fields: Any) -> Path:
    folder.mkdir(parents=True)
    model = {"model": "org/used", "engine": "vllm", "image": IMAGE, "gpus": [0, 1]} | fields.pop("model", {})
    data = {"name": folder.name, "gateway": False, "storage": {"path": "../store"}, "models": [model]} | fields
    (folder / "stack.yaml").write_text(yaml.safe_dump(data))
    return folder


def render(folder: Path) -> None:
    assert main(["render", str(folder), "--no-validate"]) == 0


def listed(capsys: pytest.CaptureFixture[str], *args: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["list", "--json", *args]) == 0
    return json.loads(capsys.readouterr().out)["stacks"]  # type: ignore[no-any-return]


def test_a_rendered_stack_is_listed_until_its_file_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_stack(tmp_path / "one")
    assert listed(capsys) == []
    # a folder can be searched, also if nothing in it was ever rendered
    assert [one["name"] for one in listed(capsys, str(tmp_path))] == ["one"]
    render(folder)
    (found,) = listed(capsys)
    assert (found["name"], found["folder"], found["gpus"]) == ("one", str(folder), {"vllm-used": "0,1"})
    assert found["urls"] == ["http://127.0.0.1:8000/v1"]
    # nobody can say that it is down while Docker does not answer
    assert (found["state"], found["reason"]) == ("unknown", "the Docker engine does not answer")
    (folder / "stack.yaml").write_text("models: [")
    (found,) = listed(capsys)
    assert found["state"] == "unknown" and "invalid YAML" in found["reason"]
    (folder / "stack.yaml").unlink()
    assert listed(capsys) == []


def test_a_stack_on_a_disk_that_is_not_mounted_stays_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_stack(tmp_path / "disk" / "one")
    render(folder)
    (tmp_path / "disk").rename(tmp_path / "elsewhere")
    assert [one["state"] for one in listed(capsys)] == ["unknown"]
    (tmp_path / "elsewhere").rename(tmp_path / "disk")
    assert [one["name"] for one in listed(capsys)] == ["one"]


def docker_with(monkeypatch: pytest.MonkeyPatch, *containers: dict[str, Any]) -> None:
    api = SimpleNamespace(containers=lambda **_: [*containers])
    monkeypatch.setattr(inventory, "connect", lambda *_: SimpleNamespace(api=api))


def test_a_stack_whose_folder_is_gone_is_forgotten_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    running, gone = write_stack(tmp_path / "running"), write_stack(tmp_path / "gone")
    for folder in (running, gone):
        render(folder)
        shutil.rmtree(folder)
    # without an answer of Docker, both may have containers
    assert main(["list"]) == 0 and "forgot" not in capsys.readouterr().err
    labels = {"com.docker.compose.project": "running", "com.docker.compose.project.working_dir": str(running),
              "com.docker.compose.service": "vllm-used"}  # fmt: skip
    docker_with(monkeypatch, {"Labels": labels, "State": "running", "Status": "Up 3 minutes (healthy)",
                              "Mounts": [{"Destination": "/stackgen"}]})  # fmt: skip
    assert main(["list", "--json"]) == 0
    shown = capsys.readouterr()
    data = json.loads(shown.out)
    assert [one["name"] for one in data["stacks"]] == ["running"] and data["forgotten"] == [str(gone)]
    assert f"forgot {gone}: it no longer contains a stack" in shown.err
    assert main(["list"]) == 0 and "forgot" not in capsys.readouterr().err


def test_a_stack_whose_disk_may_be_unmounted_is_forgotten_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_stack(tmp_path / "disk" / "one")
    render(folder)
    shutil.rmtree(tmp_path / "disk")
    docker_with(monkeypatch)
    assert main(["list"]) == 0
    shown = capsys.readouterr()
    assert str(folder) in shown.out and "run `stackgen list --forget`" in shown.err
    assert main(["list", "--forget"]) == 0
    assert f"forgot {folder}" in capsys.readouterr().err
    assert listed(capsys) == []


def test_a_volume_of_compiled_code_names_the_stacks_that_mount_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("stackgen-vllm-cache", "stackgen-sglang-cache")
    monkeypatch.setattr(storage_use, "list_shared_volumes", lambda: [SharedVolume(name) for name in names])
    monkeypatch.setattr(storage_use, "volume_sizes", dict)
    docker_with(monkeypatch)
    render(write_stack(tmp_path / "one", storage={"volume": "weights"}))
    capsys.readouterr()
    assert main(["storage", "list"]) == 0
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert {line[0]: line[-1] for line in lines if line[0] in names} == {
        names[0]: "one (down)", names[1]: "no stack",
    }  # fmt: skip


def test_a_home_folder_that_can_not_be_written_stops_no_render(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    render(write_stack(tmp_path / "one"))
    assert listed(capsys) == []


UP = ServiceRow("vllm", "engine", "running", "healthy")
DOWNLOADED = ServiceRow("download", "download", "exited", exit_code=0)
ABSENT = ServiceRow("gateway", "gateway", "absent")


@pytest.mark.parametrize(
    ("rows", "state", "reason"),
    [
        ((UP, DOWNLOADED), "up", ""),
        ((ABSENT, ServiceRow("vllm", "engine", "absent")), "down", ""),
        ((DOWNLOADED, ServiceRow("vllm", "engine", "exited", exit_code=137)), "stopped", "vllm exited with 137"),
        ((ServiceRow("vllm", "engine", "running", "starting"), ABSENT), "starting",
         "vllm is starting, gateway is absent"),
        ((UP, ABSENT), "unhealthy", "gateway is absent"),
        ((ServiceRow("vllm", "engine", "running", "unhealthy"),), "unhealthy", "vllm is unhealthy"),
        ((UP, ServiceRow("b", "engine", "restarting")), "unhealthy", "b is restarting"),
        ((ServiceRow("download", "download", "exited", exit_code=12), ABSENT), "stopped", "download exited with 12"),
        ((ServiceRow("download", "download", "running"), ServiceRow("vllm", "engine", "created")), "starting",
         "vllm is created"),
    ],
)  # fmt: skip
def test_the_state_of_a_stack_follows_from_its_services(rows: tuple[ServiceRow, ...], state: str, reason: str) -> None:
    assert summarize(rows) == (state, reason)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A store with three models, two of which stackgen has downloaded, and things with strange names."""
    folder = tmp_path / "store"
    for name in ("org--used", "org--old", "gpt2"):
        blobs = folder / "hub" / f"models--{name}" / "blobs"
        blobs.mkdir(parents=True)
        (blobs / "x").write_bytes(b"x" * 100_000)
        snapshot = folder / "hub" / f"models--{name}" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").symlink_to("../../blobs/x")
    for name in ("org--used", "org--old"):
        (folder / ".stackgen").mkdir(exist_ok=True)
        (folder / ".stackgen" / f"{name}@main+all.json").write_text("{}")
    (folder / "by-name" / "org" / "old").mkdir(parents=True)
    (folder / "by-name" / "org" / "old" / "main").symlink_to("../../../hub/models--org--old/snapshots/abc")
    # no repository of the Hub has such names
    for name in ("models--..--x", "models--..", "models--a b", "datasets--org--data"):
        (folder / "hub" / name).mkdir()
    return folder


def stores(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["storage", "list", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["stores"]  # type: ignore[no-any-return]


def test_storage_prints_the_name_of_copied_stacks_once(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for parent in ("one", "two", "three"):
        folder = write_stack(tmp_path / parent / "lab", storage={"path": str(stored)})
        render(folder)
    render(write_stack(tmp_path / "other"))
    capsys.readouterr()
    assert main(["storage", "list"]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "org/used" in line)
    assert row.endswith("  lab (down) in 3 folders, other (down)")


def test_storage_lists_models_with_size_and_users(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_stack(tmp_path / "one")
    render(folder)
    (store,) = stores(capsys)
    assert (store["name"], store["kind"]) == (str(stored), "folder")
    found = {one["model"]: (one["stacks"], one["downloaded"]) for one in store["models"]}
    assert found == {"org/used": ({str(folder): "one"}, True), "org/old": ({}, True), "gpt2": ({}, False)}
    # a link is not counted as a second copy
    assert {one["bytes"] for one in store["models"]} == {102_400}


@pytest.mark.parametrize(
    ("args", "code", "text", "removed"),
    [
        (["org/used", "--yes"], 2, "is in use: one (", ()),
        (["org/old"], 2, "To remove without a question, add --yes", ()),
        (["org/old", "--yes"], 0, "", ("org--old",)),
        # named by the user, although stackgen has not downloaded it
        (["gpt2/x", "--yes"], 2, "no store on this machine contains the model gpt2/x", ()),
        (["org/use", "--yes"], 2, "did you mean org/used?", ()),
        (["org/old", "org/used", "--yes"], 2, "is in use: one (", ()),
        (["--unused", "--yes"], 0, "", ("org--old",)),
        (["--unused", "org/old", "--yes"], 2, "can't be combined", ()),
        ([], 2, "the name of a volume or model is missing", ()),
        (["a-volume", "--yes"], 2, "a-volume is not a volume that stackgen shares", ()),
    ],
)
def test_only_a_model_that_no_stack_uses_is_removed(
    args: list[str], code: int, text: str, removed: tuple[str, ...], stored: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    render(write_stack(tmp_path / "one"))
    before = sorted(str(one.relative_to(stored)) for one in stored.rglob("*"))
    assert main(["storage", "remove", *args]) == code
    assert text in capsys.readouterr().err
    after = sorted(str(one.relative_to(stored)) for one in stored.rglob("*"))
    gone = {one for one in before if one not in after}
    # the link and the marker go too, and nothing else
    assert {one for one in gone if "old" not in one} == set()
    assert bool(gone) == bool(removed)
    assert not any((stored / "hub" / f"models--{name}").exists() for name in removed)


def test_nothing_is_removed_while_a_stack_can_not_be_read(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    render(write_stack(tmp_path / "one"))
    broken = write_stack(tmp_path / "two")
    render(broken)
    (broken / "stack.yaml").write_text("models: [")
    assert main(["storage", "remove", "--unused", "--yes"]) == 1
    assert "two can't be read, so everything that it may use is kept" in capsys.readouterr().err
    assert main(["storage", "remove", "org/old", "--yes"]) == 2
    shown = capsys.readouterr().err
    assert "two may use org/old, because its stack file can't be read: " in shown
    assert "{" not in shown
    assert (stored / "hub" / "models--org--old").exists()


def test_adapters_from_the_hub_are_used_too(stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapters = {"lora_adapters": [{"name": "a", "path": "org/old"}]}
    render(write_stack(tmp_path / "one", model=adapters))
    assert main(["storage", "remove", "org/old", "--yes"]) == 2
    assert "in use" in capsys.readouterr().err


CODE_VOLUME = "stackgen-vllm-cache"


class CodeVolume:
    """Docker with a volume of compiled code, whose folder this user can read, and with one container."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder, self.root = folder, ""
        api = SimpleNamespace(inspect_volume=lambda name: {"Mountpoint": str(folder)})
        monkeypatch.setattr(store, "connect", lambda *_: SimpleNamespace(api=api))
        monkeypatch.setattr(storage_use, "volume_sizes", lambda: {CODE_VOLUME: 1})
        monkeypatch.setattr(volumes, "_docker", self.docker)
        monkeypatch.setattr(storage_use, "list_shared_volumes", volumes.list_shared_volumes)

    def docker(self, *args: str, timeout: int = 0) -> str:
        # in the format that `docker` prints for these templates
        if args[:2] == ("volume", "ls"):
            return f"{CODE_VOLUME}\ttrue\t\t\n"
        if args[0] == "ps":
            return ("4d2c\n" if "--quiet" in args else "c\tone\t/stacks/one\n") if self.root else ""
        return f"one\t/c\tPATH=/bin\nVLLM_CACHE_ROOT={self.root}\n\t\n"

    def add(self, *names: str) -> None:
        for name in names:
            (self.folder / name).mkdir(parents=True)
            (self.folder / name / "model").write_bytes(b"x" * 100_000)

    @property
    def left(self) -> set[str]:
        return {str(one.parent.relative_to(self.folder)) for one in self.folder.rglob("model")}


@pytest.fixture
def code_volume(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CodeVolume:
    return CodeVolume(monkeypatch, tmp_path / "volume")


def compiled(folder: Path) -> str:
    """The folder of compiled code that the rendered stack uses."""
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    return str(services["vllm-used"]["environment"]["VLLM_CACHE_ROOT"]).removeprefix("/home/vllm/.cache/")


def test_compiled_code_is_removed_when_no_stack_and_no_container_uses_it(
    code_volume: CodeVolume, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_stack(tmp_path / "one")
    render(folder)
    used = compiled(folder)
    # a kind of GPU is a folder below; the container still has the flags of before
    code_volume.add(f"{used}/1a-2b", "code/before-1", "code/old-1", "vllm/torch_compile_cache", "triton", "flashinfer")
    code_volume.root = "/home/vllm/.cache/code/before-1"
    found = next(one for one in stores(capsys) if one["name"] == CODE_VOLUME)
    assert {one["folder"]: list(one["stacks"].values()) for one in found["code"]} == {
        used: ["one"], "code/before-1": ["one"], "code/old-1": [], "code/vllm": []
    }  # fmt: skip
    assert main(["storage", "remove", used, "--yes"]) == 2
    assert "is in use: one" in capsys.readouterr().err
    assert main(["storage", "remove", "--unused", "--yes"]) == 0
    assert code_volume.left == {f"{used}/1a-2b", "code/before-1", "flashinfer"}
    assert not (stored / "hub" / "models--org--old").exists()
    # another flag, and the container was replaced
    data = yaml.safe_load((folder / "stack.yaml").read_text())
    data["models"][0]["max_model_len"] = 4096
    (folder / "stack.yaml").write_text(yaml.safe_dump(data))
    render(folder)
    code_volume.root = f"/home/vllm/.cache/{compiled(folder)}"
    assert main(["storage", "remove", used, "code/before-1", "--yes"]) == 0
    assert code_volume.left == {"flashinfer"}


def test_compiled_code_stays_while_a_stack_file_can_not_be_read(
    code_volume: CodeVolume, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_stack(tmp_path / "one")
    render(folder)
    code_volume.add("code/old-1")
    (folder / "stack.yaml").write_text("models: [")
    assert main(["storage", "remove", "--unused", "--yes"]) == 1
    assert main(["storage", "remove", "code/old-1", "--yes"]) == 2
    assert code_volume.left == {"code/old-1"}


# in the format of nvidia-smi with driver 580, written for this test: the columns of `gpu_tools.QUERY`
NVIDIA = (
    "0, GPU-5d3b1c2a-0f1e-4d2c-9b8a-7f6e5d4c3b2a, NVIDIA H100 80GB HBM3, 81559, 8123, 9.0, Disabled, 0, Enabled, "
    "580.95.05, 73010\n"
    "1, GPU-aa3b1c2a-0f1e-4d2c-9b8a-7f6e5d4c3b2a, NVIDIA H100 80GB HBM3, 81559, 81000, 9.0, Disabled, 0, Enabled, "
    "580.95.05, 4\n"
)
APPS = "GPU-5d3b1c2a-0f1e-4d2c-9b8a-7f6e5d4c3b2a, 4242, VLLM::EngineCore, 72990\n"
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 550.54\n"
# amdsmi_cli of ROCm 6.3; later versions put the list under `gpu_data`, and write a sentence instead of N/A
METRIC: list[dict[str, Any]] = [
    {"gpu": 0, "mem_usage": {"total_vram": {"value": 196592, "unit": "MB"}, "used_vram": {"value": 283, "unit": "MB"}}},
    {"gpu": 1, "mem_usage": {"total_vram": "N/A", "used_vram": "N/A"}},
]
ASIC = [{"gpu": 0, "asic": {"market_name": "AMD Instinct MI300X", "asic_serial": "0x1234"}}]
PROCESS: list[dict[str, Any]] = [
    {"gpu": 0, "process_list": [{"process_info": {
        "name": "python3", "pid": 77, "mem_usage": {"value": 99, "unit": "B"},
        "memory_usage": {"vram_mem": {"value": 2**30, "unit": "B"}}}}]},
    {"gpu": 1, "process_list": [{"process_info": "No running processes detected"}]},
]  # fmt: skip
ROCM = (
    "WARNING: AMD GPU device(s) is/are in a low-power state.\n"
    '{"card0": {"VRAM Total Memory (B)": "25753026560", "VRAM Total Used Memory (B)": "1000", '
    '"Card Series": "RX 7900", "Unique ID": "0xabc"}, "system": {"PID99": "python3, 1, 5000, 0, 0"}}'
)


def tools(answers: dict[str, tuple[int, str]]) -> Any:
    """Runs no program: `answers` are exit code and output by the words that a command contains."""

    def run(command: Any) -> tuple[int, str] | None:
        return next((answer for words, answer in answers.items() if words in " ".join(command)), None)

    return run


NVIDIA_ANSWERS = {"--query-gpu": (0, NVIDIA), "compute-apps": (0, APPS), "nvidia-smi": (0, "CUDA Version: 13.0")}


def test_a_process_and_a_stack_that_is_down_hold_a_gpu(tmp_path: Path) -> None:
    render(write_stack(tmp_path / "one", model={"gpus": [0]}))
    first, second = find_holders(tools(NVIDIA_ANSWERS)).gpus
    assert [(one.kind, one.name, one.stack) for one in first.holders] == [
        ("planned", "vllm-used", "one"), ("process", "VLLM::EngineCore", "")]  # fmt: skip
    assert (first.holders[1].pid, first.holders[1].memory) == (4242, 72990 * 2**20)
    assert second.holders == ()


def test_a_gpu_that_only_a_stack_names_is_not_on_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    render(write_stack(tmp_path / "one", model={"gpus": [0, 7]}))
    monkeypatch.setattr("stackgen.cli.commands.gpus.find_holders", lambda: find_holders(tools(NVIDIA_ANSWERS)))
    capsys.readouterr()
    assert main(["gpus"]) == 0
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("7 ")]
    assert "not on this machine" in line and "planned: one/vllm-used, not running" in line


def test_a_reservation_is_shown_without_any_tool(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    render(write_stack(tmp_path / "one"))
    capsys.readouterr()
    # no program is found
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["gpus"]) == 0
    shown = capsys.readouterr()
    assert "planned: one/vllm-used, not running" in shown.out
    assert "nobody" not in shown.out
    assert "nvidia-smi is not on the PATH" in shown.err and "so the reservations of containers are unknown" in shown.err


@pytest.mark.parametrize(
    ("answers", "gpus", "state"),
    [
        ({}, 0, {"nvidia-smi": "missing", "amd-smi": "missing"}),
        (NVIDIA_ANSWERS, 2, {"nvidia-smi": "ok", "amd-smi": "missing"}),
        ({"nvidia-smi": (18, MISMATCH)}, 0,
         {"nvidia-smi": "Failed to initialize NVML: Driver/library version mismatch", "amd-smi": "missing"}),
        ({"nvidia-smi": (6, "No devices were found\n")}, 0, {"nvidia-smi": "ok", "amd-smi": "missing"}),
        ({"nvidia-smi": (0, "\0\n,,\nERR!\n")}, 0, {"nvidia-smi": "ok", "amd-smi": "missing"}),
        ({"metric": (0, json.dumps(METRIC)), "asic": (0, json.dumps(ASIC)), "process": (0, json.dumps(PROCESS))}, 2,
         {"nvidia-smi": "missing", "amd-smi": "ok"}),
        ({"metric": (0, json.dumps({"gpu_data": METRIC}))}, 2, {"nvidia-smi": "missing", "amd-smi": "ok"}),
        ({"metric": (0, "ERROR: no driver")}, 0,
         {"nvidia-smi": "missing", "amd-smi": "amd-smi printed no JSON: 'ERROR: no driver'"}),
        ({"metric": (255, "Unable to detect any GPU devices\n")}, 0,
         {"nvidia-smi": "missing", "amd-smi": "amd-smi: Unable to detect any GPU devices"}),
        ({"metric": (1, "x"), "rocm-smi": (0, ROCM)}, 1, {"nvidia-smi": "missing", "rocm-smi": "ok"}),
        ({"rocm-smi": (0, "[[")}, 0, {"nvidia-smi": "missing", "rocm-smi": "rocm-smi printed no JSON: '[['"}),
        ({"metric": (0, json.dumps([{"gpu": "0"}, 5, {"gpu": 0, "mem_usage": "N/A"}]))}, 1,
         {"nvidia-smi": "missing", "amd-smi": "ok"}),
    ],
)  # fmt: skip
def test_whatever_a_gpu_tool_prints_is_reported(
    answers: dict[str, tuple[int, str]], gpus: int, state: dict[str, str]
) -> None:
    report = find_holders(tools(answers))
    assert len(report.gpus) == gpus
    assert report.tools == state


def test_amd_processes_are_read_with_their_memory() -> None:
    found = amd_tools.parse_amd_smi(json.dumps(METRIC), json.dumps(ASIC), json.dumps(PROCESS)).devices or ()
    assert [(one.name, one.memory_total, len(one.processes)) for one in found] == [
        ("AMD Instinct MI300X", 196592 * 2**20, 1), ("AMD GPU", None, 0)]  # fmt: skip
    assert (found[0].processes[0].pid, found[0].processes[0].memory) == (77, 2**30)
    # rocm-smi does not say which GPU a process uses
    state, processes = amd_tools.parse_rocm_smi(ROCM)
    assert (state.devices or ())[0].memory_free == 25753026560 - 1000
    assert [(one.pid, one.name, one.memory) for one in processes] == [(99, "python3", 5000)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"0::/system.slice/docker-{'a' * 64}.scope\n", "a" * 64),
        (f"12:memory:/docker/{'b' * 64}\n0::/docker/{'b' * 64}\n", "b" * 64),
        (f"0::/kubepods.slice/kubepods-pod1.slice/{'c' * 64}\n", "c" * 64),
        ("0::/user.slice/user-1000.slice/session-2.scope\n", ""),
        ("0::/\n", ""),
    ],
)
def test_the_container_of_a_process_is_in_its_cgroup(text: str, found: str) -> None:
    assert container_of(1, lambda _: text) == found
