"""The exporter: its HTTP server, its address, and how it starts and stops."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from urllib.parse import urlsplit

from stackgen.check.options import Options
from stackgen.check.target import Target
from stackgen.errors import MachineError, StackgenError
from stackgen.exporter.handler import Site, make_app
from stackgen.exporter.http import HttpServer, raise_file_limit
from stackgen.exporter.metrics import build_registry
from stackgen.exporter.rounds import Checker, monitoring_options
from stackgen.exporter.state import State
from stackgen.providers.endpoints import with_unique_names

__all__ = ["DEFAULT_LISTEN", "Exporter", "serve"]

# no list of well-known exporters contains this port
DEFAULT_LISTEN = "127.0.0.1:9464"
# seconds that a shutdown waits for running checks; Docker kills a container after ten
SHUTDOWN_TIMEOUT = 3.0
# seconds; Python misses a signal that arrives just before a lock's wait begins, until this wait ends
SIGNAL_POLL = 0.5


class Exporter:
    """Checks `targets` every `interval` seconds and serves the results. As a context manager it starts and stops.

    - `options`: how to check; the default is `monitoring_options()`.
    - `listen`: `host:port`; port 0 picks a free one.
    - `allow_remote`: allows an address that other machines can reach, and allows requests for any host name.
    - `profile`: name of the profile on the status page.

    Raises StackgenError for an address that other machines can reach without `allow_remote`, and for invalid options;
    MachineError if the port is taken.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        options: Options | None = None,
        *,
        listen: str = DEFAULT_LISTEN,
        interval: float = 30.0,
        allow_remote: bool = False,
        profile: str = "",
    ) -> None:
        if not targets:
            raise StackgenError(
                "the exporter has no endpoint to monitor", "pass a stack that has an endpoint, or pass --base-url"
            )
        # the state and the metrics identify an endpoint by its name
        named = with_unique_names(targets)
        if options is None:
            observed = any(target.observer is not None for target in named)
            options, profile = monitoring_options(observed=observed), profile or "quick"
        family, address, loopback = _resolve_address(listen)
        # the exporter has neither passwords nor TLS
        if not loopback and not allow_remote:
            raise StackgenError(
                f"other machines can reach {listen}, and would see the models' answers and the servers' addresses",
                "listen on 127.0.0.1, or pass --allow-remote if a firewall or proxy protects the port",
            )
        self.state = State(named)
        self.checker = Checker(named, options, interval, self.state)
        site = Site(
            self.state,
            self.checker,
            registry=build_registry(self.state),
            interval=interval,
            profile=profile or options.profile,
            # remote clients use host names that can't be known here
            loopback_only=loopback and not allow_remote,
        )
        self._server = HttpServer(make_app(site), _bind(family, address, listen))

    @property
    def port(self) -> int:
        """The TCP port that the server listens on."""
        return self._server.port

    @property
    def url(self) -> str:
        """The URL of the status page."""
        host = self._server.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def start(self) -> None:
        """Starts checking and serving; returns at once."""
        self.checker.start()
        self._server.start()

    def stop(self) -> bool:
        """Stops checking and serving. False if a check still waits for a server; this thread ends with the process."""
        finished = self.checker.stop(SHUTDOWN_TIMEOUT)
        self._server.stop()
        return finished

    def __enter__(self) -> Exporter:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def serve(
    targets: Sequence[Target],
    options: Options | None = None,
    *,
    listen: str = DEFAULT_LISTEN,
    interval: float = 30.0,
    allow_remote: bool = False,
    profile: str = "",
    on_ready: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
) -> bool:
    """Runs an `Exporter` until `stop` is set or Ctrl-C is pressed; arguments and errors are those of `Exporter`.

    `on_ready` is called with the URL of the status page. Returns False if a check still waits for a server at the end.
    """
    # not in Exporter, because the limit belongs to the whole process
    raise_file_limit()
    exporter = Exporter(targets, options, listen=listen, interval=interval, allow_remote=allow_remote, profile=profile)
    exporter.start()
    try:
        if on_ready:
            on_ready(exporter.url)
        stop = stop or threading.Event()
        while not stop.wait(SIGNAL_POLL):
            pass
    except KeyboardInterrupt:
        # Ctrl-C is the normal way to stop it
        pass
    finally:
        finished = exporter.stop()
    return finished


def _resolve_address(listen: str) -> tuple[socket.AddressFamily, tuple[str, int], bool]:
    """The socket family and address of `host:port`, and whether it is on the loopback interface."""
    try:
        parts = urlsplit(f"//{listen}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port is None:
        raise StackgenError(
            f"the listen address {listen!r} is not of the form host:port",
            f"use host:port, for example {DEFAULT_LISTEN} or [::1]:9464",
        )
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        raise StackgenError(
            f"can't resolve the listen address {host!r}", f"use host:port, for example {DEFAULT_LISTEN}"
        ) from None
    family, _, _, _, address = found[0]
    resolved = str(address[0])
    # the resolved address decides, because a host name may be loopback too
    # partition() removes the zone of an IPv6 address, such as %eth0
    return family, (resolved, port), ipaddress.ip_address(resolved.partition("%")[0]).is_loopback


def _bind(family: socket.AddressFamily, address: tuple[str, int], listen: str) -> socket.socket:
    """A bound socket. The port of the address may be 0; the socket's own address has the port that was chosen."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # a restarted exporter would otherwise wait for the old connections
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise MachineError(f"can't listen on {listen}: {error.strerror or error}",
                           "another program may use the port; choose another port with --listen") from None  # fmt: skip
    return listener
