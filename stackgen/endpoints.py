"""Which endpoints a command means: those of a stack, or the one given by its URL."""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from stackgen import engines
from stackgen.check.target import Target
from stackgen.envfile import read_env
from stackgen.plan import Dialect, Plan

__all__ = ["dialects", "from_plan", "from_words"]

# Together AI's own SDK reads the first name, older guides the second
TOGETHER_KEYS = ("TOGETHER_API_KEY", "TOGETHERAI_API_KEY")


def dialects() -> dict[str, Dialect]:
    """The engines' dialects by name."""
    return {name: engines.get(name).dialect for name in engines.names()}


def from_plan(plan: Plan, folder: Path) -> list[Target]:
    """The endpoints of a plan, with the key from `folder/.env`."""
    env = read_env(folder)
    return [
        Target.from_endpoint(endpoint, env.get(endpoint.api_key) or None, exposed=endpoint.exposed)
        for endpoint in plan.endpoints
    ]


def from_words(words: Namespace) -> list[Target]:
    """The endpoints that a command line names: `--base-url`, else the stack's."""
    if words.base_url:
        key = words.api_key or _key(words.base_url)
        return [Target.from_url(words.base_url, key, (words.model,) if words.model else ())]
    from stackgen.stack import open_stack

    stack = open_stack(words.stack)
    targets = from_plan(stack.plan, stack.folder)
    if words.api_key:
        targets = [replace(target, api_key=words.api_key) for target in targets]
    if words.model:
        # a name that none of them serves is still the one to ask for: its check has to fail
        serving = [target for target in targets if words.model in target.models]
        targets = serving or [replace(targets[0], models=(words.model,))]
    return targets


def _key(url: str) -> str | None:
    names = TOGETHER_KEYS if "together" in url else ("STACKGEN_API_KEY", "OPENAI_API_KEY")
    values = [os.environ.get(name) for name in names]
    return next((value for value in values if value), None) or read_env(Path()).get(names[0]) or None
