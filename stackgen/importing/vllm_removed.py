"""Flags that vLLM 0.32.0 no longer has: where their values go now.

Where a removed flag has a successor with the same meaning, the value moves there; `stackgen.flags.REMOVED_FLAGS` says
what to do about the others.
"""

from __future__ import annotations

import json
from typing import Any

from stackgen.flags import REMOVED_FLAGS, is_removal
from stackgen.importing.flags import Flag, add_argument
from stackgen.importing.ledger import Draft, Ledger

__all__ = ["RENAMED", "join_speculation", "translate_removed"]

# removed flag -> its successor with the same values
RENAMED = {
    "--guided-decoding-backend": "--structured-outputs-config.backend",
    "--cuda-graph-sizes": "--cudagraph-capture-sizes",
    "--override-pooler-config": "--pooler-config", "--override-neuron-config": "--additional-config",
}  # fmt: skip
# values of the removed flag --task (vLLM 0.12, vllm/config/model.py)
TASKS = {
    "auto": (), "generate": ("--runner=generate",), "embed": ("--runner=pooling", "--convert=embed"),
    "embedding": ("--runner=pooling", "--convert=embed"), "classify": ("--runner=pooling", "--convert=classify"),
    "score": ("--runner=pooling", "--convert=classify"), "reward": ("--runner=pooling",),
}  # fmt: skip


def translate_removed(flag: Flag, plain: str, draft: Draft, ledger: Ledger, drafts: dict[str, Flag]) -> None:
    """Puts the value of a removed flag where it belongs now. `drafts` collects the parts of speculative decoding."""
    remedy = REMOVED_FLAGS["vllm"].get(plain, "")
    extra = draft.fields.setdefault("extra_args", [])
    if plain in RENAMED:
        add_argument(flag, draft, ledger, RENAMED[plain], f"{plain} is now {RENAMED[plain]}")
    elif plain == "--task" and flag.text in TASKS:
        extra += TASKS[flag.text]
        flag.carry("extra_args", draft, "--task is now --runner and --convert") if TASKS[flag.text] else flag.build_in(
            "this is the default"
        )
    elif plain == "--worker-use-ray":
        extra += ["--distributed-executor-backend", "ray"]
        flag.carry("extra_args", draft, "--worker-use-ray is now --distributed-executor-backend ray")
    elif plain in ("--speculative-model", "--num-speculative-tokens"):
        drafts[plain] = flag
    elif plain == "--device" and flag.text == "cpu":
        draft.fields["gpus"] = "none"
        flag.carry("gpus", draft, "vLLM no longer has the flag --device")
    elif is_removal(remedy) or plain == "--device":
        flag.build_in(f"removed from vLLM: {remedy.partition(': ')[2] or 'this flag no longer has an effect'}")
    else:
        flag.drop(f"removed from vLLM: {remedy}")
    if not extra:
        draft.fields.pop("extra_args", None)


def join_speculation(drafts: dict[str, Flag], draft: Draft) -> None:
    """Joins the removed flags of speculative decoding in `--speculative-config`."""
    if not drafts:
        return
    model, count = drafts.get("--speculative-model"), drafts.get("--num-speculative-tokens")
    config: dict[str, Any] = {}
    if model:
        config |= {"method": "ngram"} if model.text == "[ngram]" else {"model": model.text}
    if count and count.text.isdecimal():
        config["num_speculative_tokens"] = int(count.text)
    draft.fields.setdefault("extra_args", []).extend(["--speculative-config", json.dumps(config)])
    for flag in drafts.values():
        flag.carry("extra_args", draft, "part of --speculative-config now")
