"""Fallbacks: a cloud or another OpenAI-compatible server answers for a model if all its replicas are down or busy.

Disabled unless the stack file configures a fallback. The gateway then rewrites the request's model, key and path
(templates/gateway/fallback.lua). It reports which server answered in the header `x-stackgen-served-by` and in its log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any
from urllib.parse import urlsplit

from stackgen.engines.base import served_names
from stackgen.errors import Mistake
from stackgen.plan import Asset, EnvRef, Site
from stackgen.plan.clouds import CLOUDS
from stackgen.resolve.addons.backends import Backend, Fallback, find_backend
from stackgen.spec import FallbackSpec, GatewaySpec, StackSpec
from stackgen.spec.types import is_loopback

__all__ = ["assets", "fallbacks", "is_requested", "keys", "mistakes", "warnings"]

# characters that a header carries unchanged
PRINTABLE = re.compile(r"[!-~]{1,200}")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
# /v1, /v1beta, /v4
API_VERSION = re.compile(r"/v\d+[a-z0-9]*(?=/|$)")
# their base URLs have no version (their own documentation, and that of Spring AI)
UNVERSIONED = ("api.perplexity.ai", "api.deepseek.com")


@dataclass(frozen=True, slots=True)
class _ParsedUrl:
    """A provider's base URL: `host` without brackets, `port` with the scheme's default."""

    tls: bool
    host: str
    port: int
    authority: str
    path: str
    address: IPv4Address | IPv6Address | None


def is_requested(stack: StackSpec) -> bool:
    """Whether any model has a fallback."""
    return any(model.fallback for model in stack.models)


def mistakes(stack: StackSpec) -> list[Mistake]:
    """Finds fallbacks without URL or key, URLs that the gateway can't reach, and model ids that no header can carry."""
    found = []
    for index, model in enumerate(stack.models):
        if model.fallback:
            found += [
                Mistake(f"models[{index}].fallback{field and '.'}{field}", text, hint=hint)
                for field, text, hint in _find_mistakes(model.fallback)
            ]
    return found


def fallbacks(stack: StackSpec, backends: Sequence[Backend], ca_file: str = "") -> tuple[Fallback, ...]:
    """Returns the fallback of each model that has one. `ca_file` replaces the certificate authorities of the image."""
    found = []
    for model in stack.models:
        # only the model's own names, because the provider doesn't know the adapters
        names, spec = served_names(model), model.fallback
        if not spec:
            continue
        backend = find_backend(model, backends)
        url, provider = _parse_url(_url(spec)), _provider(spec)
        found.append(
            Fallback(
                name=f"fallback-{backend.name}",
                backend=backend.name,
                names=names,
                server=provider.replace(":", "_"),
                address=f"[{url.host}]:{url.port}" if ":" in url.host else f"{url.host}:{url.port}",
                authority=url.authority,
                tls_server_name=url.host if url.tls else "",
                ca_file=ca_file,
                path=_escape_log_format(url.path),
                # fallback.lua inserts this value into the JSON body
                model=_escape_log_format(json.dumps(spec.model)),
                served_by=_escape_log_format(f"fallback/{provider}:{spec.model}"),
                overflow_served_by=_escape_log_format(f"overflow/{provider}:{spec.model}"),
                # HAProxy reads the variable at its start, so that no character of a key can change the configuration
                authorization=f"Bearer %[env({_key_variables(spec)[0]})]",
                overflows=_queues(backend) if spec.overflow else (),
            )
        )
    return tuple(found)


def _queues(backend: Backend) -> tuple[str, ...]:
    """The HAProxy backends in which requests for a model wait: its own, and that of its router."""
    return (backend.name, backend.router.name) if backend.router else (backend.name,)


def keys(stack: StackSpec) -> tuple[tuple[str, str | EnvRef], ...]:
    """Environment of the gateway: the variables with the providers' keys, and `STACKGEN_REQUIRED`."""
    specs = [(_key_variables(model.fallback), _provider(model.fallback)) for model in stack.models if model.fallback]
    message = "put the key of {} into .env, because a fallback of the stack needs it"
    found = {
        names[0]: EnvRef(names[0], message.format(provider), alternative="".join(names[1:2]))
        for names, provider in specs
    }
    # Compose can't require one of two variables, so start.sh checks these variables
    either = tuple(name for name, value in found.items() if value.alternative)
    return (*found.items(), *((("STACKGEN_REQUIRED", " ".join(either)),) if either else ()))


def assets(stack: StackSpec) -> tuple[Asset, ...]:
    """The Lua filter that rewrites requests, if any model has a fallback."""
    if not is_requested(stack):
        return ()
    return (Asset("gateway/fallback.lua", "gateway/fallback.lua"),)


def warnings(stack: StackSpec, site: Site, backends: Sequence[Backend]) -> list[str]:
    """Warns for each fallback that requests leave this machine, or the cluster; and of a base URL without /v1.

    For `overflow`, the warning contains the number of requests from which they leave.
    """
    found, place = [], "the cluster" if site.is_cluster else "this machine"
    for index, model in enumerate(stack.models):
        if model.fallback:
            name, url = served_names(model)[0], _parse_url(_url(model.fallback))
            when = "no replica is up" + (", or all are busy and the queue is full" if model.fallback.overflow else "")
            if not API_VERSION.search(url.path) and url.host not in UNVERSIONED:
                given = _url(model.fallback).rstrip("/")
                found.append(
                    f"models[{index}].fallback.base_url: the path has no version, so the gateway sends requests to "
                    f"{given}/chat/completions. Most servers answer 404 there, and need {given}/v1"
                )
            # without TLS, everybody on the network path can read prompts and key
            plain = "" if url.tls else ", unencrypted and with the key"
            if stack.proxy:
                found.append(
                    f"HAProxy can't use an HTTP proxy, so the gateway connects to the fallback of {name} directly: "
                    f"allow connections from {place} to {url.host}:{url.port}, or set fallback.base_url to a "
                    "server in your network that forwards the requests"
                )
            found.append(
                f"{name} has a fallback: if {when}, the requests for {name}, including all prompts, "
                f"leave {place} and are sent to {model.fallback.model} at {url.authority}{plain}"
                + (_describe_overflow(stack, model, backends) if model.fallback.overflow else "")
            )
    return found


def _describe_overflow(stack: StackSpec, model: Any, backends: Sequence[Backend]) -> str:
    """When the queue is full, as numbers: with the defaults, hardly ever."""
    spec = stack.gateway or GatewaySpec()
    text = f". All replicas are busy with {find_backend(model, backends).total_concurrent_requests:,} requests"
    # only fields that nobody has chosen yet
    lower = [] if "max_queue" in spec.model_fields_set else ["`gateway.max_queue`"]
    lower += [] if getattr(model, "max_num_seqs", 0) is not None else ["`max_num_seqs`"]
    if spec.max_queue:
        text += (
            f", and the queue is full with {spec.max_queue:,} more. A request that waits {spec.queue_timeout} s in "
            "the queue gets a 503, and does not go to the fallback"
        )
    return text + (f". To use the fallback earlier, lower {' and '.join(lower)}" if lower else "")


def _find_mistakes(spec: FallbackSpec) -> list[tuple[str, str, str]]:
    """Errors as (field, message, hint)."""
    found = []
    if not PRINTABLE.fullmatch(spec.model):
        found.append(("model", "must be at most 200 printable ASCII characters without blanks",
                      "copy the model id from the provider"))  # fmt: skip
    cloud = CLOUDS.get(spec.provider or "")
    # only clouds have a known URL
    if not spec.base_url and not cloud:
        text = f"is required, because {spec.provider} has no known URL"
        return [*found, ("base_url", text, "for example http://10.0.0.5:8000/v1")]
    if problem := _check_url(_url(spec)):
        found.append(("base_url", *problem))
    names = _key_variables(spec)
    # a provider must not be able to use this stack
    if names and names[0].startswith("STACKGEN_"):
        found.append(("api_key_env", "is a key of this stack, and stackgen sends no key of this stack to a provider",
                      "set another variable"))  # fmt: skip
    elif not names:
        text = f"is required, because the key of {spec.provider} is not sent to other hosts" if cloud else "is required"
        found.append(
            ("api_key_env", text, "set `api_key_env` to the variable in .env that contains the key for this host")
        )
    return found


def _check_url(base_url: str) -> tuple[str, str] | None:
    """Message and hint if the gateway can't use a base URL, else None."""
    try:
        url = _parse_url(base_url)
    except ValueError:
        url = None
    if not url or not (url.address or HOST.fullmatch(url.host)) or not PRINTABLE.fullmatch(url.path or "/"):
        return "is not a URL that the gateway can connect to", "write https://HOST[:PORT]/v1 in ASCII"
    # localhost inside the gateway's container isn't this machine
    if is_loopback(url.host):
        return (
            "points to the gateway's own container",
            "use this machine's IP address or host name in the local network",
        )
    if url.tls and url.address:
        return (
            "needs a host name, because the gateway compares the host name with the certificate",
            "write https://HOST[:PORT]/v1",
        )
    return None


def _url(spec: FallbackSpec) -> str:
    cloud = CLOUDS.get(spec.provider or "")
    return spec.base_url or (cloud.url if cloud else "")


def _key_variables(spec: FallbackSpec) -> tuple[str, ...]:
    """Names of variables that may contain the key; the first variable that is set is used."""
    cloud = CLOUDS.get(spec.provider or "")
    if spec.api_key_env:
        return (spec.api_key_env,)
    # a cloud's key must not be sent to a host that the cloud doesn't own
    return cloud.key_names if cloud and cloud.owns(urlsplit(_url(spec)).hostname or "") else ()


def _provider(spec: FallbackSpec) -> str:
    return spec.provider or _parse_url(_url(spec)).host


def _parse_url(url: str) -> _ParsedUrl:
    """Parses a base URL. Raises ValueError for an invalid port."""
    parts = urlsplit(url)
    tls, host = parts.scheme == "https", parts.hostname or ""
    try:
        address = ip_address(host)
    except ValueError:
        address = None
    port = parts.port or (443 if tls else 80)
    return _ParsedUrl(tls, host, port, parts.netloc, parts.path.rstrip("/"), address)


def _escape_log_format(text: str) -> str:
    """Escapes `text` for a log format. Source: HAProxy 3.2's configuration manual, 8.2.4 "Custom log format"."""
    # only % is special in a log format
    return text.replace("%", "%%")
