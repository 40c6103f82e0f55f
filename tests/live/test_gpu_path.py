"""GPUs from the Compose file to the container, on a real Docker engine with stub GPUs (see `gpu_engine`)."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from scripts.examples import complete_copy
from stackgen.cli.main import main
from stackgen.doctor.collect import collect_inputs
from stackgen.doctor.table import run_checks
from stackgen.runtimes.observation.machine import collect_host_facts
from stackgen.runtimes.observation.topology import ComposeObserver
from stackgen.stack.folder import open_stack
from tests.live.gpu_compose import Compose
from tests.live.gpu_engine import CDI_KIND, FAKE_IMAGE, GpuEngine, gpu_uuid, reason_to_skip

pytestmark = [pytest.mark.docker, pytest.mark.gpu_stub, pytest.mark.timeout(120)]

EXAMPLES = sorted((Path(__file__).parents[2] / "compose").glob("*/compose.yaml"))
SERVER = "vllm-m"
# stacks that other stacks run beside; all others use port 8000, one after another
HEALTHY_PORT, THREE_PORT = 8900, 8901


def render_stack(stack: str, folder: Path) -> Path:
    """Renders the text of a stack.yaml into `folder`, with everything it needs. Returns the Compose file."""
    (folder / "weights").mkdir(exist_ok=True)
    (folder / "stack.yaml").write_text(stack, encoding="utf-8")
    assert main(["render", str(folder), "--no-validate"]) == 0
    return folder / "compose.yaml"


def stack_with_model(gpus: object, driver: str = "nvidia") -> str:
    """Returns a stack.yaml with one model, served as `m` on `gpus`."""
    return stack_with_models({"m": gpus}, driver)


def stack_with_models(gpus: dict[str, object], driver: str = "nvidia", **more: object) -> str:
    """Returns a stack.yaml with one model for each name. `more`: fields of the stack."""
    models = [
        {"engine": "vllm", "model": "./weights", "served_names": [name], "gpus": wanted}
        # with `all`, the stack file must set the number of GPUs
        | ({"tensor_parallel_size": 1} if wanted == "all" else {})
        for name, wanted in gpus.items()
    ]
    return json.dumps({"name": "gpu-path", "gpu_driver": driver, "models": models, **more})


@pytest.fixture(scope="module")
def _engine() -> Iterator[GpuEngine]:
    if reason := reason_to_skip():
        pytest.skip(reason)
    with GpuEngine() as started:
        yield started


@pytest.fixture(scope="module")
def healthy(_engine: GpuEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[Compose]]:
    """A stack that becomes healthy while other tests run: the health check begins after 5 seconds."""
    file = render_stack(stack_with_models({"m": [0, 1]}, port=HEALTHY_PORT), tmp_path_factory.mktemp("healthy"))

    def start(compose: Compose) -> Compose:
        compose.up(wait=True)
        return compose

    with _engine.project(file, "gpu-healthy") as compose, ThreadPoolExecutor(1) as pool:
        yield pool.submit(start, compose)


@pytest.fixture
def engine(_engine: GpuEngine, healthy: Future[Compose]) -> GpuEngine:
    return _engine


@pytest.fixture
def project() -> str:
    return f"gpu-{uuid.uuid4().hex[:8]}"


@pytest.mark.parametrize(
    ("gpus", "visible"),
    [
        ([0, 1], "0,1"),
        ([3], "3"),
        ([1, 0], "1,0"),
        (2, "0,1"),
        ("all", "all"),
        ([gpu_uuid(2), gpu_uuid(5)], f"{gpu_uuid(2)},{gpu_uuid(5)}"),
    ],
    ids=str,
)
def test_container_sees_the_gpus_of_the_stack(
    engine: GpuEngine, project: str, tmp_path: Path, gpus: object, visible: str
) -> None:
    with engine.project(render_stack(stack_with_model(gpus), tmp_path), project) as compose:
        compose.up()
        container = compose.container(SERVER)
        assert engine.container_environment(container)["NVIDIA_VISIBLE_DEVICES"] == visible
        calls = [call for call in engine.hook_calls() if call["container"] == container]
    # the hook, which on a real machine is NVIDIA's, was called once, with these GPUs
    assert [(call["args"], call["visible"]) for call in calls] == [(["prestart"], visible)]


@pytest.fixture(scope="module")
def three_models(_engine: GpuEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """A running stack of models `a` and `b` on two GPUs each and `c` on none, under the name in its file."""
    models = {"a": [0, 3], "b": [1, 2], "c": "none"}
    file = render_stack(stack_with_models(models, port=THREE_PORT), tmp_path_factory.mktemp("three"))
    with _engine.project(file, open_stack(str(file.parent)).plan.name) as compose:
        compose.up()
        yield compose


def test_each_model_has_its_own_gpus(engine: GpuEngine, three_models: Compose) -> None:
    seen = {name: engine.container_environment(three_models.container(f"vllm-{name}")) for name in "abc"}
    calls = {call["container"] for call in engine.hook_calls()}
    assert three_models.container("vllm-c") not in calls
    assert [seen[name].get("NVIDIA_VISIBLE_DEVICES") for name in "abc"] == ["0,3", "1,2", None]


def test_doctor_finds_gpus_that_another_stack_has(
    engine: GpuEngine, three_models: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    found = {}
    for wanted in (1, [4], [2]):
        render_stack(stack_with_models({"m": wanted}, name="another"), tmp_path)
        stack = open_stack(str(tmp_path))
        results = run_checks(collect_inputs(collect_host_facts(stack), stack))
        found[str(wanted)] = next((one.status, one.evidence) for one in results if one.id == "SG-P045")
    assert found["1"][0] == found["[2]"][0] == "fail" and found["[4]"][0] == "ok"
    assert three_models.name in found["1"][1] and "vllm-a" in found["1"][1] and "vllm-b" in found["[2]"][1]


def test_the_check_sees_the_reserved_gpus(
    engine: GpuEngine, three_models: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    found = open_stack(str(three_models.file.parent))
    views = {
        one.name: one
        for endpoint in found.plan.endpoints
        for one in ComposeObserver(found.plan, endpoint).services()
        if one.name != "gateway"  # the fake image has no HAProxy
    }
    assert {name: (one.state, one.gpus_planned, one.gpus_reserved) for name, one in views.items()} == {
        "vllm-a": ("running", ("0", "3"), ("0", "3")),
        "vllm-b": ("running", ("1", "2"), ("1", "2")),
        "vllm-c": ("running", (), ()),
    }
    # the fake image has no nvidia-smi, so they are unknown, which is not the same as none
    assert views["vllm-a"].gpus_seen is None


@pytest.mark.parametrize(
    ("gpus", "unknown"), [([8], "8"), ([0, 11], "11"), (9, "8"), ([gpu_uuid(99)], gpu_uuid(99))], ids=str
)
def test_a_gpu_that_does_not_exist_fails_the_start(
    engine: GpuEngine, project: str, tmp_path: Path, gpus: object, unknown: str
) -> None:
    with engine.project(render_stack(stack_with_model(gpus), tmp_path), project) as compose:
        done = compose.up(check=False)
        running = compose.containers(state="running")
    assert done.returncode != 0
    assert f"nvidia-container-cli: device error: {unknown}: unknown device" in done.stderr
    assert running == []


def test_amd_container_has_the_device_files_and_groups(engine: GpuEngine, project: str, tmp_path: Path) -> None:
    file = render_stack(stack_with_model([0], "amd"), tmp_path)
    config = engine.host_configs(file, project)[SERVER]
    assert [device["PathOnHost"] for device in config["Devices"]] == ["/dev/kfd", "/dev/dri"]
    assert not config["DeviceRequests"]
    with engine.project(file, project) as compose:
        compose.up()
        container = compose.container(SERVER)
        groups = engine.docker("exec", container, "id", "-G").stdout.split()
        probe = "import os; os.stat('/dev/kfd'); os.open('/dev/dri/renderD128', os.O_RDWR)"
        opened = engine.docker("exec", container, "python3", "-c", probe, check=False).stderr
        assert "NVIDIA_VISIBLE_DEVICES" not in engine.container_environment(container)
    # only `video`: an image may lack the group `render`, and root owns the device files anyway
    assert "44" in groups
    # allowed by the cgroup, but without a driver; a device that wasn't granted gives "Operation not permitted"
    assert opened == "" or "No such device" in opened, opened


def test_cdi_device_edits_reach_the_container(engine: GpuEngine, project: str, tmp_path: Path) -> None:
    file = render_stack(stack_with_model([f"{CDI_KIND}=1"], "cdi"), tmp_path)
    with engine.project(file, project) as compose:
        compose.up()
        container = compose.container(SERVER)
        assert engine.container_environment(container)["EXAMPLE_GPU"] == "1"
        assert engine.docker("exec", container, "ls", "/dev/gpu-1").stdout.strip() == "/dev/gpu-1"
        assert container not in {call["container"] for call in engine.hook_calls()}


def test_unknown_cdi_device_fails_the_start(engine: GpuEngine, project: str, tmp_path: Path) -> None:
    file = render_stack(stack_with_model([f"{CDI_KIND}=77"], "cdi"), tmp_path)
    with engine.project(file, project) as compose:
        done = compose.up(check=False)
    assert done.returncode != 0
    assert f"unresolvable CDI devices {CDI_KIND}=77" in done.stderr


@pytest.mark.parametrize(
    ("gpus", "driver", "count", "ids"),
    [([0, 1], "nvidia", 0, ["0", "1"]), (2, "nvidia", 2, None), ("all", "nvidia", -1, None),
     ([f"{CDI_KIND}=0"], "cdi", 0, [f"{CDI_KIND}=0"])],
    ids=str,
)  # fmt: skip
def test_device_request_matches_the_stack(
    engine: GpuEngine, project: str, tmp_path: Path, gpus: object, driver: str, count: int, ids: list[str] | None
) -> None:
    (request,) = engine.device_requests(render_stack(stack_with_model(gpus, driver), tmp_path), project)[SERVER]
    assert (request["Driver"], request["Count"], request["DeviceIDs"]) == (driver, count, ids)
    assert request["Capabilities"] == [["gpu"]]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda path: path.parent.name)
def test_the_engine_accepts_every_example(engine: GpuEngine, project: str, file: Path, tmp_path: Path) -> None:
    file = complete_copy(file.parent, tmp_path / "example") / "compose.yaml"
    services = yaml.safe_load(file.read_text("utf-8"))["services"]
    reserved = {
        name: service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        for name, service in services.items()
    }
    requests = engine.device_requests(file, project)
    assert requests.keys() == reserved.keys()
    for name, wanted in reserved.items():
        got = [(one["Driver"], one["Count"], one["DeviceIDs"]) for one in requests[name]]
        assert got == [
            (one["driver"], -1 if one.get("count") == "all" else one.get("count", 0), one.get("device_ids"))
            for one in wanted
        ]


def test_the_rendered_file_works_unchanged_with_network_port_and_health_check(
    engine: GpuEngine, healthy: Future[Compose]
) -> None:
    compose = healthy.result()
    ask = "import urllib.request as r; print(r.urlopen('http://{}/v1/models', timeout=9).read().decode())"
    published = engine.inside(sys.executable, "-c", ask.format(f"127.0.0.1:{HEALTHY_PORT}"))
    by_name = engine.docker("exec", compose.container(SERVER), "python3", "-c", ask.format(f"{SERVER}:8000"))
    assert published.returncode == 0, published.stderr
    assert json.loads(published.stdout)["data"][0]["id"] == json.loads(by_name.stdout)["data"][0]["id"] == "m"


def test_the_engine_leaves_nothing_behind() -> None:
    if reason := reason_to_skip():
        pytest.skip(reason)

    def bridge() -> bytes:
        # a dockerd with `--bridge=none` in the host's network namespace would delete it
        return subprocess.run(["ip", "-brief", "address", "show", "docker0"], capture_output=True, check=False).stdout

    before = bridge()
    with GpuEngine(gpus=1) as engine:
        root = engine.root
        # a container that is still running when the engine stops
        engine.docker("run", "-d", "--gpus", "all", FAKE_IMAGE, "m")
    assert bridge() == before
    assert not root.exists()
    assert list(Path("/sys/fs/cgroup").glob(f"**/{root.name}")) == []
    alive = [path for path in Path("/proc").glob("[0-9]*/cmdline") if root.name.encode() in _read(path)]
    assert alive == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has exited
        return b""
