"""Rules about pods: volumes, ports, probes, variables, the time of a stop, and Pod Security "restricted".

Sources: Kubernetes 1.37, `pkg/apis/core/validation` (`ValidateVolumes`, `ValidateVolumeMounts`,
`validateContainerPorts`), "Define Dependent Environment Variables", "Pod Lifecycle" and "Pod Security Standards".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from stackgen.kubernetes.rules.finding import Finding, Manifests, PodPlace, as_dict, as_list

__all__ = [
    "find_bad_ports", "find_duplicate_mounts", "find_duplicate_names", "find_insecure_pods", "find_late_variables",
    "find_missing_probe_ports", "find_missing_volumes", "find_service_links", "find_short_graces",
]  # fmt: skip

PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
RESTRICTED = ', because the namespace enforces Pod Security "restricted"'
# validation.IsValidPortName: at most 15 characters, and one letter at least
PORT_NAME = re.compile(r"(?=.*[a-z])(?!-)(?!.*--)[a-z0-9-]{1,15}(?<!-)")
ALLOWED_VOLUMES = frozenset([
    "name", "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
    "image",
])  # fmt: skip
REFERENCE = re.compile(r"(?<!\$)(?:\$\$)*\$\((\w+)\)")
# set by the controller of LeaderWorkerSets before all others
GIVEN = {"LWS_LEADER_ADDRESS", "LWS_GROUP_SIZE", "LWS_WORKER_INDEX"}


def find_missing_volumes(manifests: Manifests) -> Iterator[Finding]:
    """A mount needs a volume of its pod."""
    for pod in manifests.pods:
        names = {as_dict(one).get("name") for one in as_list(pod.spec.get("volumes"))}
        for path, container in pod.containers():
            for mount in map(as_dict, as_list(container.get("volumeMounts"))):
                if mount.get("name") not in names:
                    message = f"the pod has no volume {mount.get('name')!r}"
                    yield manifests.finding("volume", pod.owner, f"{path}.volumeMounts", message)


def find_duplicate_mounts(manifests: Manifests) -> Iterator[Finding]:
    """Two volumes can't be mounted at one path."""
    for pod in manifests.pods:
        for path, container in pod.containers():
            mounts = [str(as_dict(one).get("mountPath")).rstrip("/") for one in as_list(container.get("volumeMounts"))]
            for place in _repeated(mounts):
                message = f"two volumes are mounted at {place}"
                yield manifests.finding("mount-path", pod.owner, f"{path}.volumeMounts", message)


def find_duplicate_names(manifests: Manifests) -> Iterator[Finding]:
    """Containers, volumes and variables of a pod have different names."""
    for pod in manifests.pods:
        names = {"containers": [as_dict(one).get("name") for _, one in pod.containers()],
                 "volumes": [as_dict(one).get("name") for one in as_list(pod.spec.get("volumes"))]}  # fmt: skip
        for path, container in pod.containers():
            # the API server accepts two variables, and only the last one counts
            names[f"{path}.env"] = [as_dict(one).get("name") for one in as_list(container.get("env"))]
        for what, listed in names.items():
            for name in _repeated(listed):
                where = what if "." in what else f"{pod.path}.spec.{what}"
                yield manifests.finding("pod-names", pod.owner, where, f"{name!r} exists twice")


def find_bad_ports(manifests: Manifests) -> Iterator[Finding]:
    """The name of a port has at most 15 characters, and belongs to one port."""
    for pod in manifests.pods:
        for path, container in pod.containers():
            names = [as_dict(one).get("name") for one in as_list(container.get("ports"))]
            for name in names:
                if name is not None and not PORT_NAME.fullmatch(str(name)):
                    message = f"{name!r} is not a valid port name: use at most 15 lower-case letters, digits and -"
                    yield manifests.finding("port-name", pod.owner, f"{path}.ports", message)
            for name in _repeated([one for one in names if one]):
                yield manifests.finding("port-name", pod.owner, f"{path}.ports", f"two ports are called {name!r}")


def find_missing_probe_ports(manifests: Manifests) -> Iterator[Finding]:
    """The port that a probe names is a port of its container."""
    for pod in manifests.pods:
        for path, container in pod.containers():
            names = {as_dict(one).get("name") for one in as_list(container.get("ports"))}
            for probe in PROBES:
                content = as_dict(container.get(probe))
                port = as_dict(content.get("httpGet") or content.get("tcpSocket")).get("port")
                if isinstance(port, str) and port not in names:
                    message = f"the container has no port {port!r}"
                    yield manifests.finding("probe-port", pod.owner, f"{path}.{probe}", message)


def find_late_variables(manifests: Manifests) -> Iterator[Finding]:
    """`$(NAME)` in a variable refers to a variable before it; otherwise it stays as it is."""
    for pod in manifests.pods:
        given = GIVEN if pod.owner.get("kind") == "LeaderWorkerSet" else set[str]()
        for path, container in pod.containers():
            entries = [as_dict(one) for one in as_list(container.get("env"))]
            known = set(given)
            for entry in entries:
                for name in REFERENCE.findall(str(entry.get("value", ""))):
                    if name not in known:
                        message = f"{entry.get('name')} refers to {name}, which must be set in an earlier entry"
                        yield manifests.finding("variable", pod.owner, f"{path}.env", message)
                known.add(str(entry.get("name")))
            for word in (*as_list(container.get("command")), *as_list(container.get("args"))):
                for name in REFERENCE.findall(str(word)):
                    if name not in known:
                        message = f"{word!r} refers to {name}, which is not a variable of the container"
                        yield manifests.finding("variable", pod.owner, f"{path}.args", message)


def find_short_graces(manifests: Manifests) -> Iterator[Finding]:
    """The grace period must leave time after `preStop`, because it begins with it."""
    for pod in manifests.pods:
        grace = pod.spec.get("terminationGracePeriodSeconds", 30)
        for path, container in pod.containers():
            hook = as_dict(as_dict(container.get("lifecycle")).get("preStop"))
            words = as_list(as_dict(hook.get("exec")).get("command"))
            seconds = as_dict(hook.get("sleep")).get("seconds")
            if len(words) == 2 and words[0] in ("sleep", "/bin/sleep") and str(words[1]).isdecimal():
                seconds = int(words[1])
            if isinstance(seconds, int) and isinstance(grace, int) and seconds >= grace:
                message = f"sleeps {seconds} s, but the pod is killed after {grace} s"
                yield manifests.finding("grace", pod.owner, f"{path}.lifecycle.preStop", message)


def find_service_links(manifests: Manifests) -> Iterator[Finding]:
    """A Service called `vllm` sets VLLM_PORT in all pods, which vLLM reads as its port (vLLM 0.32, vllm/envs.py)."""
    if not any(as_dict(one.get("metadata")).get("name") == "vllm" for one in manifests.of_kind("Service")):
        return
    for pod in manifests.pods:
        if pod.spec.get("enableServiceLinks") is not False:
            message = "must be false, because the Service `vllm` sets VLLM_PORT"
            yield manifests.finding("service-links", pod.owner, f"{pod.path}.spec.enableServiceLinks", message)


def find_insecure_pods(manifests: Manifests) -> Iterator[Finding]:
    """What Pod Security "restricted" refuses. For a template, the API server only warns, and no pod ever starts."""
    level = "pod-security.kubernetes.io/enforce"
    spaces = manifests.of_kind("Namespace")
    if not any(as_dict(as_dict(one.get("metadata")).get("labels")).get(level) == "restricted" for one in spaces):
        return
    for pod in manifests.pods:
        for path, message in _violations(pod):
            yield manifests.finding("pod-security", pod.owner, path, message)


def _violations(pod: PodPlace) -> Iterator[tuple[str, str]]:
    whole, place = as_dict(pod.spec.get("securityContext")), f"{pod.path}.spec"
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(field):
            yield f"{place}.{field}", f"must not be set{RESTRICTED}"
    for volume in map(as_dict, as_list(pod.spec.get("volumes"))):
        if kinds := set(volume) - ALLOWED_VOLUMES:
            yield (
                f"{place}.volumes",
                f"{volume.get('name')!r} is a volume of the type {kinds.pop()}, which is not allowed{RESTRICTED}",
            )
    for path, container in pod.containers():
        own = as_dict(container.get("securityContext"))
        if not own.get("runAsNonRoot", whole.get("runAsNonRoot")):
            yield f"{path}.securityContext.runAsNonRoot", f"must be true{RESTRICTED}"
        if own.get("runAsUser", whole.get("runAsUser")) == 0:
            yield f"{path}.securityContext.runAsUser", f"must not be root{RESTRICTED}"
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{path}.securityContext.allowPrivilegeEscalation", f"must be false{RESTRICTED}"
        if own.get("privileged"):
            yield f"{path}.securityContext.privileged", f"must be false{RESTRICTED}"
        yield from _capabilities(path, as_dict(own.get("capabilities")))
        if as_dict(own.get("seccompProfile") or whole.get("seccompProfile")).get("type") not in (
            "RuntimeDefault", "Localhost",
        ):  # fmt: skip
            yield f"{path}.securityContext.seccompProfile", f"must be RuntimeDefault or Localhost{RESTRICTED}"


def _capabilities(path: str, capabilities: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "ALL" not in as_list(capabilities.get("drop")):
        yield f"{path}.securityContext.capabilities.drop", f"must contain ALL{RESTRICTED}"
    if added := set(as_list(capabilities.get("add"))) - {"NET_BIND_SERVICE"}:
        yield f"{path}.securityContext.capabilities.add", f"must not contain {', '.join(sorted(added))}{RESTRICTED}"


def _repeated(names: list[Any]) -> list[Any]:
    return [name for name, count in Counter(names).items() if count > 1]
