"""Stacks that several test modules share. Each is started once per session.

A start takes half a minute. The first test that uses one of them starts all that the selected tests use, side by side.
A test that breaks something must repair it, or set `stopped`.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.live import front as front_stack
from tests.live.containers import docker, pause, wait_until
from tests.live.fallback import Provider, start_provider, write_env
from tests.live.stacks import LiveStack
from tests.parts import group_of

# the shared stacks of this session that are running
_shared: list[LiveStack] = []


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Removes the shared stacks after the last test of their group: idle engines take time from the other tests."""
    if nextitem is None or group_of(_file(nextitem)) != group_of(_file(item)):
        while _shared:
            stack = _shared.pop()
            stack.compose("kill")
            stack.compose("down", "--remove-orphans")
            stack.stopped = True


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _model_entry(path: Path, engine: str, names: list[str], **more: Any) -> dict[str, Any]:
    return {"model": str(path), "engine": engine, "served_names": names, **more}


@pytest.fixture(scope="session")
def _vllm(vllm_image: str, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveStack]:
    # processors without AVX-512 compute bfloat16 slowly: 7.3 s for six short answers at once, instead of 1.9 s
    model = _model_entry(smollm2, "vllm", ["smollm2", "smol"], image=vllm_image, max_model_len=2048, cpu_kv_cache_gib=1,
                   dtype="float32", enforce_eager=True)  # fmt: skip
    with LiveStack(
        tmp_path_factory.mktemp("vllm"), {"name": "sgtest-vllm", "port": 18101, "models": [model]}
    ) as started:
        _shared.append(started)
        yield started


@pytest.fixture(scope="session")
def _fastchat(
    fastchat_image: str, smollm2: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveStack]:
    models = [
        _model_entry(smollm2, "fastchat", ["smollm2", "smol"]),
        _model_entry(tiny_model, "fastchat", ["tiny"], replicas=2),
    ]
    # these tests talk to FastChat directly; tests/live/test_front_gateway.py covers it behind the gateway
    data = {"name": "sgtest-fastchat", "port": 18111, "gateway": False, "models": models}
    with LiveStack(tmp_path_factory.mktemp("fastchat"), data) as started:
        assert fastchat_image in (started.folder / "compose.yaml").read_text()
        _shared.append(started)
        yield started


@pytest.fixture(scope="session")
def _llamacpp(llamacpp_image: str, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveStack]:
    gguf = next(smollm2.with_name("smollm2-GGUF").glob("*.gguf"))
    # its threads wait for each other actively: two of them starve, and are starved by, the tests that run beside it
    model = _model_entry(gguf, "llamacpp", ["smollm2", "smol"], max_model_len="2K", extra_args=["--threads", "1"])
    data = {"name": "sgtest-llamacpp", "port": 18140, "models": [model]}
    with LiveStack(tmp_path_factory.mktemp("llamacpp"), data) as started:
        assert llamacpp_image in (started.folder / "compose.yaml").read_text()
        _shared.append(started)
        yield started


@pytest.fixture(scope="session")
def _starting(request: pytest.FixtureRequest) -> Iterator[None]:
    """Starts all stacks that the selected tests use, in the background."""
    used = {name for item in request.session.items if isinstance(item, pytest.Function) for name in item.fixturenames}
    names = [name for name in ("_fastchat", "_vllm", "_llamacpp") if f"{name[1:]}_stack" in used]
    with ThreadPoolExecutor() as pool:
        for name in names:
            pool.submit(request.getfixturevalue(name).ensure_running)
        yield


@pytest.fixture
def vllm_stack(_starting: None, _vllm: LiveStack) -> LiveStack:
    """vLLM with SmolLM2 under two names."""
    return _vllm.ensure_running()


@pytest.fixture
def fastchat_stack(_starting: None, _fastchat: LiveStack) -> LiveStack:
    """FastChat's controller, API server and workers, with two models, one of them in two replicas."""
    return _fastchat.ensure_running()


@pytest.fixture
def llamacpp_stack(_starting: None, _llamacpp: LiveStack) -> LiveStack:
    """llama.cpp's server with SmolLM2."""
    return _llamacpp.ensure_running()


@pytest.fixture(scope="session")
def grafana_or_substitute(grafana_image: str, standin_image: str) -> str:
    """Grafana's image, or one that is only healthy: without it, a stack with monitoring would not start."""
    if grafana_image:
        return grafana_image
    folder, tag = Path(__file__).parents[1] / "standin" / "grafana", "stackgen/grafana-substitute:1"
    docker("build", "--quiet", "--tag", tag, "--build-arg", f"BASE_IMAGE={standin_image}", str(folder))
    return tag


@pytest.fixture(scope="session")
def front(
    vllm_image: str, fastchat_image: str, llamacpp_image: str, haproxy_image: str, router_image: str,
    prometheus_image: str, exporter_image: str, grafana_or_substitute: str, tiny_model: Path, smollm2: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LiveStack]:  # fmt: skip
    """Real engines behind one gateway (tests/live/front.py). Tests leave everything running."""
    images = {"vllm": vllm_image, "haproxy": haproxy_image, "prometheus": prometheus_image,
              "exporter": exporter_image, "grafana": grafana_or_substitute}  # fmt: skip
    data = front_stack.front_data(images, tiny_model, smollm2)
    provider = Provider(f"{front_stack.NAME}-provider")
    # a killed test run may have left it in the network
    provider.remove()
    with LiveStack(tmp_path_factory.mktemp("front"), data) as started:
        (started.folder / ".env").unlink()
        write_env(started.folder)
        rendered = (started.folder / "compose.yaml").read_text()
        for image in (fastchat_image, llamacpp_image, router_image):
            assert image in rendered
        started.compose("down", "--volumes")
        _shared.append(started)
        try:
            started.stackgen("up", str(started.folder), "--progress", "none")
            # from here on, a request to the provider would show that a fallback was used without a reason
            start_provider(front_stack.NAME, fastchat_image)
            # the gateway has its own health checks, and may use a replica later than Docker reports it healthy
            wait_until(lambda: front_stack.all_answer(started), 60, "a model does not answer")
            yield started
        finally:
            provider.remove()
            started.compose("kill")
            started.compose("down", "--volumes")


@pytest.fixture(scope="module")
def quiet_front(front: LiveStack) -> Iterator[LiveStack]:
    """The stack without the exporter, whose requests would be counted, and share batches with those of a test."""
    pause(front_stack.container("exporter"))
    yield front
    docker("unpause", front_stack.container("exporter"))


@pytest.fixture(scope="module")
def direct_front(quiet_front: LiveStack) -> Iterator[LiveStack]:
    """The stack without the exporter and without the router: the gateway sends requests to vLLM directly."""
    front_stack.stop_router(quiet_front)
    yield quiet_front
    docker("start", front_stack.container(front_stack.ROUTER))
    wait_until(lambda: front_stack.all_answer(quiet_front), 60, "the router is not used again")
