"""What the gateway needs to know about clients' keys: limits, allowed models, last days and token budgets, as maps.

The gateway looks up each of them by the key's name, so that no request depends on the number of keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timezone
from difflib import get_close_matches

from stackgen.errors import Mistake
from stackgen.plan import Asset
from stackgen.spec import GatewaySpec
from stackgen.spec.keys import ENV_KEY, KeyDefaults, KeySpec

__all__ = ["NO_RULES", "KeyRules", "assets", "key_maps", "key_mistakes", "key_rules", "key_warnings", "pod_warnings"]

# value of a map: lines of name and value, with a heading
Maps = dict[str, tuple[str, list[tuple[str, str]]]]
FILES = ("usage.lua", "count.lua")
COUNTED = ("requests_per_minute", "concurrent_requests", "tokens_per_day")
DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class KeyRules:
    """Which rules for keys the configuration needs; each costs time for every request.

    `restricted`: some key may use only some models. `expiring`: some key has a last day. `counted`: the tokens of
    every response are counted. `budgeted`: some key has a token budget.
    The other fields are the limits of keys that the maps do not contain; 0 is no limit.
    """

    restricted: bool = False
    expiring: bool = False
    counted: bool = False
    budgeted: bool = False
    rate: int = 0
    concurrency: int = 0
    expiry: int = 0
    budget: int = 0


NO_RULES = KeyRules()


def key_rules(spec: GatewaySpec) -> KeyRules:
    """Returns the rules that the keys of `spec` need."""
    others = spec.key_defaults or KeyDefaults()
    limits: tuple[KeySpec | KeyDefaults, ...] = (*spec.limited_keys, others)
    budgeted = any(one.tokens_per_day for one in limits)
    return KeyRules(
        restricted=any(key.models for key in spec.keys),
        expiring=any(one.expires for one in limits),
        counted=budgeted or bool(spec.count_tokens),
        budgeted=budgeted,
        rate=others.requests_per_minute or 0,
        concurrency=others.concurrent_requests or 0,
        expiry=_end(others.expires) if others.expires else 0,
        budget=others.tokens_per_day or 0,
    )


def assets(spec: GatewaySpec) -> tuple[Asset, ...]:
    """Returns the Lua files that count tokens, if the keys of `spec` need them."""
    return tuple(Asset(f"gateway/{name}", f"gateway/{name}") for name in FILES) if key_rules(spec).counted else ()


def key_mistakes(spec: GatewaySpec, served: Sequence[str]) -> list[Mistake]:
    """Finds names that are listed twice, models that the stack does not serve, and budgets without a count."""
    names = Counter(key.name for key in spec.keys)
    found = [
        Mistake("gateway.keys", f"{name!r} is listed twice", hint="remove one of them")
        for name in sorted(name for name, count in names.items() if count > 1)
    ]
    for index, key in enumerate(spec.keys):
        for name in key.models or ():
            if name not in served:
                close = get_close_matches(name, served, 1)
                hint = f"did you mean {close[0]}?" if close else f"the served names are: {', '.join(served)}"
                found.append(Mistake(f"gateway.keys[{index}].models", f"no model is served as {name!r}", hint=hint))
    if spec.count_tokens is False and key_rules(spec).budgeted:
        found.append(
            Mistake("gateway.count_tokens", "is false, but a key has tokens_per_day",
                    hint="remove count_tokens, because a token budget needs the count")
        )  # fmt: skip
    return found


def key_warnings(spec: GatewaySpec) -> tuple[str, ...]:
    """Warns of keys whose last day is over, in UTC."""
    today = datetime.now(timezone.utc).date()
    last = spec.key_defaults.expires if spec.key_defaults else None
    defaults = (
        f"the last day of gateway.key_defaults was {last}, so the gateway answers 401 to every key without its own "
        "`expires`, except for the key in .env. Set a later day",
    )
    return (*(defaults if last and last < today else ()), *(
        f"the last day of the key {key.name} was {key.expires}, so the gateway answers 401 to its requests. Remove the "
        "key, or set a later day in `expires`"
        for key in spec.keys
        if key.expires and key.expires < today
    ))  # fmt: skip


def pod_warnings(spec: GatewaySpec, pods: int) -> tuple[str, ...]:
    """Warns of limits of keys that each pod of the gateway counts alone. `pods`: how many the cluster runs."""
    fields = [name for name in COUNTED if _values(spec, name)]
    if pods < 2 or not fields:
        return ()
    return (
        f"gateway.keys: each of the {pods} pods of the gateway counts the requests and tokens of a key separately, so "
        f"a key can use up to {pods} times its {' and '.join(fields)}. To count in one "
        "pod, set `kubernetes.gateway_replicas: 1`; then each new pod begins at 0",
    )


def key_maps(spec: GatewaySpec, models: Sequence[tuple[str, tuple[str, ...]]], describe: Callable[[str], str]) -> Maps:
    """Returns the maps by name. `models`: backend and served names. `describe` returns a name's entry in a list."""
    rules = key_rules(spec)
    maps: Maps = {
        "rates": ("key name -> requests per minute", _values(spec, "requests_per_minute")),
        "concurrency": ("key name -> max concurrent requests", _values(spec, "concurrent_requests")),
    }
    if rules.expiring:
        maps["expiries"] = ("key name -> seconds since 1970 from which the key is not valid", _values(spec, "expires"))
    if rules.budgeted:
        maps["budgets"] = ("key name -> tokens per day", _values(spec, "tokens_per_day"))
    if rules.restricted:
        limited = [(key.name, key.models) for key in spec.keys if key.models]
        lists = [(key, ",".join(map(describe, names))) for key, names in limited]
        # model names in hex, so that no name can break the format of the map
        granted = [(f"{key}:{name.encode().hex().upper()}", "1") for key, names in limited for name in names]
        entries = [
            (f"{key}:{backend}", ",".join(describe(name) for name in own if name in names))
            for key, names in limited
            for backend, own in models
            if set(own) & set(names)
        ]
        maps["restricted"] = ("name of a key with `models` -> entries of these models in a list of models", lists)
        maps["grants"] = (
            "key:model (hex) -> allowed; key:backend -> entries of its allowed models in GET /v1/models",
            [*granted, *entries],
        )
    return maps


def _values(spec: GatewaySpec, field: str) -> list[tuple[str, str]]:
    """The limit of each key that has one. With a default, 0 for each key that has none."""
    keys = {key.name: getattr(key, field) for key in spec.limited_keys}
    if spec.key_defaults and getattr(spec.key_defaults, field):
        keys = {ENV_KEY: None} | keys
    else:
        keys = {name: value for name, value in keys.items() if value}
    return [(name, str(_end(value) if isinstance(value, date) else value or 0)) for name, value in keys.items()]


def _end(day: date) -> int:
    """Returns the end of the day in UTC, in seconds since 1970."""
    # in seconds, because the day after 9999-12-31 is no date
    return int(datetime.combine(day, time(), timezone.utc).timestamp()) + DAY_SECONDS
