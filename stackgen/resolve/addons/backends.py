"""The data behind HAProxy's configuration: backends, replicas, and the maps next to it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from stackgen.engines.base import served_names
from stackgen.plan import Document, Endpoint
from stackgen.spec import GatewaySpec, ModelSpec

__all__ = ["Backend", "Fallback", "Gateway", "Server", "backend_name", "documents", "find_backend", "make_backend"]

# Max concurrent requests per replica if the stack file sets no limit. vLLM batches 256 by default and queues the rest
DEFAULT_CONCURRENCY = {"vllm": 256, "fastchat": 5, "llamacpp": 4}
# Bytes for large buffers if every connection uses one. Most connections use none: HAProxy allocates buffers on demand
BUFFER_MEMORY = 8 * 2**30
# Max connections: all, and those with large bodies. Each needs two open files, and a container may have only 20,000
MAX_CONNECTIONS, MAX_LARGE_CONNECTIONS = 6144, 2048
# Bytes: a small buffer, which must fit the whole request, and the largest body in it; the rest is for the headers
BUFFER_SIZE, SMALL_BODY_LIMIT = 65536, 49152


@dataclass(frozen=True, slots=True)
class Server:
    """A replica: its service name, and its port inside the network."""

    name: str
    port: int


@dataclass(frozen=True, slots=True)
class Backend:
    """One model: its served names, its replicas, and how their health is probed.

    `probe_path` is requested every `probe_interval` seconds, with a timeout of `probe_timeout` seconds. `probe_body`
    is the body of a request for one token, "" for a GET. `max_concurrent_requests` is per replica; HAProxy queues the
    rest. `router` is in front of the replicas for requests that benefit from a prefix cache.
    """

    name: str
    engine: str
    names: tuple[str, ...]
    servers: tuple[Server, ...]
    probe_path: str
    probe_body: str
    max_concurrent_requests: int
    probe_interval: int
    probe_timeout: int
    fall: int
    router: Server | None = None

    @property
    def total_concurrent_requests(self) -> int:
        """Sum of the max concurrent requests of all replicas."""
        return self.max_concurrent_requests * len(self.servers)


@dataclass(frozen=True, slots=True)
class Fallback:
    """The provider that answers for a model, under its served `names`, if no replica of `backend` is up.

    `name` is the name of its own HAProxy backend. `authority` is the Host header. `tls_server_name` is the name that
    the certificate must match, "" without TLS. The other fields are HAProxy log formats: `path` is put before the
    request's own path, `model` is the provider's model id as JSON, `served_by` is the value of the response header
    `x-stackgen-served-by`, and `authorization` is the request header for the provider.
    """

    name: str
    backend: str
    names: tuple[str, ...]
    server: str
    address: str
    authority: str
    tls_server_name: str
    path: str
    model: str
    served_by: str
    authorization: str


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

    buffer_size: int = BUFFER_SIZE
    small_body: int = SMALL_BODY_LIMIT
    # HAProxy's tune.memory.hot-size: memory for buffers that each thread keeps for its next requests
    hot_size: int = 128 * BUFFER_SIZE
    connections: int = MAX_CONNECTIONS

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
    if endpoint.dialect.liveness_path:
        return Backend(
            name, engine=engine, names=names, servers=(server,), probe_path=endpoint.dialect.liveness_path,
            probe_body="", max_concurrent_requests=concurrency, probe_interval=2, probe_timeout=5, fall=3,
        )  # fmt: skip
    # FastChat also lists a hanging worker, so the probe must generate; the limit minus one leaves room for the probe
    body = {"model": names[0], "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "temperature": 0}
    # the body is inside single quotes in HAProxy's configuration
    probe_body = json.dumps(body).replace("'", "\\u0027")
    return Backend(
        name, engine=engine, names=names, servers=(server,), probe_path="/v1/chat/completions",
        probe_body=probe_body, max_concurrent_requests=concurrency - 1, probe_interval=10, probe_timeout=20, fall=2,
    )  # fmt: skip


def find_backend(model: ModelSpec, backends: Sequence[Backend]) -> Backend:
    """Returns the backend of `model`."""
    # a backend's names are the model's own, followed by those of its adapters
    names = served_names(model)
    engine = model.engine  # type: ignore[attr-defined]
    return next(one for one in backends if one.engine == engine and one.names[: len(names)] == names)


def documents(data: Gateway, spec: GatewaySpec) -> tuple[Document, ...]:
    """The configuration, and the maps in which it looks up names, keys and limits."""
    models = [(_hex(name), backend.name) for backend in data.backends for name in backend.names]
    objects = [(_hex(name), _object(name)) for backend in data.backends for name in backend.names]
    owned = [(one.name, one.names) for one in data.backends] + [(one.name, one.names) for one in data.fallbacks]
    lists = [(name, ",".join(map(_object, names))) for name, names in owned]
    fallbacks = [(_hex(name), one.name) for one in data.fallbacks for name in one.names]
    maps = {
        "models": ("served model name (hex) -> backend", models),
        "objects": ("served model name (hex) or backend -> its entries in GET /v1/models", [*objects, *lists]),
        "rates": ("key name -> requests per minute", _limits(spec, "requests_per_minute")),
        "concurrency": ("key name -> max concurrent requests", _limits(spec, "concurrent_requests")),
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


def _hex(name: str) -> str:
    # hex, so that no name can break the format of the map
    return name.encode().hex().upper()


def _object(name: str) -> str:
    return json.dumps({"id": name, "object": "model", "created": 0, "owned_by": "stackgen"}, separators=(",", ":"))


def _limits(spec: GatewaySpec, field: str) -> list[tuple[str, str]]:
    return [(key.name, str(getattr(key, field))) for key in spec.keys if getattr(key, field)]
