"""Rules for sizes that do not fit each other: what must be divisible, and what one limit allows.

They read the numbers and names in the message itself, so they apply to any engine. The failures were not reproduced.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.messages import Message, find_advice, find_messages, name_setting, parallel_size
from stackgen.diagnose.rule import Hit, Rule

__all__ = ["RULES"]

DIVISIBLE = re.compile(
    r"^(?:[\w.]+(?:Error|Exception): )?(?P<left>.{1,240}?)(?:,? but (?:got|is))? (?:must|should|has to|needs? "
    r"to|is|are)"
    r"(?: not)?(?: be)?(?: not)?(?: evenly)? (?:divisible (?:by|with)|divided by|a multiple of) (?P<right>.{1,160})"
)
GROUP = re.compile(
    r"(?i)\btp\b|tp_size|tensor|ep_size|expert.parallel|parallel|world.?size|rank|gpus|shards?|partitions"
)
NUMBER = re.compile(r"(?<![\w.])\d+(?![\w.]*[A-Za-z])")
# vLLM, csrc/quantization/marlin: what its kernel can divide (vllm-project/vllm pull 45295)
MARLIN = re.compile(r"Invalid thread config.{0,200}?MKN = \[\d+, (?P<k>\d+), (?P<n>\d+)\]")
LARGER = re.compile(
    r"(?P<left>[A-Za-z][\w-]{1,60}(?: [a-z][\w-]{1,20}){0,3})[ =(`']+(?P<value>\d[\d,]*)[)`']* (?:(?:is |must not be "
    r")?(?:larger|greater|bigger|more) than|exceeds|(?P<less>is (?:smaller|less|lower) than)) "
    r"(?:the )?"
    r"(?P<right>[a-z][\w-]{1,60}(?: [a-z][\w-]{1,20}){0,3})[ =(`']+(?P<limit>\d[\d,]*)"
)


GOT_WORDS = re.compile(r"(?:,| \(|:)? ?(?:but )?[Gg]ot\b.*")
GOT = re.compile(r"[Gg]ot [^\d]{0,60}(?P<left>\d+)[^\d]{1,60}(?P<right>\d+)")
SPLIT = "choose another tensor_parallel_size that divides the size evenly (1, 2, 4 and 8 fit most models)"
UNSPLIT = (
    "if one of the two sizes is a setting of the engine, change this setting; if both come from the model, its "
    "config.json does not match this version of the engine: use the version that the model's page names, or "
    "search the release notes of newer versions"
)


def _sizes(total: int, unit: int = 1) -> str:
    return ", ".join(str(size) for size in range(1, 9) if total % (size * unit) == 0) or "none"


def _find_indivisible(evidence: Evidence) -> Iterator[Hit]:
    """An error that ended the start says that one size must be divisible by another, or that it is not divisible."""
    for message in find_messages(evidence):
        found = DIVISIBLE.search(message.text)
        if not found:
            continue
        right, _, rest = found["right"].partition(". ")
        left_numbers, right_numbers = NUMBER.findall(found["left"]), NUMBER.findall(right)
        # `a must be divisible by b (got a=6, b=4)` has the numbers at the end
        if not (left_numbers and right_numbers) and (got := GOT.search(message.text)):
            left_numbers, right_numbers = [got["left"]], [got["right"]]
        advice = find_advice(message.text) or find_advice(f"Please {rest[:1].lower()}{rest[1:]}").removeprefix(
            "Please "
        )
        own = f"; the message advises: {advice}" if advice else ""
        if left_numbers and right_numbers:
            remedy = _divide(evidence, message, int(left_numbers[-1]), int(right_numbers[0]), right)
        else:
            remedy = SPLIT if GROUP.search(message.text) else UNSPLIT
        left = re.sub(r"(?:^|, )(?:which|but|and|so)\b", "", found["left"])
        values = {
            "left": left.strip(" `'\"(:"),
            "right": GOT_WORDS.sub("", right).rstrip(" .`'\""),
            "remedy": remedy + own,
        }
        yield Hit(message.service.service, (message.text,), values, highlight=found[0])


def _divide(evidence: Evidence, message: Message, value: int, by: int, right: str) -> str:
    if GROUP.search(right):
        name = "the GPUs of the expert-parallel group" if re.search(r"(?i)\bep\b|ep_size|expert", right) else right
        group = re.sub(r"\W*\d+\W*$", "", name).strip() or "the number of GPUs"
        return (f"choose a number of GPUs that divides {value} ({group}: now {by}); from 1 to 8, these numbers work: "
                f"{_sizes(value)}; use the remaining GPUs for other replicas")  # fmt: skip
    size = parallel_size(message.service, (evidence.find_model(message.service.service) or (0, None))[1])
    if size > 1:
        whole = value * size
        return (
            f"choose a tensor_parallel_size that divides {whole} into slices whose size is a multiple of {by} (now: "
            f"{size} slices of {value}); from 1 to 8, these sizes work: {_sizes(whole, by)}"
        )
    slices = "lower tensor_parallel_size, which makes the slices larger (with 1, nothing is split)"
    # a number without a name can be a number of GPUs
    if by <= 16 and not re.search(r"[A-Za-z]", right):
        fits = _sizes(value)
        return (
            f"if {by} is a number of GPUs, choose a number that divides {value} (from 1 to 8: {fits}); otherwise "
            f"{slices}"
        )
    return f"if the size is the slice of one GPU, {slices}; {UNSPLIT}"


def _find_tile(evidence: Evidence) -> Iterator[Hit]:
    """The Marlin kernel of vLLM rejects the shape of a layer."""
    for message in find_messages(evidence):
        if found := MARLIN.search(message.text):
            size = parallel_size(message.service, (evidence.find_model(message.service.service) or (0, None))[1])
            values = {"k": found["k"], "n": found["n"], **({"size": str(size)} if size > 1 else {})}
            yield Hit(message.service.service, (message.text,), values, highlight=found[0])


def _find_larger(evidence: Evidence) -> Iterator[Hit]:
    """An error that ended the start says that one value is too large for another, and one of them is a setting."""
    for message in find_messages(evidence):
        if not (found := LARGER.search(message.text)):
            continue
        model = (evidence.find_model(message.service.service) or (0, None))[1]
        # words before a name with underscores belong to the sentence
        left, right = (found[side].split()[-1] if "_" in found[side] else found[side] for side in ("left", "right"))
        # `a is smaller than b` is `b is larger than a`
        large, small = (right, left) if found["less"] else (left, right)
        most, least = (found["limit"], found["value"]) if found["less"] else (found["value"], found["limit"])
        raised, lowered = (name_setting(one.lower().replace(" ", "_"), message.service.engine, model)
                           for one in (small, large))  # fmt: skip
        steps = [f"set {raised} to at least {most}" if raised else "",
                 f"lower {lowered} to at most {least}" if lowered else ""]  # fmt: skip
        if fix := ", or ".join(step for step in steps if step):
            values = {"left": left, "value": found["value"], "right": right, "limit": found["limit"], "fix": fix}
            yield Hit(message.service.service, (message.text,), values, highlight=found[0])


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V035",
        title="a size is not divisible as the settings require",
        cause="`{left}` is not divisible by `{right}`. The model can't be divided across this number of GPUs, or into "
        "the blocks of a kernel. The model's files are not damaged",
        fix="{remedy}",
        page_fix="set the size that the message names, or tensor_parallel_size, to a value that divides the other "
        "size without a remainder. If the message contains both numbers, `stackgen diagnose` calculates the possible "
        "values",
        source="The words are those of vLLM, torch and Transformers; vllm-project/vllm issue 52435 (2026-08) quotes "
        "one.",
        explain="Layers, attention heads and experts are divided evenly among the GPUs of a replica. The sizes 1, 2, "
        "4 and 8 nearly always divide them.",
        find=_find_indivisible,
        fallback=True,
        names_settings=True,
    ),
    Rule(
        "SG-V036",
        title="a layer's slice does not fit the quantization kernel",
        cause="vLLM's Marlin kernel does not support a layer of K={k} and N={n}[[ (the slice of the layer on each "
        "of {size} GPUs)]]. One of the two must be a multiple of 128, and the other a multiple of 64",
        fix="choose another tensor_parallel_size (with 1, no layer is split), or use pipeline_parallel_size instead; "
        "or try a newer image, which may pad such slices; or use the model in another quantization, which does not "
        "need this kernel",
        source="The message comes from vLLM (csrc/quantization/marlin), and is quoted in vllm-project/vllm issue 28363 "
        "(2025-11). Pull request 45295 (2026-06) states the kernel's limits.",
        explain="vLLM uses Marlin for FP8 and 4-bit weights on GPUs that can't compute in this format themselves. "
        "The memory and the weights are not the cause.",
        find=_find_tile,
        fallback=True,
    ),
    Rule(
        "SG-V037",
        title="one setting exceeds the limit of another",
        cause="{left} is {value}, but {right} is {limit}",
        fix="{fix}",
        page_fix="lower the first setting of the message, or raise the second one. `stackgen diagnose` names the "
        "fields of stack.yaml, and tells you which of the two you can change",
        source="The words are those of vLLM; vllm-project/recipes issue 441 (2026-05) quotes one.",
        explain="The message uses the engine's own names for its settings and for the model's limits.",
        find=_find_larger,
        fallback=True,
    ),
)
