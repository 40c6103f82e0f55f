"""What each command does, a module for each group of them; a module is imported by the command that needs it."""

from __future__ import annotations

from argparse import Namespace
from importlib import import_module

__all__ = ["COMMANDS", "run"]

# command -> module of this package; each module has a function of the command's name
COMMANDS: dict[str, str] = {
    **dict.fromkeys(("init", "render", "up", "down", "status", "logs", "schema", "completion"), "stacks"),
    "check": "check",
    "exporter": "exporter",
    "providers": "providers",
    "doctor": "doctor",
    "diagnose": "diagnose",
    "explain": "diagnose",
    "ask": "ask",
    **dict.fromkeys(("keys", "scale", "update"), "gateway"),
}


def run(words: Namespace) -> int:
    """Runs the command that `words` name; its exit code."""
    module = import_module(f"stackgen.commands.{COMMANDS[words.command]}")
    return int(getattr(module, words.command)(words))
