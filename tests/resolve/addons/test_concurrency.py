"""Warnings of numbers of requests in flight that can't be reached."""

from __future__ import annotations

from typing import Any

import pytest

from stackgen.resolve.hosts import resolve as resolve_hosts
from stackgen.resolve.pipeline import resolve
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite


def warnings(model: dict[str, Any], gateway: Any = True) -> list[str]:
    entry = {"model": "org/m", "engine": "vllm", "gpus": 4, "revision": "abc"} | model
    data = {"name": "demo", "models": [entry], "gateway": gateway}
    found = resolve(build_spec(data, "test"), ComposeSite(), "test").warnings
    return [one for one in found if "requests at a time" in one]


@pytest.mark.parametrize(
    ("model", "gateway", "part"),
    [
        ({"extra_args": ["--max-num-seqs", "1024"]}, True, "sends up to 256 requests at a time to each replica of "
         "org/m, and queues the others. Set `max_num_seqs: 1024`"),
        ({"extra_args": ["--max-num-seqs=64"]}, True, "the engine queues those above its own limit"),
        ({"engine": "sglang", "extra_args": ["--max-running-requests", "512"]}, True, "Set `max_num_seqs: 512`"),
        ({"data_parallel_size": 4}, True, "each of its 4 data parallel groups"),
        ({"max_num_seqs": 1024, "gpus": 1, "replicas": 8}, True, "can run 8,192 requests at a time"),
        ({}, {"keys": [{"name": "a", "concurrent_requests": 600}]}, "run and queue at most 512 requests at a time"),
        ({}, {"keys": [{"name": "a"}], "key_defaults": {"concurrent_requests": 600}}, "keys[0].concurrent_requests"),
    ],
)  # fmt: skip
def test_a_number_that_can_not_be_reached_is_a_warning(model: dict[str, Any], gateway: Any, part: str) -> None:
    (found,) = warnings(model, gateway)
    assert part in found


@pytest.mark.parametrize(
    ("model", "gateway"),
    [
        ({}, True),
        ({"max_num_seqs": 1024}, True),
        ({"extra_args": ["--max-num-seqs", "256"]}, True),
        ({"data_parallel_size": 4, "max_num_seqs": 256}, True),
        ({"extra_args": ["--max-num-seqs", "1024"]}, False),
        ({}, {"keys": [{"name": "a", "concurrent_requests": 512}]}),
    ],
)
def test_numbers_that_fit_are_not(model: dict[str, Any], gateway: Any) -> None:
    assert not warnings(model, gateway)


def test_the_model_of_another_machine_is_not_looked_up_in_this_gateway() -> None:
    hosts = {"front": {}, "box": {"address": "10.0.0.2"}}
    models = [
        {"model": "org/a", "engine": "vllm", "host": "front", "gpus": 1, "revision": "abc"},
        {"model": "org/b", "engine": "vllm", "host": "box", "gpus": 1, "revision": "abc"},
    ]
    for host in hosts:
        spec = build_spec({"name": "demo", "models": models, "hosts": hosts, "host": host}, "test")
        assert resolve_hosts(spec, ComposeSite(), "test").services
