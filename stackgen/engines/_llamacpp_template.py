"""Whether the chat template inside a GGUF file lets llama.cpp call tools.

Build 11434, `common/jinja/caps.cpp`: a template describes tools if it uses `tools`, and repeats calls if it uses
`tool_calls`. If a template does not use `tool_calls`, `common/chat-auto-parser-generator.cpp` builds no parser and no
grammar for tools. Measured on that build: `tool_choice: required` then gets a 200 with plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stackgen.errors import StackgenError
from stackgen.fit.gguf import read_gguf_header
from stackgen.spec import is_local

__all__ = ["ToolSupport", "find_tool_support", "warn_of_templates"]

TEMPLATE_FLAGS = ("--chat-template", "--chat-template-file", "--no-jinja")
WORDS = ("tools", "tool_calls")


@dataclass(frozen=True, slots=True)
class ToolSupport:
    """The file, whether it has a chat template, and which of `WORDS` the template lacks."""

    file: Path
    has_template: bool
    missing: tuple[str, ...]

    @property
    def ignores_tools(self) -> bool:
        """Whether llama.cpp ignores `tools` and `tool_choice` for certain."""
        return self.missing == WORDS


def find_tool_support(model: Any, folder: Path) -> tuple[ToolSupport, ...]:
    """What the templates of a model's GGUF files support; () for files that are not on this machine or not readable.

    `folder` is the path of `model.model` on this machine, a file or a folder. Empty if a flag replaces the template.
    """
    if any(one.partition("=")[0].replace("_", "-") in TEMPLATE_FLAGS for one in model.extra_args):
        return ()
    names = model.served_names if model.models_dir else ()
    files = [folder / f"{name}.gguf" for name in names] or [folder / model.file if model.file else folder]
    return tuple(found for file in files if (found := _read(file)))


def _read(file: Path) -> ToolSupport | None:
    try:
        template = read_gguf_header(file).chat_template if file.is_file() else None
    except (StackgenError, OSError):
        return None
    if not file.is_file():
        return None
    missing = tuple(word for word in WORDS if not re.search(rf"\b{word}\b", template or ""))
    return ToolSupport(file, template is not None, missing)


def warn_of_templates(model: Any, path: str, folder: str) -> Iterator[str]:
    """A warning for each GGUF file of a local model whose template ignores tools."""
    if not is_local(model.model):
        return
    for one in find_tool_support(model, Path(folder)):
        if one.ignores_tools:
            why = "its chat template uses neither" if one.has_template else "it has no chat template"
            yield (
                f"{path}: {one.file.name} ignores `tools` and `tool_choice` of requests: {why}. For tool calls, "
                "use a model whose chat template supports tools, or set --chat-template-file in extra_args"
            )
