"""One finding, and what the rules know about a set of manifests."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Finding", "Manifests", "PodPlace", "as_dict", "as_list", "labels_match"]

Object = Mapping[str, Any]
DEPLOYMENT_KINDS = ("Deployment", "StatefulSet", "DaemonSet", "Job")


@dataclass(frozen=True, slots=True)
class Finding:
    """A mistake: the `rule` that found it, the object (`Kind/name`), the `path` in it, and what is wrong."""

    rule: str
    object: str
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.object} {self.path}: {self.message}"


@dataclass(frozen=True, slots=True)
class PodPlace:
    """A pod, or a template of one: the object that has it, its path in it, its metadata and its spec."""

    owner: Object
    path: str
    labels: Mapping[str, str]
    spec: Object
    annotations: Mapping[str, str] = field(default_factory=dict)

    def containers(self) -> Iterator[tuple[str, Object]]:
        """Yields path and content of each container, init containers first."""
        for kind in ("initContainers", "containers"):
            for number, one in enumerate(as_list(self.spec.get(kind))):
                yield f"{self.path}.spec.{kind}[{number}]", as_dict(one)


class Manifests:
    """A set of objects that are applied together, next to those of the cluster in `existing` (`Kind/name`)."""

    def __init__(self, objects: Sequence[Object], existing: Collection[str] = ()) -> None:
        self.existing = set(existing)
        self.objects = [one for one in objects if isinstance(one, Mapping)]
        self.pods = [place for one in self.objects for place in _pods(one)]

    def of_kind(self, *kinds: str) -> Iterator[Object]:
        """Yields all objects of these kinds."""
        return (one for one in self.objects if one.get("kind") in kinds)

    def finding(self, rule: str, one: Object, path: str, message: str) -> Finding:
        """Returns a finding of `rule` about `one`."""
        name = as_dict(one.get("metadata")).get("name", "?")
        return Finding(rule, f"{one.get('kind', '?')}/{name}", path, message)


def as_dict(value: Any) -> Mapping[str, Any]:
    """`value` if it is a mapping, else an empty one: schemas report wrong types, not these rules."""
    return value if isinstance(value, Mapping) else {}


def as_list(value: Any) -> Sequence[Any]:
    """`value` if it is a list, else an empty one."""
    return value if isinstance(value, list) else ()


def labels_match(selector: Any, labels: Mapping[str, str]) -> bool:
    """Whether `matchLabels` (or the selector of a Service) selects `labels`; an empty one selects nothing here."""
    wanted = as_dict(selector)
    return bool(wanted) and all(labels.get(name) == value for name, value in wanted.items())


def _pods(one: Object) -> Iterator[PodPlace]:
    spec = as_dict(one.get("spec"))
    if one.get("kind") == "Pod":
        yield PodPlace(one, "", as_dict(as_dict(one.get("metadata")).get("labels")), spec)
    elif one.get("kind") in DEPLOYMENT_KINDS:
        yield _template(one, "spec.template", spec.get("template"))
    elif one.get("kind") == "LeaderWorkerSet":
        group = as_dict(spec.get("leaderWorkerTemplate"))
        for name in ("leaderTemplate", "workerTemplate"):
            if name in group:
                yield _template(one, f"spec.leaderWorkerTemplate.{name}", group[name])


def _template(one: Object, path: str, template: Any) -> PodPlace:
    content = as_dict(template)
    metadata = as_dict(content.get("metadata"))
    notes = as_dict(metadata.get("annotations"))
    return PodPlace(one, path, as_dict(metadata.get("labels")), as_dict(content.get("spec")), notes)
