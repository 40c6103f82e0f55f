"""Slow responses, measured: vLLM's own /metrics, the start log, and the check's figures.

Names of metrics as vLLM 0.32.0 serves them. A rule speaks only where numbers do: a healthy server has no finding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence, ServiceEvidence
from stackgen.diagnose.rule import Change, Finder, Hit, Rule, patterns

__all__ = ["RULES", "read_metrics"]

SAMPLE = re.compile(r"^(?P<name>vllm:\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)$", re.M)
# seconds between tokens that a reader notices, and that no card of today needs for a model that fits it
SLOW_TOKEN = 0.05
SOURCE = "vLLM 0.32.0, /metrics"


def read_metrics(text: str) -> dict[str, float]:
    """The metrics by name, without the `vllm:`; engines and labels are added up."""
    found: dict[str, float] = {}
    for match in SAMPLE.finditer(text):
        name = match["name"].removeprefix("vllm:")
        if not name.endswith(("_bucket", "_created")):
            found[name] = found.get(name, 0.0) + float(match["value"])
    return found


def _mean(values: dict[str, float], name: str) -> float:
    count = values.get(f"{name}_count", 0.0)
    return values.get(f"{name}_sum", 0.0) / count if count else 0.0


def _measured(evidence: Evidence) -> Iterator[tuple[ServiceEvidence, dict[str, float]]]:
    for service in evidence.services:
        if service.metrics:
            yield service, read_metrics(service.metrics)


def _queueing(evidence: Evidence) -> Iterator[Hit]:
    for service, values in _measured(evidence):
        waiting, queue = values.get("num_requests_waiting", 0), _mean(values, "request_queue_time_seconds")
        if waiting >= 1 or queue > 1:
            running = values.get("num_requests_running", 0)
            yield Hit(service.service,
                      (f"num_requests_waiting {waiting:g}, num_requests_running {running:g}, "
                       f"mean queue time {queue:.2f} s",),
                      {"waiting": f"{waiting:g}", "running": f"{running:g}", "queue": f"{queue:.2f}"})  # fmt: skip


def _preempting(evidence: Evidence) -> Iterator[Hit]:
    for service, values in _measured(evidence):
        count, done = values.get("num_preemptions_total", 0), values.get("request_success_total", 0)
        # one in a hundred: below that nobody feels it
        if count >= 1 and count * 100 >= done:
            usage = 100 * values.get("kv_cache_usage_perc", 0)
            yield Hit(service.service,
                      (f"num_preemptions_total {count:g} for {done:g} requests, kv_cache_usage_perc {usage:.0f} %",),
                      {"count": f"{count:g}", "done": f"{done:g}"})  # fmt: skip


def _uneven(evidence: Evidence) -> Iterator[Hit]:
    """One replica has a queue while another is idle."""
    by_model: dict[str, list[tuple[ServiceEvidence, float, float]]] = {}
    for service, values in _measured(evidence):
        model = evidence.model(service.service)
        load = values.get("num_requests_waiting", 0), values.get("num_requests_running", 0)
        by_model.setdefault(model[1].model if model else "", []).append((service, *load))
    for group in by_model.values():
        busy = max(group, key=lambda one: one[1])
        idle = [one for one in group if one[1] == 0 and one[2] <= 1]
        if busy[1] >= 1 and idle:
            said = f"{busy[0].service}: {busy[1]:g} waiting; {idle[0][0].service}: {idle[0][2]:g} running, none waiting"
            yield Hit(busy[0].service, (said,), {"idle": idle[0][0].service})


def _long_prompts(evidence: Evidence) -> Iterator[Hit]:
    for service, values in _measured(evidence):
        prompt, prefill = _mean(values, "request_prompt_tokens"), _mean(values, "request_prefill_time_seconds")
        decode = _mean(values, "request_decode_time_seconds")
        if prefill > 2 and prefill > decode and prompt > 2000:
            said = f"mean prompt {prompt:.0f} tokens, prefill {prefill:.2f} s, decode {decode:.2f} s"
            yield Hit(service.service, (said,), {"prompt": f"{prompt:.0f}", "prefill": f"{prefill:.2f}"})


def _slow_with(mark: str, gpu: bool) -> Finder:
    """Slow tokens, with `mark` in the start log, for a service that has GPUs planned (`gpu`)."""

    def find(evidence: Evidence) -> Iterator[Hit]:
        for service, values in _measured(evidence):
            planned, between = evidence.planned(service.service), _mean(values, "inter_token_latency_seconds")
            has_gpu = bool(planned and planned.gpus) or (planned is None and "device_config=cuda" in service.log)
            match = re.search(mark, service.log)
            if match and between > SLOW_TOKEN and has_gpu == gpu:
                # not the line: it names all of vLLM's settings
                yield Hit(service.service, (match[0], f"mean time between tokens {1000 * between:.0f} ms"),
                          {"ms": f"{1000 * between:.0f}"})  # fmt: skip

    return find


def _cold(evidence: Evidence) -> Iterator[Hit]:
    """The first requests after a start that compiled for long; few requests so far."""
    for service, values in _measured(evidence):
        match = re.search(r"torch\.compile (?:takes|took) (?P<seconds>[\d.]+) s", service.log)
        first, few = _mean(values, "time_to_first_token_seconds"), values.get("request_success_total", 0) < 20
        if match and float(match["seconds"]) > 60 and few and first > 5:
            yield Hit(service.service, (match[0],), {"seconds": match["seconds"]})


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-S001",
        "one replica is saturated while another is idle",
        "{service} has a queue and {idle} is idle",
        "spread the requests: stackgen's gateway before the replicas, or ask the other port",
        f"{SOURCE}: num_requests_waiting, num_requests_running by service",
        "Replicas have a port each: a client that knows one of them loads one. A gateway that sticks a client to a "
        "replica does the same.",
        find=_uneven,
    ),
    Rule(
        "SG-S002",
        "the KV cache is too small for the load: requests are preempted",
        "{count} preemptions in {done} requests: each one is computed again from its start",
        "more KV cache (gpu_memory_utilization, kv_cache_dtype: fp8, more cards), or fewer requests at once: "
        "max_num_seqs",
        f"{SOURCE}: num_preemptions_total, kv_cache_usage_perc, request_success_total; provoked for real",
        "When the cache is full, vLLM throws a running request's blocks away and computes them again later. Lowering "
        "max_model_len does not help: it is no batch size, and a request takes only the blocks that it uses.",
        find=_preempting,
    ),
    # long prompts make a queue as well: they are its cause
    Rule(
        "SG-S006",
        "prompts are long",
        "the mean prompt has {prompt} tokens, and reading it takes {prefill} s",
        "keep the beginning of prompts the same (prefix caching reuses it), shorten them, or use more cards",
        f"{SOURCE}: request_prompt_tokens, request_prefill_time_seconds, request_decode_time_seconds; provoked",
        "The time to the first token grows with the prompt. prefix_cache_hits_total tells how much was reused.",
        find=_long_prompts,
    ),
    Rule(
        "SG-S003",
        "requests wait in the queue",
        "{waiting} requests wait while {running} are generated; those done so far had waited {queue} s on the average",
        "raise max_num_seqs if the KV cache allows it, or add replicas",
        f"{SOURCE}: num_requests_waiting, request_queue_time_seconds; provoked for real",
        "Continuous batching is always on; --enforce-eager does not enable it, as older advice says, and slows "
        "decoding down. How many requests run at once is max_num_seqs; max_model_len is the context.",
        find=_queueing,
    ),
    Rule(
        "SG-S004",
        "the model runs on the CPU although GPUs are planned",
        "vLLM started with the CPU as its device: {ms} ms a token",
        "use the CUDA image (leave `image:` out), and see `stackgen explain SG-G003`",
        f"vLLM 0.32.0, start log `device_config=cpu`; {SOURCE}: inter_token_latency_seconds",
        "The CPU build of vLLM runs without a word on a machine with GPUs.",
        find=_slow_with(r"device_config=cpu", True),
    ),
    Rule(
        "SG-S005",
        "CUDA graphs are turned off",
        "enforce_eager is on, and a token takes {ms} ms",
        "leave it out: CUDA graphs make decoding faster, most of all with few requests at a time",
        f"vLLM 0.32.0, config/vllm.py `Enforce eager set`; {SOURCE}: inter_token_latency_seconds",
        "Older advice says that --enforce-eager enables continuous batching: wrong. Continuous batching is always on, "
        "and eager mode turns CUDA graphs and torch.compile OFF: less memory, slower decoding.",
        find=_slow_with(r"Enforce eager set|'enforce_eager': True", True),
        change=Change("enforce_eager", "false"),
    ),
    Rule(
        "SG-S007",
        "the compile cache was cold",
        "this start compiled for {seconds} s, and the first requests wait for it",
        "keep the cache's volume (`stackgen down` without --volumes); the next start takes it from there",
        "vLLM 0.32.0, compilation/backends.py and monitor.py, `torch.compile takes … s in total`",
        "vLLM keeps compiled graphs in VLLM_CACHE_ROOT, which stackgen puts on a volume. A new version, model or flag "
        "compiles anew.",
        find=_cold,
    ),
    Rule(
        "SG-S008",
        "a gateway holds the stream back",
        "chunks were generated apart and arrive together",
        "no compression of streams (nginx `gzip off`), and no buffering (nginx `proxy_buffering off`, HAProxy "
        "`option http-no-delay`)",
        "stackgen check, `stream`; provoked for real with nginx 1.30.6 and `gzip on` before vLLM 0.32.0",
        "Tokens come one by one from the engine. A proxy that gathers sends them in lumps: the time to the first "
        "token becomes that of the whole answer. nginx 1.30.6 does so with `gzip on` for text/event-stream; with its "
        "default `proxy_buffering on` alone it passed vLLM's stream on at once, older versions are said not to.",
        patterns(r"^stream: .*\b(?:chunks|tokens) came in \d+ (?:read|event)"),
        places=("check",),
    ),
    Rule(
        "SG-S009",
        "the model runs on the CPU",
        "a token takes {ms} ms on the CPU, where no GPU is planned",
        "gpus: 1 on a machine with a card; else a smaller or quantized model: engine: llamacpp is made for CPUs",
        f"vLLM 0.32.0, start log `device_config=cpu`; {SOURCE}: inter_token_latency_seconds",
        "On a CPU the speed is the memory's bandwidth divided by the size of the weights. Replicas on one CPU need a "
        "`cpuset` each, or they pin the same core.",
        find=_slow_with(r"device_config=cpu", False),
    ),
)
