"""The rule for errors that explain themselves: the engine's own words, with the code that raises them.

It knows no message itself. `known_messages` finds the message in the source of the engines and their libraries, and the
rule names the settings of the stack that the code tests or that the message is about.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from stackgen.diagnose.concerned import find_concerned
from stackgen.diagnose.evidence import Evidence, detect_engine
from stackgen.diagnose.features import describe_features
from stackgen.diagnose.known_messages import KnownMessage, find_known_message
from stackgen.diagnose.message_kinds import LIBRARY, OTHER, describe_step, find_kind
from stackgen.diagnose.messages import Message, find_advice, find_messages
from stackgen.diagnose.rule import Hit, Rule, Variant
from stackgen.diagnose.settings import read_frames
from stackgen.diagnose.tracebacks import has_request_frame

__all__ = ["RULES"]

PROGRAMS = {
    "vllm": "vLLM", "sglang": "SGLang", "fastchat": "FastChat", "llamacpp": "llama.cpp", "torch": "PyTorch",
    "transformers": "Transformers", "ray": "Ray", "triton": "Triton", "flashinfer": "FlashInfer",
    "torchao": "torchao", "compressed_tensors": "compressed-tensors",
}  # fmt: skip
ENGINES = ("vllm", "sglang", "fastchat", "llamacpp")
# kinds that say nothing about where the refused value comes from
UNSPECIFIC = ("unsupported", "size", "value", OTHER.name)
# how many words an exception must have to explain itself; lines before an error of llama.cpp that may be its reason
WORDS, BEFORE = 4, 8
# exceptions that describe the program's own state, and not what it was asked to do
STATE = re.compile(
    r"^(?:\w+\.)*(?:KeyError|AttributeError|IndexError|TypeError|NameError|UnboundLocalError|KeyboardInt)"
)
PLACE = re.compile(r"\S+\.(?:pyx?|cpp|cuh?|c|h)(?: |$)")
# a failed check of llama.cpp, which names its file
CHECK = re.compile(r"(?P<file>(?:ggml|src|common|tools)/[\w./-]+):\d+: GGML_ASSERT\(")
# the first errors of a log; later ones repeat them or follow from them
LOOKED_AT = 8
NAME = re.compile(r"^(?:[\w.]+(?:Error|Exception)(?:\(\w+\))?: |Value error, )")
TAIL = re.compile(r" \[type=\w+, input_value=.*$")


@dataclass(frozen=True, slots=True)
class Found:
    """The line that explains a failure, the `frames` above it, and the message of the data if it has one."""

    message: Message
    text: str
    frames: str
    known: KnownMessage | None


def _find_engine_message(evidence: Evidence) -> Iterator[Hit]:
    """A start ended with an error whose message is in the source code of the engine or of a library."""
    for service in evidence.services:
        own = replace(evidence, services=(service,))
        engine = service.engine or detect_engine(service.log)
        chosen = _choose(list(islice(find_messages(own, hints=True), LOOKED_AT)), engine)
        if chosen and (hit := _make_hit(evidence, engine, chosen)):
            yield hit


def _choose(messages: list[Message], engine: str) -> Found | None:
    """The earliest message that the data has, or else the earliest exception with its place in the traceback.

    An unknown error before it may be the cause, unless it only led to it: an exception that follows from the state of
    the program (KeyError) says less than the one that it led to, and what was logged before an exception was survived.
    """
    skipped: list[Message] = []
    for message in messages:
        if STATE.match(message.text):
            continue
        frames = read_frames(message.service.log, (message.text,))
        # llama.cpp logs its reasons without a level before the error that ends it
        lines = message.before[-BEFORE:] if engine == "llamacpp" and not skipped else ()
        for text in (*lines, message.text):
            known = find_known_message(text.strip(), engine, frames)
            is_raised = bool(NAME.match(text))
            if known and not (known.is_logged and is_raised) and (text == message.text or known.share == 1):
                is_first = not skipped or (is_raised and not any(NAME.match(one.text) for one in skipped))
                return Found(message, text.strip(), frames, known) if is_first else None
        skipped.append(message)
    first = next(iter(skipped), None)
    if first and (check := CHECK.search(first.text)):
        return Found(first, first.text, f"{check['file']} ", None)
    if first and NAME.match(first.text) and len(NAME.sub("", first.text).split()) >= WORDS:
        frames = read_frames(first.service.log, (first.text,))
        if frames and not has_request_frame(first.before):
            return Found(first, first.text, frames, None)
    return None


def _make_hit(evidence: Evidence, engine: str, found: Found) -> Hit | None:
    log, known = found.message.service.log, found.known
    index, model = evidence.find_model(found.message.service.service) or (0, None)
    text = TAIL.sub("", found.text)
    problem = NAME.sub("", text).rstrip(" .")
    kind = find_kind(text)
    tested = known.settings if known else ()
    places = (known.module, known.function) if known else ()
    about = "\n".join((text, *places, found.frames))
    concerned = find_concerned(tested, about, log, engine, model, index)
    advice = find_advice(text)
    place, function = (known.module, known.function) if known else _read_place(found.frames)
    if not place:
        return None
    # without a step of its own, this finding would say less than the lines of an unknown failure
    if not concerned and not advice and (kind is OTHER or not known):
        return None
    package = known.package if known else "llamacpp" if CHECK.search(text) else place.partition("/")[0]
    if package not in ENGINES and not concerned and not tested and kind.name in UNSPECIFIC:
        kind = LIBRARY
    features = describe_features(f"{text}\n{found.frames}", engine) if model is None else ""
    step = describe_step(kind, concerned, tested, has_stack=model is not None, features=features)
    values = {
        "problem": problem,
        "program": PROGRAMS.get(package, package),
        "place": f"{place}{f', {function}' if function else ''}",
        "step": f"follow the message: {advice}; otherwise {step}" if advice else step,
        "known": _describe_versions(known) if known else "according to the log",
    }
    variant = OF_A_REQUEST if has_request_frame(found.message.before) else Variant((), title=kind.title)
    return Hit(found.message.service.service, (found.text,), values, highlight=problem[:200], variant=variant)


def _read_place(frames: str) -> tuple[str, str]:
    """Module and function of the innermost frame."""
    # what was loaded follows after the frames
    last = next((line for line in reversed(frames.splitlines()) if PLACE.match(line)), "")
    module, _, function = last.partition(" ")
    return module, function


def _describe_versions(known: KnownMessage) -> str:
    name = PROGRAMS.get(known.package, known.package)
    return f"{name} {known.versions} has {'this' if known.share == 1 else 'a similar'} message"


OF_A_REQUEST = Variant(
    (),
    title="the engine refuses a request",
    cause="code that answers requests reports this: {problem}. The message comes from {program} ({place}). The log "
    "does not show that the server exited",
    fix="send a minimal request (one short message), and add the other fields one by one until it fails; if the "
    "minimal request fails too: {step}",
    condition="the traceback belongs to a request",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V046",
        title="the engine exited with an error message",
        cause="the engine exited with this message of {program}: {problem}. The message comes from {place} ({known})",
        fix="{step}",
        page_fix="change the setting that the finding names. If the finding names no setting, the value comes from "
        "the model's files or from a default of the version",
        source="scripts/read_messages.py reads the messages from the source of vLLM 0.16 to 0.33, SGLang 0.5.9 to "
        "0.5.23, FastChat 0.2.36, builds 9453 to 11434 of llama.cpp, Transformers 4.57 to 5.24, torch 2.10 and 2.14, "
        "and their libraries.",
        explain="No rule matches this failure, but the message is in the program's source. stackgen repeats the "
        "message, and names the code that raises it. It also names the settings of the stack that this code tests, "
        "or that the message is about. The message is the cause that the program itself reports, but it often "
        "does not say what to do next.",
        find=_find_engine_message,
        fallback=True,
    ),
)
