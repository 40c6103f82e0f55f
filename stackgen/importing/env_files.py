"""Files with variables: Compose's `.env` and `env_file`, `docker run --env-file`, and systemd's EnvironmentFile."""

from __future__ import annotations

import re
from pathlib import Path

from stackgen.render.read import read_regular

__all__ = ["parse_variables", "read_variables"]

LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_][\w.-]*)\s*=[ \t]*(.*?)\s*")


def read_variables(path: Path) -> dict[str, str] | None:
    """The variables in the file at `path`; None if it can't be read."""
    try:
        return parse_variables(read_regular(path).decode("utf-8", "replace"))
    except OSError:
        return None


def parse_variables(text: str) -> dict[str, str]:
    """The variables in `text`: `NAME=value` lines, with quotes and comments as Compose reads them."""
    found = {}
    # not splitlines(): a value may contain a Unicode line separator
    for line in text.replace("\r\n", "\n").split("\n"):
        if match := LINE.fullmatch(line):
            value = match[2]
            quoted = re.fullmatch(r"(['\"])(.*?)\1(?:\s+#.*)?", value)
            found[match[1]] = quoted[2] if quoted else re.sub(r"\s+#.*$", "", value)
    return found
