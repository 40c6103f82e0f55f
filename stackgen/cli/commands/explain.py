"""`stackgen explain ID`: the page of a cause, or the list of all."""

from __future__ import annotations

from argparse import Namespace

from stackgen.cli.commands.output import print_data
from stackgen.diagnose.explain import find_rule, page, readable
from stackgen.diagnose.rules import RULES
from stackgen.doctor.table import CHECKS

__all__ = ["explain"]


def explain(args: Namespace) -> int:
    """`stackgen explain ID`: the page of a rule, or the list of all."""
    if not args.id:
        rows = sorted((one.id, readable(one.title)) for one in RULES)
        known = [{"id": id, "title": title} for id, title in rows]
        print_data(args, {"rules": known}, [f"{id}  {title}" for id, title in rows])
        return 0

    # what doctor finds has ids of its own kind, and no page beyond its line
    wanted = args.id.upper()
    for check in CHECKS:
        if check.id in (wanted, f"SG-{wanted}"):
            text = f"{check.id}: {check.name}\n\n`stackgen doctor` looks at this before a start: {check.looks_at}."
            print_data(args, {"id": check.id, "title": check.name, "explain": check.looks_at}, [text])
            return 0
    rule = find_rule(args.id)
    data = {"id": rule.id, "title": readable(rule.title), "cause": readable(rule.cause), "fix": readable(rule.fix),
            "explain": rule.explain, "source": rule.source}  # fmt: skip
    print_data(args, data, [page(rule)])
    return 0
