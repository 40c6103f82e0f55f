"""Why a stack failed: one cause, its evidence, one fix.

Pure: it starts no program and speaks no HTTP. `stackgen.runtimes.evidence` collects what it reads.
"""

from __future__ import annotations

from stackgen.diagnose.engine import diagnose
from stackgen.diagnose.evidence import Evidence, ServiceEvidence
from stackgen.diagnose.model import Finding

__all__ = ["Evidence", "Finding", "ServiceEvidence", "diagnose"]
