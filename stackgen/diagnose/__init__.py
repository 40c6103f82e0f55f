"""Finds out why a stack failed: one cause, its evidence, one fix.

This package starts no program and sends no request. `stackgen.runtimes.observation.evidence` collects the evidence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stackgen.diagnose.evidence import Evidence, ServiceEvidence
    from stackgen.diagnose.rule import Finding
    from stackgen.diagnose.rule_engine import diagnose

__all__ = ["Evidence", "Finding", "ServiceEvidence", "diagnose"]

_MODULES = {"Evidence": "evidence", "ServiceEvidence": "evidence", "Finding": "rule", "diagnose": "rule_engine"}


def __getattr__(name: str) -> object:
    # every command imports a module of this package; compiling the patterns of all rules would take longer
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
