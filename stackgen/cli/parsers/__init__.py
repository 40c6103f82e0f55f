"""The command line's words: a module for each group of commands. Nothing heavy is imported, so `--help` is fast."""

from __future__ import annotations

import argparse

from stackgen.cli.parsers import ask, check, diagnose, doctor, exporter, gateway, providers, stacks
from stackgen.cli.parsers.base import EPILOG, Adder

__all__ = ["build_parser"]


def build_parser() -> argparse.ArgumentParser:
    """The whole command line, without running anything."""
    parser = argparse.ArgumentParser(
        prog="stackgen",
        description="Serve language models on your own GPUs: renders Docker Compose stacks for vLLM, FastChat and "
        "llama.cpp, starts them, and proves that they answer.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error, and a check's requests")
    add = Adder(parser.add_subparsers(dest="command", metavar="COMMAND"))
    stacks.add_stacks(add)
    gateway.add_gateway(add)
    check.add_check(add)
    exporter.add_exporter(add)
    ask.add_ask(add)
    providers.add_providers(add)
    doctor.add_doctor(add)
    diagnose.add_diagnose(add)
    stacks.add_others(add)
    return parser
