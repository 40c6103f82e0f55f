"""The gateway with real engines behind one URL: vLLM, FastChat and llama.cpp."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from stackgen import engines
from tests.live.containers import docker, read_metric, wait_until
from tests.live.front import PORT, ROUTER, TINY, WORKERS, ask, client, container
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.xdist_group("front"), pytest.mark.timeout(600)]


def test_the_deep_check_passes_for_every_engine(quiet_front: LiveStack) -> None:
    done = quiet_front.run_stackgen("check", str(quiet_front.folder), "--deep", "--json")
    report = json.loads(done.stdout)
    wrong = [
        (e["name"], c["name"], c["message"]) for e in report["endpoints"] for c in e["results"] if c["status"] == "fail"
    ]
    assert wrong == []
    assert done.returncode == 0
    names = [endpoint["name"] for endpoint in report["endpoints"]]
    assert names == ["vllm-tiny", "fastchat-smol", "llamacpp-llama"]
    seen = {e["name"]: {c["name"]: c for c in e["results"]} for e in report["endpoints"]}
    # the check reaches each replica directly, not only through the gateway
    assert {*TINY} <= {key.removesuffix("_seconds") for key in seen["vllm-tiny"]["topology"]["figures"]}
    # the gateway closes the engines' open paths, so there is no warning
    assert {one["auth"]["status"] for one in seen.values()} == {"pass"}


def test_one_url_serves_all_models(direct_front: LiveStack) -> None:
    listed = {model.id for model in client(direct_front).models.list()}
    assert listed == {"tiny", "Tiny/Alias", "smol", "llama"}
    for model in ("smol", "llama"):
        assert "Paris" in direct_front.ask("Name the capital of France.", "--model", model)
    with ThreadPoolExecutor(16) as pool:  # simultaneously: an idle replica is chosen at random
        served = set(pool.map(lambda name: ask(direct_front, name, max_tokens=100 if "iny" in name else 2)[2],
                              ["tiny", "Tiny/Alias", "smol", "llama"] * 4))  # fmt: skip
    assert served == {f"{ROUTER}/{TINY[0]}", f"{ROUTER}/{TINY[1]}", "fastchat-smol/fastchat-api",
                      "llamacpp-llama/llamacpp-llama"}  # fmt: skip
    with pytest.raises(openai.NotFoundError) as caught:
        client(direct_front).chat.completions.create(model="Smol", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "model_not_found"


def test_the_open_paths_of_real_engines_are_refused(direct_front: LiveStack) -> None:
    paths = {path for name in engines.names() for path in engines.get(name).dialect.open_paths} | {"/pause", "/ping"}
    # vLLM logs all paths that it serves
    served = set(re.findall(r"Route: (/\S+), Methods", docker("logs", container(TINY[0]))))
    assert {"/version", "/v1/models"} <= served
    for path in paths | {one for one in served if not one.startswith("/v1/") and one != "/health"}:
        for method in ("GET", "POST"):
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
            body = json.dumps({"model": "tiny", "messages": [], "prompt": "hi"})
            connection.request(method, path, body, {"Authorization": f"Bearer {direct_front.key}"})
            assert connection.getresponse().status == 404, path
            connection.close()
    # the engines publish no port
    for service in (*TINY, *WORKERS, "fastchat-api", "fastchat-controller", "llamacpp-llama", ROUTER):
        ports = json.loads(docker("inspect", "--format", "{{json .NetworkSettings.Ports}}", container(service)))
        assert not any(ports.values()), service


# prints when each chunk arrived, in seconds after the request, and the last chunk's `usage`
READ_STREAM = """
import http.client, json, sys, time
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
headers = {"Authorization": f"Bearer {sys.argv[2]}", "Content-Type": "application/json"}
started, times, usage = time.monotonic(), [], None
connection.request("POST", "/v1/chat/completions", sys.stdin.read(), headers)
response = connection.getresponse()
assert response.status == 200, response.read()
while line := response.readline():
    if line.startswith(b"data: {"):
        times.append(time.monotonic() - started)
        usage = json.loads(line[6:]).get("usage") or usage
print(json.dumps([times, usage]))
"""


@pytest.mark.parametrize(("model", "tokens"), [("tiny", 900), ("smol", 24), ("llama", 24)])
def test_a_stream_arrives_token_by_token(direct_front: LiveStack, model: str, tokens: int) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "Tell me of Rome."}], "max_tokens": tokens,
            "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip
    # tiny often ends after a few tokens, which is too fast to measure
    more = {"ignore_eos": True} if model == "tiny" else {}
    # A process of its own: in two runs of all tests, this one read the first chunk after 0.9 s, and the others at three
    # times vLLM's speed. Alone, it read the first one after 0.03 s.
    command = [sys.executable, "-c", READ_STREAM, str(PORT), direct_front.key]
    done = subprocess.run(command, input=json.dumps(body | more), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    times, usage = json.loads(done.stdout)
    print(f"{model}: {len(times)} chunks, the first after {times[0]:.2f} s, the last after {times[-1]:.2f} s")
    # vLLM puts the tokens that have gathered into one chunk: 869 chunks of 900 tokens on busy cores
    assert len(times) > (tokens // 2 if model == "tiny" else 3)
    assert usage and (model != "tiny" or usage["completion_tokens"] == tokens)
    # buffered chunks would all arrive at the end
    assert times[0] < times[-1] / 2


def count(name: str) -> float:
    """Returns the sum of a metric over the replicas of tiny."""
    return sum(read_metric(container(one), f"vllm:{name}") for one in TINY)


def test_a_disconnect_stops_the_generation(direct_front: LiveStack) -> None:
    before = count("generation_tokens_total")
    # long enough that a fast machine is far from the end when the client has gone
    stream = client(direct_front).completions.create(model="tiny", prompt="a", max_tokens=2000, n=16, stream=True,
                                              extra_body={"ignore_eos": True})  # fmt: skip
    next(iter(stream))
    stream.close()
    wait_until(lambda: not count("num_requests_running"), 30, "the generation goes on")
    generated = count("generation_tokens_total") - before
    print(f"client disconnected after the first token: {generated:.0f} of 32000 tokens were generated")
    assert 0 < generated < 16000


def test_a_megabyte_of_prompt_in_front_of_the_model_reaches_the_engine(direct_front: LiveStack) -> None:
    prompt = "word " * 200_000
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 4, "model": "tiny"}
    headers = {"Authorization": f"Bearer {direct_front.key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    # the error is the engine's own: the prompt is too long for 2,048 tokens
    assert response.status == 400
    assert response.headers["x-stackgen-served-by"].startswith(f"{ROUTER}/{TINY[0]}")
    assert "2048" in json.load(response)["error"]["message"]
    connection.close()


def test_the_log_has_key_name_and_server_but_no_key_and_no_prompt(direct_front: LiveStack) -> None:
    ask(direct_front, "smol", messages=[{"role": "user", "content": "a secret thought"}], max_tokens=1)
    log = docker("logs", container("gateway"))
    assert '"key": "default"' in log and '"server": "fastchat-api"' in log
    assert direct_front.key not in log and "secret thought" not in log


def test_all_choices_of_real_llamacpp_count_for_the_budget(direct_front: LiveStack) -> None:
    """llama.cpp reports the tokens of one choice: findings/llamacpp-counts-one-choice.sh."""

    def counted(stream: bool = False, **body: object) -> int:
        path = "chat/completions" if "messages" in body else "completions"
        sent = {"model": "llama", "max_tokens": 32, "ignore_eos": True, "seed": 1, "stream": stream, **body}
        if stream:
            sent["stream_options"] = {"include_usage": True}
        request = urllib.request.Request(
            f"http://127.0.0.1:{PORT}/v1/{path}", json.dumps(sent).encode(),
            {"Authorization": f"Bearer {direct_front.key}", "Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=120) as response:
            response.read()
            name = response.headers["x-request-id"]

        def find() -> list[str]:
            return [line for line in docker("logs", container("gateway")).splitlines() if name in line]

        wait_until(lambda: bool(find()), 20, f"the log has no line of {name}")
        return int(json.loads(find()[-1])["tokens"])

    chat = {"messages": [{"role": "user", "content": "Tell me a story about a cat."}]}
    prompt = counted(**chat) - 32
    assert prompt > 0
    assert counted(stream=True, **chat, n=3) == prompt + 96
    assert prompt + 60 < counted(**chat, n=3) < prompt + 150
    # a budget counts the longer prompt, too
    assert counted(prompt=["The cat", "once upon a time " * 40]) > 64 + 100
