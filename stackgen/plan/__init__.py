"""The plan of a stack: services, volumes, networks, endpoints and API dialects, independent of engine and target."""

from __future__ import annotations

from stackgen.plan.dialect import CHAT_PATHS, Deviation, Dialect
from stackgen.plan.remote import Remote
from stackgen.plan.site import GroupNode, Site
from stackgen.plan.types import (
    Asset,
    Bind,
    Build,
    Dependency,
    Document,
    Endpoint,
    EnvRef,
    GpuRequest,
    Group,
    HealthCheck,
    Logging,
    Mount,
    Network,
    Plan,
    Port,
    Role,
    Service,
    Tmpfs,
    Volume,
)

__all__ = [
    "CHAT_PATHS",
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
    "Group",
    "GroupNode",
    "HealthCheck",
    "Logging",
    "Mount",
    "Network",
    "Plan",
    "Port",
    "Remote",
    "Role",
    "Service",
    "Site",
    "Tmpfs",
    "Volume",
]
