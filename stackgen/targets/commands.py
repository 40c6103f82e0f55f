"""The commands in hints: texts name commands of Compose, and this module replaces them for a stack in a cluster.

Most texts are about servers of any kind, and their authors don't know where the server runs. So one table has the
commands that do the same in a cluster. A test applies it to every text of the packages that a cluster's user can see.
"""

from __future__ import annotations

import re

__all__ = ["for_cluster"]

# Deployments that have the same name in every stack; other services may be LeaderWorkerSets
DEPLOYMENT = r"(?P<name>gateway|exporter)"
SERVICE = r"(?P<name>[\w{}-]+)"
TABLE = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (rf"docker compose logs {DEPLOYMENT}", r"kubectl -n {namespace} logs deployment/\g<name>"),
        (rf"docker compose logs {SERVICE}", r"stackgen logs \g<name>"),
        (r"docker compose logs", "stackgen logs"),
        (r"docker compose ps", "kubectl -n {namespace} get pods"),
        (r"docker compose images", "kubectl -n {namespace} get pods -o wide"),
        (rf"docker compose restart {SERVICE}", r"kubectl -n {namespace} rollout restart deployment/\g<name>"),
        (rf"docker compose exec {SERVICE} ", r"kubectl -n {namespace} exec deployment/\g<name> -- "),
        (r"docker compose up(?: -d)?", "kubectl apply --server-side -k kubernetes"),
        (r"stackgen update", "stackgen up"),
        (r"add a replica \(`stackgen scale`\)", "increase `replicas` in stack.yaml"),
        (r"`stackgen scale`", "`replicas` in stack.yaml"),
        (r"the Docker engine is still running", "the cluster answers (`kubectl get nodes`)"),
        (r"Docker's port proxy drops connections while the program in the container is not listening yet",
         "a port that kubectl forwards drops connections while the program in the pod is not listening yet"),
        (r"the process that forwards the port \(docker-proxy\)", "`kubectl port-forward`"),
    )
)  # fmt: skip


def for_cluster(text: str, namespace: str) -> str:
    """`text` with commands that work on a stack in the namespace `namespace` of a cluster."""
    # most texts name no command
    if "ocker" not in text and "stackgen" not in text:
        return text
    for pattern, replacement in TABLE:
        text = pattern.sub(replacement.replace("{namespace}", namespace), text)
    return text
