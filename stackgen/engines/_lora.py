"""LoRA adapters of vLLM: where the engine finds them, and the highest rank that the engine prepares for.

vLLM 0.32.0 accepts adapters up to `--max-lora-rank` (16 by default), and refuses to start with an adapter of a higher
rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import BeforeValidator, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from stackgen.engines.base import Replica
from stackgen.errors import Mistake
from stackgen.flags import normalize_flag
from stackgen.plan import Site
from stackgen.spec import Strict, Text, is_local
from stackgen.spec.types import ModelSource
from stackgen.targets.adapter import CONFIG, DEFAULT_RANK, RANKS, adapter_rank, read_adapter_config, round_up_rank

__all__ = [
    "LoraAdapter",
    "adapter_downloads",
    "adapter_modules",
    "choose_rank",
    "find_lora_mistakes",
    "find_lora_warnings",
]

FLAG = "--max-lora-rank"
# fields that vLLM ignores without --enable-lora, which `lora_adapters` sets
LIMITS = {"max_lora_rank": FLAG, "max_loras": "--max-loras"}
COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)


def _check_path(value: Any) -> Any:
    """Refuses what `model` refuses too: URLs, and relative paths that look like no Hub id."""
    try:
        return TypeAdapter(ModelSource).validate_python(value)
    except ValidationError as error:
        text = error.errors()[0]["msg"].replace("`model: ", "`path: ")
        raise PydanticCustomError("adapter", "{text}", {"text": text}) from None


class LoraAdapter(Strict):
    """Serves a LoRA adapter under its own name next to the base model."""

    name: Annotated[str, StringConstraints(pattern=r"^[^\s=]+$")] = Field(description="Served name of the adapter")
    path: Annotated[Text, BeforeValidator(_check_path)] = Field(
        description="Local folder of the adapter, or a Hugging Face id. A local path starts with `/`, `./` or `~`"
    )
    revision: Text | None = Field(
        None, description="Branch, tag or commit of the adapter's Hub repository. Default: the branch main"
    )


def adapter_modules(model: Any, site: Site) -> tuple[str, ...]:
    """The values of `--lora-modules`: `NAME=PATH` of each adapter."""
    return tuple(f"{lora.name}={_find_path(lora, site)}" for lora in model.lora_adapters)


def _find_path(lora: Any, site: Site) -> str:
    if is_local(lora.path):
        return site.local_path(lora.path)
    # vLLM has no revision for adapters, and would take the branch main
    if not lora.revision:
        return str(lora.path)
    folder = f"hub/models--{lora.path.replace('/', '--')}/snapshots/{lora.revision}"
    # the commit of a branch or tag is unknown here: download.py links its snapshot
    by_name = f"by-name/{lora.path}/{quote(lora.revision, safe='')}"
    return f"{site.models_dir()}/{folder if COMMIT.fullmatch(lora.revision) else by_name}"


def adapter_downloads(model: Any) -> tuple[str, ...]:
    """Arguments of `download.py` for the adapters from the Hub."""
    arguments: list[str] = []
    for lora in model.lora_adapters:
        if not is_local(lora.path):
            arguments += ["--model", lora.path, *(["--revision", lora.revision] if lora.revision else [])]
    return tuple(arguments)


def choose_rank(model: Any, site: Site) -> int | None:
    """The value of `--max-lora-rank`: the field, else what the local adapters need; None for vLLM's default."""
    if not model.lora_adapters or _has_rank_flag(model):
        return None
    if model.max_lora_rank:
        return int(model.max_lora_rank)
    highest = max(rank for _, rank in [(0, 0), *_read_ranks(model, site)])
    # a higher limit than necessary takes GPU memory
    return round_up_rank(highest) if highest > DEFAULT_RANK else None


def _has_rank_flag(model: Any) -> bool:
    return any(normalize_flag(one.partition("=")[0]) == FLAG for one in model.extra_args)


def _read_ranks(model: Any, site: Site) -> Iterator[tuple[int, int]]:
    """The index and rank of each adapter in a folder on this machine."""
    for index, lora in enumerate(model.lora_adapters):
        config = read_adapter_config(Path(site.find_on_disk(lora.path))) if is_local(lora.path) else None
        if rank := adapter_rank(config):
            yield index, rank


def find_lora_mistakes(replica: Replica, site: Site) -> Iterator[Mistake]:
    """Ranks that are set twice or in vain, revisions of local folders, and local adapters with too high a rank."""
    model = replica.spec
    if model.max_lora_rank and _has_rank_flag(model):
        yield Mistake(f"{replica.path}.max_lora_rank", f"is set, but extra_args already contains {FLAG}",
                      hint=f"remove {FLAG} from extra_args")  # fmt: skip
        return
    for field, flag in LIMITS.items() if not model.lora_adapters else ():
        if getattr(model, field):
            yield Mistake(
                f"{replica.path}.{field}", "has no effect without lora_adapters",
                hint=(f"add lora_adapters, or remove {field}. If extra_args contains --enable-lora, add {flag} to "
                      "extra_args instead"),
            )  # fmt: skip
    for index, lora in enumerate(model.lora_adapters):
        if lora.revision and is_local(lora.path):
            place = f"{replica.path}.lora_adapters[{index}].revision"
            yield Mistake(place, "has no effect: the path is a local folder",
                          hint="remove revision, or set path to the adapter's Hugging Face id")  # fmt: skip
    for index, rank in _read_ranks(model, site) if not model.image else ():
        path = f"{replica.path}.lora_adapters[{index}].path"
        if rank > RANKS[-1]:
            yield Mistake(path, f"the adapter's rank is {rank}, and vLLM supports ranks up to {RANKS[-1]}",
                          hint="merge the adapter into its base model (PEFT: merge_and_unload)")  # fmt: skip
        elif model.max_lora_rank and rank > model.max_lora_rank:
            yield Mistake(path, f"the adapter's rank is {rank}, but max_lora_rank is {model.max_lora_rank}",
                          hint="remove max_lora_rank: stackgen reads the rank from adapter_config.json")  # fmt: skip


def find_lora_warnings(replica: Replica) -> Iterator[str]:
    """More adapters in a batch than the model has, whose GPU memory vLLM reserves, and ranks that nothing says yet."""
    model, count = replica.spec, len(replica.spec.lora_adapters)
    remote = [lora.path for lora in model.lora_adapters if not is_local(lora.path)]
    if remote and not model.max_lora_rank and not _has_rank_flag(model):
        yield (
            f"{replica.path}.lora_adapters: the rank of {', '.join(remote)} is unknown before the download, and vLLM "
            f"refuses a rank above {DEFAULT_RANK}. If `r` in {CONFIG} on the Hub is higher, set max_lora_rank"
        )
    if model.max_loras and count and model.max_loras > count:
        yield (
            f"{replica.path}.max_loras is {model.max_loras}, but lora_adapters has {count}: vLLM reserves GPU memory "
            f"for {model.max_loras} adapters. Set max_loras to {count}, unless you load more adapters while it runs"
        )
