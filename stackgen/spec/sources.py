"""Explains values of `model` that are no Hugging Face id: URLs, and the names of other programs."""

from __future__ import annotations

import re
from urllib.parse import quote_plus

__all__ = ["explain_source", "is_gguf_repository"]

ID = r"(?P<id>[\w-][\w.-]*/[\w-][\w.-]*)"
# huggingface_hub 2.4.0, utils/_hf_uris.py: the Hub's web URLs, and `hf://ID@REVISION/PATH`
HUB_URL = re.compile(
    rf"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)/(?:models/)?{ID}"
    r"(?:/(?:tree|blob|resolve|raw)/(?P<revision>[^/?#]+)(?:/(?P<file>[^?#]+))?)?/?(?:[?#].*)?"
)
HUB_SCHEME = re.compile(rf"hf://(?:models/)?{ID}(?:@(?P<revision>[^/]+))?(?:/(?P<file>.+))?")
# llama.cpp at commit f5e85d43, common/arg.cpp: `-hf <user>/<model>[:quant]`
QUANT = re.compile(rf"(?:hf\.co/|huggingface\.co/)?{ID}:(?P<quant>[\w.-]+)")
REVISION = re.compile(rf"{ID}@(?P<revision>[\w./-]+)")
FILE = re.compile(rf"{ID}/(?P<file>[\w./-]+\.gguf)", re.IGNORECASE)
# Ollama's library: a name and a tag, without an organization
OLLAMA = re.compile(r"[\w.-]+:[\w.-]+")
SEARCH = "https://huggingface.co/models?search="


def explain_source(value: str) -> str:
    """Returns what to write instead of `value`, which is neither a Hub id nor a local path; "" if nothing is known."""
    for pattern in (HUB_URL, HUB_SCHEME, REVISION, FILE):
        if match := pattern.fullmatch(value):
            return f"is not a Hugging Face id. Write {_fields(match.groupdict())}"
    if match := QUANT.fullmatch(value):
        return (
            f"has a tag, but Hugging Face ids have no tags. Write `model: {match['id']}`; for llamacpp, also `file:` "
            f"with the name of the {match['quant']} file in that repository"
        )
    if OLLAMA.fullmatch(value):
        name = value.removesuffix(":latest").replace(":", " ")
        return (
            "is a name in Ollama's library, not a Hugging Face id (organization/name). To find the model's id, open "
            f"{SEARCH}{quote_plus(name)}"
        )
    return ""


def is_gguf_repository(name: str) -> bool:
    """Whether a Hub id looks like that of a repository that only has GGUF files."""
    return "/" in name and not name.startswith(("/", "./", "../", "~")) and name.lower().endswith("-gguf")


def _fields(found: dict[str, str | None]) -> str:
    fields = [f"`model: {found['id']}`"]
    if (revision := found.get("revision")) and revision != "main":
        fields.append(f"`revision: {revision}`")
    # the other files of a repository are loaded anyway
    if (file := found.get("file")) and file.lower().endswith(".gguf"):
        fields.append(f"`file: {file}`")
    return " and ".join(fields)
