"""The engines' flags, by version: what doctor says of `extra_args` before a start, and diagnose after one.

The names come from each program's own help (`scripts/generate_flags.py`). What was there once, and what to use
instead, is written down here; each refusal was tried on the real program.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["GONE_IN", "REMOVED", "VALUELESS", "Flags", "dashed", "known_flags", "meant"]

# engine -> flag that it has no more (or never as a flag) -> what to do instead
REMOVED: dict[str, dict[str, str]] = {
    "vllm": {
        "--disable-log-requests": "leave it out: requests are logged only with --enable-log-requests",
        "--enable-reasoning": "leave it out: reasoning_parser alone enables it",
        "--task": "use --runner (generate, pooling) and --convert (embed, classify)",
        "--guided-decoding-backend": "use --structured-outputs-config.backend",
        "--swap-space": "leave it out: preempted requests are computed anew",
        "--max-seq-len-to-capture": "use --max-cudagraph-capture-size",
        "--cuda-graph-sizes": "use --cudagraph-capture-sizes",
        "--rope-scaling": "use --hf-overrides '{\"rope_parameters\": {…}}'",
        "--rope-theta": "use --hf-overrides '{\"rope_parameters\": {…}}'",
        "--device": "leave it out: the image decides (gpus: none takes the CPU image)",
        "--worker-use-ray": "use --distributed-executor-backend ray",
        "--engine-use-ray": "leave it out: the engine always has a process of its own",
        "--num-lookahead-slots": "use --speculative-config",
        "--speculative-model": "use --speculative-config",
        "--num-speculative-tokens": "use --speculative-config",
        "--use-v2-block-manager": "leave it out: there is no other",
        "--enable-lora-bias": "leave it out",
        "--override-pooler-config": "use --pooler-config",
        "--preemption-mode": "leave it out: preempted requests are computed anew",
        "--disable-frontend-multiprocessing": "leave it out",
    },
    "fastchat": {
        "--api-keys": "leave it out: the key comes from .env, and a flag would show in the process list",
    },
    "llamacpp": {},
}
# the first version without the flag, read off the releases' own argument parsers (arg_utils.py, cli_args.py)
GONE_IN = {
    "--disable-log-requests": "0.17.0", "--enable-reasoning": "0.10.0", "--task": "0.13.0",
    "--guided-decoding-backend": "0.12.0", "--swap-space": "0.18.0", "--max-seq-len-to-capture": "0.11.0",
    "--cuda-graph-sizes": "0.13.0", "--rope-scaling": "0.11.1", "--rope-theta": "0.11.1", "--device": "0.10.0",
    "--num-lookahead-slots": "0.12.0", "--use-v2-block-manager": "0.10.0", "--enable-lora-bias": "0.11.1",
    "--override-pooler-config": "0.12.0", "--preemption-mode": "0.11.0",
    "--disable-frontend-multiprocessing": "0.19.0",
}  # fmt: skip
# those of REMOVED that no value followed
VALUELESS = frozenset(
    {
        "--disable-log-requests", "--enable-reasoning", "--worker-use-ray", "--engine-use-ray",
        "--use-v2-block-manager", "--enable-lora-bias", "--disable-frontend-multiprocessing",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Flags:
    """The flags of one version: a name leads to its entry (names, choices, whether a value follows)."""

    version: str
    by_name: dict[str, dict[str, Any]]


@cache
def known_flags(engine: str) -> Flags | None:
    """The flags of the version that stackgen pins; None for an engine without a table."""
    files = sorted(Path(__file__).parent.glob(f"{engine}-*.json"))
    if not files:
        return None
    table = json.loads(files[-1].read_text("utf-8"))
    return Flags(table["version"], {name: entry for entry in table["flags"] for name in entry["names"]})


def dashed(flag: str) -> str:
    """The flag as programs write it: `--max-model-len` for `--max_model_len`."""
    return "--" + flag.lstrip("-").replace("_", "-")


def meant(engine: str, flag: str) -> str:
    """What a flag that `engine` does not know was meant to be, as words; "" where nothing is near."""
    plain = dashed(flag)
    known = known_flags(engine)
    if known and plain in known.by_name:
        same = f"{engine} {known.version} has it, and this image is of another version"
        return same if plain == flag else f"did you mean {plain}?"
    other = next((e for e in REMOVED if e != engine and (t := known_flags(e)) and plain in t.by_name), "")
    own = [name for name in known.by_name if name.startswith("--")] if known else []
    # a name that another engine has is taken for a slip of the pen only where it is very near
    close = get_close_matches(plain.lower(), own, n=1, cutoff=0.85 if other else 0.75)
    return f"did you mean {close[0]}?" if close else f"it is a flag of {other}" if other else ""
