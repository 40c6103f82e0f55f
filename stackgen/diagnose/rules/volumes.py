"""Rules for volumes that a node can't attach or mount: NFS, Ceph and other drivers, Secrets, folders of the host.

None of these failures was reproduced. `source` names the programs and the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant
from stackgen.diagnose.rules.kubernetes_events import STARTED

__all__ = ["RULES"]

FAILED = re.compile(
    r"MountVolume\.\w+ failed for volume|AttachVolume\.\w+ failed for volume|MapVolume\.\w+ failed|"
    r"Unable to attach or mount volumes|Multi-Attach error for volume"
)
VOLUME = re.compile(r'(?:failed|error) for volume \\?"(?P<volume>[^"\\]+)')
# the lines below the event, in which the program `mount` has the reason
NEAR = 6
BELOW = re.compile(r"^(?:Output: |Mounting (?:command|arguments): |mount(?:\.\w+)?: |Running scope )")


def _find_mount(evidence: Evidence) -> Iterator[Hit]:
    """The kubelet reports that it can't attach or mount a volume, and the message has the reason."""
    for service in evidence.services:
        pasted = [] if service.state else service.log.splitlines()
        lines = [strip_prefix(one).strip() for one in (*service.error.splitlines(), *pasted)]
        # a container that has started since has its volumes
        started = max((i for i, one in enumerate(lines) if STARTED.search(one)), default=-1)
        for index, line in enumerate(lines):
            if index < started or not FAILED.search(line):
                continue
            below = lines[index + 1 : index + 1 + NEAR]
            more = next((below[:i] for i, one in enumerate(below) if not BELOW.match(one)), below)
            shown = (line, *(one for one in more if one.startswith(("Output: ", "mount"))))
            text = "\n".join((line, *more))
            cases = ((found, one) for words, one in REASONS if (found := words.search(text)))
            if case := next(cases, None):
                found, variant = case
                volume = VOLUME.search(line)
                values = {**({"volume": volume["volume"]} if volume else {}), **found.groupdict()}
                yield Hit(service.service, shown, {k: v for k, v in values.items() if v}, found[0], variant=variant)
                break


SAFE = "; leave the data on the server as it is, because only the mount failed"
NO_EXPORT = Variant(
    (),
    title="the folder of an NFS volume does not exist on the server",
    cause="the NFS server answered, but it does not have the folder of the volume[[ `{volume}`]]",
    fix="compare the path of the volume (`kubectl get pv -o yaml`, field nfs.path) with the exports of the server "
    "(`showmount -e SERVER`), and with the real name of the folder; if a provisioner created the folder, somebody has "
    "moved or removed it on the server",
    condition="the server reports `No such file or directory`",
)
NO_HELPER = Variant(
    (),
    title="the node lacks the programs for this kind of volume",
    cause="the node has no mount helper for the volume[[ `{volume}`]]: the package of NFS (or of CIFS) is not "
    "installed on the node",
    fix="install nfs-common (Debian, Ubuntu) or nfs-utils (other distributions) on every node that may run the pod, or "
    "cifs-utils for CIFS; then wait for the kubelet's next attempt to mount the volume",
    condition="`mount` finds no helper program",
)
NO_ACCESS = Variant(
    (),
    title="the NFS server refuses the node",
    cause="the NFS server does not allow this node to mount the volume[[ `{volume}`]]",
    fix="add the addresses of all nodes to the export on the server (/etc/exports, then `exportfs -ra`), or to the "
    "access rules of the storage service; don't add the pods' addresses, because NFS requests come from the nodes"
    + SAFE,
    condition="the server denies the access",
)
NO_ANSWER = Variant(
    (),
    title="the node can't reach the server of a volume",
    cause="the server of the volume[[ `{volume}`]] does not answer this node: {reason}",
    fix="test the port from the node (`nc -vz SERVER 2049` for NFS); check the name of the server, its firewall and "
    "the security groups between it and the nodes" + SAFE,
    condition="the connection times out, is refused or has no route",
)
NO_NAME = Variant(
    (),
    title="the node can't resolve the name of a volume's server",
    cause="the node does not know the name of the server of the volume[[ `{volume}`]]: {reason}",
    fix="use an address, or a name that the node itself resolves (`getent hosts NAME` on the node): the kubelet does "
    "not use the DNS server of the cluster, so names of Services do not work here" + SAFE,
    condition="the name can't be resolved",
)
NO_OBJECT = Variant(
    (),
    title="a Secret or ConfigMap that a pod mounts does not exist",
    cause="the pod mounts the {kind} `{name}`, which does not exist in its namespace",
    fix="check the name and the namespace (`kubectl get secret,configmap`); create the object, or correct the name in "
    "the pod; for a stack, `stackgen up` applies its Secrets and ConfigMaps again",
    condition="the object is not found",
)
NO_PATH = Variant(
    (),
    title="a folder of the node that a pod mounts does not exist",
    cause="the pod mounts a path of the node as hostPath, and the kubelet's check of this path failed: {reason}. The "
    "path must exist on the node where the pod runs",
    fix="create the folder on the node, or choose the nodes that have it (`nodeSelector`); check "
    "that `hostPath.type` matches the path (a folder, a file, a socket), because the kubelet checks this (the type "
    "DirectoryOrCreate creates a missing folder)",
    condition="the check of hostPath failed",
)
NO_DRIVER = Variant(
    (),
    title="the node has no CSI driver for the volume",
    cause="the node does not have the CSI driver `{driver}`, which the volume[[ `{volume}`]] needs",
    fix="run `kubectl get csidrivers,csinodes`, and look for the driver's node pods on this node (a taint without a "
    "toleration keeps their DaemonSet away from GPU nodes); then wait: the kubelet tries again as soon as the driver "
    "registers",
    condition="the driver is not registered",
)
ELSEWHERE = Variant(
    (),
    title="a volume is still attached to another node",
    cause="the volume[[ `{volume}`]] can be attached to only one node at a time, and another node still has it",
    fix="wait until the old pod has ended, or delete this pod yourself if it is a copy that nobody needs; use the "
    "strategy `Recreate` for Deployments with such a volume; to serve one volume to several nodes, use a storage class "
    "with ReadWriteMany; don't force the detachment while the old node may still write",
    condition="the message is a Multi-Attach error",
)

REASONS = tuple(
    (re.compile(words), variant)
    for words, variant in (
        (r"Multi-Attach error|Volume is already (?:exclusively attached|used by)", ELSEWHERE),
        (r"driver name (?P<driver>[\w.-]+) not found in the list of registered CSI drivers", NO_DRIVER),
        (r"(?P<kind>secret|configmap) \\?\"(?P<name>[\w.-]+)\\?\" not found", NO_OBJECT),
        (r"(?P<reason>hostPath type check failed: .{1,200})", NO_PATH),
        (r"you might need a /sbin/mount\.<type> helper|mount\.nfs4?: not found|unknown filesystem type 'nfs",
         NO_HELPER),
        (r"(?P<reason>Failed to resolve server \S+: .{1,80}|Name or service not known|failed to resolve .{1,80})",
         NO_NAME),
        (r"access denied by server", NO_ACCESS),
        (r"(?P<reason>Connection (?:timed out|refused)|No route to host|Network is unreachable)", NO_ANSWER),
        (r"reason given by server: No such file or directory|mount\.nfs4?: .{0,200}No such file or directory",
         NO_EXPORT),
    )
)  # fmt: skip

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-K023",
        title="a node can't mount a volume of the pod",
        cause="the kubelet can't attach or mount the volume[[ `{volume}`]]",
        fix="read the end of the message, which is the answer of the program `mount`, of the storage driver or of the "
        "API server",
        source="The messages come from the kubelet of Kubernetes (pkg/volume/util/operationexecutor), nfs-utils "
        "(utils/mount/error.c) and util-linux (sys-utils/mount.c). kubernetes-retired/external-storage issue 960 "
        "(2018-08), kubeflow/testing issue 346 (2019-03) and nebari-dev/nebari issue 1163 (2022-03) quote them. The "
        "failure was not reproduced.",
        explain="The node itself mounts volumes, before any container of the pod starts. So the pod has no log.",
        find=_find_mount,
        variants=tuple(one for _, one in REASONS),
    ),
)
