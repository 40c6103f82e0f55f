"""Rules for mistakes in manifests that no schema finds: the cluster refuses such manifests, or pods wait forever."""

from __future__ import annotations

from stackgen.kubernetes.rules.finding import Finding
from stackgen.kubernetes.rules.table import RULES, find_mistakes

__all__ = ["RULES", "Finding", "find_mistakes"]
