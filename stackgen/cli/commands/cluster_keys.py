"""Loads changed keys of clients into the gateway of a stack in a cluster."""

from __future__ import annotations

from argparse import Namespace

from stackgen.cli.commands.cluster_access import connect_to
from stackgen.cli.commands.confirm import confirm
from stackgen.cli.commands.output import note
from stackgen.runtimes.kubernetes.keys import apply_keys, has_keys, wait_for_keys
from stackgen.stack.cluster_secrets import write_secrets
from stackgen.stack.folder import Stack
from stackgen.stack.keys import read_map

__all__ = ["load_cluster_keys"]

LATER = "the keys are saved only on this machine: `stackgen up` applies them to the cluster"


def load_cluster_keys(args: Namespace, stack: Stack) -> bool | None:
    """Applies the Secret with the keys, and waits for the gateway. Returns whether all its pods have loaded the keys.

    None: nobody agreed to the change of the cluster. Raises StackgenError if the cluster or the gateway refuses.
    """
    if not (stack.output / "kustomization.yaml").exists():
        return False
    write_secrets(stack)
    cluster = connect_to(args, stack)
    if not has_keys(cluster):
        return False
    if not confirm("apply the changed keys to this cluster?", args.yes, f"{LATER}. To apply them without asking, add "
                   "--yes"):  # fmt: skip
        return None
    apply_keys(cluster, stack.output)
    note("applied the Secret; waiting until the gateway has loaded it (up to two minutes)")
    wanted = read_map(stack.folder)
    return wait_for_keys(cluster, stack.plan, wanted)
