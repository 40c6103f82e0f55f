"""Rules for manifests that no schema checks: what the API server, a controller or the kubelet refuses, or hangs on."""

from __future__ import annotations

from stackgen.kubernetes.rules.finding import Finding
from stackgen.kubernetes.rules.table import RULES, find_mistakes

__all__ = ["RULES", "Finding", "find_mistakes"]
