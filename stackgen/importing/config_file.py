"""Reads the YAML file of `vllm serve --config`: its keys are flags without dashes.

Source: vLLM 0.32.0, `vllm/utils/argparse_utils.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stackgen.importing.compose_file import load_text
from stackgen.importing.container import Container, find_host_path
from stackgen.importing.ledger import Ledger, Word
from stackgen.render.read import read_regular

__all__ = ["expand_config"]


def expand_config(words: list[Word], container: Container, ledger: Ledger) -> list[Word]:
    """`words` with the flags of the file before them, because flags of the command line override the file's.

    A file that can't be read leaves `--config` as it is. Raises SpecError if it is no YAML mapping.
    """
    at = next((index for index, word in enumerate(words) if word.text.partition("=")[0] == "--config"), -1)
    if at < 0:
        return words
    _, equals, value = words[at].text.partition("=")
    word = words[at] if equals else words[at + 1] if at + 1 < len(words) else words[at]
    text = value if equals else word.text
    path, mount = find_host_path(container, text)
    try:
        content = read_regular(container.folder / Path(path or text).expanduser()).decode("utf-8", "replace")
    except OSError:
        return words
    if mount:
        mount.used = True
    for part in (words[at], word):
        part.item.build_in("its settings are listed one by one")
    found: list[Word] = []
    for key, one in load_text(content, text).items():
        found += _flag(f"{text}: {key}", str(key), one, ledger)
    # argparse accepts a model before flags only, so the file's model must not follow one of the command line
    return [*found, *words[:at], *words[at + (1 if equals else 2) :]]


def _flag(place: str, key: str, value: Any, ledger: Ledger) -> list[Word]:
    name = "--" + key.replace("_", "-")
    if isinstance(value, list):
        first = ledger.word(place, key, name)
        return [first, *(ledger.word(f"{place}[{index}]", str(one)) for index, one in enumerate(value))]
    if isinstance(value, dict):
        return [ledger.word(place, key, f"{name}={json.dumps(value)}")]
    text = "" if value is None else str(value)
    if text.lower() in ("true", "yes", "on"):
        return [ledger.word(place, f"{key}: {text}", name)]
    if text.lower() in ("false", "no", "off"):
        word = ledger.word(place, f"{key}: {text}", name)
        word.item.build_in("this is vLLM's default")
        return []
    return [ledger.word(place, f"{key}: {text}", f"{name}={text}")]
