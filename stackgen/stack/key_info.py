"""What is known about the keys of one name: their hashes, and the rules that `gateway.keys` in stack.yaml sets."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from stackgen.spec.keys import KeyDefaults, KeySpec

__all__ = ["DEFAULT", "KeyInfo"]

# the name of the key in .env
DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """A name and the hashes of its keys, oldest first.

    `from_env`: the key in .env is one of them. `declared`: the name is in gateway.keys, or `default`. `limits` of other
    names are those of gateway.key_defaults.
    """

    name: str
    hashes: tuple[str, ...] = ()
    from_env: bool = False
    declared: bool = False
    limits: KeySpec | KeyDefaults | None = None

    @property
    def is_expired(self) -> bool:
        """Whether the last day of the keys is over, in UTC."""
        last = self.limits and self.limits.expires
        return bool(last and last < datetime.now(timezone.utc).date())

    def to_json(self) -> dict[str, Any]:
        """Returns plain data for `--json`."""
        limits = self.limits
        return {
            "name": self.name,
            # eight characters are enough to distinguish keys
            "keys": [one[:8] for one in self.hashes],
            "from_env": self.from_env,
            "declared": self.declared,
            "requests_per_minute": limits and limits.requests_per_minute,
            "concurrent_requests": limits and limits.concurrent_requests,
            "tokens_per_day": limits and limits.tokens_per_day,
            "models": list(limits.models) if isinstance(limits, KeySpec) and limits.models else None,
            "expires": limits.expires.isoformat() if limits and limits.expires else None,
        }

    def to_line(self) -> str:
        """Returns one line of text: the number of keys, the start of each hash, rules, and anything unusual."""
        parts = [f"{len(self.hashes)} key{'' if len(self.hashes) == 1 else 's'}"]
        parts += [one[:8] for one in self.hashes]
        parts += self._rules()
        if not self.hashes:
            parts.append(f"`stackgen keys new {self.name}` creates a key")
        elif not self.declared:
            has = "the limits of gateway.key_defaults" if self.limits else "no limits"
            parts.append(f"not listed in gateway.keys, so this key has {has} and no metrics")
        if self.name == DEFAULT and self.hashes and not self.from_env:
            parts.append("the key in .env is not one of these keys: run `stackgen keys rotate default`")
        return f"{self.name:32}  " + "  ".join(parts)

    def _rules(self) -> list[str]:
        limits = self.limits
        if limits is None:
            return []
        units = {
            "requests_per_minute": "requests per minute", "concurrent_requests": "concurrent requests",
            "tokens_per_day": "tokens per day",
        }  # fmt: skip
        rules = [f"{getattr(limits, field)} {unit}" for field, unit in units.items() if getattr(limits, field)]
        if isinstance(limits, KeySpec) and limits.models:
            rules.append(f"only {', '.join(limits.models)}")
        if limits.expires:
            rules.append(f"expired on {limits.expires}" if self.is_expired else f"valid until {limits.expires}")
        return rules
