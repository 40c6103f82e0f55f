"""Why a stack failed: one cause, its evidence, one fix.

Pure: it starts no program and sends no request. `stackgen.runtimes.observation.evidence` collects what it reads.
"""

from __future__ import annotations

from stackgen.diagnose.evidence import Evidence, ServiceEvidence
from stackgen.diagnose.rule import Finding
from stackgen.diagnose.rule_engine import diagnose

__all__ = ["Evidence", "Finding", "ServiceEvidence", "diagnose"]
