"""Rules about resources: quantities, requests and limits, GPUs.

Sources: Kubernetes 1.37, apimachinery `pkg/api/resource/quantity.go` (quantities), `pkg/apis/core/validation`
(`ValidateResourceRequirements`: extended resources are whole numbers, with equal request and limit).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from stackgen.kubernetes.rules.finding import Finding, Manifests, as_dict, as_list

__all__ = ["find_bad_quantities", "find_fractions", "find_low_limits", "find_unequal_requests", "parse_quantity"]

QUANTITY = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))(n|u|m|k|M|G|T|P|E|[KMGTPE]i|[eE][+-]?\d+)?")
FACTORS = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
# resources of Kubernetes itself have no domain
DOMAIN = "/"


def parse_quantity(value: Any) -> Decimal | None:
    """The value of a quantity as a number; None if `value` is no quantity."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    found = QUANTITY.fullmatch(str(value))
    if not found:
        return None
    number, unit = Decimal(found[1]), found[2] or ""
    if unit in BINARY:
        return number * Decimal(1024 ** BINARY[unit])
    return number.scaleb(FACTORS[unit] if unit in FACTORS else int(unit[1:] or 0)) if unit else number


def _amounts(manifests: Manifests) -> Iterator[tuple[Any, str, str, Any, Any]]:
    """Yields owner, path, resource, request and limit; None if there is none."""
    for pod in manifests.pods:
        for path, container in pod.containers():
            resources = as_dict(container.get("resources"))
            requests, limits = as_dict(resources.get("requests")), as_dict(resources.get("limits"))
            for name in dict.fromkeys((*requests, *limits)):
                yield pod.owner, f"{path}.resources", str(name), requests.get(name), limits.get(name)


def find_bad_quantities(manifests: Manifests) -> Iterator[Finding]:
    """A quantity such as `80 GB` is no quantity."""
    rule = "quantity"
    for owner, path, name, *values in _amounts(manifests):
        for value in values:
            if value is not None and ((number := parse_quantity(value)) is None or number < 0):
                yield manifests.finding(
                    rule, owner, f"{path}.{name}", f"{value!r} is not a quantity such as 500m or 8Gi"
                )
    for claim in manifests.of_kind("PersistentVolumeClaim"):
        value = as_dict(as_dict(as_dict(claim.get("spec")).get("resources")).get("requests")).get("storage")
        if (number := parse_quantity(value)) is None or number <= 0:
            yield manifests.finding(
                rule, claim, "spec.resources.requests.storage", f"{value!r} is not a size such as 8Gi"
            )
    for pod in manifests.pods:
        for index, volume in enumerate(as_list(pod.spec.get("volumes"))):
            limit = as_dict(as_dict(volume).get("emptyDir")).get("sizeLimit")
            if limit is not None and parse_quantity(limit) is None:
                path = f"{pod.path}.spec.volumes[{index}].emptyDir.sizeLimit"
                yield manifests.finding(rule, pod.owner, path, f"{limit!r} is not a size such as 8Gi")


def find_fractions(manifests: Manifests) -> Iterator[Finding]:
    """A GPU can't be divided."""
    for owner, path, name, *values in _amounts(manifests):
        for value in values:
            number = parse_quantity(value)
            if DOMAIN in name and number is not None and number != number.to_integral_value():
                yield manifests.finding("whole-gpus", owner, f"{path}.{name}", f"{value} is not a whole number")


def find_unequal_requests(manifests: Manifests) -> Iterator[Finding]:
    """Request and limit of a GPU must be equal; a request without a limit is refused too."""
    for owner, path, name, request, limit in _amounts(manifests):
        if DOMAIN not in name or request is None:
            continue
        if limit is None:
            yield manifests.finding("gpu-limit", owner, f"{path}.{name}", "has a request, but no limit")
        elif parse_quantity(request) != parse_quantity(limit):
            message = f"the request {request} differs from the limit {limit}"
            yield manifests.finding("gpu-limit", owner, f"{path}.{name}", message)


def find_low_limits(manifests: Manifests) -> Iterator[Finding]:
    """A request must not be above its limit."""
    for owner, path, name, request, limit in _amounts(manifests):
        low, high = parse_quantity(request), parse_quantity(limit)
        if DOMAIN not in name and low is not None and high is not None and low > high:
            message = f"the request {request} is above the limit {limit}"
            yield manifests.finding("limit", owner, f"{path}.{name}", message)
