"""The page of a rule, for the terminal (`stackgen explain`) and for docs/errors/."""

from __future__ import annotations

import re
import textwrap
from difflib import get_close_matches

from stackgen.diagnose.rule import UNKNOWN, Finding, Rule
from stackgen.diagnose.rules import RULES
from stackgen.errors import StackgenError

__all__ = ["find_rule", "markdown", "page", "readable", "snippet", "told"]

WIDTH = 100


def find_rule(id: str) -> Rule:
    """The rule `id`, in any case. Raises StackgenError with the nearest ids for an unknown one."""
    wanted = id.upper() if id.upper().startswith("SG-") else f"SG-{id.upper()}"
    for one in RULES:
        if one.id == wanted:
            return one
    if wanted == UNKNOWN:
        raise StackgenError(f"{UNKNOWN} is no rule: it says that none fits", "`stackgen explain` lists them all")
    close = get_close_matches(wanted, [one.id for one in RULES], n=1, cutoff=0.7)
    hint = f"did you mean {close[0]}?" if close else "`stackgen explain` without an id lists them all"
    raise StackgenError(f"there is no rule {id}", hint)


def readable(template: str) -> str:
    """A template with its placeholders as words: `{max_len}` is `MAX-LEN`."""
    template = template.replace("[[", "").replace("]]", "")
    return re.sub(r"\{([a-z_]+)\}", lambda match: match[1].upper().replace("_", "-"), template)


def page(rule: Rule) -> str:
    """The text page of `rule`."""
    parts = [
        f"{rule.id}: {readable(rule.title)}",
        "",
        _wrapped(f"Cause: {readable(rule.cause)}."),
        "",
        _wrapped(f"Fix: {readable(rule.fix)}."),
    ]
    if rule.change:
        parts += ["", *(f"    {line}" for line in _changed(rule).splitlines())]
    parts += ["", *("\n\n".join(_wrapped(part) for part in rule.explain.split("\n\n"))).splitlines(), ""]
    parts += [*(f"Told by: {pattern.pattern}" for pattern in rule.patterns), f"Source: {rule.source}"]
    return "\n".join(parts)


def markdown(rule: Rule) -> str:
    """The page of `rule` for docs/errors/."""
    parts = [
        f"# {rule.id}: {readable(rule.title)}\n",
        f"**Cause:** {readable(rule.cause)}.\n",
        f"**Fix:** {readable(rule.fix)}.\n",
    ]
    if rule.change:
        parts.append(f"```yaml\n{_changed(rule)}\n```\n")
    parts.append(f"{rule.explain}\n")
    if rule.patterns:
        parts.append("Told by a line that matches:\n")
        parts.append("```text\n" + "\n".join(pattern.pattern for pattern in rule.patterns) + "\n```\n")
    if rule.find:
        about = (rule.find.__doc__ or "").strip().splitlines()
        parts.append(f"Found by a function of the whole evidence{': ' + about[0] if about else '.'}\n")
    parts.append(f"Source: {rule.source}.\n")
    return "\n".join(parts)


def told(finding: Finding, first: bool = True) -> str:
    """A finding as rustc would tell it; shorter where it is not the `first`."""
    label = "error" if first else "also"
    lines = [f"{label}[{finding.id}]: {finding.title}"]
    where = f"{finding.service}: " if finding.service else ""
    shown = finding.evidence if first else finding.evidence[:1]
    lines += [f"  {where}{line}" for line in shown]
    lines.append(_block("cause", finding.cause))
    if first:
        lines.append(_block("fix", finding.fix))
        if finding.edit:
            lines += ["       in stack.yaml:", *(f"       {line}" for line in snippet(finding).splitlines())]
    if finding.id != UNKNOWN:
        lines.append(f"  more: stackgen explain {finding.id}")
    return "\n".join(lines)


def snippet(finding: Finding) -> str:
    """The change as YAML, with what stood there before."""
    if finding.edit is None:
        return ""
    edit = finding.edit
    name = str(edit.path[-1])
    head = f"{edit.path[0]}[{edit.path[1]}]:"
    if edit.remove:
        return f"{head}\n  {name}:    # {f'without {edit.value}' if edit.value else f'leave it out, was {edit.was}'}"
    was = f"    # was {edit.was}" if edit.was else ""
    return f"{head}\n  {name}: {edit.value}{was}"


def _changed(rule: Rule) -> str:
    change = rule.change
    assert change is not None
    value = readable(change.value)
    inner = f"{change.field}: {value}"
    if change.remove:
        inner = f"{change.field}:  # {f'without {value}' if value else 'leave it out'}"
    return f"models:\n  - # the model that failed\n    {inner}"


def _block(label: str, text: str) -> str:
    head = f"  {label}: "
    return textwrap.fill(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False,
                         break_on_hyphens=False)  # fmt: skip


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
