"""The engines' flags by version, the pinned version of each engine, and removed flags with their remedy.

doctor uses them before a start to check `extra_args`, and diagnose after a failure.

The JSON files come from each program's own help (`scripts/generate_flags.py`). This module lists removed flags and
their replacements. The real programs were tested to reject each removed flag.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

__all__ = [
    "PINNED", "REMOVED_FLAGS", "REMOVED_IN", "REMOVED_SWITCHES", "Flags", "is_removal", "is_too_old", "known_versions",
    "load_flags", "load_table", "normalize_flag", "suggest_flag",
]  # fmt: skip

# engine -> the version that stackgen starts without `engine_version`
PINNED = {"vllm": "0.32.0", "sglang": "0.5.23", "fastchat": "0.2.36", "llamacpp": "11434"}
# engine -> flag that the engine no longer has, or never had -> what to do instead
REMOVED_FLAGS: dict[str, dict[str, str]] = {
    "vllm": {
        "--disable-log-requests": "remove the flag: vLLM logs requests only with --enable-log-requests",
        "--enable-reasoning": "remove the flag: reasoning_parser alone enables reasoning",
        "--task": "use --runner (generate, pooling) and --convert (embed, classify)",
        "--guided-decoding-backend": "use --structured-outputs-config.backend",
        "--swap-space": "remove the flag: vLLM recomputes preempted requests",
        "--max-seq-len-to-capture": "use --max-cudagraph-capture-size",
        "--cuda-graph-sizes": "use --cudagraph-capture-sizes",
        "--rope-scaling": "use --hf-overrides '{\"rope_parameters\": {…}}'",
        "--rope-theta": "use --hf-overrides '{\"rope_parameters\": {…}}'",
        "--device": "remove the flag: the image determines whether vLLM uses GPUs (`gpus: none` selects the CPU image)",
        "--worker-use-ray": "use --distributed-executor-backend ray",
        "--engine-use-ray": "remove the flag: vLLM always runs the engine in its own process",
        "--num-lookahead-slots": "use --speculative-config",
        "--speculative-model": "use --speculative-config",
        "--num-speculative-tokens": "use --speculative-config",
        "--use-v2-block-manager": "remove the flag: vLLM has only one block manager",
        "--enable-lora-bias": "remove the flag",
        "--override-pooler-config": "use --pooler-config",
        "--preemption-mode": "remove the flag: vLLM recomputes preempted requests",
        "--disable-frontend-multiprocessing": "remove the flag",
        "--max-num-partial-prefills": "remove the flag",
        "--max-long-partial-prefills": "remove the flag",
    },
    "fastchat": {
        "--api-keys": "remove the flag: the key comes from .env, and the process list would show the value of the flag",
    },
    # sgl-project/sglang issue 4116
    "sglang": {"--enable-reasoning": "remove the flag: --reasoning-parser alone enables reasoning"},
    # flags that build 10865 still had, as deprecated (common/arg.cpp), and build 10878 no longer has
    "llamacpp": {
        "--mmap": "use --load-mode mmap, or remove the flag: the model is memory-mapped by default",
        "--no-mmap": "use --load-mode none",
        "--mlock": "use --load-mode mlock",
        "--direct-io": "use --load-mode dio",
        "--dio": "use --load-mode dio",
        "--no-direct-io": "use --load-mode none, or remove the flag",
        "--ndio": "use --load-mode none, or remove the flag",
    },
}
# a known flag that differs in more characters is another flag, not a typo
MAX_TYPOS = 2
# the first vLLM version without the flag, from the releases' own argument parsers (arg_utils.py, cli_args.py)
REMOVED_IN = {
    "--disable-log-requests": "0.17.0", "--enable-reasoning": "0.10.0", "--task": "0.13.0",
    "--guided-decoding-backend": "0.12.0", "--swap-space": "0.18.0", "--max-seq-len-to-capture": "0.11.0",
    "--cuda-graph-sizes": "0.13.0", "--rope-scaling": "0.11.1", "--rope-theta": "0.11.1", "--device": "0.10.0",
    "--num-lookahead-slots": "0.12.0", "--use-v2-block-manager": "0.10.0", "--enable-lora-bias": "0.11.1",
    "--override-pooler-config": "0.12.0", "--preemption-mode": "0.11.0",
    "--disable-frontend-multiprocessing": "0.19.0", "--max-num-partial-prefills": "0.27.0",
    "--max-long-partial-prefills": "0.27.0",
}  # fmt: skip
# removed flags without a value: they can be removed without looking at the next argument
REMOVED_SWITCHES = frozenset(
    {
        "--disable-log-requests", "--enable-reasoning", "--worker-use-ray", "--engine-use-ray",
        "--use-v2-block-manager", "--enable-lora-bias", "--disable-frontend-multiprocessing",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Flags:
    """The flags of one engine version.

    `by_name` maps each name of a flag to its entry: its `names`, its `choices`, and whether a `value` follows.
    """

    version: str
    by_name: dict[str, dict[str, Any]]


@cache
def known_versions(engine: str) -> tuple[str, ...]:
    """The versions of an engine of which there is a table, the oldest first."""
    names = (path.stem.partition("-")[2] for path in Path(__file__).parent.glob(f"{engine}-*.json"))
    return tuple(sorted(names, key=lambda name: [int(part) for part in re.findall(r"\d+", name)]))


@cache
def load_table(engine: str, version: str) -> dict[str, Any]:
    """What a version of an engine has, as `scripts/generate_flags.py` read it: flags, and for some paths and metrics.

    Empty without a table.
    """
    # the version is from a stack file, and must not name another file
    if version not in known_versions(engine):
        return {}
    table: dict[str, Any] = json.loads((Path(__file__).parent / f"{engine}-{version}.json").read_text("utf-8"))
    return table


@cache
def load_flags(engine: str, version: str | None = None) -> Flags | None:
    """Loads the flags of a version of an engine (None: the version that stackgen pins); None without a table."""
    table = load_table(engine, version or PINNED.get(engine, ""))
    if not table:
        return None
    return Flags(table["version"], {name: entry for entry in table["flags"] for name in entry["names"]})


def is_too_old(image: str, first: tuple[int, int]) -> bool:
    """Whether the tag of `image` names a version before `first`; False if the tag names no version."""
    match = re.search(r":v?(\d+)\.(\d+)(?:\.\d+)?[^/:]*$", image)
    return match is not None and (int(match[1]), int(match[2])) < first


def normalize_flag(flag: str) -> str:
    """The flag as the programs' help writes it: `--max-model-len` for `--max_model_len`."""
    return "--" + flag.lstrip("-").replace("_", "-")


def is_removal(remedy: str) -> bool:
    """Whether a remedy of `REMOVED_FLAGS` only removes the flag, without another flag in its place."""
    return remedy.partition(":")[0] == "remove the flag"


def suggest_flag(engine: str, flag: str) -> str:
    """Suggests what to use for a flag that `engine` does not know; "" if no known flag is similar."""
    plain = normalize_flag(flag)
    known = load_flags(engine)
    if known and (gone := known.by_name.get(plain, {}).get("removed")):
        return f"use {gone}"
    if known and plain in known.by_name:
        # this version accepts the flag, so a program that rejects it must have another version
        same = f"{engine} {known.version} has the flag {plain}, but this image contains another version of {engine}"
        return same if plain == flag else f"did you mean {plain}?"
    other = next((e for e in REMOVED_FLAGS if e != engine and (t := load_flags(e)) and plain in t.by_name), "")
    # `plain` is a long flag, so short names can't be what the user meant
    flags = known.by_name if known else {}
    own = [name for name, entry in flags.items() if name.startswith("--") and "removed" not in entry]
    # the same words in another order, or with one more: `--draft-model`, `--draft-n-max`
    if not other and (same_words := _find_same_words(plain, own)):
        return f"did you mean {same_words}?"
    # a flag of another engine counts as a typo only if it is very similar to one of this engine
    similar = get_close_matches(plain.lower(), own, n=1, cutoff=0.85 if other else 0.75)
    close = [one for one in similar if _count_differences(plain.lower(), one) <= MAX_TYPOS]
    return f"did you mean {close[0]}?" if close else f"{plain} is a flag of {other}" if other else ""


def _find_same_words(flag: str, names: list[str]) -> str:
    """The flag that has the words of `flag`, in any order, or one word more; "" if there is none or several."""
    words = flag.strip("-").lower().split("-")
    own = {name: name.strip("-").split("-") for name in names}
    same = [name for name, parts in own.items() if sorted(parts) == sorted(words)]
    # of two words, the first must be the same: `--max-tokens` is not `--image-max-tokens`
    longer = [name for name, parts in own.items() if len(parts) == len(words) + 1 and set(words) < set(parts)
              and (len(words) > 2 or (len(words) == 2 and parts[0] == words[0]))]  # fmt: skip
    return next((one[0] for one in (same, longer) if len(one) == 1), "")


def _count_differences(one: str, other: str) -> int:
    """The characters to insert, delete or replace between two names, roughly; two swapped ones count as two."""
    matching = sum(block.size for block in SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks())
    return max(len(one), len(other)) - matching
