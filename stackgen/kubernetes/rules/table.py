"""The table of all rules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from stackgen.kubernetes.rules import objects, pods, resources
from stackgen.kubernetes.rules.finding import Finding, Manifests

__all__ = ["RULES", "find_mistakes"]

Rule = Callable[[Manifests], Iterator[Finding]]
RULES: tuple[Rule, ...] = (
    resources.find_bad_quantities, resources.find_fractions, resources.find_unequal_requests, resources.find_low_limits,
    pods.find_missing_volumes, pods.find_duplicate_mounts, pods.find_duplicate_names, pods.find_bad_ports,
    pods.find_missing_probe_ports, pods.find_late_variables, pods.find_short_graces, pods.find_service_links,
    pods.find_insecure_pods,
    objects.find_bad_names, objects.find_twins, objects.find_selector_mismatches, objects.find_empty_selectors,
    objects.find_lost_target_ports, objects.find_missing_references, objects.find_blocking_budgets, objects.find_surges,
    objects.find_job_restarts, objects.find_replica_conflicts, objects.find_bad_groups, objects.find_large_config_maps,
)  # fmt: skip


def find_mistakes(manifests: Sequence[Mapping[str, Any]], existing: Collection[str] = ()) -> list[Finding]:
    """Returns what no schema finds in `manifests`, which are applied together. Never raises, whatever they contain.

    `existing` are objects of the cluster that the manifests may refer to, as `Kind/name`.
    """
    known = Manifests(manifests, existing)
    return [finding for rule in RULES for finding in rule(known)]
