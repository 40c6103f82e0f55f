"""The fields of clients' keys at the gateway: the name and the limits of each one, and the limits of all others."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from stackgen.spec.base import Strict
from stackgen.spec.types import Text

__all__ = ["ENV_KEY", "KeyDefaults", "KeySpec", "apply_defaults"]

# the name appears in log lines, metric labels and the columns of keys.map: no spaces, no quotes
KEY_LABEL = r"^[a-z0-9][a-z0-9_-]{0,31}$"
# the key in .env, which the stack's own commands and services use
ENV_KEY = "default"


def _check_date(value: Any) -> Any:
    # YAML reads an unquoted date as a date; a time of day would be ignored
    if type(value) is not date and not (isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value)):
        raise PydanticCustomError("expires", "must be a date, for example 2027-01-31")
    try:
        return date.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise PydanticCustomError("expires", "is not a date, because the calendar has no such day") from None


RequestsPerMinute = Annotated[
    int | None,
    Field(
        ge=1,
        le=1_000_000,
        description="Maximum number of requests in any period of 60 s. Further requests get a 429, and don't count",
    ),
]
ConcurrentRequests = Annotated[
    int | None,
    Field(
        ge=1,
        le=100_000,
        description="Maximum number of requests in flight at the same time. Further requests get a 429",
    ),
]
LastDay = Annotated[
    Annotated[date, BeforeValidator(_check_date)] | None,
    Field(
        description="Last day on which the key is valid, in UTC, for example 2027-01-31. After this day, requests "
        "with the key get a 401"
    ),
]
TokensPerDay = Annotated[
    int | None,
    Field(
        ge=1,
        le=1_000_000_000_000,
        description="Maximum number of tokens of prompts and answers per day (UTC). When they are used up, requests "
        "get a 429 until midnight",
    ),
]


class KeyDefaults(Strict):
    """Limits for all keys without limits of their own, except the key in `.env`."""

    requests_per_minute: RequestsPerMinute = None
    concurrent_requests: ConcurrentRequests = None
    expires: LastDay = None
    tokens_per_day: TokensPerDay = None


class KeySpec(Strict):
    """Names the API key of one client. `gateway/keys.map` contains only the key's SHA-256, not the key."""

    name: str = Field(
        pattern=KEY_LABEL,
        description="Name of the key in logs and metrics: at most 32 lower-case letters, digits, `_` and `-`, and the "
        "first character is a letter or digit. `stackgen keys new NAME` creates the key",
    )
    requests_per_minute: RequestsPerMinute = None
    concurrent_requests: ConcurrentRequests = None
    models: tuple[Text, ...] | None = Field(
        None, min_length=1, description="Served names that the key may use. Other models get a 403. Default: all models"
    )
    expires: LastDay = None
    tokens_per_day: TokensPerDay = None


def apply_defaults(key: KeySpec, defaults: KeyDefaults | None) -> KeySpec:
    """Returns `key` with the limits of `defaults` that it does not set itself; `null` is a value too."""
    if defaults is None or key.name == ENV_KEY:
        return key
    added = {name: getattr(defaults, name) for name in type(defaults).model_fields if name not in key.model_fields_set}
    return key.model_copy(update=added)
