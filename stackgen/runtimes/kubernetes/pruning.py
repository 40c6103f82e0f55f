"""Finds and deletes objects that an earlier version of a stack has left in the cluster. Keeps claims and namespaces.

stackgen compares labels and names itself: `kubectl apply --prune` has been alpha since Kubernetes 1.5, and ApplySets
need an environment variable and a parent object (docs/decisions/kubernetes.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from stackgen.errors import StartError
from stackgen.render.templating import RenderedFile
from stackgen.runtimes.kubernetes.kubectl import CHANGE_LIMIT, Kubectl
from stackgen.runtimes.kubernetes.lifecycle import CLAIMS, KINDS, selector

__all__ = ["delete_former", "find_former", "is_file_map", "names_built", "names_rendered"]

COLUMNS = (
    '{range .items[*]}{.kind}{"|"}{.apiVersion}{"|"}{.metadata.name}{"|"}{.metadata.ownerReferences[*].kind}{"\\n"}'
    "{end}"
)


def names_rendered(files: Iterable[RenderedFile]) -> set[str]:
    """The objects in rendered manifests, as KIND.GROUP/NAME; without the ConfigMaps and Secrets of kustomize."""
    texts = (one.text for one in files if one.path.endswith(".yaml") and "/" not in one.path)
    return {name for text in texts for one in yaml.load_all(text, yaml.CSafeLoader) if (name := _name(one))}


def names_built(cluster: Kubectl, manifests: Path) -> set[str]:
    """The objects that `kubectl apply -k` creates from the folder on disk, as KIND.GROUP/NAME."""
    text = cluster.run("kustomize", str(manifests), limit=CHANGE_LIMIT)
    found = {name for one in yaml.load_all(text, yaml.CSafeLoader) if (name := _name(one))}
    if not found:
        # everything in the cluster would look like a leftover
        raise StartError(f"`kubectl kustomize {manifests}` printed no object", "run `stackgen render`")
    return found


def find_former(cluster: Kubectl, stack: str, wanted: set[str]) -> tuple[str, ...]:
    """The objects with the labels of `stack` that are not in `wanted`, in the order in which they can be deleted.

    Claims stay, and what a controller of the cluster has made of another object. Raises MachineError if the cluster
    does not answer, or refuses this user.
    """
    known = cluster.kinds()
    kinds = [one for one in KINDS if one in known and one != CLAIMS]
    text = cluster.run("get", ",".join(kinds), *selector(stack), "--output", f"jsonpath={COLUMNS}") if kinds else ""
    found: list[str] = []
    for line in filter(None, text.splitlines()):
        kind, version, name, owners = line.split("|", 3)
        full = _join(kind, version, name)
        if not owners and full not in wanted:
            found.append(full)
    return tuple(dict.fromkeys(found))


def delete_former(cluster: Kubectl, names: Sequence[str]) -> None:
    """Deletes the objects. Pods end within their grace period. Raises StartError if the cluster refuses."""
    if names:
        cluster.run("delete", *names, "--ignore-not-found", "--wait=false", limit=CHANGE_LIMIT)


def is_file_map(name: str) -> bool:
    """Whether the object is a ConfigMap or Secret: pods of the former version may still need it during a rollout."""
    return name.startswith(("configmap/", "secret/"))


def _name(one: Any) -> str:
    if not isinstance(one, dict) or "kind" not in one or "name" not in one.get("metadata", {}):
        return ""
    return _join(one["kind"], one.get("apiVersion", ""), one["metadata"]["name"])


def _join(kind: str, version: str, name: str) -> str:
    group = version.rpartition("/")[0]
    return f"{kind.lower()}{'.' if group else ''}{group}/{name}"
