"""`stackgen explain ID`: the page of a rule or of a doctor check."""

from __future__ import annotations

from argparse import Namespace

from stackgen.cli.commands.output import print_data
from stackgen.diagnose.explain import find_rule, format_page, show_placeholders
from stackgen.diagnose.rules import RULES
from stackgen.doctor.table import CHECKS

__all__ = ["explain"]


def explain(args: Namespace) -> int:
    """`stackgen explain ID`: prints the page of a rule. Without an id, lists all rules. Returns the exit code."""
    if not args.id:
        # sorted, because RULES is in the order in which the rules are applied
        rows = sorted((one.id, show_placeholders(one.title)) for one in RULES)
        rules = [{"id": id, "title": title} for id, title in rows]
        print_data(args, {"rules": rules}, [f"{id}  {title}" for id, title in rows])
        return 0

    # the ids of doctor's checks start with SG-P; their page is a single line
    wanted = args.id.upper()
    for check in CHECKS:
        # as for rules, the prefix SG- may be missing
        if check.id in (wanted, f"SG-{wanted}"):
            text = f"{check.id}: {check.name}\n\n`stackgen doctor` checks this before a start: {check.description}."
            print_data(args, {"id": check.id, "title": check.name, "explain": check.description}, [text])
            return 0
    rule = find_rule(args.id)
    data = {"id": rule.id, "title": show_placeholders(rule.title), "cause": show_placeholders(rule.cause),
            "fix": show_placeholders(rule.fix), "explain": rule.explain, "source": rule.source}  # fmt: skip
    print_data(args, data, [format_page(rule)])
    return 0
