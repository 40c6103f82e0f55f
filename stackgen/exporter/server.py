"""The HTTP server: who may ask, for what, and with which headers it answers."""

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
from stackgen.exporter.metrics import registry_of
from stackgen.exporter.rounds import Checker, monitoring
from stackgen.exporter.state import State
from stackgen.providers.endpoints import unique

__all__ = ["LISTEN", "Exporter", "serve"]

# the port is in none of the lists of well-known exporters
LISTEN = "127.0.0.1:9464"
# how long the end waits for checks that run (s); Docker kills after ten
LAST_WORDS = 3.0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # a browser keeps its connection open, and the end must not wait for it
    block_on_close = False
    site: Site

    def __init__(self, *args: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Ends connections that clients keep open: they would be answered for as long as the program lives."""
        for request in tuple(self._open):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: Any) -> None:
        """A client that went away while it was answered is no news."""


class Exporter:
    """Checks `targets` every `interval` seconds and serves what it found; a context manager that starts and stops.

    Without `options` it looks as `monitoring()` says; `profile` is what the page calls it. `listen` is `host:port`,
    with port 0 for any free one. Raises StackgenError for an address that others can reach, unless `allow_remote`, and
    for options that make no sense; MachineError where the port is taken.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        options: Options | None = None,
        *,
        listen: str = LISTEN,
        interval: float = 30.0,
        allow_remote: bool = False,
        profile: str = "",
    ) -> None:
        if not targets:
            raise StackgenError("there is no endpoint to watch", "name a stack that has one, or give --base-url")
        named = unique(targets)
        if options is None:
            observed = any(target.observer is not None for target in named)
            options, profile = monitoring(observed=observed), profile or "quick"
        family, address, loopback = _address(listen)
        if not loopback and not allow_remote:
            raise StackgenError(
                f"{listen} can be reached by others, who would see models' answers and addresses of servers",
                "listen on 127.0.0.1, or say --allow-remote where a firewall or proxy guards the port",
            )
        self.state = State(named)
        self.checker = Checker(named, options, interval, self.state)
        site = Site(self.state, self.checker, registry_of(self.state), interval, profile or options.profile,
                    # others come by names that nobody here knows
                    only_local=loopback and not allow_remote)  # fmt: skip
        self._server = _bind(family, address, listen, site)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="stackgen-http",
                                        daemon=True)  # fmt: skip

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """The address of the status page."""
        host = str(self._server.server_address[0])
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def start(self) -> None:
        """Begins to check and to answer; returns at once."""
        self.checker.start()
        self._thread.start()

    def stop(self) -> bool:
        """Ends both. False when a check still waits for a silent server: its thread ends with the program."""
        ended = self.checker.stop(LAST_WORDS)
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.hang_up()
        self._server.server_close()
        return ended

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
    listen: str = LISTEN,
    interval: float = 30.0,
    allow_remote: bool = False,
    profile: str = "",
    on_ready: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
) -> bool:
    """Runs an `Exporter` until `stop` is set or an exception (Ctrl-C) ends the wait; see there for what it raises.

    `on_ready` gets the address of the status page. False when a check still waits for a silent server at the end.
    """
    exporter = Exporter(targets, options, listen=listen, interval=interval, allow_remote=allow_remote, profile=profile)
    exporter.start()
    try:
        if on_ready:
            on_ready(exporter.url)
        (stop or threading.Event()).wait()
    except KeyboardInterrupt:
        # Ctrl-C is how a person ends it, and no error
        pass
    finally:
        ended = exporter.stop()
    return ended


def _address(listen: str) -> tuple[socket.AddressFamily, tuple[str, int], bool]:
    """Family, address and whether it is this machine's loopback interface, of `host:port`."""
    try:
        parts = urlsplit(f"//{listen}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port is None:
        raise StackgenError(f"listen address {listen!r} is no host:port", f"it looks like {LISTEN} or [::1]:9464")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        raise StackgenError(f"nobody knows the listen address {host!r}", f"it looks like {LISTEN}") from None
    family, _, _, _, address = found[0]
    where = str(address[0])
    return family, (where, port), ipaddress.ip_address(where.partition("%")[0]).is_loopback


def _bind(family: socket.AddressFamily, address: tuple[str, int], listen: str, site: Site) -> _Server:
    # a class of its own, as the family is an attribute of the class
    kind = type("_Bound", (_Server,), {"address_family": family, "site": site})
    try:
        server: _Server = kind(address, Handler)
    except OSError as error:
        raise MachineError(f"can't listen on {listen}: {error.strerror or error}",
                           "another program may hold the port: choose one with --listen") from None  # fmt: skip
    return server
