"""The stack of real engines behind one gateway, on which all test_front_* modules run one after another.

Two replicas of vLLM behind vllm-router, two workers of FastChat, llama.cpp with a fallback, and monitoring. A start of
vLLM takes 20 s of a core, so there are few. Without the router, the gateway sends requests to vLLM directly.
"""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

import openai

from tests.live.containers import docker, wait_until
from tests.live.fallback import MODEL
from tests.live.prometheus import Prometheus
from tests.live.stacks import LiveStack

__all__ = [
    "FASTCHAT_ENTRY", "GRAFANA_PORT", "NAME", "PORT", "PROMETHEUS", "ROUTER", "TINY", "WORKERS", "all_answer", "ask",
    "client", "container", "front_data", "stop_router",
]  # fmt: skip

NAME, PORT, GRAFANA_PORT = "sgtest-front", 18171, 18173
PROMETHEUS = Prometheus(18172)
TINY, WORKERS = ("vllm-tiny", "vllm-tiny-2"), ("fastchat-smol", "fastchat-smol-2")
ROUTER = "router-tiny"
# who answers for the models, as `x-stackgen-served-by` begins
UPSTREAMS = {"tiny": f"{ROUTER}/{ROUTER}", "smol": "fastchat-smol/", "llama": "llamacpp-llama/"}
# position of FastChat's model in the stack file
FASTCHAT_ENTRY = 1


def front_data(images: dict[str, str], tiny_model: Path, smollm2: Path) -> dict[str, Any]:
    """The stack file. `images` contains the images that are not built from the rendered folder."""
    gguf = next(smollm2.with_name("smollm2-GGUF").glob("*.gguf"))
    models = [
        {"model": str(tiny_model), "engine": "vllm", "served_names": ["tiny", "Tiny/Alias"], "image": images["vllm"],
         "replicas": 2, "cache_aware": True, "max_model_len": 2048, "cpu_kv_cache_gib": 1, "dtype": "float32",
         "enforce_eager": True, "extra_env": {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}},
        {"model": str(smollm2), "engine": "fastchat", "served_names": ["smol"], "replicas": 2,
         "extra_env": {"OMP_NUM_THREADS": "1"}},
        {"model": str(gguf), "engine": "llamacpp", "served_names": ["llama"], "max_model_len": "2K",
         # its threads wait for each other actively, which takes the cores from the other engines
         "extra_args": ["--threads", "1"],
         "fallback": {"base_url": "http://provider:9000/v1", "model": MODEL, "api_key_env": "PROVIDER_KEY"}},
    ]  # fmt: skip
    monitoring = {
        "prometheus_image": images["prometheus"], "prometheus_port": PROMETHEUS.port, "grafana_port": GRAFANA_PORT,
        "exporter_image": images["exporter"], "scrape_interval": 1, "reload_interval": 1,
    } | ({"grafana_image": images["grafana"]} if images["grafana"] else {})  # fmt: skip
    # a budget, so that all panels of the gateway's dashboard have data
    gateway = {"image": images["haproxy"], "keys": [{"name": "default", "tokens_per_day": 10**9}]}
    return {"name": NAME, "port": PORT, "gateway": gateway, "models": models, "monitoring": monitoring}


def container(service: str) -> str:
    """Returns the name of a service's container."""
    return f"{NAME}-{service}-1"


def client(stack: LiveStack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key=stack.key, timeout=60, max_retries=0)


def ask(
    stack: LiveStack, model: str, path: str = "/v1/chat/completions", key: str = "", **more: Any
) -> tuple[int, str, str]:
    """Sends a request. Returns its status, body, and `x-stackgen-served-by`. None leaves a field out."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, **more}
    headers = {"Authorization": f"Bearer {key or stack.key}", "Content-Type": "application/json"}
    try:
        connection.request("POST", path, json.dumps({k: v for k, v in body.items() if v is not None}), headers)
        response = connection.getresponse()
        text = response.read().decode()
        return response.status, text, response.headers.get("x-stackgen-served-by", "")
    finally:
        connection.close()


def all_answer(stack: LiveStack) -> bool:
    """Returns whether each model is answered by its own engine, through the router where there is one."""
    return all(ask(stack, model)[2].startswith(upstream) for model, upstream in UPSTREAMS.items())


def stop_router(stack: LiveStack) -> None:
    """Stops the router, and waits until the gateway sends requests to vLLM directly."""
    docker("stop", container(ROUTER))
    wait_until(lambda: ask(stack, "tiny")[2].startswith(f"{ROUTER}/{TINY[0]}"), 60, "the router is still used")
