"""How a server's API differs from OpenAI's: data that an engine declares and the check reads."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Deviation", "Dialect"]


@dataclass(frozen=True, slots=True)
class Deviation:
    """A known, harmless difference of a server from the documented API, as data for the check.

    A problem that `check` finds and whose text `pattern` (a regular expression) matches as a whole fails nobody: it
    is reported once, as `note`.
    """

    check: str
    pattern: str
    note: str


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a server's OpenAI-compatible API is to be asked, and how it deviates. Source: recorded responses.

    `alive_path` is None where the server has no liveness path of its own. `open_paths` answer without a key
    although one is set. `private_ports` are (port, path) pairs of services of the same stack that have no
    authentication and must be closed to everybody else. `stream_usage` tells whether
    `stream_options.include_usage` is honoured. `leading_name`: asked by an alias, the server answers under its first
    served name. `auth_statuses` are what a request without a key gets, `unknown_model` (status, code) what a wrong name
    gets, `error_path` where an error's message stands in its body.
    `claims`, `lacks` and `ignores` are names of checks: features the server says it has, ones it has not, and ones it
    takes without an error and does nothing about; those that `depends` names come with the model or with how the
    server was started; of others nothing is known before they are tried. `tokenize` is the
    path under the root and the field of the text, where the server has such a path. `silent_hint` says what it may be
    when a server of this kind lists its models and answers nothing.
    """

    name: str
    alive_path: str | None = None
    open_paths: tuple[str, ...] = ()
    private_ports: tuple[tuple[int, str], ...] = ()
    stream_usage: bool = True
    leading_name: bool = False
    auth_statuses: tuple[int, ...] = (401,)
    unknown_model: tuple[int, int | str | None] = (404, None)
    error_path: tuple[str, ...] = ("error", "message")
    claims: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()
    depends: tuple[str, ...] = ()
    tokenize: tuple[str, str] | None = None
    deviations: tuple[Deviation, ...] = ()
    silent_hint: str = ""
