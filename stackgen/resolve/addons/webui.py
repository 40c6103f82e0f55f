"""The chat page: Open WebUI, connected to the stack, on loopback, with accounts.

Variables and defaults: docs.openwebui.com, "Environment Variable Configuration", 0.11.0. The first account becomes the
administrator; later accounts wait for its approval (`DEFAULT_USER_ROLE` is `pending`).
"""

from __future__ import annotations

from dataclasses import replace

from stackgen.engines.base import API_KEY
from stackgen.errors import Mistake
from stackgen.images.tags import unpinned_warnings
from stackgen.plan import EnvRef, HealthCheck, Logging, Plan, Port, Service, Site, Tmpfs, Volume
from stackgen.resolve.addons import gateway, monitoring
from stackgen.resolve.addons.monitoring_targets import has_gateway, probes
from stackgen.spec import StackSpec, UiSpec

__all__ = ["SECRET_KEY", "SERVICE", "extend", "is_enabled", "mistakes", "ports"]

SERVICE = "open-webui"
IMAGE = "ghcr.io/open-webui/open-webui:v0.11.2"
PORT = 8080
DATA = "/app/backend/data"
SECRET_KEY = EnvRef("WEBUI_SECRET_KEY", "the key that signs the chat sessions: `stackgen up` writes it into .env")
SETTINGS = (
    ("WEBUI_AUTH", "True"),
    ("ENABLE_OLLAMA_API", "False"),
    ("ENABLE_OPENAI_API", "True"),
    # otherwise Open WebUI keeps the settings of its first start, even if the stack file changes
    ("ENABLE_PERSISTENT_CONFIG", "False"),
    ("ENABLE_SIGNUP", "True"),
    ("DEFAULT_USER_ROLE", "pending"),
    ("ENABLE_COMMUNITY_SHARING", "False"),
    ("ENABLE_VERSION_UPDATE_CHECK", "False"),
    ("ANONYMIZED_TELEMETRY", "false"),
    ("DO_NOT_TRACK", "true"),
    ("SCARF_NO_ANALYTICS", "true"),
)
HEALTH = (
    "import json, urllib.request as u; "
    f"assert json.load(u.urlopen('http://127.0.0.1:{PORT}/health', timeout=5))['status']"
)


def is_enabled(stack: StackSpec, site: Site) -> bool:
    """Whether the stack has a chat page."""
    return stack.ui is not None and site.uses_containers


def ports(stack: StackSpec, site: Site) -> dict[str, int]:
    """The published port, by its path in the stack file."""
    return {"ui.port": stack.ui.port} if stack.ui and is_enabled(stack, site) else {}


def mistakes(stack: StackSpec, site: Site) -> list[Mistake]:
    """Finds port conflicts, and stacks with several endpoints, because the page supports only one endpoint."""
    found = monitoring.find_port_conflicts(stack, ports(stack, site), monitoring.ports(stack, site))
    several = sum(model.replicas for model in stack.models) > 1
    # FastChat serves all its models with one API server
    only_fastchat = {model.engine for model in stack.models} == {"fastchat"}
    if is_enabled(stack, site) and several and not only_fastchat and not gateway.is_enabled(stack, site):
        found.append(Mistake("ui", "needs the gateway for more than one model or replica", hint="set gateway: true"))
    return found


def extend(stack: StackSpec, site: Site, plan: Plan) -> Plan:
    """Returns the plan with the chat page, connected to the gateway or to the only engine."""
    if stack.ui is None or not is_enabled(stack, site):
        warnings = ("the chat page needs containers: local processes run without it",) if stack.ui else ()
        return replace(plan, warnings=(*plan.warnings, *warnings))
    return replace(
        plan,
        services=(*plan.services, _service(stack, stack.ui, site, plan)),
        volumes=(*plan.volumes, (SERVICE, f"{stack.name}-open-webui")),
        warnings=(*plan.warnings, *unpinned_warnings(stack.ui.image)),
    )


def _service(stack: StackSpec, spec: UiSpec, site: Site, plan: Plan) -> Service:
    return Service(
        name=SERVICE, role="ui",
        comment="Chat page" + (", which uses the gateway" if has_gateway(plan) else ""),
        image=spec.image or IMAGE,
        command=(),
        environment=(
            # a stack with several endpoints has a gateway, so the first endpoint is enough
            ("OPENAI_API_BASE_URL", probes(stack, site, plan)[0].base_url),
            ("OPENAI_API_KEY", API_KEY),
            ("WEBUI_SECRET_KEY", SECRET_KEY),
            *SETTINGS,
        ),
        mounts=(Volume(SERVICE, DATA), Tmpfs("/tmp", "mode=1777")),
        ports=(Port("127.0.0.1", spec.port, PORT),),
        health=HealthCheck(("python3", "-c", HEALTH), timeout=10, start_period=300),
        restart="unless-stopped",
        # Open WebUI writes files next to its program at the start
        read_only=False,
        logging=Logging(stack.logging.max_size, stack.logging.max_file),
    )  # fmt: skip
