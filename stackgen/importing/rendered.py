"""Reads services that stackgen itself has rendered: what stackgen sets in every stack is not a setting of the user."""

from __future__ import annotations

import re
from typing import Any

from stackgen.engines.base import DRAIN_SECONDS
from stackgen.importing.container import Container, Value
from stackgen.importing.ledger import Ledger, Word

__all__ = ["is_rendered", "settle_options", "settle_rendered"]

SET = "stackgen renders it itself"
# `/models/by-name/ORGANIZATION/REPOSITORY/REVISION/FILE`, the link that download.py creates
BY_NAME = re.compile(r"/models/by-name/(?P<repo>[^/]+/[^/]+)/(?P<revision>[^/]+)/(?P<file>.+)")
VARIABLES = re.compile(r"STACKGEN_|HF_HUB_OFFLINE$|(?:VLLM|LLAMA)_API_KEY$|NO_PROXY$|no_proxy$")
# stackgen's default of `hang_timeout` is the last word of STACKGEN_WATCH
DEFAULT_HANG = "25"


def is_rendered(container: Container) -> bool:
    """Whether stackgen has rendered the service."""
    return any(word.text.startswith("/stackgen/") for word in container.words)


def settle_rendered(container: Container, stack: dict[str, Any], ledger: Ledger) -> None:
    """Gives everything that stackgen adds to a service an outcome, and leaves what the user's fields have set."""
    settle_options(container, ledger)
    _settle_image(container)
    for name, value in list(container.environment.items()):
        if name == "STACKGEN_WATCH":
            _set_hang_timeout(container, str(value.value), value)
        elif VARIABLES.match(name):
            value.item.build_in(SET)
        else:
            continue
        container.environment.pop(name)
    for mount in list(container.mounts):
        if mount.target == "/models":
            _set_storage(mount, stack)
        elif mount.target in ("/stackgen", "/home/vllm/.cache"):
            mount.item.build_in(SET)
        else:
            continue
        container.mounts.remove(mount)
    for name, default in (("logging.max_size", "20m"), ("logging.max_file", 5)):
        if (option := container.options.get(name)) and option.value == default:
            container.options.pop(name).item.build_in("this is the default")
    container.command = _split_words(container)


def settle_options(container: Container, ledger: Ledger) -> None:
    """Options of a rendered service that no field sets: security_opt, tmpfs, secrets, build."""
    for item in ledger.items:
        if item.place.startswith((f"{container.place}.", "secrets.")) and item.outcome == "dropped":
            item.build_in(SET)
    ledger.warnings = [one for one in ledger.warnings if not one[0].startswith(f"{container.place}.")]


def _settle_image(container: Container) -> None:
    if container.image and container.image.text.startswith("stackgen/"):
        container.image.item.build_in("stackgen builds this image")


def _set_hang_timeout(container: Container, text: str, value: Value) -> None:
    seconds = text.rpartition(" ")[2]
    if seconds == DEFAULT_HANG or not seconds.isdecimal():
        value.item.build_in(SET)
    else:
        container.options["hang_timeout"] = Value(int(seconds), value.item)


def _set_storage(mount: Any, stack: dict[str, Any]) -> None:
    name = mount.source.removeprefix("=")
    if mount.named and name == "stackgen-models":
        mount.item.build_in("it is the default storage")
        return
    field = "volume" if mount.named else "path"
    stack.setdefault("storage", {})[field] = name
    mount.item.carry(f"storage.{field}")


def _split_words(container: Container) -> list[Word]:
    """The command without flags that stackgen adds, and with the Hub's id in place of the link to a file."""
    words: list[Word] = []
    skip = False
    for index, word in enumerate(container.command):
        after = container.command[index + 1] if index + 1 < len(container.command) else None
        match = BY_NAME.fullmatch(word.text)
        if skip:
            skip = False
        elif word.text == "--shutdown-timeout" and after and after.text == str(DRAIN_SECONDS):
            word.item.build_in(SET)
            after.item.build_in(SET)
            skip = True
        elif match and words and words[-1].text == "--model":
            words[-1] = Word("--hf-repo", words[-1].item)
            words += [Word(match["repo"], word.item), Word("--hf-file", word.item), Word(match["file"], word.item)]
            if match["revision"] != "main":
                container.options["revision"] = Value(match["revision"], word.item)
        else:
            words.append(word)
    return words
