"""`doctor`: facts of the machine, the Hub and the disk, gathered side by side, and what follows from them."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor

from stackgen.check.huggingface import HUB, ask_hub
from stackgen.cli.commands.output import print_data
from stackgen.doctor.collect import case_of, env_of, hub_models, hub_token, opened
from stackgen.doctor.table import examine, exit_code
from stackgen.doctor.text import as_json, as_text
from stackgen.runtimes.observation.machine import gather_host

__all__ = ["doctor"]


def doctor(args: Namespace) -> int:
    """`stackgen doctor`: what will keep the stack from starting; 0 nothing, 1 the stack, 3 the machine."""
    stack, mistakes, source = opened(args.stack)
    offline = args.offline or bool(stack and stack.spec.storage.offline)
    models = hub_models(stack)
    with ThreadPoolExecutor(9) as pool:
        host = pool.submit(gather_host, stack)
        endpoint = (stack.spec.storage.hub_endpoint if stack else None) or os.environ.get("HF_ENDPOINT") or HUB
        token = hub_token(env_of(stack.folder)) if stack else ""
        asked = {
            one.model: None if offline else pool.submit(ask_hub, one.model, one.revision, token, endpoint, 5.0,
                                                        getattr(one, "file", None) or "")
            for one in models
        }  # fmt: skip
        hub = {name: answer.result() if answer else None for name, answer in asked.items()}
        case = case_of(host.result(), stack, mistakes, source, hub, args.offline)
    findings = examine(case)
    text = "" if args.json else as_text(findings, source, sys.stdout.isatty(), args.verbose)
    print_data(args, as_json(findings, source), text.splitlines())
    return exit_code(findings)
