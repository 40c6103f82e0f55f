"""The arguments of all commands, one module for each group. Nothing heavy is imported here, so `--help` is fast."""

from __future__ import annotations

import argparse

from stackgen.cli.parsers import (
    ask,
    bench,
    bundle,
    check,
    connect,
    diagnose,
    doctor,
    exporter,
    fit,
    gateway,
    importing,
    models,
    plan,
    providers,
    stacks,
)
from stackgen.cli.parsers.base import EXIT_CODES, Parser, Subcommands

__all__ = ["build_parser"]


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole command line."""
    parser = Parser(
        prog="stackgen",
        description="Serve language models on your own GPUs: render Docker Compose stacks for vLLM, SGLang, "
        "llama.cpp and FastChat, start them, and check that they work.",
        epilog=EXIT_CODES,
    )
    # not action="version", which needs the version here: main() imports the version only for this option
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--debug", action="store_true", help="print tracebacks of errors, and the requests of a check")
    subcommands = Subcommands(parser.add_subparsers(dest="command", metavar="COMMAND"))
    # `stackgen --help` lists the commands in this order
    stacks.add_stack_commands(subcommands)
    importing.add_import(subcommands)
    gateway.add_gateway_commands(subcommands)
    check.add_check(subcommands)
    bench.add_bench(subcommands)
    exporter.add_exporter(subcommands)
    ask.add_ask(subcommands)
    connect.add_connect(subcommands)
    providers.add_providers(subcommands)
    doctor.add_doctor(subcommands)
    models.add_models(subcommands)
    fit.add_fit(subcommands)
    plan.add_plan(subcommands)
    diagnose.add_diagnose_commands(subcommands)
    bundle.add_bundle(subcommands)
    stacks.add_schema_and_completion(subcommands)
    return parser
