"""Warns of numbers of requests in flight that can't be reached, because the gateway or the engine allows fewer.

vLLM 0.32.0: `max_num_seqs` is the limit of each data parallel group (`vllm/v1/engine/core.py`: one scheduler each).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from stackgen.engines.base import served_names
from stackgen.flags.parallel import read_flags
from stackgen.resolve.addons.backends import MAX_CONNECTIONS, Backend, find_backend
from stackgen.spec import GatewaySpec, StackSpec

__all__ = ["concurrency_warnings"]

FLAGS = {"vllm": "--max-num-seqs", "sglang": "--max-running-requests"}


def concurrency_warnings(stack: StackSpec, spec: GatewaySpec, backends: Sequence[Backend]) -> Iterator[str]:
    """One warning for each model and key, and one for all models together."""
    for index, model in enumerate(stack.models):
        yield from _warn_of_model(f"models[{index}]", model, backends)
    total = sum(one.total_concurrent_requests for one in backends)
    if total > MAX_CONNECTIONS:
        yield (
            f"all replicas together can run {total:,} requests at a time, but the gateway has at most "
            f"{MAX_CONNECTIONS:,} connections of clients, and {MAX_CONNECTIONS * 3 // 4:,} from one address. Divide "
            "the models among several stacks to use the replicas fully"
        )
    for number, key in enumerate(spec.limited_keys):
        allowed = [one for one in backends if key.models is None or {*key.models} & {*one.names}]
        most = sum(one.total_concurrent_requests + spec.max_queue for one in allowed)
        if key.concurrent_requests and allowed and key.concurrent_requests > most:
            yield (
                f"gateway.keys[{number}].concurrent_requests is {key.concurrent_requests:,}, but the key's models run "
                f"and queue at most {most:,} requests at a time. Further requests get a 429 because of the full queue"
            )


def _warn_of_model(path: str, model: Any, backends: Sequence[Backend]) -> Iterator[str]:
    flag = FLAGS.get(model.engine)
    if flag is None or model.max_num_seqs:
        return
    names = served_names(model)
    # of several machines, the gateway of this one may serve only the others' models
    if not any(one.engine == model.engine and one.names[: len(names)] == names for one in backends):
        return
    limit, name = find_backend(model, backends).max_concurrent_requests, names[0]
    given = read_flags(model.engine, model.extra_args, model.engine_version).get(flag)
    if given and given.isdecimal() and int(given) != limit:
        rest = "queues the others" if int(given) > limit else "the engine queues those above its own limit"
        yield (
            f"{path}.extra_args sets {flag} to {given}, but the gateway sends up to {limit} requests at a time to each "
            f"replica of {name}, and {rest}. Set `max_num_seqs: {given}` instead, which both read"
        )
    elif not given and getattr(model, "data_parallel_size", 1) > 1:
        yield (
            f"{path}: the gateway sends at most {limit} requests at a time to each replica of {name}, although each of "
            f"its {model.data_parallel_size} data parallel groups can run that many. Set `max_num_seqs`, the limit of "
            "each group, for example 256"
        )
