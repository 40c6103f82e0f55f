"""Commands for a stack with `target: kubernetes`: they work in the cluster of a kubectl context."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

from stackgen.check.target import normalize_url
from stackgen.cli.commands.cluster_access import connect_to, forwarded_url, reword
from stackgen.cli.commands.confirm import confirm
from stackgen.cli.commands.output import note, print_data, print_line, print_report
from stackgen.cli.commands.rendering import prepare_files
from stackgen.cli.commands.start_times import report_start
from stackgen.cli.commands.status_watch import follow_stack
from stackgen.cli.progress import show_progress
from stackgen.cli.scrub import scrub_json
from stackgen.diagnose import Evidence, Finding, diagnose
from stackgen.diagnose.explain import format_finding
from stackgen.errors import MachineError, StackgenError, StartError
from stackgen.providers.probe import check_plan
from stackgen.runtimes.kubernetes.evidence import collect_from_cluster
from stackgen.runtimes.kubernetes.kubectl import Kubectl
from stackgen.runtimes.kubernetes.lifecycle import apply, delete, observe, wait_until_ready
from stackgen.runtimes.kubernetes.logs import cluster_logs
from stackgen.runtimes.kubernetes.pruning import delete_former, find_former, is_file_map, names_built, names_rendered
from stackgen.runtimes.kubernetes.states import ClusterService
from stackgen.runtimes.observation.cluster_follow import ClusterFollower
from stackgen.stack.edit import require_unchanged
from stackgen.stack.folder import Stack, cluster_error, find_stack_file, open_stack
from stackgen.stack.secrets import collect_secrets, find_stack_secrets
from stackgen.stack.start_times import StartClock

__all__ = ["collect_evidence", "down_cluster", "in_words_of", "logs_cluster", "status_cluster", "up_cluster"]


def up_cluster(args: Namespace, stack: Stack) -> int:
    """Applies the manifests, waits until all services are ready, and requests a completion of each model.

    Returns 1 if the check fails, and 2 if nobody agrees to the context. Raises StartError if the cluster refuses an
    object, a service does not become ready, or the gateway can't be reached.
    """
    if args.runtime == "process":
        raise cluster_error(stack.folder)
    if args.fix:
        raise StackgenError("--fix does not work for target kubernetes", "`stackgen diagnose --fix` applies a change")
    url = normalize_url(args.url) if args.url else None
    for warning in stack.plan.warnings:
        note(f"warning: {warning}")
    cluster = connect_to(args, stack)
    former = _show_former(cluster, stack)
    if not confirm("start the stack there?", args.yes, "nothing was started. To start without asking, add --yes"):
        return 2
    # the user may have thought about the answer for a long time
    require_unchanged(find_stack_file(args.stack) or stack.folder / stack.source, stack.text)
    prepare_files(stack, "containers", args.new_keys)
    clock = StartClock()
    apply(cluster, stack.output)
    # before the wait, because new engines may need the GPUs of removed models
    _delete_workloads(cluster, stack, former)
    try:
        with show_progress(args.progress, stack.plan) as show:
            progress = clock.watch(show)
            wait_until_ready(cluster, stack.plan, progress, args.timeout)
            with _address(cluster, stack, url) as address:
                # the check needs a limit even if the start has none
                report = check_plan(stack.plan, stack.folder, progress, args.timeout or 120, address, reword(stack))
    except (StartError, MachineError):
        _explain(args, stack)
        raise
    _delete_file_maps(cluster, stack)
    return print_report(args, report, more=report_start(args, clock, stack.folder))


@contextmanager
def _address(cluster: Kubectl, stack: Stack, url: str | None) -> Iterator[str]:
    if url:
        yield url
        return
    with forwarded_url(cluster, stack) as forwarded:
        yield forwarded


def _show_former(cluster: Kubectl, stack: Stack) -> tuple[str, ...]:
    """Prints what a former version of the stack has left. Returns workloads, Services and policies to delete."""
    try:
        found = find_former(cluster, stack.plan.name, names_rendered(stack.files()))
    except MachineError as error:
        note(f"could not look for objects of earlier versions: {error.message}")
        return ()
    former = tuple(one for one in found if not is_file_map(one))
    if former:
        note(
            "the cluster has objects that are no longer part of the stack. They will be deleted, and their pods "
            "terminated:"
        )
        for one in former:
            note(f"  {one}")
    return former


def _delete_workloads(cluster: Kubectl, stack: Stack, shown: tuple[str, ...]) -> None:
    # a kustomization that was edited by hand may contain one of them
    built = names_built(cluster, stack.output) if shown else set()
    delete_former(cluster, [one for one in shown if one not in built])


def _delete_file_maps(cluster: Kubectl, stack: Stack) -> None:
    """Deletes ConfigMaps and Secrets of former versions, which no pod uses any more."""
    try:
        found = find_former(cluster, stack.plan.name, names_built(cluster, stack.output))
        former = [one for one in found if is_file_map(one)]
        if former:
            note(f"deleting ConfigMaps and Secrets of earlier versions: {', '.join(former)}")
        delete_former(cluster, former)
    # the stack works
    except (MachineError, StartError) as error:
        note(f"objects of earlier versions are kept: {error.message}")


def _explain(args: Namespace, stack: Stack) -> None:
    """Prints why the start failed, if a rule knows the cause."""
    try:
        findings = diagnose(collect_evidence(args, stack, quiet=True))
    # the error of the start is reported in any case
    except StackgenError:
        return
    for finding in findings[:1]:
        if not finding.fallback:
            note(format_finding(in_words_of(stack, finding)))


def down_cluster(args: Namespace, stack: Stack) -> int:
    """Deletes what has the stack's labels, and keeps the claims without --volumes. Returns 2 if nobody agrees."""
    cluster = connect_to(args, stack)
    claims = ", and its PersistentVolumeClaims with all weights" if args.volumes else ""
    what = f"delete the stack in this cluster{claims}?"
    if not confirm(what, args.yes, "nothing was deleted. To delete without asking, add --yes"):
        return 2
    removed, kept = delete(cluster, stack.plan.name, claims=args.volumes)
    lines = [f"deleted objects: {len(removed)}; their pods are terminating" if removed else "nothing was running"]
    if kept:
        names = ", ".join(one.partition("/")[2] for one in kept)
        lines.append(f"kept, with the weights: the claims {names}. `stackgen down --volumes` deletes them")
    lines.append(f"the namespace {cluster.namespace} still exists")
    data = {"stopped": True, "volumes_removed": args.volumes, "removed": list(removed), "kept": list(kept)}
    print_data(args, data, lines)
    return 0


def status_cluster(args: Namespace, stack: Stack) -> int:
    """Prints one line for each service: its state, ready and wanted pods, nodes, and why it is not ready."""
    cluster = connect_to(args, stack)
    if args.watch is not None:
        return follow_stack(args, ClusterFollower(lambda: open_stack(args.stack).plan, cluster), stack.folder)
    services = observe(cluster, stack.plan)
    data = {"context": cluster.context, "namespace": cluster.namespace, "services": _to_json(services)}
    print_data(args, data, _rows(services))
    return 0 if all(one.is_working for one in services) else 1


def logs_cluster(args: Namespace, stack: Stack) -> int:
    """Prints the logs of the stack's pods, each line with its pod. With --json, a line of JSON for each line."""

    def show(service: str, pod: str, text: str) -> None:
        if not pod:
            note(text)
        elif args.json:
            print_line(json.dumps(scrub_json({"service": service, "pod": pod, "text": text})))
        else:
            print_line(f"{pod} | {text}")

    return cluster_logs(connect_to(args, stack), stack.plan, tuple(args.services), args.follow, args.tail, show)


def collect_evidence(args: Namespace, stack: Stack, quiet: bool = False) -> Evidence:
    """Returns the evidence for `stackgen diagnose`. Raises MachineError if the cluster does not answer."""
    secrets = (*collect_secrets(stack.folder), *find_stack_secrets(stack.spec, stack.plan))
    return collect_from_cluster(connect_to(args, stack, quiet), stack.plan, stack.spec, secrets)


def in_words_of(stack: Stack, finding: Finding) -> Finding:
    """`finding` with the commands for a stack in a cluster."""
    words = reword(stack)
    return replace(finding, cause=words(finding.cause), fix=words(finding.fix))


def _rows(services: tuple[ClusterService, ...]) -> list[str]:
    cells = [
        (one.service, one.state, f"{one.ready}/{one.wanted}", f"{one.restarts} restarts" if one.restarts else "",
         ",".join(one.nodes) or "-", one.reason)
        for one in services
    ]  # fmt: skip
    widths = [max((len(row[column]) for row in cells), default=0) for column in range(5)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]]).rstrip()
        for row in cells
    ]


def _to_json(services: tuple[ClusterService, ...]) -> list[dict[str, object]]:
    return [{**asdict(one), "nodes": one.nodes, "reason": one.reason, "restarts": one.restarts} for one in services]
