"""Finds the tokenizer of a model, with which the load generator makes prompts of a given length."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from stackgen.errors import StackgenError
from stackgen.spec import is_local

__all__ = ["find_tokenizer"]

# one of them is in every folder that transformers can read a tokenizer from
FILES = ("tokenizer.json", "tokenizer_config.json")


def find_tokenizer(source: str, revision: str | None, stores: Sequence[Path], base: Path) -> str:
    """A folder with the tokenizer, or the repository on the Hub that has it.

    `source`: repository or path of the weights; a relative path starts at `base`. `stores`: folders of weights
    (docs/decisions/storage.md). Raises StackgenError for weights that bring no tokenizer, such as a GGUF file.
    """
    if is_local(source):
        path = Path(os.path.normpath(base / os.path.expanduser(source)))
        if _has_tokenizer(path):
            return str(path)
        raise StackgenError(
            f"{path} contains no tokenizer that GuideLLM can read ({' or '.join(FILES)})",
            "pass the original model's folder or its id on the Hub with --tokenizer, or prompts with --prompts",
        )
    for store in stores:
        path = store / "by-name" / source / quote(revision or "main", safe="")
        if _has_tokenizer(path):
            return str(path.resolve())
    return source


def _has_tokenizer(path: Path) -> bool:
    return any(os.access(path / name, os.R_OK) for name in FILES)
