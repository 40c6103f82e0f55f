"""The gateway with two real vLLM replicas and a real FastChat model behind one URL."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from stackgen import engines
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.front]

PORT = 18171


@pytest.fixture(scope="module")
def stack(
    vllm_image: str, fastchat_image: str, haproxy_image: str, tiny_model: Path, smollm2: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LiveStack]:  # fmt: skip
    tiny = {"model": str(tiny_model), "engine": "vllm", "served_names": ["tiny", "Tiny/Alias"], "image": vllm_image,
            "replicas": 2, "max_model_len": 1024, "cpu_kv_cache_gib": 1, "dtype": "bfloat16", "enforce_eager": True,
            }  # fmt: skip
    smol = {"model": str(smollm2), "engine": "fastchat", "served_names": ["smol"]}
    data = {"name": "sgtest-front", "port": PORT, "gateway": {"image": haproxy_image}, "models": [tiny, smol]}
    with LiveStack(tmp_path_factory.mktemp("front"), data) as started:
        assert fastchat_image in (started.folder / "compose.yaml").read_text()
        started.stackgen("up", str(started.folder), "--progress", "none")
        yield started


def client(stack: LiveStack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key=stack.key, timeout=60, max_retries=0)


def post(stack: LiveStack, body: dict[str, Any], path: str = "/v1/chat/completions") -> tuple[int, Any, str]:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    connection.request("POST", path, json.dumps(body),
                       {"Authorization": f"Bearer {stack.key}", "Content-Type": "application/json"})  # fmt: skip
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, json.loads(text), response.headers.get("x-stackgen-served-by", "")


def metric(stack: LiveStack, service: str, name: str) -> float:
    ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/metrics').read().decode())"
    text = stack.execute(service, "python3", "-c", ask).stdout
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def test_the_deep_check_passes_for_every_model(stack: LiveStack) -> None:
    done = stack.run_stackgen("check", str(stack.folder), "--deep", "--json")
    report = json.loads(done.stdout)
    wrong = [
        (e["name"], c["name"], c["message"]) for e in report["endpoints"] for c in e["results"] if c["status"] == "fail"
    ]
    assert wrong == []
    assert done.returncode == 0
    assert [endpoint["name"] for endpoint in report["endpoints"]] == ["vllm-tiny", "fastchat-smol"]
    seen = {e["name"]: {c["name"]: c for c in e["results"]} for e in report["endpoints"]}
    # the check reaches each replica directly, not only through the gateway
    assert {"vllm-tiny", "vllm-tiny-2"} <= {
        key.removesuffix("_seconds") for key in seen["vllm-tiny"]["topology"]["figures"]
    }
    # the gateway closes the engines' open paths, so there is no warning
    assert seen["vllm-tiny"]["auth"]["status"] == seen["fastchat-smol"]["auth"]["status"] == "pass"


def test_one_url_serves_all_models(stack: LiveStack) -> None:
    assert {model.id for model in client(stack).models.list()} == {"tiny", "Tiny/Alias", "smol"}
    assert "Paris" in stack.ask("Name the capital of France.", "--model", "smol")
    with ThreadPoolExecutor(12) as pool:  # simultaneously: an idle replica is chosen at random
        served = set(pool.map(lambda name: post(stack, {
            "model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2 if name == "smol" else 100,
            })[2], ["tiny", "Tiny/Alias", "smol"] * 4))  # fmt: skip
    assert served == {"vllm-tiny/vllm-tiny", "vllm-tiny/vllm-tiny-2", "fastchat-smol/fastchat-api"}
    with pytest.raises(openai.NotFoundError) as caught:
        client(stack).chat.completions.create(model="Smol", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "model_not_found"


def test_the_open_paths_of_real_engines_are_refused(stack: LiveStack) -> None:
    paths = {path for name in engines.names() for path in engines.get(name).dialect.open_paths} | {"/pause", "/ping"}
    for path in paths:
        for method in ("GET", "POST"):
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
            body = json.dumps({"model": "tiny", "messages": [], "prompt": "hi"})
            connection.request(method, path, body, {"Authorization": f"Bearer {stack.key}"})
            assert connection.getresponse().status == 404, path
            connection.close()
    # the engines publish no port
    for service in ("vllm-tiny", "vllm-tiny-2", "fastchat-api", "fastchat-controller", "fastchat-smol"):
        assert not any(stack.inspect(service)["NetworkSettings"]["Ports"].values())


@pytest.mark.parametrize(("model", "tokens"), [("tiny", 900), ("smol", 24)])
def test_a_stream_arrives_token_by_token(stack: LiveStack, model: str, tokens: int) -> None:
    api = client(stack)  # created before the clock starts, because that takes longer than tiny's first token
    # tiny often ends after a few tokens, which is too fast to measure
    more = {"ignore_eos": True} if model == "tiny" else None
    started, times = time.monotonic(), []
    with api.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Tell me of Rome."}],
        max_tokens=tokens,
        stream=True,
        extra_body=more,
    ) as stream:
        for _ in stream:
            times.append(time.monotonic() - started)
    print(f"{model}: {len(times)} chunks, the first after {times[0]:.2f} s, the last after {times[-1]:.2f} s")
    assert len(times) > (tokens if model == "tiny" else 3)
    # buffered chunks would all arrive at the end
    assert times[0] < times[-1] / 2


def test_a_disconnect_stops_the_generation(stack: LiveStack) -> None:
    names = ("vllm-tiny", "vllm-tiny-2")
    before = sum(metric(stack, name, "vllm:generation_tokens_total") for name in names)
    stream = client(stack).completions.create(model="tiny", prompt="a", max_tokens=900, n=4, stream=True,
                                              extra_body={"ignore_eos": True})  # fmt: skip
    next(iter(stream))
    stream.close()
    end = time.monotonic() + 30
    while any(metric(stack, name, "vllm:num_requests_running") for name in names) and time.monotonic() < end:
        time.sleep(0.2)
    generated = sum(metric(stack, name, "vllm:generation_tokens_total") for name in names) - before
    print(f"client disconnected after the first token: {generated:.0f} of 3600 tokens were generated")
    assert 0 < generated < 1800


def test_a_megabyte_of_prompt_in_front_of_the_model_reaches_the_engine(stack: LiveStack) -> None:
    prompt = "word " * 200_000
    status, body, by = post(
        stack, {"messages": [{"role": "user", "content": prompt}], "max_tokens": 4, "model": "tiny"}
    )
    # the error is the engine's own: the prompt is too long for 1,024 tokens
    assert (status, by.startswith("vllm-tiny/")) == (400, True)
    assert "1024" in body["error"]["message"]


def test_the_log_has_key_name_and_server_but_no_key_and_no_prompt(stack: LiveStack) -> None:
    post(stack, {"model": "smol", "messages": [{"role": "user", "content": "a secret thought"}], "max_tokens": 1})
    log = stack.compose("logs", "--no-log-prefix", "gateway").stdout
    assert '"key": "default"' in log and '"server": "fastchat-api"' in log
    assert stack.key not in log and "secret thought" not in log
