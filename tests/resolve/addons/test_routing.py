"""How the gateway chooses a replica, and its threads, in the rendered files. tests/live runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stackgen.errors import SpecError
from tests.resolve.addons.test_gateway import FC, check, files, plan

PREFIX = {"routing": "prefix", "prefix_bytes": 512}


def backend(rendered: dict[str, str], name: str) -> list[str]:
    """The lines of one backend in HAProxy's configuration."""
    found = rendered["gateway/haproxy.cfg"].split(f"\nbackend {name}\n")[1].split("\nbackend ")[0]
    return [line.strip() for line in found.splitlines()]


@pytest.mark.parametrize(("slots", "calm"), [(None, 4), (8, 4), (4, 2), (1, 1)])
def test_routing_by_prefix_knows_when_a_replica_is_busy(slots: int | None, calm: int) -> None:
    rendered = files(plan({"replicas": 2} | ({"max_num_seqs": slots} if slots else {}), {}, gateway=PREFIX))
    found = backend(rendered, "vllm-m0")
    assert f"http-request lua.choose-replica vllm-m0 {slots or 256} {calm} if {{ var(txn.prefix) -m found }}" in found
    assert "use-server" not in "".join(backend(rendered, "vllm-m1"))
    # both processes read bodies
    for name in ("gateway/haproxy.cfg", "gateway/large.cfg"):
        assert "lua.find-prefix 512 if" in rendered[name]
    assert "find-prefix" in rendered["gateway/prefix.lua"]


@pytest.mark.parametrize(
    ("models", "gateway"),
    [
        ([{"replicas": 2}], {}),
        ([{"replicas": 2}], {"prefix_bytes": 99}),
        # one address: FastChat's controller chooses the worker
        ([{}, FC | {"replicas": 2}], PREFIX),
    ],
)
def test_without_a_choice_by_prefix_nothing_reads_the_prompt(models: list[Any], gateway: dict[str, Any]) -> None:
    rendered = files(plan(*models, gateway=gateway))
    assert "gateway/prefix.lua" not in rendered
    assert "prefix" not in rendered["gateway/haproxy.cfg"] + rendered["gateway/large.cfg"]


@pytest.mark.parametrize(
    ("models", "gateway", "message"),
    [
        ([{"replicas": 2}, {"replicas": 2, "cache_aware": True}], PREFIX,
         r"models\[1\].cache_aware: can't be combined with `gateway.routing: prefix`"),
        ([{}], {"routing": "hash"}, "gateway.routing"),
        ([{}], PREFIX | {"prefix_bytes": 15}, "gateway.prefix_bytes"),
        ([{}], PREFIX | {"prefix_bytes": 16385}, "gateway.prefix_bytes"),
    ],
)  # fmt: skip
def test_invalid_routing_is_rejected(models: list[Any], gateway: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        plan(*models, gateway=gateway)


@pytest.mark.parametrize(("replicas", "reuse"), [(1, "never"), (2, "always")])
def test_failed_requests_are_retried_with_any_number_of_replicas(replicas: int, reuse: str) -> None:
    found = backend(files(plan({"replicas": replicas}, gateway=True)), "vllm-m0")
    assert f"http-reuse {reuse}" in found
    assert "http-request disable-l7-retry" not in found


@pytest.mark.parametrize(
    ("models", "gateway", "threads", "large"),
    [
        ([{}], {}, 1, 2),
        ([{"replicas": 2}], {}, 1, 2),
        ([{"replicas": 2}, {"engine": "llamacpp", "file": "x.gguf"}], {}, 2, 4),
        ([{"replicas": 2}], {"tls": "generate"}, 2, 4),
        ([{"replicas": 64}], {}, 4, 4),
    ],
)
def test_threads_follow_the_number_of_requests_and_not_the_cores(
    models: list[Any], gateway: dict[str, Any], threads: int, large: int
) -> None:
    rendered = files(plan(*models, gateway=gateway))
    assert f"\n    thread-hard-limit {threads}\n" in rendered["gateway/haproxy.cfg"]
    assert f"\n    thread-hard-limit {large}\n" in rendered["gateway/large.cfg"]


@pytest.mark.docker
def test_haproxy_accepts_routing_by_prefix(tmp_path: Path, haproxy_image: str) -> None:
    llama = {"engine": "llamacpp", "file": "x.gguf", "replicas": 2, "fallback": "together:a/b"}
    made = plan({"replicas": 3}, llama, FC, gateway=PREFIX)
    assert check(files(made), tmp_path, haproxy_image, "-e", "TOGETHER_API_KEY=k") == ""
