"""What HAProxy's configuration is printed from: backends, replicas, and the maps beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from stackgen.engines.base import served_names
from stackgen.plan import Document, Endpoint
from stackgen.spec import GatewaySpec, ModelSpec

__all__ = ["Backend", "Fallback", "Gateway", "Server", "backend_for", "backend_name", "backend_of", "documents"]

# Requests a replica works on at once where the stack does not say: vLLM batches 256 by default, and queues by itself
SLOTS = {"vllm": 256, "fastchat": 5, "llamacpp": 4}
# What buffers of connections may take if each is full, bytes; what is held by so many is mostly none at all
MEMORY = 8 * 2**30
# Clients, and those of them whose body is large: together what 20,000 open files allow, two for each and some more
MOST_CONNECTIONS, MOST_LARGE = 6144, 2048
# Of a request with head and body that needs no large buffer; the body alone, where it tells its length: a head is small
BUFFER, SMALL_BODY = 65536, 49152


@dataclass(frozen=True, slots=True)
class Server:
    """A replica: its service, and the port it listens on inside the network."""

    name: str
    port: int


@dataclass(frozen=True, slots=True)
class Backend:
    """One model: the names that lead to it, its replicas, and how each proves that it is well.

    `router` stands before the replicas for requests that a prefix cache speeds up.

    `probe` is the body of a request for one token, "" where the path `alive` tells enough. `slots` is how many requests
    a replica gets at once, `interval` and `patience` are seconds between probes and for one probe.
    """

    name: str
    engine: str
    names: tuple[str, ...]
    servers: tuple[Server, ...]
    alive: str
    probe: str
    slots: int
    interval: int
    patience: int
    fall: int
    router: Server | None = None

    @property
    def all_slots(self) -> int:
        """How many requests all replicas get at once."""
        return self.slots * len(self.servers)


@dataclass(frozen=True, slots=True)
class Fallback:
    """Who answers for a model, under its served `names`, when no replica of `backend` can. `name` is a backend too.

    `authority` is the Host header, `certified` the name that a certificate must be for ("": no TLS). `path` comes
    before a request's own, `model` is JSON, `served` what the answer's header says, `authorization` what the provider
    is sent: these are log formats.
    """

    name: str
    backend: str
    names: tuple[str, ...]
    server: str
    address: str
    authority: str
    certified: str
    path: str
    model: str
    served: str
    authorization: str


@dataclass(frozen=True, slots=True)
class Gateway:
    """All that HAProxy's configuration is printed from. Sizes are bytes, times seconds."""

    backends: tuple[Backend, ...]
    posts: tuple[str, ...]
    keys: tuple[str, ...]
    tls: bool
    redirect_to: int
    max_body: int
    timeout: int
    max_queue: int
    queue_timeout: int
    fallbacks: tuple[Fallback, ...] = ()

    buffer: int = BUFFER
    small_body: int = SMALL_BODY
    # what a thread keeps for its next requests
    kept_buffers: int = 128 * BUFFER
    connections: int = MOST_CONNECTIONS

    @property
    def repeated(self) -> tuple[int, ...]:
        """Statuses after which the process for large bodies asks again: 502 for a replica that ended unanswered.

        500 and 503 are what vllm-router says of one.
        """
        return (500, 502, 503) if any(backend.router for backend in self.backends) else (502,)

    @property
    def large_buffer(self) -> int:
        """A body is routed by what stands in it, so it must fit a buffer together with its headers."""
        return self.max_body + 65536

    @property
    def kept_large_buffers(self) -> int:
        """Bytes of them that a thread keeps for its next requests: taken anew, they cost milliseconds."""
        return min(8 * self.large_buffer, 128 * 2**20)

    @property
    def large_connections(self) -> int:
        """How many of them at once: as many as may work and wait, and more while their buffers fit `MEMORY`."""
        wanted = sum(backend.all_slots + self.max_queue for backend in self.backends)
        return min(MOST_LARGE, max(MEMORY // self.large_buffer, wanted, 256))

    @property
    def longest(self) -> int:
        """Seconds after which no answer comes: three tries have waited for a slot, and then for a first byte."""
        return 3 * (self.timeout + self.queue_timeout)

    @property
    def connections_of_one(self) -> int:
        """How many of them from one address."""
        return self.connections * 3 // 4


def backend_name(engine: str, served: str, taken: set[str]) -> str:
    """`vllm-llama-3-2-1b-instruct`: from engine and leading name, unlike all in `taken`, to which it is added."""
    slug = re.sub(r"[^a-z0-9]+", "-", served.rpartition("/")[2].lower()).strip("-")[:40]
    base = name = f"{engine}-{slug or 'model'}"
    number = 2
    while name in taken:
        name, number = f"{base}-{number}", number + 1
    taken.add(name)
    return name


def backend_of(name: str, endpoint: Endpoint, engine: str, names: tuple[str, ...], server: Server) -> Backend:
    """The backend called `name` for the model that `endpoint` serves under `names`, with one replica."""
    slots = endpoint.slots or SLOTS.get(engine, 64)
    if endpoint.dialect.alive_path:
        return Backend(name, engine, names, (server,), endpoint.dialect.alive_path, "", slots, 2, 5, 3)
    # a model that hangs still lists itself: only an answer proves it, and needs a slot of its own under load
    body = {"model": names[0], "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "temperature": 0}
    probe = json.dumps(body).replace("'", "\\u0027")
    return Backend(name, engine, names, (server,), "/v1/chat/completions", probe, slots - 1, 10, 20, 2)


def backend_for(model: ModelSpec, backends: Sequence[Backend]) -> Backend:
    """The backend of `model`, whose own names lead, those of adapters after them."""
    names = served_names(model)
    engine = model.engine  # type: ignore[attr-defined]
    return next(one for one in backends if one.engine == engine and one.names[: len(names)] == names)


def documents(data: Gateway, spec: GatewaySpec) -> tuple[Document, ...]:
    """The configuration, and the maps it looks names, keys and limits up in."""
    models = [(_hex(name), backend.name) for backend in data.backends for name in backend.names]
    objects = [(_hex(name), _object(name)) for backend in data.backends for name in backend.names]
    owned = [(one.name, one.names) for one in data.backends] + [(one.name, one.names) for one in data.fallbacks]
    lists = [(name, ",".join(map(_object, names))) for name, names in owned]
    fallbacks = [(_hex(name), one.name) for one in data.fallbacks for name in one.names]
    maps = {
        "models": ("the bytes of a served name in hex, and the backend that serves it", models),
        "objects": ("what GET /v1/models says of a name, and of all names of a backend", [*objects, *lists]),
        "rates": ("requests a minute of a key", _numbers(spec, "requests_per_minute")),
        "concurrency": ("requests at once of a key", _numbers(spec, "concurrent_requests")),
    }  # fmt: skip
    if fallbacks:
        maps["fallbacks"] = ("the bytes of a served name in hex, and who answers when no replica can", fallbacks)
    return (
        Document("gateway/haproxy.cfg.j2", "gateway/haproxy.cfg", "haproxy", data),
        Document("gateway/large.cfg.j2", "gateway/large.cfg", "haproxy", data),
        Document("gateway/keys.prom.j2", "gateway/keys.prom", "text", data),
        *(Document("gateway/lines.map.j2", f"gateway/{name}.map", "text", (about, tuple(lines)))
          for name, (about, lines) in maps.items()),
    )  # fmt: skip


def _hex(name: str) -> str:
    # whatever stands in a name, the map's own format can't be broken by it
    return name.encode().hex().upper()


def _object(name: str) -> str:
    return json.dumps({"id": name, "object": "model", "created": 0, "owned_by": "stackgen"}, separators=(",", ":"))


def _numbers(spec: GatewaySpec, field: str) -> list[tuple[str, str]]:
    return [(key.name, str(getattr(key, field))) for key in spec.keys if getattr(key, field)]
