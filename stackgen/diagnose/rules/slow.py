"""Rules for slow responses, from measurements: vLLM's own /metrics, the start log, and the check's numbers.

The metrics have the names of vLLM 0.32.0. A rule applies only if numbers prove it: a healthy server has no finding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence, ServiceEvidence
from stackgen.diagnose.rule import Change, Finder, Hit, Rule, compile_patterns

__all__ = ["RULES", "parse_metrics"]

SAMPLE = re.compile(r"^(?P<name>vllm:\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)$", re.M)
# inter-token latency in seconds that a reader notices, and that no current GPU needs for a model that fits on it
SLOW_TOKEN = 0.05
SOURCE = "/metrics of vLLM 0.32.0"


def parse_metrics(text: str) -> dict[str, float]:
    """The metrics by name, without the prefix `vllm:`; summed over engines and labels."""
    found: dict[str, float] = {}
    for match in SAMPLE.finditer(text):
        name = match["name"].removeprefix("vllm:")
        # buckets are cumulative and creation times are dates: neither can be summed
        if not name.endswith(("_bucket", "_created")):
            found[name] = found.get(name, 0.0) + float(match["value"])
    return found


def _mean(values: dict[str, float], name: str) -> float:
    """The mean of a histogram, 0 without observations."""
    count = values.get(f"{name}_count", 0.0)
    return values.get(f"{name}_sum", 0.0) / count if count else 0.0


def _measured_services(evidence: Evidence) -> Iterator[tuple[ServiceEvidence, dict[str, float]]]:
    for service in evidence.services:
        if service.metrics:
            yield service, parse_metrics(service.metrics)


def _find_queue(evidence: Evidence) -> Iterator[Hit]:
    """At least one request waits, or the mean queue time is above 1 s."""
    for service, values in _measured_services(evidence):
        waiting, queue = values.get("num_requests_waiting", 0), _mean(values, "request_queue_time_seconds")
        if waiting >= 1 or queue > 1:
            running = values.get("num_requests_running", 0)
            yield Hit(service.service,
                      (f"num_requests_waiting {waiting:g}, num_requests_running {running:g}, "
                       f"mean queue time {queue:.2f} s",),
                      {"waiting": f"{waiting:g}", "running": f"{running:g}", "queue": f"{queue:.2f}"})  # fmt: skip


def _find_preemptions(evidence: Evidence) -> Iterator[Hit]:
    """There was at least one preemption for every 100 finished requests."""
    for service, values in _measured_services(evidence):
        count, done = values.get("num_preemptions_total", 0), values.get("request_success_total", 0)
        # fewer preemptions than one in a hundred requests are not noticeable
        if count >= 1 and count * 100 >= done:
            usage = 100 * values.get("kv_cache_usage_perc", 0)
            yield Hit(service.service,
                      (f"num_preemptions_total {count:g} for {done:g} requests, kv_cache_usage_perc {usage:.0f} %",),
                      {"count": f"{count:g}", "done": f"{done:g}"})  # fmt: skip


def _find_uneven_load(evidence: Evidence) -> Iterator[Hit]:
    """One replica has waiting requests, and another replica of the same model is idle."""
    by_model: dict[str, list[tuple[ServiceEvidence, float, float]]] = {}
    for service, values in _measured_services(evidence):
        model = evidence.find_model(service.service)
        load = values.get("num_requests_waiting", 0), values.get("num_requests_running", 0)
        by_model.setdefault(model[1].model if model else "", []).append((service, *load))
    for group in by_model.values():
        busy = max(group, key=lambda one: one[1])
        idle = [one for one in group if one[1] == 0 and one[2] <= 1]
        if busy[1] >= 1 and idle:
            line = (f"{busy[0].service}: {busy[1]:g} requests waiting; "
                    f"{idle[0][0].service}: {idle[0][2]:g} requests running, 0 requests waiting")  # fmt: skip
            yield Hit(busy[0].service, (line,), {"idle": idle[0][0].service})


def _find_long_prompts(evidence: Evidence) -> Iterator[Hit]:
    """The mean prompt has more than 2000 tokens, and prefill takes on average over 2 s and longer than decoding."""
    for service, values in _measured_services(evidence):
        prompt, prefill = _mean(values, "request_prompt_tokens"), _mean(values, "request_prefill_time_seconds")
        decode = _mean(values, "request_decode_time_seconds")
        # if decoding takes longer than prefill, the answers are slow, not the prompts
        if prefill > 2 and prefill > decode and prompt > 2000:
            line = f"mean prompt {prompt:.0f} tokens, prefill {prefill:.2f} s, decode {decode:.2f} s"
            yield Hit(service.service, (line,), {"prompt": f"{prompt:.0f}", "prefill": f"{prefill:.2f}"})


def _slow_tokens_finder(log_pattern: str, with_gpu: bool) -> Finder:
    """A finder of slow tokens with `log_pattern` in the start log, in services that reserve GPUs (or no GPUs)."""

    def find(evidence: Evidence) -> Iterator[Hit]:
        """The start log shows this setting or device, and the mean inter-token latency is above 50 ms."""
        for service, values in _measured_services(evidence):
            planned = evidence.planned_service(service.service)
            latency = _mean(values, "inter_token_latency_seconds")
            has_gpu = bool(planned and planned.gpus) or (planned is None and "device_config=cuda" in service.log)
            match = re.search(log_pattern, service.log)
            if match and latency > SLOW_TOKEN and has_gpu == with_gpu:
                # the match and not its line, which lists all of vLLM's settings
                yield Hit(service.service, (match[0], f"mean inter-token latency {1000 * latency:.0f} ms"),
                          {"ms": f"{1000 * latency:.0f}"})  # fmt: skip

    return find


def _find_cold_cache(evidence: Evidence) -> Iterator[Hit]:
    """Compilation took over 60 s, fewer than 20 requests finished, and their mean time to first token is above 5 s."""
    for service, values in _measured_services(evidence):
        match = re.search(r"torch\.compile (?:takes|took) (?P<seconds>[\d.]+) s", service.log)
        ttft = _mean(values, "time_to_first_token_seconds")
        # with more requests, the mean no longer shows the first ones
        is_new = values.get("request_success_total", 0) < 20
        if match and float(match["seconds"]) > 60 and is_new and ttft > 5:
            yield Hit(service.service, (match[0],), {"seconds": match["seconds"]})


RULES: tuple[Rule, ...] = (
    Rule(
        # before SG-S003: uneven load also causes a queue
        "SG-S001",
        title="one replica is saturated while another replica is idle",
        cause="{service} has waiting requests, but {idle} is idle",
        fix="put stackgen's gateway in front of the replicas, which distributes the requests; or send requests to "
        "the port of {idle}",
        source=f"The numbers come from {SOURCE} (num_requests_waiting and num_requests_running of each service).",
        explain="Each replica has its own port, so a client that knows only one port sends all its requests to one "
        "replica. A gateway that always sends a client to the same replica has the same effect.",
        find=_find_uneven_load,
    ),
    Rule(
        "SG-S002",
        title="requests are preempted: the KV cache is too small for the load",
        cause="{count} preemptions in {done} requests. vLLM computes each preempted request again from its start",
        fix="enlarge the KV cache (raise gpu_memory_utilization, set kv_cache_dtype to fp8, or use more GPUs), or "
        "lower the concurrency (max_num_seqs)",
        source=f"The numbers come from {SOURCE} (num_preemptions_total, kv_cache_usage_perc, request_success_total). "
        "The failure was reproduced.",
        explain="When the KV cache is full, vLLM discards the blocks of a running request and computes these blocks "
        "again later. Lowering max_model_len does not help: max_model_len is not a batch size, and a request takes "
        "only the blocks that it uses.",
        find=_find_preemptions,
    ),
    # before SG-S003: long prompts also cause a queue
    Rule(
        "SG-S006",
        title="long prompts delay the first token",
        cause="the mean prompt has {prompt} tokens, and the mean prefill takes {prefill} s",
        fix="shorten the prompts, use more GPUs, or let all prompts begin with the same text, so that prefix caching "
        "can reuse it",
        source=f"The numbers come from {SOURCE} (request_prompt_tokens, request_prefill_time_seconds, "
        "request_decode_time_seconds). The failure was reproduced.",
        explain="The time to first token grows with the length of the prompt. The metric prefix_cache_hits_total "
        "shows how many prompt tokens were reused.",
        find=_find_long_prompts,
    ),
    Rule(
        "SG-S003",
        title="requests wait in the queue",
        cause="{waiting} requests wait in the queue while {running} requests run. Finished requests waited {queue} s "
        "on average",
        fix="raise max_num_seqs if the KV cache is large enough, or add replicas",
        source=f"The numbers come from {SOURCE} (num_requests_waiting, request_queue_time_seconds). The failure was "
        "reproduced.",
        explain="Continuous batching is always on. Older advice that --enforce-eager enables continuous batching is "
        "wrong: --enforce-eager slows decoding down. max_num_seqs sets how many requests run at once. max_model_len "
        "sets the longest context of a request.",
        find=_find_queue,
    ),
    Rule(
        "SG-S004",
        title="the model runs on the CPU, although the stack reserves GPUs for it",
        cause="vLLM runs on the CPU, and a token takes {ms} ms on average",
        fix="use the CUDA image (remove `image:`), and see `stackgen explain SG-G003`",
        source=f"The line `device_config=cpu` is in the start log of vLLM 0.32.0. The latency comes from {SOURCE} "
        "(inter_token_latency_seconds).",
        explain="On a machine with GPUs, the CPU build of vLLM runs without any warning.",
        find=_slow_tokens_finder(r"device_config=cpu", True),
    ),
    Rule(
        "SG-S005",
        title="CUDA graphs are turned off",
        cause="enforce_eager is set, and a token takes {ms} ms on average",
        fix="remove `enforce_eager`, which turns CUDA graphs off: with CUDA graphs, decoding is faster, especially "
        "with few requests in flight",
        source="The line `Enforce eager set` comes from vLLM 0.32.0 (config/vllm.py). The latency comes from "
        f"{SOURCE} (inter_token_latency_seconds).",
        explain="Older advice that --enforce-eager enables continuous batching is wrong: continuous batching is "
        "always on. Eager mode turns CUDA graphs and torch.compile off, which saves memory and makes decoding slower.",
        find=_slow_tokens_finder(r"Enforce eager set|'enforce_eager': True", True),
        change=Change("enforce_eager", "false"),
    ),
    Rule(
        "SG-S007",
        title="the compile cache was empty",
        cause="vLLM compiled for {seconds} s at this start, and the first requests had to wait for it",
        fix="keep the volume of the compile cache, so that the next start reuses it: run `stackgen down` without "
        "--volumes",
        source="The line `torch.compile takes … s in total` comes from vLLM 0.32.0 (compilation/backends.py and "
        "monitor.py).",
        explain="vLLM stores compiled graphs in VLLM_CACHE_ROOT, which stackgen puts on a volume. After a change of "
        "the image, the model, the GPU or a flag, vLLM compiles again.",
        find=_find_cold_cache,
    ),
    Rule(
        "SG-S008",
        title="a proxy buffers the stream",
        cause="the engine sends chunks one by one, but the client gets them all at once",
        fix="in the proxy, turn off compression of streams (nginx `gzip off`) and buffering (nginx `proxy_buffering "
        "off`, HAProxy `option http-no-delay`)",
        source="The message comes from `stackgen check` (check `stream`). The failure was reproduced with nginx "
        "1.30.6 and `gzip on` in front of vLLM 0.32.0.",
        explain="The engine sends tokens one by one. A buffering proxy delivers the tokens in batches, so the first "
        "token can arrive as late as the whole answer. With `gzip on` for text/event-stream, nginx 1.30.6 "
        "buffers streams. With only its default `proxy_buffering on`, nginx 1.30.6 forwarded vLLM's stream "
        "without delay. Older versions of nginx are reported to buffer streams with `proxy_buffering on`.",
        patterns=compile_patterns(r"^stream: .*\b(?:chunks|tokens) (?:came|arrived) in \d+ (?:read|event)"),
        inputs=("check",),
    ),
    Rule(
        "SG-S009",
        title="the model runs on the CPU",
        cause="a token takes {ms} ms on average on the CPU, and no GPU is reserved for the model",
        fix="on a machine with a GPU, set `gpus` to 1; otherwise use a smaller or quantized model, for example with "
        "the engine llamacpp, which is designed for CPUs",
        source=f"The line `device_config=cpu` is in the start log of vLLM 0.32.0. The latency comes from {SOURCE} "
        "(inter_token_latency_seconds).",
        explain="On a CPU, the number of tokens per second is the memory bandwidth divided by the size of the "
        "weights. If several replicas run on one CPU, give each replica its own `cpuset`. Without `cpuset`, all "
        "replicas pin their threads to the same core.",
        find=_slow_tokens_finder(r"device_config=cpu", False),
    ),
)
