"""The rendered gateway in the real HAProxy while fake engines, or the gateway itself, are killed or hang."""

from __future__ import annotations

import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.live.gateway import (
    FakeEngineStack,
    both_sizes,
    find_log_line,
    gateway_data,
    parse_error,
    repeat,
    wait_for_status,  # fmt: skip
)

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def gateway(
    fastchat_image: str, haproxy_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeEngineStack]:
    data = gateway_data("sgtest-gateway-failures", 18167, haproxy_image)
    with FakeEngineStack(tmp_path_factory.mktemp("gateway"), data, fastchat_image) as running:
        yield running


@both_sizes
def test_a_killed_replica_fails_no_request(gateway: FakeEngineStack, pad: int) -> None:
    failed, by = [], Counter[str]()

    def ask() -> None:
        answer = gateway.chat("alpha", pad=pad, sleep=0.2)
        by[answer.replica] += 1
        if answer.status != 200:
            failed.append((answer.status, answer.text))

    with repeat(ask, 6):
        time.sleep(1.5)
        gateway.compose("kill", "vllm-alpha-2")
        time.sleep(4)
        before = by["vllm-alpha-2"]
        time.sleep(1)
        assert by["vllm-alpha-2"] == before
        up = gateway.compose("up", "--detach", "vllm-alpha-2")
        end = time.monotonic() + 30
        while by["vllm-alpha-2"] == before and time.monotonic() < end:
            time.sleep(0.2)
    print(
        f"a replica killed and restarted, {pad} bytes a body: "
        f"{sum(by.values())} requests, {len(failed)} failed, {dict(by)}"
    )
    assert up.returncode == 0, up.stderr
    assert failed == []
    show_state = 'exec 3<>/dev/tcp/127.0.0.1/8406; echo "show servers state; show resolvers docker" >&3; cat <&3'
    assert by["vllm-alpha-2"] > before, gateway.run("gateway", "bash", "-c", show_state)


@both_sizes
def test_a_request_is_retried_when_its_replica_dies_before_the_first_byte(gateway: FakeEngineStack, pad: int) -> None:
    for _ in range(40):  # either replica may get it, and only vllm-alpha dies of it
        answer = gateway.chat("alpha", pad=pad, die="vllm-alpha")
        assert (answer.status, answer.replica) == (200, "vllm-alpha-2")
        if "vllm-alpha" not in gateway.running_services():
            break
    else:
        raise AssertionError("no request went to vllm-alpha")
    gateway.compose("up", "--detach", "vllm-alpha")
    end = time.monotonic() + 60
    while gateway.chat("alpha").replica != "vllm-alpha":
        assert time.monotonic() < end, "vllm-alpha gets no requests again"


def count_failures(gateway: FakeEngineStack) -> int:
    """Returns the gateway's count of failed requests with the default key."""
    ask = "import urllib.request as u; print(u.urlopen('http://gateway:8405/keys').read().decode())"
    text = gateway.run("vllm-alpha", "python3", "-c", ask)
    return int(re.findall(r'stackgen_gateway_key_failures_total\{key="default"\} (\d+)', text)[0])


@both_sizes
def test_a_request_that_kills_each_replica_is_not_retried_forever(gateway: FakeEngineStack, pad: int) -> None:
    """It must not kill a whole fleet."""
    failed = count_failures(gateway)
    answer = gateway.chat("beta", pad=pad, die=True)
    assert (answer.status, parse_error(answer)["code"]) in ((502, "bad_gateway"), (503, "unavailable"))
    assert not [name for name in answer.headers if name.startswith("x-stackgen")]
    line = find_log_line(gateway, answer)
    assert (line["key"], line["model"], int(line["status"])) == ("default", "beta", answer.status)
    assert count_failures(gateway) == failed + 1
    # wait until Docker notices that the engine has exited: `up` does not start what it believes to be running
    end = time.monotonic() + 30
    while "vllm-beta" in gateway.running_services():
        assert time.monotonic() < end, "vllm-beta did not exit"
    up = gateway.compose("up", "--detach", "vllm-beta")
    assert up.returncode == 0, up.stderr
    wait_for_status(gateway, "beta")


def test_a_model_without_a_healthy_replica_gets_503_and_is_not_listed(gateway: FakeEngineStack) -> None:
    gateway.run("vllm-beta", "touch", "/tmp/down")
    assert wait_for_status(gateway, "beta", 503) < 15
    answer = gateway.chat("beta")
    assert parse_error(answer)["code"] == "model_unavailable"
    assert answer.headers["retry-after"] == "5"
    listed = {model["id"] for model in gateway.request("GET", "/v1/models").json["data"]}
    assert "beta" not in listed and "alpha" in listed
    assert gateway.request("GET", "/health", None, None).status == 200
    gateway.run("vllm-beta", "rm", "/tmp/down")
    wait_for_status(gateway, "beta")


@pytest.mark.parametrize("which", ["haproxy.cfg", "large.cfg"])
def test_the_container_restarts_when_either_process_dies(gateway: FakeEngineStack, which: str) -> None:
    kill = (
        "for p in /proc/[0-9]*; do read -r name <$p/comm; [ $name = haproxy ] && grep -qs $1 $p/cmdline"
        " && kill -9 ${p#/proc/}; done; true"
    )
    gateway.reload()  # the container must restart after a reload too
    before = gateway.inspect("gateway")["RestartCount"]
    # its exit code doesn't count: the container may stop while the command is still running
    subprocess.run(["docker", "exec", gateway.container("gateway"), "bash", "-c", kill, "-", f"gateway.{which}"],
                   capture_output=True)  # fmt: skip
    wait = time.monotonic() + 60
    while gateway.inspect("gateway")["RestartCount"] == before or gateway.serving_replica("beta") != "vllm-beta":
        assert time.monotonic() < wait, "the gateway did not restart"
        time.sleep(0.2)
    assert gateway.chat("beta", pad=100_000).status == 200
    assert "one of the gateway's two processes has ended" in gateway.logs()


def test_a_wedged_fastchat_model_is_found_although_it_is_listed(gateway: FakeEngineStack) -> None:
    # with the rendered times, this takes more than a minute
    config = gateway.folder / "gateway" / "haproxy.cfg"
    rendered = config.read_text()
    head, _, chatty = rendered.partition("\nbackend fastchat-chatty\n")
    assert "timeout check 60s" in chatty and "check inter 10s" in chatty
    chatty = chatty.replace("timeout check 60s", "timeout check 3s", 1).replace("check inter 10s", "check inter 1s", 1)
    config.write_text(f"{head}\nbackend fastchat-chatty\n{chatty}")
    gateway.reload()
    try:
        gateway.run("fastchat-api", "touch", "/tmp/wedged")
        took = wait_for_status(gateway, "chatty", 503, 30)
        print(f"the wedged model was found after {took:.0f} s")
        gateway.run("fastchat-api", "rm", "/tmp/wedged")
        wait_for_status(gateway, "chatty")
    finally:
        config.write_text(rendered)
        gateway.reload()
