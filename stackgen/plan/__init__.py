"""The plan of a stack: services, volumes, networks, endpoints and API dialects, independent of engine and target."""

from __future__ import annotations

from stackgen.plan.dialect import Deviation, Dialect
from stackgen.plan.types import (
    Asset,
    Bind,
    Build,
    Dependency,
    Document,
    Endpoint,
    EnvRef,
    GpuRequest,
    HealthCheck,
    Logging,
    Mount,
    Network,
    Plan,
    Port,
    Role,
    Service,
    Site,
    Tmpfs,
    Volume,
)

__all__ = [
    "Asset",
    "Bind",
    "Build",
    "Dependency",
    "Deviation",
    "Dialect",
    "Document",
    "Endpoint",
    "EnvRef",
    "GpuRequest",
    "HealthCheck",
    "Logging",
    "Mount",
    "Network",
    "Plan",
    "Port",
    "Role",
    "Service",
    "Site",
    "Tmpfs",
    "Volume",
]
