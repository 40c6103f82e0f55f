"""Forwards a local port to a Service of the cluster, with `kubectl port-forward`.

Messages: kubectl 1.32, `k8s.io/client-go/tools/portforward/portforward.go` ("Forwarding from ADDRESS -> PORT"). kubectl
ends when the pod that it chose is gone, and chooses another one when it starts again.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections import deque
from contextlib import suppress
from types import TracebackType

from stackgen.errors import MachineError, StartError
from stackgen.runtimes.kubernetes.kubectl import Kubectl, explain

__all__ = ["Forward"]

# seconds until kubectl listens, until it has ended, and between two attempts
START_LIMIT, END_LIMIT, PAUSE = 30.0, 5.0, 1.0
LISTENING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ->")
# kubectl reads no input, so a shell ends it as soon as this process is gone, whatever ended it. Only kubectl keeps the
# pipe of the output, so that its end shows
WATCHED = 'kubectl "$@" </dev/null & child=$!; exec >/dev/null 2>&1; cat; kill $child; wait $child'


class Forward:
    """A local port of 127.0.0.1 that leads to `port` of the Service `service`, until the block ends.

    `port` is the local port. If kubectl ends meanwhile, it is started again with the same port. Raises StartError or
    MachineError if kubectl does not start to listen.
    """

    def __init__(self, cluster: Kubectl, service: str, port: int) -> None:
        self.port = 0
        self._cluster, self._service, self._remote = cluster, service, port
        self._closing, self._listening = threading.Event(), threading.Event()
        self._lines: deque[str] = deque(maxlen=20)
        self._process: subprocess.Popen[str] | None = None
        self._error: StartError | MachineError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Forward:
        self._thread.start()
        started = self._listening.wait(START_LIMIT)
        if not self.port:
            self.close()
            raise self._error or MachineError(
                f"`kubectl port-forward` did not listen within {START_LIMIT:.0f} seconds"
                if not started else "`kubectl port-forward` failed",
                "check that the cluster answers: `kubectl get nodes`",
            )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends kubectl."""
        self._closing.set()
        process = self._process
        if process and process.stdin:
            with suppress(OSError):
                process.stdin.close()
            try:
                process.wait(END_LIMIT)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        self._thread.join(END_LIMIT)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._lines.clear()
            words = self._cluster.words(
                "port-forward", "--address", "127.0.0.1", f"service/{self._service}",
                f"{self.port or ''}:{self._remote}",
            )  # fmt: skip
            # in a session of its own: Ctrl-C must reach the check first, and not the connection that it uses
            self._process = subprocess.Popen(
                ["sh", "-c", WATCHED, "kubectl", *words], text=True, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            if self._closing.is_set() and self._process.stdin:
                self._process.stdin.close()
            self._read(self._process)
            if not self.port:
                self._error = explain("port-forward", "\n".join(self._lines))
                self._error.hint = self._error.hint or (
                    "run `stackgen status`, which shows whether the gateway is running. If you have no permission to "
                    "forward ports, pass the gateway's address instead (`up --url`, `check --base-url`)"
                )
                self._listening.set()
                return
            self._closing.wait(PAUSE)

    def _read(self, process: subprocess.Popen[str]) -> None:
        """Reads what kubectl prints until it ends."""
        if process.stdout is None:
            return
        with process.stdout as lines:
            for line in lines:
                self._lines.append(line.rstrip())
                if match := LISTENING.search(line):
                    self.port = int(match[1])
                    self._listening.set()
        # the shell waits for the end of its input
        if process.stdin:
            with suppress(OSError):
                process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_LIMIT)
