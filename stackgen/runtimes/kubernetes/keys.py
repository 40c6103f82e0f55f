"""Clients' keys in the gateway of a cluster: loads changed keys, and reads how much each key was used.

To load keys, it applies one Secret, and waits until all pods of the gateway have loaded it.

Sources: Kubernetes 1.37, "Secrets" (a kubelet updates a mounted Secret when it looks at the pod the next time, about
once a minute; any change of the pod makes it look at once). HAProxy 3.2's management guide, 9.3 "show map".
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import yaml

from stackgen.errors import MachineError, StartError
from stackgen.kubernetes.names import INSTANCE, KEYS_SECRET, NAME
from stackgen.plan import Plan
from stackgen.resolve.addons.gateway import SERVICE
from stackgen.runtimes.kubernetes.kubectl import Kubectl
from stackgen.stack.key_counts import KeyUsage, is_complete, parse_counts

__all__ = ["apply_keys", "has_keys", "read_counts", "wait_for_keys"]

# bash opens the connection, because the image has no curl; the port and the file are those of templates/gateway
SHOW_MAP = "exec 3<>/dev/tcp/127.0.0.1/8406 && printf 'show map /gateway/keys.map\\n' >&3 && cat <&3"
KEY_METRICS = "exec 3<>/dev/tcp/127.0.0.1/8405 && printf 'GET /keys HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3"
ENTRY = re.compile(r"(?m)^0x[0-9a-f]+ (\S+) (.*)$")
# seconds: a kubelet needs up to two minutes, and the script in the pod looks every 5 s
LIMIT, INTERVAL = 150.0, 2.0
CHANGED = "stackgen/keys-changed"


def has_keys(cluster: Kubectl) -> bool:
    """Whether the cluster has the Secret with the keys. Raises MachineError if the cluster does not answer."""
    return bool(cluster.run("get", "secret", KEYS_SECRET, "--ignore-not-found", "--output", "name").strip())


def apply_keys(cluster: Kubectl, manifests: Path) -> None:
    """Applies the Secret with the keys, and nothing else of the folder `manifests`.

    Raises StartError if the cluster refuses it.
    """
    objects = yaml.load_all(cluster.run("kustomize", str(manifests)), yaml.CSafeLoader)
    secret = next(
        (one for one in objects if one and one["kind"] == "Secret" and one["metadata"]["name"] == KEYS_SECRET), None
    )
    if secret is None:
        raise StartError(f"{manifests} has no Secret {KEYS_SECRET}", "run `stackgen up`")
    cluster.apply("-f", "-", stdin=yaml.safe_dump(secret))


def read_counts(cluster: Kubectl, plan: Plan) -> list[dict[str, KeyUsage]]:
    """Returns the counts of keys in each running pod of the gateway.

    Raises StartError if a pod does not return them, or if this user may not look.
    """
    found = []
    for pod in _running_gateways(cluster, plan):
        text = cluster.run("exec", pod, "--", "bash", "-c", KEY_METRICS)
        if not is_complete(text):
            raise StartError(f"{pod} did not return its metrics", f"run `stackgen logs {SERVICE}` for details")
        found.append(parse_counts(text))
    return found


def _running_gateways(cluster: Kubectl, plan: Plan) -> list[str]:
    selector = ("--selector", f"{INSTANCE}={plan.name},{NAME}={SERVICE}", "--field-selector", "status.phase=Running")
    return [one["metadata"]["name"] for one in cluster.read("pods", *selector)]


def wait_for_keys(cluster: Kubectl, plan: Plan, wanted: Mapping[str, str], limit: float = LIMIT) -> bool:
    """Waits until each running pod of the gateway accepts exactly the keys in `wanted` (hash to name).

    Returns False if no pod of the gateway runs. Raises StartError after `limit` seconds, or if this user may not look.
    """
    end = time.monotonic() + limit
    pods = _running_gateways(cluster, plan)
    for pod in pods:
        # without this right, the kubelet notices the change a minute later
        with suppress(StartError, MachineError):
            cluster.run("annotate", "pod", pod, f"{CHANGED}={time.time_ns()}", "--overwrite")
    waiting = dict.fromkeys(pods, "")
    while waiting:
        for pod in tuple(waiting):
            try:
                loaded = dict(ENTRY.findall(cluster.run("exec", pod, "--", "bash", "-c", SHOW_MAP)))
            except StartError as error:
                waiting[pod] = error.message
                continue
            if loaded == dict(wanted):
                del waiting[pod]
            else:
                waiting[pod] = "the pod has different keys"
        if waiting and time.monotonic() >= end:
            rows = "".join(f"\n  {pod}: {reason}" for pod, reason in waiting.items())
            raise StartError(f"pods of the gateway have not loaded the keys within {limit:.0f} seconds:{rows}",
                             f"`kubectl logs deployment/{SERVICE}` shows whether HAProxy rejected a file")  # fmt: skip
        if waiting:
            time.sleep(INTERVAL)
    return bool(pods)
