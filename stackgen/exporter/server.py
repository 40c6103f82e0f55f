"""The exporter: its HTTP server, its address, and how it starts and stops."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable, Sequence
from http.server import ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from stackgen.check.options import Options
from stackgen.check.target import Target
from stackgen.errors import MachineError, StackgenError
from stackgen.exporter.handler import Handler, Site
from stackgen.exporter.metrics import build_registry
from stackgen.exporter.rounds import Checker, monitoring_options
from stackgen.exporter.state import State
from stackgen.providers.endpoints import with_unique_names

__all__ = ["DEFAULT_LISTEN", "Exporter", "serve"]

# no list of well-known exporters contains this port
DEFAULT_LISTEN = "127.0.0.1:9464"
# seconds that a shutdown waits for running checks; Docker kills a container after ten
SHUTDOWN_TIMEOUT = 3.0


class _Server(ThreadingHTTPServer):
    # a client that keeps its connection open must not keep the process alive
    daemon_threads = True
    # browsers keep connections open, and a shutdown must not wait for them
    block_on_close = False
    site: Site

    def __init__(self, *args: Any) -> None:
        self._connections: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        """Closes connections that clients keep open, because the process would serve these until it ends."""
        for request in tuple(self._connections):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: Any) -> None:
        """Prints nothing: a client that disconnects during a response is not an error."""


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
                "there is no endpoint to monitor", "pass a stack that has an endpoint, or pass --base-url"
            )
        named = with_unique_names(targets)
        if options is None:
            observed = any(target.observer is not None for target in named)
            options, profile = monitoring_options(observed=observed), profile or "quick"
        family, address, loopback = _resolve_address(listen)
        # the exporter has neither passwords nor TLS
        if not loopback and not allow_remote:
            raise StackgenError(
                f"{listen} is reachable from other machines, which would see models' answers and server addresses",
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
        self._server = _bind(family, address, listen, site)
        # 0.1 s is the poll interval, which bounds how long shutdown() takes
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="stackgen-http",
                                        daemon=True)  # fmt: skip

    @property
    def port(self) -> int:
        """The TCP port that the server listens on."""
        # from the socket, because the requested port may be 0
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """The URL of the status page."""
        host = str(self._server.server_address[0])
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def start(self) -> None:
        """Starts checking and serving; returns at once."""
        self.checker.start()
        self._thread.start()

    def stop(self) -> bool:
        """Stops checking and serving. False if a check still waits for a server; this thread ends with the process."""
        finished = self.checker.stop(SHUTDOWN_TIMEOUT)
        # shutdown() would block forever if serve_forever was never started
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.close_connections()
        self._server.server_close()
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
    exporter = Exporter(targets, options, listen=listen, interval=interval, allow_remote=allow_remote, profile=profile)
    exporter.start()
    try:
        if on_ready:
            on_ready(exporter.url)
        (stop or threading.Event()).wait()
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
            f"listen address {listen!r} is not host:port", f"use host:port, for example {DEFAULT_LISTEN} or [::1]:9464"
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


def _bind(family: socket.AddressFamily, address: tuple[str, int], listen: str, site: Site) -> _Server:
    # socketserver reads the address family from the class, so each exporter gets a class of its own
    bound = type("_Bound", (_Server,), {"address_family": family, "site": site})
    try:
        server: _Server = bound(address, Handler)
    except OSError as error:
        raise MachineError(f"can't listen on {listen}: {error.strerror or error}",
                           "another program may be using the port; set another with --listen") from None  # fmt: skip
    return server
