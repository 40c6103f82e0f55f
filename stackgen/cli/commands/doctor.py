"""`stackgen doctor`: collects facts about the machine, the Hub and the disk in parallel, and prints the findings."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from stackgen.check.huggingface import HUB, look_up_model
from stackgen.cli.commands.output import print_data
from stackgen.doctor.cluster_facts import ClusterFacts
from stackgen.doctor.collect import collect_inputs, hub_models, read_env_facts, read_hub_token, try_open_stack
from stackgen.doctor.facts import Host
from stackgen.doctor.table import CHECKS, CLUSTER_CHECKS, UNANSWERED_CHECKS, exit_code, run_checks
from stackgen.doctor.text import as_json, as_text
from stackgen.errors import MachineError, StackgenError
from stackgen.runtimes.compose.kept_keys import find_kept_keys
from stackgen.runtimes.observation.machine import collect_host_facts
from stackgen.stack.folder import Stack
from stackgen.stack.lost_keys import KeptKeys

__all__ = ["doctor"]


def doctor(args: Namespace) -> int:
    """Runs all checks and prints the findings. Returns 0 (no failure), 1 (the stack fails) or 3 (the machine fails)."""
    stack, mistakes, source = try_open_stack(args.stack)
    cluster, checks = None, CHECKS
    if stack and stack.site.is_cluster:
        # most stacks run on one machine
        from stackgen.cli.commands.cluster_access import connect_to, reword
        from stackgen.runtimes.kubernetes.facts import collect_cluster_facts

        checks = CLUSTER_CHECKS
        try:
            cluster = collect_cluster_facts(connect_to(args, stack), stack.plan, stack.files())
        # the other checks find mistakes on a machine without access to the cluster, too
        except MachineError as error:
            cluster = ClusterFacts("", stack.spec.namespace, problem=error.message, remedy=error.hint or "")
            checks = UNANSWERED_CHECKS
    offline = args.offline or bool(stack and stack.spec.storage.offline)
    models = hub_models(stack)
    # one thread for the machine and the others for the Hub: a slow request must not delay other requests
    with ThreadPoolExecutor(9) as pool:
        host = pool.submit(collect_host_facts if cluster is None else _no_facts, stack)
        kept = pool.submit(_find_kept_keys, stack)
        # HF_ENDPOINT is the variable that the download reads too
        endpoint = (stack.spec.storage.hub_endpoint if stack else None) or os.environ.get("HF_ENDPOINT") or HUB
        token = read_hub_token(read_env_facts(stack.folder)) if stack else ""
        lookups = {
            one.model: None if offline else pool.submit(
                look_up_model, one.model, one.revision, token=token, endpoint=endpoint, timeout=5.0,
                file=one.file,
            )
            for one in models
        }  # fmt: skip
        hub = {name: lookup.result() if lookup else None for name, lookup in lookups.items()}
        # args.offline, not `offline`: the finding names the setting that forbids requests to the Hub
        inputs = collect_inputs(host.result(), stack, mistakes, source, hub, args.offline, cluster,
                                kept.result())  # fmt: skip
    findings = run_checks(inputs, checks)
    if stack and cluster:
        words = reword(stack)
        findings = tuple(replace(one, message=words(one.message), fix=words(one.fix)) for one in findings)
    # no colors in a pipe or file
    text = "" if args.json else as_text(findings, source, sys.stdout.isatty(), args.verbose, checks)
    print_data(args, as_json(findings, source, checks), text.splitlines())
    return exit_code(findings)


def _find_kept_keys(stack: Stack | None) -> KeptKeys | None:
    try:
        return find_kept_keys(stack) if stack else None
    # another check reports an unreadable .env
    except StackgenError:
        return None


def _no_facts(stack: Stack | None) -> Host:
    """Nothing of a stack in a cluster runs on this machine."""
    return Host()
