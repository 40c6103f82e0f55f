"""Who answers for a model when all its replicas are down: a cloud, or another OpenAI-compatible server.

Off unless the stack names one. The gateway then changes the request's model, key and path (templates/gateway/
fallback.lua), and says in the header `x-stackgen-served-by` and in its log who answered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from stackgen.engines.base import served_names
from stackgen.errors import Mistake
from stackgen.plan import Asset, EnvRef
from stackgen.plan.clouds import CLOUDS
from stackgen.resolve.addons.backends import Backend, Fallback, backend_for
from stackgen.spec import FallbackSpec, StackSpec

__all__ = ["asked", "assets", "fallbacks", "keys", "mistakes", "warnings"]

# what a header carries as it is
PRINTABLE = re.compile(r"[!-~]{1,200}")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
HOME = ("localhost", "localhost.localdomain")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a provider is: `host` without brackets, `port` with the scheme's default."""

    tls: bool
    host: str
    port: int
    authority: str
    path: str
    address: IPv4Address | IPv6Address | None


def asked(stack: StackSpec) -> bool:
    """Whether any model names one."""
    return any(model.fallback for model in stack.models)


def mistakes(stack: StackSpec) -> list[Mistake]:
    """Providers without an address or a key, addresses that the gateway can't reach, and names no header carries."""
    found = []
    for index, model in enumerate(stack.models):
        if model.fallback:
            found += [
                Mistake(f"models[{index}].fallback{field and '.'}{field}", text, remedy)
                for field, text, remedy in _mistakes(model.fallback)
            ]
    return found


def fallbacks(stack: StackSpec, backends: Sequence[Backend]) -> tuple[Fallback, ...]:
    """One for each model that names one. Adapters beside a model have none: the provider does not know them."""
    found = []
    for model in stack.models:
        names, spec = served_names(model), model.fallback
        if not spec:
            continue
        backend = backend_for(model, backends)
        place, provider = _place(_url(spec)), _provider(spec)
        found.append(
            Fallback(
                name=f"fallback-{backend.name}",
                backend=backend.name,
                names=names,
                server=provider.replace(":", "_"),
                address=f"[{place.host}]:{place.port}" if ":" in place.host else f"{place.host}:{place.port}",
                authority=place.authority,
                certified=place.host if place.tls else "",
                path=_format(place.path),
                model=_format(json.dumps(spec.model)),
                served=_format(f"fallback/{provider}:{spec.model}"),
                # as the gateway reads it when it starts: no sign in a key can mean anything to the configuration
                authorization=f"Bearer %[env({_keys(spec)[0]})]",
            )
        )
    return tuple(found)


def keys(stack: StackSpec) -> tuple[tuple[str, str | EnvRef], ...]:
    """The variables that hold the providers' keys, for the gateway's environment; `STACKGEN_REQUIRED` names some."""
    specs = [(_keys(model.fallback), _provider(model.fallback)) for model in stack.models if model.fallback]
    said = "put the key of {} into .env: the stack names it as a fallback"
    found = {names[0]: EnvRef(names[0], said.format(provider), other="".join(names[1:2])) for names, provider in specs}
    # what may stand under one of two names, Compose can't ask for: the start script does
    either = tuple(name for name, value in found.items() if value.other)
    return (*found.items(), *((("STACKGEN_REQUIRED", " ".join(either)),) if either else ()))


def assets(stack: StackSpec) -> tuple[Asset, ...]:
    """The filter that changes a request, where any model has a fallback."""
    if not asked(stack):
        return ()
    return (Asset("gateway/fallback.lua", "gateway/fallback.lua"),)


def warnings(stack: StackSpec) -> list[str]:
    """That texts leave this machine, one sentence for each fallback."""
    found = []
    for model in stack.models:
        if model.fallback:
            place = _place(_url(model.fallback))
            plain = "" if place.tls else ", unencrypted and with the key"
            found.append(
                f"{served_names(model)[0]} has a fallback: when no replica is up, its requests with all their texts "
                f"leave this machine for {model.fallback.model} at {place.authority}{plain}"
            )
    return found


def _mistakes(spec: FallbackSpec) -> list[tuple[str, str, str]]:
    found = []
    if not PRINTABLE.fullmatch(spec.model):
        found.append(("model", "must be printable ASCII without blanks, 200 signs at most", "copy the id from there"))
    cloud = CLOUDS.get(spec.provider or "")
    if not spec.base_url and not cloud:
        text = f"is needed: {spec.provider} has no address of its own"
        return [*found, ("base_url", text, "e.g. http://10.0.0.5:8000/v1")]
    if wrong := _address(_url(spec)):
        found.append(("base_url", *wrong))
    names = _keys(spec)
    if names and names[0].startswith("STACKGEN_"):
        found.append(("api_key_env", "is a key of this stack, which no provider may have", "name another variable"))
    elif not names:
        text = f"is needed: the key of {spec.provider} goes to no other host" if cloud else "is needed"
        found.append(("api_key_env", text, "name the variable of .env that holds its key"))
    return found


def _address(url: str) -> tuple[str, str] | None:
    """What is wrong with a base URL, and the remedy."""
    try:
        place = _place(url)
    except ValueError:
        place = None
    if not place or not (place.address or HOST.fullmatch(place.host)) or not PRINTABLE.fullmatch(place.path or "/"):
        return "is no address that the gateway can connect to", "https://HOST[:PORT]/v1, all ASCII"
    if place.host in HOME or (place.address and (place.address.is_loopback or place.address.is_unspecified)):
        return "leads to the gateway's own container", "give this machine's address on its network"
    if place.tls and place.address:
        return "needs a host name: a certificate is checked against it", "https://HOST[:PORT]/v1"
    return None


def _url(spec: FallbackSpec) -> str:
    cloud = CLOUDS.get(spec.provider or "")
    return spec.base_url or (cloud.url if cloud else "")


def _keys(spec: FallbackSpec) -> tuple[str, ...]:
    """The variables that may hold the key, the first that is set counts; a cloud's are for its own hosts only."""
    cloud = CLOUDS.get(spec.provider or "")
    if spec.api_key_env:
        return (spec.api_key_env,)
    return cloud.keys if cloud and cloud.owns(urlsplit(_url(spec)).hostname or "") else ()


def _provider(spec: FallbackSpec) -> str:
    return spec.provider or _place(_url(spec)).host


def _place(url: str) -> _Place:
    """Raises ValueError for a port that is none."""
    parts = urlsplit(url)
    tls, host = parts.scheme == "https", parts.hostname or ""
    try:
        address = ip_address(host)
    except ValueError:
        address = None
    port = parts.port or (443 if tls else 80)
    return _Place(tls, host, port, parts.netloc, parts.path.rstrip("/"), address)


def _format(text: str) -> str:
    """`text` as a log format: HAProxy 3.2's configuration manual, 8.2.4 "Custom log format"."""
    return text.replace("%", "%%")
