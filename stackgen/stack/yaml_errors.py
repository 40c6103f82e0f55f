"""Turns errors of the YAML parser into messages about what people mistype: tabs, indentation, quotes, brackets.

The texts are those of libyaml 0.2.5 (src/scanner.c, src/parser.c), or of PyYAML 6.0's scanner.py and parser.py.
No message contains a value of the file, which may be a secret: only the names of fields.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from stackgen.errors import Mistake

__all__ = ["describe_yaml_error"]

# the parser expected another field, or an end, where this line is
MISPLACED = re.compile(
    r"did not find expected ('-' indicator|key)|expected <block end>|mapping values are not allowed|"
    r"(block )?sequence entries are not allowed"
)
UNCLOSED = re.compile(r"expected ',' or '([\]}])'")
CHARACTER = re.compile(r"character.* that cannot start any token")
# fields of one mapping are compared by the column of the first name: in `- model: x`, that of `model`
START = re.compile(r"(?P<indent>[ \t]*(?:- +)*)(?:(?P<field>[\w.-]+):(?=\s|$))?")
NO_SPACE = re.compile(r"\s*(?:- +)*(?P<field>[\w.-]+):\S")


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of the file: its number, the column of its first field, and that field's name ("" for another text)."""

    number: int
    column: int
    field: str

    def __str__(self) -> str:
        name = f"`{self.field}`" if self.field else "the text"
        return f"{name} in line {self.number} starts in column {self.column + 1}"


def describe_yaml_error(error: Any, text: str) -> Mistake:
    """Returns the mistake in `text` that made PyYAML raise `error`, a `yaml.YAMLError`."""
    lines = text.splitlines()
    problem = str(getattr(error, "problem", None) or str(error).splitlines()[0])
    mark, context = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    if mark and (found := _explain(problem, mark, context, lines)):
        return found
    # since libyaml 0.2.6 (PyYAML 6.0.4) the parser itself stops at deep nesting, before `compose_node` can
    problem = problem.replace("exceeded maximum nesting depth", "nested too deeply")
    message = f"invalid YAML: {problem}"
    return Mistake("", message, "", mark.line + 1, mark.column + 1) if mark else Mistake("", message)


def _explain(problem: str, mark: Any, context: Any, lines: list[str]) -> Mistake | None:
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return _mistake("the line starts with a tab", mark, "YAML allows only spaces there: replace the tab")
    if context and "end of stream" in problem:
        return _mistake("a quote in this line is not closed", context, "add the closing quote")
    if context and (closing := UNCLOSED.search(problem)):
        opening = {"]": "[", "}": "{"}[closing[1]]
        return _mistake(f"the `{opening}` in this line is not closed, or a comma is missing after a value", context,
                        f"add `{closing[1]}`, or the comma")  # fmt: skip
    if context and "could not find expected ':'" in problem:
        return _mistake("a field has no colon", context, "write `field: value`")
    if CHARACTER.search(problem) and line[mark.column : mark.column + 1] == "\t":
        # only PyYAML without libyaml refuses it (findings/pyyaml-loaders-differ-on-tabs.sh)
        return _mistake("this line contains a tab between or after its values", mark, "remove the tab, or write spaces")
    if CHARACTER.search(problem):
        return _mistake(f"a value can't start with the character {line[mark.column : mark.column + 1]}", mark,
                        "put the value in quotes")  # fmt: skip
    return _explain_place(mark, lines) if MISPLACED.match(problem) else None


def _explain_place(mark: Any, lines: list[str]) -> Mistake | None:
    """A line that can't be where it is: the indentation is wrong, or the line before is."""
    here, before = _read(mark.line, lines), _find_before(mark.line, lines)
    inside = mark.column > len(lines[mark.line]) - len(lines[mark.line].lstrip()) if here else False
    if here and before and here.column != before.column:
        return _mistake(f"the indentation is wrong: {here}, and {before}", mark,
                        "start all fields of a mapping in the same column. The first field of a list's entry starts "
                        "after the `- `")  # fmt: skip
    if before and (match := NO_SPACE.match(lines[before.number - 1])):
        message = f"invalid YAML: `{match['field']}:` needs a space after the colon"
        return Mistake("", message, "", before.number, before.column + 1)
    if inside:
        return _mistake(f"YAML can't read the line from column {mark.column + 1} on", mark,
                        "if it is part of a text, put the text in quotes")  # fmt: skip
    return None


def _read(index: int, lines: list[str]) -> _Line | None:
    match = START.match(lines[index]) if index < len(lines) else None
    return _Line(index + 1, len(match["indent"]), match["field"] or "") if match else None


def _find_before(index: int, lines: list[str]) -> _Line | None:
    """The last line above `index` that is neither empty nor a comment."""
    for number in range(index - 1, -1, -1):
        if lines[number].strip() and not lines[number].lstrip().startswith("#"):
            return _read(number, lines)
    return None


def _mistake(message: str, mark: Any, hint: str) -> Mistake:
    return Mistake("", f"invalid YAML: {message}", hint, mark.line + 1, mark.column + 1)
