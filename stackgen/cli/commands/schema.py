"""`stackgen schema`: prints the JSON Schema of stack.yaml."""

from __future__ import annotations

import json
from argparse import Namespace

from stackgen.stack.schema import stack_schema

__all__ = ["schema"]


def schema(args: Namespace) -> int:
    """Runs `stackgen schema`: prints the JSON Schema of stack.yaml."""
    print(json.dumps(stack_schema(), indent=2))
    return 0
