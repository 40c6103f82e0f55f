"""Python tracebacks whose exception is missing: excerpts, wrapped logs, and logs of several processes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stackgen.diagnose.prefixes import process_name, strip_prefix

__all__ = ["find_cut_traceback", "find_literal_raises", "find_traceback_at_end", "has_request_frame"]

# a line of code with the text of the exception that it raises
RAISE = re.compile(r"""^\s+raise (?P<name>[\w.]+)\(\s*[frbu]{0,2}(?P<quote>"|')(?P<text>\S.{3,300}?)(?P=quote)""")
FRAME = re.compile(r'^\s*File "[^"]{1,300}", line \d+')
# Python's dumps of all threads, which no exception ends, have no comma here
IN_FUNCTION = re.compile(r'^\s*File "[^"]{1,300}", line \d+, in ')
# what Python draws below a line of code
MARKS = re.compile(r"^\s*[\^~]+\s*$")
# vLLM's prefix without a level, whose removal also removes the indentation behind it
INDENTED = re.compile(r"\bpid=\d+[^)]{0,60}\)\s{2,}\S")
# code that answers one request: the server itself goes on
REQUEST_FRAME = re.compile(
    r'File "[^"]{0,300}?(?:entrypoints/(?:openai|serve|anthropic|pooling)/(?!api_server|cli_args)|renderers/|'
    # the same modules are also loaded and set up at the start
    r'serving\w*\.py|starlette/|fastapi/)[^"]{0,200}", line \d+, in '
    r"_?(?:create|render|chat|complet|respon|generate|apply|"
    r"safe_apply|preprocess|handle|app\b|__call__|wrapped|process|tokeniz|encode)"
)
# lines of code that may follow the first line of a `raise`
CODE_LINES = 6


def find_literal_raises(lines: Sequence[str]) -> list[int]:
    """The indices of the lines `raise X("text")` in `lines`, with prefixes, whose exception does not follow."""
    found = ((index, RAISE.match(_strip(line))) for index, line in enumerate(lines) if "raise " in line)
    return [index for index, match in found if match and not _has_exception(lines, index, match["name"])]


def _strip(line: str) -> str:
    text = strip_prefix(line)
    return f"  {text}" if INDENTED.search(line) and not text.startswith(" ") else text


def _has_exception(lines: Sequence[str], index: int, name: str) -> bool:
    last = name.rpartition(".")[2]
    for line in lines[index + 1 : index + 1 + CODE_LINES]:
        text = _strip(line)
        # another process goes on
        if process_name(line) != process_name(lines[index]):
            return False
        if text.strip() and not text[0].isspace():
            return bool(re.match(rf"(?:[\w.]+\.)?{re.escape(last)}\b", text))
        if FRAME.match(text):
            return False
    return False


def find_cut_traceback(lines: Sequence[str]) -> tuple[str, ...]:
    """The last frame of a traceback that ends without its exception, and its line of code; () if there is none."""
    opened: dict[str, int] = {}
    for index, line in enumerate(lines):
        text = _strip(line)
        if FRAME.match(text):
            opened[process_name(line)] = index
        elif text.strip() and not text[0].isspace() and not MARKS.match(text):
            opened.pop(process_name(line), None)
    if not opened:
        return ()
    last = max(opened.values())
    shown = (strip_prefix(line).strip() for line in lines[last : last + 2])
    return tuple(text for text in shown if text)


def find_traceback_at_end(lines: Sequence[str]) -> tuple[str, ...]:
    """The last frame of a traceback, and its line of code, if nothing follows it in `lines`; () otherwise."""
    # a frame has a line of code, and sometimes marks
    end = [line for line in lines if line.strip()][-3:]
    return find_cut_traceback(lines) if any(IN_FUNCTION.match(_strip(line)) for line in end) else ()


def has_request_frame(lines: Sequence[str]) -> bool:
    """Whether `lines` have frames of code that answers a request."""
    return any(REQUEST_FRAME.search(line) for line in lines)
