"""The page of a rule, for the terminal (`stackgen explain`) and for docs/errors/, and the text of a finding."""

from __future__ import annotations

import re
import textwrap
from difflib import get_close_matches

from stackgen.diagnose.rule import UNKNOWN, Finding, Rule
from stackgen.diagnose.rules import RULES
from stackgen.errors import StackgenError

__all__ = [
    "find_rule", "format_edit", "format_finding", "format_markdown", "format_page", "show_placeholders", "split_steps",
]  # fmt: skip

WIDTH = 100
OTHER_CAUSES = "Some messages have another cause or fix:"
# text in backticks or parentheses, and the end of a step
STEP = re.compile(r"`[^`]*`|\([^()]*\)|(?P<end>; )")


def find_rule(id: str) -> Rule:
    """Finds a rule by its id, in any case, with or without `SG-`. Raises StackgenError that suggests the closest id."""
    wanted = id.upper() if id.upper().startswith("SG-") else f"SG-{id.upper()}"
    for one in RULES:
        if one.id == wanted:
            return one
    if wanted == UNKNOWN:
        raise StackgenError(
            f"{UNKNOWN} is not a rule: {UNKNOWN} means that no rule matched", "`stackgen explain` lists all rules"
        )
    # a high cutoff: all ids start with SG-, so even unrelated ids are similar
    close = get_close_matches(wanted, [one.id for one in RULES], n=1, cutoff=0.7)
    hint = f"did you mean {close[0]}?" if close else "`stackgen explain` without an id lists all rules"
    raise StackgenError(f"there is no rule {id}", hint)


def show_placeholders(template: str) -> str:
    """A template with its placeholders in capitals: `{max_len}` becomes `MAX-LEN`."""
    template = re.sub(r"\[\[(?:[?!][\w.-]+\|)?", "", template).replace("]]", "")
    return re.sub(r"\{([a-z_]+)\}", lambda match: match[1].upper().replace("_", "-"), template)


def split_steps(fix: str) -> list[str]:
    """The steps and alternatives of a fix, which `; ` separates outside of code and parentheses."""
    ends = [found.span() for found in STEP.finditer(fix) if found["end"]]
    starts = [0, *(end for _, end in ends)]
    return [fix[start:end] for start, end in zip(starts, [*(start for start, _ in ends), len(fix)], strict=True)]


def format_page(rule: Rule) -> str:
    """The page of `rule` as plain text."""
    parts = [
        f"{rule.id}: {show_placeholders(rule.title)}",
        "",
        _wrap(f"Cause: {show_placeholders(rule.cause)}."),
        "",
        *_list_fix(show_placeholders(rule.page_fix or rule.fix)),
    ]
    if rule.change:
        parts += ["", *(f"    {line}" for line in _format_change(rule).splitlines())]
    # `fill` would join the paragraphs and the list items of `explain`
    parts += ["", *("\n".join(_wrap(line) for line in rule.explain.split("\n"))).splitlines(), ""]
    if rule.variants:
        parts.append(OTHER_CAUSES)
        for text, steps in _format_variants(rule):
            parts += [_wrap(f"- {text}", indent="  "), *(["  Fix:"] if steps else [])]
            parts += [_wrap(f"  - {step}", indent="    ") for step in steps]
        parts.append("")
    parts += [*(f"Matches: {pattern.pattern}" for pattern in rule.all_patterns), f"Source: {rule.source}"]
    return "\n".join(parts)


def format_markdown(rule: Rule) -> str:
    """The page of `rule` for docs/errors/, as Markdown."""
    parts = [
        f"# {rule.id}: {show_placeholders(rule.title)}\n",
        f"**Cause:** {show_placeholders(rule.cause)}.\n",
        _list_fix_as_markdown(show_placeholders(rule.page_fix or rule.fix)),
    ]
    if rule.change:
        parts.append(f"```yaml\n{_format_change(rule)}\n```\n")
    parts.append(f"{rule.explain}\n")
    if rule.variants:
        parts.append(f"{OTHER_CAUSES}\n")
        for text, steps in _format_variants(rule):
            parts.append("\n".join([f"- {text}", *(["  Fix:"] if steps else []), *(f"  - {one}" for one in steps), ""]))
    if rule.all_patterns:
        parts.append("stackgen reports this cause when a line matches one of these regular expressions:\n")
        parts.append("```text\n" + "\n".join(pattern.pattern for pattern in rule.all_patterns) + "\n```\n")
    if rule.find:
        # the first line of the finder's docstring is part of the page
        condition = (rule.find.__doc__ or "").strip().splitlines()
        also = "also " if rule.all_patterns else ""
        parts.append(
            f"stackgen {also}detects this cause from logs, metrics, and the states of containers and GPUs."
            f"{' Condition: ' + condition[0] if condition else ''}\n"
        )
    parts.append(f"Source: {rule.source}\n")
    return "\n".join(parts)


def format_finding(finding: Finding, first: bool = True) -> str:
    """A finding in the layout of a rustc error. All findings except the `first` show one line, no change."""
    label = "error" if first else "also"
    lines = [f"{label}[{finding.id}]: {finding.title}"]
    where = f"{finding.service}: " if finding.service else ""
    shown = finding.evidence if first else finding.evidence[:1]
    lines += [f"  {where}{line}" for line in shown]
    lines.append(_block("cause", finding.cause))
    lines.append(_block("fix", *split_steps(finding.fix)))
    # only the first finding is THE cause; the others stay short
    if first and finding.edit:
        lines += ["       in stack.yaml:", *(f"       {line}" for line in format_edit(finding).splitlines())]
    # SG-0000 has no page
    if finding.id != UNKNOWN:
        lines.append(f"  more: stackgen explain {finding.id}")
    return "\n".join(lines)


def format_edit(finding: Finding) -> str:
    """The change to stack.yaml as YAML, with the old value in a comment; "" if there is no change."""
    if finding.edit is None:
        return ""
    edit = finding.edit
    name = str(edit.path[-1])
    head = f"{edit.path[0]}[{edit.path[1]}]:"
    if edit.remove:
        note = f"without {edit.value}" if edit.value else f"remove this field (the value was {edit.was})"
        return f"{head}\n  {name}:    # {note}"
    was = f"    # was {edit.was}" if edit.was else ""
    return f"{head}\n  {name}: {edit.value}{was}"


def _format_variants(rule: Rule) -> list[tuple[str, list[str]]]:
    """The condition and the cause of each variant, and the steps of its own fix."""
    found = []
    for one in rule.variants:
        # "then" ends a condition with commas of its own
        comma = ", then" if "," in one.condition else ","
        condition = f"If {one.condition}{comma} " if one.condition else ""
        cause = show_placeholders(one.cause or rule.cause)
        found.append((f"{condition}{cause}.", split_steps(show_placeholders(one.fix)) if one.fix else []))
    return found


def _format_change(rule: Rule) -> str:
    change = rule.change
    assert change is not None
    value = show_placeholders(change.value)
    inner = f"{change.field}: {value}"
    if change.remove:
        inner = f"{change.field}:  # {f'without {value}' if value else 'remove this field'}"
    return f"models:\n  - # the model that failed\n    {inner}"


def _list_fix(fix: str) -> list[str]:
    steps = split_steps(fix)
    if len(steps) == 1:
        return [_wrap(f"Fix: {fix}.")]
    return ["Fix:", *(_wrap(f"- {step}", indent="  ") for step in steps)]


def _list_fix_as_markdown(fix: str) -> str:
    steps = split_steps(fix)
    return f"**Fix:** {fix}.\n" if len(steps) == 1 else "\n".join(["**Fix:**\n", *(f"- {step}" for step in steps), ""])


def _block(label: str, *parts: str) -> str:
    """The parts below each other, as a list if there are several."""
    head = f"  {label}: "
    mark = "- " if len(parts) > 1 else ""
    margin = " " * len(head)
    return "\n".join(_wrap(mark + part, first=margin if index else head, indent=margin + " " * len(mark))
                     for index, part in enumerate(parts))  # fmt: skip


def _wrap(text: str, first: str = "", indent: str = "") -> str:
    # paths, flags and URLs must stay in one piece, or they can't be copied
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=indent, break_long_words=False,
                         break_on_hyphens=False)  # fmt: skip
