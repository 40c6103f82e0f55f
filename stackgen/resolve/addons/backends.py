"""The data behind HAProxy's configuration: backends, replicas, and the maps next to it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stackgen.engines.base import served_names
from stackgen.plan import Document, Endpoint
from stackgen.resolve.addons.gateway_errors import error_bodies
from stackgen.resolve.addons.gateway_keys import NO_RULES, KeyRules, key_maps
from stackgen.resolve.addons.servers import Backend, Server, hex_name
from stackgen.spec import GatewaySpec, ModelSpec, StackSpec

__all__ = [
    "Backend",
    "Fallback",
    "Gateway",
    "Server",
    "backend_name",
    "documents",
    "find_backend",
    "make_backend",
    "redirection",
]

# Max concurrent requests per replica if the stack file sets no limit. vLLM batches 256 by default and queues the rest;
# SGLang takes what its KV cache holds, and queues the rest
DEFAULT_CONCURRENCY = {"vllm": 256, "sglang": 256, "fastchat": 5, "llamacpp": 4}
# Bytes for large buffers if every connection uses one. Most connections use none: HAProxy allocates buffers on demand
BUFFER_MEMORY = 8 * 2**30
# Max connections: all, and those with large bodies. Each needs two open files, and a container may have only 20,000
MAX_CONNECTIONS, MAX_LARGE_CONNECTIONS = 6144, 2048
MAX_PAGE_CONNECTIONS = 1024
# Concurrent requests for which one thread of HAProxy is enough, and the most threads of a process (see Gateway.threads)
REQUESTS_PER_THREAD, MAX_THREADS = 512, 4
# Bytes: a small buffer, which must fit the whole request, and the largest body in it; the rest is for the headers
BUFFER_SIZE, SMALL_BODY_LIMIT = 65536, 49152


@dataclass(frozen=True, slots=True)
class Fallback:
    """The provider that answers for a model, under its served `names`, if no replica of `backend` is up.

    `name` is the name of its own HAProxy backend. `authority` is the Host header. `tls_server_name` is the name that
    the certificate must match, "" without TLS. `ca_file` is the file with the certificate authorities to trust, "" for
    those of the image. The other fields are HAProxy log formats: `path` is put before the
    request's own path, `model` is the provider's model id as JSON, `served_by` is the value of the response header
    `x-stackgen-served-by`, and `authorization` is the request header for the provider. `overflows` are the HAProxy
    backends whose requests the provider also gets while their queues are full, and `overflow_served_by` is the value of
    the response header for these requests.
    """

    name: str
    backend: str
    names: tuple[str, ...]
    server: str
    address: str
    authority: str
    tls_server_name: str
    ca_file: str
    path: str
    model: str
    served_by: str
    overflow_served_by: str
    authorization: str
    overflows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Gateway:
    """All data of HAProxy's configuration. Sizes are in bytes, times in seconds."""

    backends: tuple[Backend, ...]
    post_paths: tuple[str, ...]
    keys: tuple[str, ...]
    tls: bool
    redirect_to: int
    max_body: int
    timeout: int
    max_queue: int
    queue_timeout: int
    fallbacks: tuple[Fallback, ...] = ()
    # origins of web pages that may call the gateway from a browser
    cors: tuple[str, ...] = ()
    rules: KeyRules = NO_RULES

    # bytes of a prompt that choose the replica; 0: the load alone chooses
    prefix_bytes: int = 0

    # whether another gateway asks /health for one model
    tells_models: bool = False

    # the chat page that other machines reach through the gateway
    page: Server | None = None

    # HOST:PORT of the DNS server that knows the replicas; "" for those in /etc/resolv.conf
    nameserver: str = "127.0.0.11:53"

    buffer_size: int = BUFFER_SIZE
    small_body: int = SMALL_BODY_LIMIT
    # HAProxy's tune.memory.hot-size: memory for buffers that each thread keeps for its next requests
    hot_size: int = 128 * BUFFER_SIZE
    connections: int = MAX_CONNECTIONS

    @property
    def page_connections(self) -> int:
        """Most connections to the chat page: a browser keeps a WebSocket and up to six others (RFC 9112, 9.4)."""
        return MAX_PAGE_CONNECTIONS if self.page else 0

    @property
    def threads(self) -> int:
        """Most threads of the first process. HAProxy uses fewer on a machine with fewer cores.

        Without a limit, HAProxy 3.2 starts a thread for each core, up to 1024 (Configuration Manual, `nbthread`).
        """
        requests = sum(backend.total_concurrent_requests for backend in self.backends)
        # a thread does half as much with TLS
        return min(MAX_THREADS, math.ceil(requests * (2 if self.tls else 1) / REQUESTS_PER_THREAD))

    @property
    def prefix_backends(self) -> tuple[str, ...]:
        """Names of the backends in which the beginning of a prompt chooses among replicas."""
        return tuple(one.name for one in self.backends if self.prefix_bytes and one.replicas > 1)

    @property
    def large_threads(self) -> int:
        """Most threads of the second process: a thread that searches a large body does nothing else meanwhile."""
        return min(MAX_THREADS, 2 * self.threads)

    @property
    def replicas(self) -> tuple[str, ...]:
        """All services that can be drained: replicas and routers."""
        routers = (backend.router for backend in self.backends)
        servers = [*(one for backend in self.backends for one in backend.servers), *filter(None, routers)]
        # a service may be in several backends
        return tuple(dict.fromkeys(name for one in servers for name in one.entries))

    @property
    def errors(self) -> Mapping[str, str]:
        """Bodies of the gateway's errors by name, as HAProxy log formats."""
        return error_bodies(self.max_body)

    @property
    def form_paths(self) -> tuple[str, ...]:
        """Paths whose body is multipart/form-data with the fields `model` and `file`."""
        return tuple(path for path in self.post_paths if path.startswith("/v1/audio/"))

    @property
    def any_origin(self) -> bool:
        """Whether web pages of all origins may call the gateway."""
        return "*" in self.cors

    @property
    def retried_statuses(self) -> tuple[int, ...]:
        """HTTP statuses after which the process for large bodies retries a request."""
        # HAProxy answers 502 if a replica dies before its response; vllm-router answers 500 or 503
        return (500, 502, 503) if any(backend.router for backend in self.backends) else (502,)

    @property
    def large_buffer_size(self) -> int:
        """Bytes of a buffer for large bodies."""
        # a body is routed by its content, so body and headers must fit into one buffer
        return self.max_body + 65536

    @property
    def large_hot_size(self) -> int:
        """Bytes of large buffers that each thread keeps for its next requests."""
        # allocating a large buffer again costs milliseconds (page faults)
        return min(8 * self.large_buffer_size, 128 * 2**20)

    @property
    def large_connections(self) -> int:
        """Maximum number of connections with large bodies."""
        # at least all running and queued requests, and more if the buffers fit into BUFFER_MEMORY
        running_and_queued = sum(backend.total_concurrent_requests + self.max_queue for backend in self.backends)
        return min(MAX_LARGE_CONNECTIONS, max(BUFFER_MEMORY // self.large_buffer_size, running_and_queued, 256))

    @property
    def total_timeout(self) -> int:
        """Seconds after which a request can no longer get a response."""
        # three attempts; each attempt waits in the queue, then for the first byte
        return 3 * (self.timeout + self.queue_timeout)

    @property
    def connections_per_address(self) -> int:
        """Maximum number of connections from one client address."""
        # one client must not use up all connections
        return self.connections * 3 // 4


def backend_name(engine: str, served: str, taken: set[str]) -> str:
    """Returns a name like `vllm-llama-3-2-1b-instruct` that isn't in `taken`, and adds it there."""
    slug = re.sub(r"[^a-z0-9]+", "-", served.rpartition("/")[2].lower()).strip("-")[:40]
    base = name = f"{engine}-{slug or 'model'}"
    number = 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    taken.add(name)
    return name


def make_backend(name: str, endpoint: Endpoint, engine: str, names: tuple[str, ...], server: Server) -> Backend:
    """Makes the backend `name` for the model that `endpoint` serves under `names`, with one replica."""
    concurrency = endpoint.max_concurrent_requests or DEFAULT_CONCURRENCY.get(engine, 64)
    # a server with workers is alive even if the model's worker is not
    if endpoint.dialect.liveness_path and not endpoint.workers:
        return Backend(
            name, engine=engine, names=names, servers=(server,), probe_path=endpoint.dialect.liveness_path,
            probe_body="", max_concurrent_requests=concurrency, probe_interval=2, probe_timeout=5, fall=3,
        )  # fmt: skip
    # FastChat also lists a hanging worker, so the probe must generate; the limit minus one leaves room for the probe
    body = {"model": names[0], "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "temperature": 0}
    # a saturated worker is slow and not down: with 20 s, clients got a 503 while a worker computed long prompts.
    # its watch finds a worker that hangs
    # the body is inside single quotes in HAProxy's configuration
    probe_body = json.dumps(body).replace("'", "\\u0027")
    return Backend(
        name, engine=engine, names=names, servers=(server,), probe_path="/v1/chat/completions",
        probe_body=probe_body, max_concurrent_requests=concurrency - 1, probe_interval=10, probe_timeout=60, fall=2,
    )  # fmt: skip


def find_backend(model: ModelSpec, backends: Sequence[Backend]) -> Backend:
    """Returns the backend of `model`."""
    # a backend's names are the model's own, followed by those of its adapters
    names = served_names(model)
    engine = model.engine  # type: ignore[attr-defined]
    return next(one for one in backends if one.engine == engine and one.names[: len(names)] == names)


def documents(data: Gateway, spec: GatewaySpec) -> tuple[Document, ...]:
    """The configuration, and the maps in which it looks up names, keys and limits."""
    models = [(hex_name(name), backend.name) for backend in data.backends for name in backend.names]
    objects = [(hex_name(name), _object(name)) for backend in data.backends for name in backend.names]
    owned = [(one.name, one.names) for one in data.backends] + [(one.name, one.names) for one in data.fallbacks]
    lists = [(name, ",".join(map(_object, names))) for name, names in owned]
    fallbacks = [(hex_name(name), one.name) for one in data.fallbacks for name in one.names]
    maps = {
        "models": ("served model name (hex) -> backend", models),
        "objects": ("served model name (hex) or backend -> its entries in GET /v1/models", [*objects, *lists]),
        **key_maps(spec, owned, _object),
    }  # fmt: skip
    if fallbacks:
        maps["fallbacks"] = ("served model name (hex) -> backend of its fallback", fallbacks)
    return (
        Document("gateway/haproxy.cfg.j2", "gateway/haproxy.cfg", "haproxy", data),
        Document("gateway/large.cfg.j2", "gateway/large.cfg", "haproxy", data),
        # `text`: a Prometheus file, which HAProxy fills in as a log format
        Document("gateway/keys.prom.j2", "gateway/keys.prom", "text", data),
        *(Document("gateway/lines.map.j2", f"gateway/{name}.map", "text", (about, tuple(lines)))
          for name, (about, lines) in maps.items()),
    )  # fmt: skip


def _object(name: str) -> str:
    return json.dumps({"id": name, "object": "model", "created": 0, "owned_by": "stackgen"}, separators=(",", ":"))


def redirection(stack: StackSpec) -> tuple[str, int]:
    """Address and port to which plain HTTP is redirected: the API, or the chat page if only others can reach that."""
    if stack.ui and stack.ui.exposed and not stack.exposed:
        return stack.ui.bind, stack.ui.port
    return stack.bind, stack.port
