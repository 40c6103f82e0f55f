"""The probes of a service, from its health check, and what a pod waits for.

Source: Kubernetes 1.37, "Configure Liveness, Readiness and Startup Probes".
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from urllib.parse import quote

from stackgen.kubernetes.model import Probe
from stackgen.kubernetes.names import HTTP
from stackgen.plan import HealthCheck, Service

__all__ = ["find_markers", "liveness", "port_of", "readiness", "startup"]


def port_of(service: Service) -> int:
    """The port at which `service` answers; 0 if it has none."""
    if service.role == "gateway":
        return service.ports[0].container
    if service.role == "worker":
        # the port of its `--port`: no Service needs it, because the controller knows the pod's address
        words = service.command
        return int(words[words.index("--port") + 1]) if "--port" in words else 0
    if "--port" in service.command and not (service.ports or service.internal_port):
        return int(service.command[service.command.index("--port") + 1])
    return service.ports[0].container if service.ports else service.internal_port


def _command(health: HealthCheck) -> tuple[str, ...]:
    """The command of an exec probe, in which the kubelet replaces no variables."""
    if not any("$(" in word for word in health.command):
        return health.command
    words = [shlex.quote(word) if "$(" not in word else '"' + word.replace("$(", "${").replace(")", "}") + '"'
             for word in health.command]  # fmt: skip
    return ("/bin/sh", "-c", f"exec {' '.join(words)}")


def startup(health: HealthCheck) -> Probe:
    """A start may take `start_period` seconds, and ends when the service has generated for the first time."""
    period = 10 if health.start_period >= 60 else 2
    # rounded up, plus the failures that count anyway
    failures = -(-health.start_period // period) + health.retries
    return Probe(_command(health), period=period, timeout=health.timeout, failures=failures)


def liveness(health: HealthCheck) -> Probe:
    """The kubelet restarts a container that fails its health check several times."""
    return Probe(_command(health), period=health.interval, timeout=health.timeout, failures=health.retries)


def readiness(service: Service, health: HealthCheck, port: int) -> Probe:
    """A pod gets requests as long as it answers; whether it generates is the other probes' business."""
    if health.ready_path and port:
        return Probe(path=health.ready_path, port=HTTP, period=5, timeout=5, failures=2)
    # HAProxy needs the first answers of DNS before it can send requests on
    delay = 3 if service.role == "gateway" else 0
    return Probe(_command(health), delay=delay, period=health.interval, timeout=health.timeout, failures=2)


def find_markers(weights: Sequence[str]) -> tuple[str, ...]:
    """The files that `download.py` writes when a model is complete (`Model.marker` there)."""
    models: list[tuple[str, str, list[str]]] = []
    for option, value in zip(weights[::2], weights[1::2], strict=True):
        if option == "--model":
            models.append((value, "main", []))
        elif option == "--revision":
            models[-1] = (models[-1][0], value, models[-1][2])
        elif option == "--file":
            models[-1][2].append(value)
    found = []
    for repo, revision, patterns in models:
        files = hashlib.sha256("\n".join(sorted(patterns)).encode()).hexdigest()[:12] if patterns else "all"
        found.append(f"/models/.stackgen/{repo.replace('/', '--')}@{quote(revision, safe='')}+{files}.json")
    return tuple(found)
