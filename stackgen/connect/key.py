"""The key of a client: its name at the gateway, and the shell command that puts it into a variable."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from stackgen.connect.recipe import KEY
from stackgen.errors import StackgenError
from stackgen.spec import GatewaySpec
from stackgen.stack.envfile import API_KEY, read_env
from stackgen.stack.keys import DEFAULT, digest, list_keys

__all__ = ["ClientKey", "find_key"]

PLAIN = "sed -n 's/^{name}=//p' {path}"
# As Compose reads the line: the last one counts, quotes are removed, and a comment may follow
SED = r"""sed -n 's/^ *\(export  *\)\{{0,1\}}{name} *= *["'\'']\{{0,1\}}\([^"'\'' ]*\).*/\2/p' {path} | tail -n 1"""


@dataclass(frozen=True, slots=True)
class ClientKey:
    """`line` is the shell command that sets the variable. `value` is "" if the key is not known here.

    `problem` is what must be done before the key works; "" if nothing.
    """

    name: str
    line: str
    value: str = ""
    problem: str = ""


def find_key(folder: Path, name: str | None, limits: GatewaySpec | None, *, gateway: bool, show: bool) -> ClientKey:
    """Returns the key called `name`, by default the key in `folder/.env`. With `show`, its line contains the key.

    Raises StackgenError for an unknown name, for a name without a gateway, and if an unknown key shall be shown.
    """
    if name in (None, DEFAULT):
        return _find_default(folder, show=show)
    if not gateway:
        raise StackgenError("the stack has no gateway, so it has no keys for clients", "set `gateway: true`")
    known = list_keys(folder, limits)
    row = next((one for one in known if one.name == name), None)
    if row is None:
        close = get_close_matches(str(name), [one.name for one in known], n=1)
        hint = f"did you mean {close[0]}?" if close else f"`stackgen keys new {name}` creates it"
        raise StackgenError(f"there is no key with the name {name}", hint)
    # only the hash of this key is stored, so the user may have set the variable to it
    given = os.environ.get(KEY, "")
    value = given if given and digest(given) in row.hashes else ""
    if show and not value:
        raise StackgenError(
            f"the key {name} is not stored: `stackgen keys new` printed it once",
            f"set {KEY} to this key, or create another key with `stackgen keys rotate {name}`",
        )
    line = f"export {KEY}={shlex.quote(value)}" if show else f"read -rsp 'key of {name}: ' {KEY} && export {KEY}"
    problem = "" if row.hashes else f"{name} has no key yet: `stackgen keys new {name}` creates it"
    return ClientKey(row.name, line, value, problem)


def _find_default(folder: Path, *, show: bool) -> ClientKey:
    path = folder / ".env"
    value = read_env(folder).get(API_KEY, "")
    problem = (
        ""
        if value
        else (f"{path} does not contain {API_KEY}: `stackgen up` writes a .env with a key only if there is none")
    )
    if show:
        if not value:
            raise StackgenError(
                f"{path} does not contain {API_KEY}",
                "restore the line in .env; `stackgen render` writes a new .env only if there is none",
            )
        return ClientKey(DEFAULT, f"export {KEY}={shlex.quote(value)}", value)
    # the environment overrides .env, in Compose too
    if os.environ.get(API_KEY):
        return ClientKey(DEFAULT, f'export {KEY}="${API_KEY}"', value)
    command = (PLAIN if _is_plain(path, value) else SED).format(name=API_KEY, path=shlex.quote(str(path.absolute())))
    return ClientKey(DEFAULT, f'export {KEY}="$({command})"', value, problem)


def _is_plain(path: Path, value: str) -> bool:
    """Whether the file has one line with the key, without quotes and comments, as stackgen writes it."""
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, ValueError):
        # no file yet, and the one that stackgen will write is plain
        return True
    return [line for line in lines if API_KEY in line and not line.startswith("#")] == [f"{API_KEY}={value}"]
