"""The chat page: Open WebUI, connected to the stack, with accounts. Other machines reach it through the gateway.

Variables and defaults: docs.openwebui.com, "Environment Variable Configuration", 0.11.0. Verified on Open WebUI 0.12.4.
At its first start, the page creates the administrator from WEBUI_ADMIN_EMAIL and WEBUI_ADMIN_PASSWORD (main.py and
`create_admin_user` in utils/auth.py). Without these, anybody could become the administrator: `signup` in
routers/auths.py does not apply ENABLE_SIGNUP to the first account.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stackgen.engines.base import API_KEY
from stackgen.errors import Mistake
from stackgen.images.tags import unpinned_warnings
from stackgen.plan import EnvRef, HealthCheck, Logging, Plan, Port, Service, Site, Tmpfs, Volume
from stackgen.resolve.addons import gateway, monitoring
from stackgen.resolve.addons.monitoring_targets import has_gateway, probes
from stackgen.spec import StackSpec, UiSpec
from stackgen.spec.types import parse_token_count

__all__ = ["SECRET_KEY", "SERVICE", "extend", "is_enabled", "mistakes", "ports"]

SERVICE = gateway.PAGE
IMAGE = "ghcr.io/open-webui/open-webui:v0.12.4"
PORT = gateway.PAGE_PORT
DATA = "/app/backend/data"
SECRET_KEY = EnvRef("WEBUI_SECRET_KEY", "the key that signs the chat sessions: `stackgen up` writes it into .env")
ADMIN_PASSWORD = EnvRef(
    "WEBUI_ADMIN_PASSWORD", "the password of the chat UI's administrator: `stackgen up` writes it into .env"
)
SETTINGS = (
    ("WEBUI_AUTH", "True"),
    ("ENABLE_OLLAMA_API", "False"),
    ("ENABLE_OPENAI_API", "True"),
    # otherwise Open WebUI keeps the settings of its first start, even if the stack file changes
    ("ENABLE_PERSISTENT_CONFIG", "False"),
    # with `sign_up`, an account waits for the approval of an administrator
    ("DEFAULT_USER_ROLE", "pending"),
    # otherwise only administrators see the models of a connection (`get_filtered_models` in utils/models.py)
    ("BYPASS_MODEL_ACCESS_CONTROL", "True"),
    ("ENABLE_COMMUNITY_SHARING", "False"),
    ("ENABLE_VERSION_UPDATE_CHECK", "False"),
    ("ANONYMIZED_TELEMETRY", "false"),
    ("DO_NOT_TRACK", "true"),
    ("SCARF_NO_ANALYTICS", "true"),
)
# Open WebUI 0.12.4 sends 36 tools with each chat: 25 kB, 6,900 tokens with the tokenizer of SmolLM2. It sends none if a
# model's function calling is `legacy` (open_webui/utils/middleware.py, `use_builtin_tools`).
NO_TOOLS = ("DEFAULT_MODEL_PARAMS", '{"function_calling": "legacy"}')
MIN_CONTEXT_FOR_TOOLS, PARSER_FLAG = 16_384, "--tool-call-parser"
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
        found.append(
            Mistake("ui", "needs the gateway if the stack has more than one model or replica", hint="set gateway: true")
        )
    cors = stack.gateway.cors if stack.gateway and gateway.is_enabled(stack, site) else ()
    if is_enabled(stack, site) and stack.ui and stack.ui.direct_connections and not cors:
        hint = f"list the address of the page in your browser, for example {_example_origin(stack, stack.ui)}"
        found.append(Mistake("ui.direct_connections", "needs the gateway with `cors`, because browsers send the "
                             "requests themselves", hint=f"set `gateway: {{cors: [ORIGIN]}}`: {hint}"))  # fmt: skip
    if is_enabled(stack, site) and gateway.serves_page(stack) and not gateway.is_enabled(stack, site):
        found.append(
            Mistake(
                "ui.bind", "needs the gateway, which serves the chat UI to other machines", hint="set gateway: true"
            )
        )
    return found


def _example_origin(stack: StackSpec, spec: UiSpec) -> str:
    if not gateway.serves_page(stack):
        return f"http://127.0.0.1:{spec.port}"
    return f"{'https' if stack.gateway and stack.gateway.tls else 'http'}://llm.example.org:{spec.port}"


def extend(stack: StackSpec, site: Site, plan: Plan) -> Plan:
    """Returns the plan with the chat page, connected to the gateway or to the only engine."""
    if stack.ui is None or not is_enabled(stack, site):
        warnings = ("the chat UI needs containers: local processes run without the chat UI",) if stack.ui else ()
        return replace(plan, warnings=(*plan.warnings, *warnings))
    return replace(
        plan,
        services=(*plan.services, _service(stack, stack.ui, site, plan)),
        volumes=(*plan.volumes, (SERVICE, f"{stack.name}-open-webui")),
        warnings=(*plan.warnings, *unpinned_warnings(stack.ui.image), *_warn_of_address(stack, stack.ui, site)),
    )


def _warn_of_address(stack: StackSpec, spec: UiSpec, site: Site) -> tuple[str, ...]:
    # `bind` has no effect in a cluster
    if site.is_cluster or not spec.is_left_behind(stack.bind):
        return ()
    return (
        f"the chat UI is reachable from this machine only, although `bind` is {stack.bind}. To open it to other "
        f'machines, set `ui: {{bind: "{stack.bind}"}}`. To keep it as it is, set `ui: {{bind: "{spec.bind}"}}`',
    )


def _service(stack: StackSpec, spec: UiSpec, site: Site, plan: Plan) -> Service:
    has_tls = gateway.serves_page(stack) and bool(stack.gateway and stack.gateway.tls)
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
            ("WEBUI_ADMIN_EMAIL", spec.admin_email),
            ("WEBUI_ADMIN_PASSWORD", ADMIN_PASSWORD),
            ("ENABLE_SIGNUP", str(spec.sign_up)),
            *SETTINGS,
            *((("ENABLE_DIRECT_CONNECTIONS", "True"),) if spec.direct_connections else ()),
            # it never downloads from the Hub, and starts without five attempts (env.py and get_ef in 0.12.4)
            *((("OFFLINE_MODE", "True"),) if stack.storage.offline else ()),
            # browsers then send the session's cookie over HTTPS only
            *((("WEBUI_SESSION_COOKIE_SECURE", "true"),) if has_tls else ()),
            *(() if all(map(_accepts_tools, stack.models)) else (NO_TOOLS,)),
        ),
        mounts=(Volume(SERVICE, DATA), Tmpfs("/tmp", "mode=1777")),
        # the gateway publishes the port if other machines can reach it
        ports=() if gateway.serves_page(stack) else (Port(spec.bind, spec.port, PORT),),
        # without internet access, its first start took 290 s: it tries to download a model five times
        health=HealthCheck(("python3", "-c", HEALTH), timeout=10, start_period=600),
        restart="unless-stopped",
        # Open WebUI writes files next to its program at the start
        read_only=False,
        logging=Logging(stack.logging.max_size, stack.logging.max_file),
    )  # fmt: skip


def _accepts_tools(model: Any) -> bool:
    """Whether a chat with the tools of Open WebUI gets an answer: vLLM without a parser answers 400 to each."""
    if model.engine == "fastchat":
        return False
    length = getattr(model, "max_model_len", None)
    # `auto` and `-1` are the length that fits, or that the model was trained with
    if length and length[0].isdigit() and parse_token_count(length) < MIN_CONTEXT_FOR_TOOLS:
        return False
    has_flag = any(argument.partition("=")[0] == PARSER_FLAG for argument in model.extra_args)
    return model.engine != "vllm" or bool(model.tool_call_parser) or has_flag
