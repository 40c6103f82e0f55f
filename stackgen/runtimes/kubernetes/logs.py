"""The logs of a stack's pods, through `kubectl logs`.

Flags: kubectl 1.25 to 1.32 (`k8s.io/kubectl`, `pkg/cmd/logs/logs.go`). `--prefix` writes `[pod/NAME/CONTAINER] ` before
each line; `--ignore-errors` writes the error of a container that has not started yet, and goes on.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence

from stackgen.errors import StackgenError, StartError
from stackgen.kubernetes.names import INSTANCE, MANAGER, NAME
from stackgen.plan import Plan
from stackgen.runtimes.kubernetes.kubectl import Kubectl

__all__ = ["cluster_logs"]

PREFIX = re.compile(r"^\[pod/(?P<pod>[^/\]]+)/(?P<container>[^\]]+)\] ?(?P<text>.*)$")
# kubectl follows 5 containers by default, and refuses more
FOLLOWED = 1000


def cluster_logs(
    cluster: Kubectl,
    plan: Plan,
    services: Sequence[str],
    follow: bool,
    tail: str,
    show: Callable[[str, str, str], None],
) -> int:
    """Calls `show(service, pod, text)` for each line of the logs. Returns kubectl's exit code.

    `tail` is `all` or a number of lines for each container. Raises StackgenError for a service that the stack does not
    have, MachineError if the cluster does not answer, and StartError if no pod has a log.
    """
    known = [one.name for one in plan.services]
    if unknown := [one for one in services if one not in known]:
        raise StackgenError(f"the stack has no service {unknown[0]}", f"services: {', '.join(known)}")
    selector = f"{INSTANCE}={plan.name},{MANAGER}=stackgen"
    selector += f",{NAME} in ({','.join(services)})" if services else ""
    pods = cluster.read("pods", "--selector", selector)
    if not pods:
        raise StartError("the cluster has no pod of the stack", "`stackgen status` shows the services")
    owners = {one["metadata"]["name"]: one["metadata"].get("labels", {}).get(NAME, "") for one in pods}
    words = cluster.words(
        "logs", "--selector", selector, "--all-containers", "--prefix", "--ignore-errors",
        f"--tail={-1 if tail == 'all' else tail}", f"--max-log-requests={FOLLOWED}", *(["--follow"] if follow else []),
    )  # fmt: skip
    with subprocess.Popen(
        ["kubectl", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        try:
            for line in process.stdout or ():
                match = PREFIX.match(line.rstrip("\n"))
                # an error about a container has no prefix
                pod = match["pod"] if match else ""
                show(owners.get(pod, ""), pod, match["text"] if match else line.rstrip("\n"))
        finally:
            # a reader that went away, or Ctrl-C
            process.terminate()
    # terminate() of a process that has ended changes nothing
    return max(process.returncode, 0)
