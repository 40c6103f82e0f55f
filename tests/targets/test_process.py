"""Local processes: ports, paths and GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from stackgen.plan import GpuRequest
from stackgen.targets.process import ProcessSite, hub_dir


@pytest.fixture
def site(tmp_path: Path) -> ProcessSite:
    return ProcessSite(tmp_path, tmp_path / ".stackgen", reserved=frozenset({21003}))


def test_every_service_gets_its_own_port(site: ProcessSite) -> None:
    assert site.listen("one", 21002) == ("127.0.0.1", 21002)
    assert site.listen("two", 21002) == ("127.0.0.1", 21004), "21003 is published by the stack"
    assert site.url("one", 21002) == site.local_url("one", 21002) == "http://127.0.0.1:21002"
    assert site.url("later", 21001) == "http://127.0.0.1:21001", "asked for before it is planned"
    assert site.listen("later", 21001) == ("127.0.0.1", 21001)


def test_a_published_service_listens_on_its_published_port(site: ProcessSite) -> None:
    assert site.listen("api", 8000, host_port=9000) == ("127.0.0.1", 9000)
    assert site.local_url("api", 8000) == "http://127.0.0.1:9000"
    assert site.public_url("0.0.0.0", 9000) == "http://127.0.0.1:9000/v1"


def test_paths_are_host_paths(site: ProcessSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/data/hf")
    assert site.models_dir() == "/data/hf"
    assert ProcessSite(tmp_path, tmp_path, "./weights").models_dir() == str(tmp_path / "weights")
    assert site.local_path("../m") == site.host_path("../m") == str(tmp_path.parent / "m")
    assert site.local_path("/m/") == "/m"
    assert Path(site.home_dir()).parent == tmp_path / ".stackgen"


def test_hub_folder_is_the_one_of_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert hub_dir() == Path("/cache/huggingface")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert hub_dir() == Path("/home/me/.cache/huggingface")


@pytest.mark.parametrize("name", ["supervise.sh", "download.py", "vllm_health.py", "llamacpp_health.sh"])
def test_scripts_are_package_files(site: ProcessSite, name: str) -> None:
    assert Path(site.script(name)).is_file()


def test_an_unknown_script_is_named_in_the_error(site: ProcessSite) -> None:
    with pytest.raises(FileNotFoundError, match="no script nothing"):
        site.script("nothing.py")
    assert Path(site.image_file("fastchat", "launch.py")).is_file()


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        (None, {"CUDA_VISIBLE_DEVICES": ""}),
        (GpuRequest("nvidia", ids=("1", "3")), {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1,3"}),
        (GpuRequest("nvidia", count=2), {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "0,1"}),
        (GpuRequest("nvidia", count=-1), {}),
        (
            GpuRequest("cdi", ids=("nvidia.com/gpu=2",)),
            {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "2"},
        ),
        (GpuRequest("cdi", ids=("nvidia.com/gpu=all",)), {}),
        (GpuRequest("amd", ids=("0",)), {"ROCR_VISIBLE_DEVICES": "0"}),
    ],
)
def test_a_service_sees_only_its_gpus(site: ProcessSite, gpus: GpuRequest | None, expected: dict[str, str]) -> None:
    assert dict(site.gpu_environment(gpus)) == expected
