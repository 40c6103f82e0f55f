"""Explains values of `model` that are no Hugging Face id: URLs, and the names of other programs."""

from __future__ import annotations

import re
from urllib.parse import quote_plus

__all__ = ["explain_ollama", "explain_source", "find_ollama_model", "gguf_parts",
           "is_gguf_repository"]  # fmt: skip

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
# names in ollama.com/library, and the repositories of the same weights; `{}` is the size in the tag, such as 8B
OLLAMA_MODELS = {
    "qwen3": "Qwen/Qwen3-{}", "qwen2.5": "Qwen/Qwen2.5-{}-Instruct", "qwen2.5-coder": "Qwen/Qwen2.5-Coder-{}-Instruct",
    "llama3.1": "meta-llama/Llama-3.1-{}-Instruct", "llama3.2": "meta-llama/Llama-3.2-{}-Instruct",
    "llama3.3": "meta-llama/Llama-3.3-{}-Instruct", "gemma3": "google/gemma-3-{}-it", "gpt-oss": "openai/gpt-oss-{}",
    "phi4": "microsoft/phi-4", "bge-m3": "BAAI/bge-m3", "nomic-embed-text": "nomic-ai/nomic-embed-text-v1.5",
}  # fmt: skip
# the tags of these sizes don't say whether they stand for the weights of 2025-04 or for those of 2025-07 (2507)
OLLAMA_VERSIONS = frozenset({("qwen3", "4b"), ("qwen3", "30b"), ("qwen3", "235b")})
# families whose repositories write the size in lower case
LOWER_CASE = ("gemma3", "gpt-oss")


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
    return explain_ollama(value)


def explain_ollama(value: str) -> str:
    """What to write instead of a name in Ollama's library, such as `qwen3:8b`; "" if `value` has no tag."""
    if not OLLAMA.fullmatch(value):
        return ""
    text = "is a name in Ollama's library, not a Hugging Face id (organization/name). "
    if model := find_ollama_model(value):
        name = model.partition("/")[2]
        return (
            f"{text}Write `model: {model}`, which are the original weights. For a smaller GGUF file with "
            f"`engine: llamacpp`, as Ollama uses, open {SEARCH}{quote_plus(name)}&library=gguf"
        )
    name = value.removesuffix(":latest").replace(":", " ")
    return f"{text}To find the model's id, open {SEARCH}{quote_plus(name)}"


def find_ollama_model(value: str) -> str:
    """The repository of the original weights of a well-known name in Ollama's library, such as `qwen3:8b`; or ""."""
    name, _, tag = value.lower().partition(":")
    found = OLLAMA_MODELS.get(name, "")
    if "{}" not in found:
        return found
    # `8b-q8_0` and `8b-instruct-q4_K_M` are quantized files of the same weights; `4b-thinking` is another model
    size = re.fullmatch(r"(\d+(?:\.\d+)?b)(?:-instruct|-it)?(?:-(?:q\d\w*|fp16|bf16))?", tag)
    if not size:
        return ""
    if (name, size[1]) in OLLAMA_VERSIONS:
        return ""
    return found.format(size[1] if name in LOWER_CASE else size[1].upper())


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


def gguf_parts(file: str) -> str:
    """The pattern of all parts of a split GGUF file, whose first part is `file`; `file` itself if it is whole.

    llama.cpp opens the first part, and computes the names of the others from its name (include/llama.h,
    `llama_split_path`), which is PREFIX-00001-of-00002.gguf for the first of two.
    """
    return re.sub(r"-\d{5}-of-(\d{5}\.gguf)$", r"-*-of-\1", file)
