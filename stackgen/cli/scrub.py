"""Replaces the secrets of the stack in everything that the commands print, wherever the text comes from.

The secrets are read when the first text is printed, and again when `.env` or stack.yaml has changed.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stackgen.render.read import STACK_FILES

if TYPE_CHECKING:
    from stackgen.check.transport.redact import Redactor
    from stackgen.stack.redactor import SecretRedactor

__all__ = ["known_secrets", "protect", "scrub", "scrub_diff", "scrub_json"]


class _Stacks:
    """The folders whose secrets no output may show, and these secrets."""

    def __init__(self, folders: Iterable[Path] = ()) -> None:
        self.folders = tuple(dict.fromkeys(folders))
        self.secrets: dict[str, None] = {}
        self._seen: tuple[object, ...] | None = None
        self._redactor: Redactor | None = None

    def redactor(self) -> Redactor:
        """The redactor of the secrets as they are now, and as they were before: a rotated key is still a key."""
        # imported late: `--help` and `--version` print nothing that could contain a secret
        from stackgen.check.transport.redact import Redactor
        from stackgen.stack.secrets import collect_secrets

        seen = tuple(_stamp(folder / name) for folder in self.folders for name in (".env", *STACK_FILES))
        if self._redactor is None or seen != self._seen:
            for folder in self.folders:
                self.secrets |= dict.fromkeys(collect_secrets(folder))
            self._seen, self._redactor = seen, Redactor(self.secrets)
        return self._redactor


_current = _Stacks()


def protect(args: Namespace) -> None:
    """Replaces the secrets of the stacks that `args` name in all further output of this process."""
    global _current
    names = [getattr(args, name, None) for name in ("stack", "folder", "output")]
    # `scale` takes models with their counts and the stack in one list
    names += [one for one in args.replicas if "=" not in one] if args.command == "scale" else []
    # `keys` takes the stack after the names of keys
    names += args.names if args.command == "keys" else []
    # not is_dir(): the folder may be created by the command
    paths = [Path(name) for name in (*names, ".") if isinstance(name, str) and name]
    _current = _Stacks(path.parent if path.suffix in (".yaml", ".yml") else path for path in paths)


def known_secrets() -> tuple[str, ...]:
    """The secrets of the stacks that the command is about."""
    _current.redactor()
    return tuple(_current.secrets)


def scrub(text: str) -> str:
    """`text` with `[key]` in place of every secret. Colors stay."""
    return _current.redactor().mask(text) if _current.folders else text


def scrub_json(data: Any) -> Any:
    """`data` for JSON with `[key]` in place of the secrets in its texts; printed JSON would escape some of them."""
    if not _current.folders:
        return data
    # one redactor for all texts, because it is built anew if a file has changed
    redactor = _current.redactor()
    # one search for all texts is much faster than one for each, and hardly ever is there anything to replace
    return _mask_texts(data, redactor.mask) if redactor.may_occur_in_json(json.dumps(data)) else data


def _mask_texts(data: Any, mask: Callable[[str], str]) -> Any:
    if isinstance(data, dict):
        return {mask(one) if isinstance(one, str) else one: _mask_texts(value, mask) for one, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_mask_texts(one, mask) for one in data]
    return mask(data) if isinstance(data, str) else data


def scrub_diff(lines: Iterable[str], texts: Sequence[str] = ()) -> Iterator[str]:
    """The lines of a diff without secrets: also those that only `texts`, the compared files, contain or contained."""
    redact: SecretRedactor | None = None
    for line in lines:
        if redact is None:
            # only now: without a difference, `render` needs neither
            from stackgen.stack.redactor import SecretRedactor
            from stackgen.stack.secrets import find_yaml_secrets

            found = (secret for text in texts for secret in find_yaml_secrets(text))
            redact = SecretRedactor((*known_secrets(), *found))
        # the first character of a diff's line is not part of the file, and would hide the start of a field
        yield line[:1] + redact(line[1:])


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
