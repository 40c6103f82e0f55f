"""Checks rendered manifests before they are written: the rules, and the sizes of ConfigMaps."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from stackgen.errors import StackgenError
from stackgen.kubernetes.files import MAX_CONFIG_MAP
from stackgen.kubernetes.manifests import config_map_of
from stackgen.kubernetes.rules import find_mistakes
from stackgen.render.templating import RenderedFile
from stackgen.spec import KubernetesSpec

__all__ = ["validate_manifests"]

# what kustomize reads itself
NOT_APPLIED = ("kustomization.yaml", "references.yaml")
# mistakes that one message names
SHOWN = 5
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def validate_manifests(files: Sequence[RenderedFile], settings: KubernetesSpec) -> None:
    """Raises StackgenError with what the cluster would refuse, or what would never start."""
    names = [file for file in files if "/" not in file.path and file.path not in NOT_APPLIED]
    objects = [one for file in names for one in yaml.load_all(file.text, Loader) if one]
    claims = {f"PersistentVolumeClaim/{one}" for one in (settings.weights.claim, settings.cache.claim) if one}
    found = [str(one) for one in find_mistakes(objects, existing=claims)]
    sizes: dict[str, int] = {}
    for file in files:
        if name := config_map_of(file.path):
            sizes[name] = sizes.get(name, 0) + len(file.text.encode())
    found += [
        f"ConfigMap/{name}: has {size} bytes, but at most 1 MiB is allowed. Divide the models among several stacks"
        for name, size in sizes.items()
        if size > MAX_CONFIG_MAP
    ]
    if found:
        more = f"\n  and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise StackgenError(
            "the cluster would not accept these manifests\n  " + "\n  ".join(found[:SHOWN]) + more,
            "correct the fields of stack.yaml that lead to these errors, or write the manifests anyway with "
            "--no-validate",
        )
