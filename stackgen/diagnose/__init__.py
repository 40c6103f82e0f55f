"""Finds out why a stack failed: one cause, its evidence, one fix.

This package starts no program and sends no request. `stackgen.runtimes.observation.evidence` collects the evidence.
"""

from __future__ import annotations

from stackgen.diagnose.evidence import Evidence, ServiceEvidence
from stackgen.diagnose.rule import Finding
from stackgen.diagnose.rule_engine import diagnose

__all__ = ["Evidence", "Finding", "ServiceEvidence", "diagnose"]
