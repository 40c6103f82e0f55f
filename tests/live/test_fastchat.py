"""FastChat on the CPU: two models, one of them in two replicas, behind one API server."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.live.small_stacks import first_finding
from tests.live.stacks import QUESTION, LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.xdist_group("engines"), pytest.mark.timeout(600)]
PORT = 18111
WORKERS = ("fastchat-smollm2", "fastchat-tiny", "fastchat-tiny-2")
HI = [{"role": "user", "content": "hi"}]
PYDANTIC = ("pydantic", "pydantic_core", "annotated_types", "typing_extensions.py", "typing_inspection")


@pytest.fixture
def stack(fastchat_stack: LiveStack) -> LiveStack:
    return fastchat_stack


def post(
    stack: LiveStack, body: dict[str, Any], key: str | None = None, path: str = "/v1/chat/completions"
) -> tuple[int, str]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def chat(model: str = "smollm2", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4} | fields


def test_the_models_answer_under_all_served_names(stack: LiveStack) -> None:
    assert "Paris" in stack.ask()
    assert "Paris" in stack.ask(QUESTION, "--model", "smol")
    assert stack.ask("hi", "--model", "tiny")  # random weights, so any text is right


def test_the_check_passes_for_every_model(stack: LiveStack) -> None:
    report = stack.check()
    assert report["ok"]
    (endpoint,) = report["endpoints"]
    checked = {
        result["model"] for result in endpoint["results"] if result["name"] == "stream" and result["status"] == "pass"
    }
    assert checked == {"smollm2", "smol", "tiny"}


def test_the_prompt_uses_the_tokenizers_chat_template(stack: LiveStack) -> None:
    """FastChat's default template turns "hi" into 964 tokens."""
    status, body = post(stack, chat(), stack.key)
    assert status == 200
    assert json.loads(body)["usage"]["prompt_tokens"] < 50


def test_max_completion_tokens_limits_the_answer(stack: LiveStack) -> None:
    """Plain FastChat ignores the field, and answers up to the context length.

    The model has random weights, so a sampled answer can also end before the limit."""
    status, body = post(stack, {"model": "tiny", "messages": HI, "max_completion_tokens": 5}, stack.key)
    assert status == 200 and 1 <= json.loads(body)["usage"]["completion_tokens"] <= 5, body


def test_text_parts_and_developer_and_tool_messages_are_read(stack: LiveStack) -> None:
    question = [{"type": "text", "text": "Name the capital"}, {"type": "text", "text": "of France."}]
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": question},
    ]
    status, body = post(stack, chat(messages=messages, max_tokens=12, temperature=0), stack.key)
    assert status == 200 and "Paris" in body
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages += [{"role": "assistant", "content": None, "tool_calls": [call]},
                 {"role": "tool", "tool_call_id": "c", "content": "rain"}]  # fmt: skip
    assert post(stack, chat("tiny", messages=messages), stack.key)[0] == 200


@pytest.mark.parametrize(
    ("path", "request_body"),
    [("/v1/chat/completions", {"messages": HI}), ("/v1/completions", {"prompt": "hi"}),
     ("/v1/chat/completions", {"messages": HI, "n": 2})],
    ids=["chat", "completion", "two answers"],
)  # fmt: skip
def test_stream_chunks_are_complete_and_usage_is_the_last_one(
    stack: LiveStack, path: str, request_body: dict[str, Any]
) -> None:
    # not tiny: its random weights can end an answer before the limit
    options = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    body = {"model": "smollm2", "max_tokens": 4} | options | request_body
    status, text = post(stack, body, stack.key, path)
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert status == 200 and text.endswith("data: [DONE]\n\n")
    assert len({(one["id"], one["object"], one["created"], one["model"]) for one in events}) == 1
    *chunks, last = events
    count = request_body.get("n", 1)
    whole, one_answer = (
        json.loads(post(stack, body | {"stream": False, "n": n}, stack.key, path)[1])["usage"] for n in (count, 1)
    )
    assert last["choices"] == []
    assert last["usage"] == whole
    assert whole["prompt_tokens"] == one_answer["prompt_tokens"]
    assert whole["completion_tokens"] == 4 * count and one_answer["completion_tokens"] == 4
    finished = [choice["index"] for one in chunks for choice in one["choices"] if choice["finish_reason"]]
    assert finished == list(range(count))


def test_health_and_single_models_are_served(stack: LiveStack) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=10) as response:
        assert response.status == 200
    headers = {"Authorization": f"Bearer {stack.key}"}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/v1/models/smol", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        assert json.load(response)["id"] == "smol"
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/v1/models/org/none", headers=headers)
    with pytest.raises(urllib.error.HTTPError, match="404") as refused:
        urllib.request.urlopen(request, timeout=10)
    with refused.value as error:
        assert json.load(error)["error"]["code"] == "model_not_found"


def test_prompts_as_token_ids_are_used_exactly(stack: LiveStack) -> None:
    # SmolLM2's ids of "The capital of France is"
    body = {"model": "smollm2", "prompt": [504, 3575, 282, 4649, 314], "max_tokens": 2, "temperature": 0, "echo": True}
    status, text = post(stack, body, stack.key, "/v1/completions")
    answer = json.loads(text)
    assert status == 200 and answer["choices"][0]["text"].startswith("The capital of France is Paris"), text
    assert answer["usage"]["prompt_tokens"] == 5
    # "t" and "h": the tokenizer would make one token of their text
    split = body | {"prompt": [[4649], [100, 88]], "max_tokens": 1}
    assert json.loads(post(stack, split, stack.key, "/v1/completions")[1])["usage"]["prompt_tokens"] == 3
    status, text = post(stack, body | {"prompt": [10**6]}, stack.key, "/v1/completions")
    assert status == 400 and "vocabulary" in json.loads(text)["error"]["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("tools", [{"type": "function", "function": {"name": "f"}}]), ("response_format", {"type": "json_object"}),
     ("seed", 1), ("logit_bias", {"5": 1}), ("logprobs", True)],
)  # fmt: skip
def test_what_fastchat_would_ignore_is_refused(stack: LiveStack, field: str, value: Any) -> None:
    status, body = post(stack, chat("tiny", **{field: value}), stack.key)
    assert (status, json.loads(body)["error"]["param"]) == (400, field)


def test_errors_are_json_with_openais_fields(stack: LiveStack) -> None:
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]}]
    cases = [
        (400, chat(messages=image), "/v1/chat/completions"),
        (400, chat(messages=[{"role": "wizard", "content": "hi"}]), "/v1/chat/completions"),
        (400, chat(temperature="hot"), "/v1/chat/completions"),
        (400, chat("none"), "/v1/chat/completions"),
        (400, {"model": "tiny", "input": [1, 2]}, "/v1/embeddings"),
        (400, {"model": "tiny", "prompt": "a b c d " * 3000}, "/v1/completions"),
        (404, {}, "/v1/responses"),
    ]
    for expected, body, path in cases:
        status, text = post(stack, body, stack.key, path)
        assert status == expected, (body, text)
        assert json.loads(text)["error"]["message"] and "site-packages" not in text


def test_no_path_answers_without_the_key(stack: LiveStack) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/api/v1/chat/completions", "/api/v1/token_check"):
        assert post(stack, chat(), path=path)[0] == 401, path
        assert post(stack, chat(), key="wrong", path=path)[0] == 401, path
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://127.0.0.1:{PORT}/docs", timeout=10)


def test_null_parameters_count_as_absent(stack: LiveStack) -> None:
    """As in OpenAI's API."""
    for field in ("n", "stop", "stream", "user", "max_tokens", "tools", "response_format"):
        assert post(stack, chat(**{field: None}), stack.key)[0] == 200, field
    assert "Paris" in stack.ask()


def test_controller_and_workers_are_closed_to_the_host(stack: LiveStack) -> None:
    for service in ("fastchat-controller", *WORKERS):
        found = stack.inspect(service)
        assert not any(found["NetworkSettings"]["Ports"].values()), service
        assert list(found["NetworkSettings"]["Networks"]) == ["sgtest-fastchat_fastchat"]
    for port in (21001, 21002):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)


def test_the_internal_network_reaches_nothing_outside(stack: LiveStack) -> None:
    probe = "import socket; socket.create_connection(('172.17.0.1', 22), timeout=3)"
    done = stack.execute(WORKERS[0], "python3", "-c", probe)
    assert "unreachable" in done.stderr or "timed out" in done.stderr, done.stderr


def test_workers_register_under_their_service_names(stack: LiveStack) -> None:
    log = stack.compose("logs", "fastchat-controller").stdout
    for worker in WORKERS:
        assert f"Register done: http://{worker}:21002" in log


def test_the_api_server_started_after_the_workers(stack: LiveStack) -> None:
    api = stack.inspect("fastchat-api")["State"]["StartedAt"]
    assert all(stack.inspect(worker)["State"]["StartedAt"] < api for worker in WORKERS)


def test_the_key_is_not_in_logs_process_list_or_inspect(stack: LiveStack) -> None:
    assert stack.key not in stack.logs()
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert stack.key not in listing
    for service in ("fastchat-controller", *WORKERS):
        assert stack.key not in json.dumps(stack.inspect(service)), service


@pytest.fixture
def pydantic_2(fastchat_image: str, exporter_image: str) -> Iterator[str]:
    """FastChat's image with pydantic 2."""
    site = "/opt/venv/lib/python3.11/site-packages"
    copies = "\n".join(f"COPY --from={exporter_image} {site}/{name} {site}/{name}" for name in PYDANTIC)
    text = f"FROM {fastchat_image}\nUSER 0:0\nRUN rm -r {site}/pydantic\n{copies}\nUSER 1000:1000\n"
    image = "sgtest-diag-pydantic2"
    built = subprocess.run(["docker", "build", "--quiet", "--tag", image, "-"], input=text, capture_output=True,
                           text=True, timeout=300)  # fmt: skip
    assert built.returncode == 0, built.stderr
    yield image
    subprocess.run(["docker", "rmi", "--force", image], capture_output=True)


def test_an_image_with_pydantic_2_is_diagnosed(pydantic_2: str, stack: LiveStack) -> None:
    """Everything works until a stream is requested: it gets status 200 and no content."""
    compose = stack.folder / "compose.yaml"
    rendered = compose.read_text()
    edited = yaml.safe_load(rendered)
    # the API server sends the streams
    edited["services"]["fastchat-api"]["image"] = pydantic_2
    compose.write_text(yaml.safe_dump(edited))
    try:
        # the API server is running, and would be interrupted only after a question
        done = stack.run_stackgen("up", str(stack.folder), "--yes")
        assert done.returncode == 1, done.stdout
        found = first_finding(stack)
        assert found["id"] == "SG-F008", found
        assert "pydantic" in found["cause"] and "dumps_kwargs" in " ".join(found["evidence"])
    finally:
        compose.write_text(rendered)
        stack.up()


def test_a_killed_worker_restarts_and_registers_again(stack: LiveStack) -> None:
    """Last in this file, because it kills a worker."""
    kill_worker = (
        "for p in /proc/[0-9]*; do grep -aq 'launch.py.worker' $p/cmdline && grep -q python $p/comm"
        " && kill -9 ${p#/proc/}; done; true"
    )
    stack.execute(WORKERS[0], "sh", "-c", kill_worker)
    end = time.monotonic() + 90
    while True:
        status, body = post(stack, chat(), stack.key)
        if status == 200 and "starting it again" in stack.logs():
            break
        # no text, and no 4xx, which would tell clients not to try again
        assert status == 200 or (status == 503 and json.loads(body)["error"]["message"]), (status, body)
        assert time.monotonic() < end, (status, body, stack.logs()[-3000:])
        time.sleep(1)
