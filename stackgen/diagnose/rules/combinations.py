"""Rules for settings that this version of an engine can't combine, and for messages that name their own remedy.

They read the message itself, so they apply to any engine. The failures were not reproduced.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.concerned import find_concerned
from stackgen.diagnose.evidence import Evidence, detect_engine
from stackgen.diagnose.known_messages import find_known_message
from stackgen.diagnose.messages import REMEDY, SETTING, find_advice, find_messages, find_settings, name_setting
from stackgen.diagnose.rule import Hit, Rule, Variant
from stackgen.diagnose.tracebacks import has_request_frame

__all__ = ["RULES"]

COMBINATION = re.compile(
    r"(?P<problem>(?:simultaneous use of .{3,160} (?:is )?not (?:implemented|supported)|"
    r"[\w(`'].{2,200}? (?:(?:is|are) not (?:yet |currently )?(?:supported|implemented|compatible|allowed) "
    r"(?:with|together|in combination|when|if|for|by|on|in|alongside)|does(?: not|n't) (?:yet |currently "
    r")?(?:support|work with)|"
    r"(?:cannot|can't|can not|must not|may not) be (?:used|combined|enabled|set|specified) (?:together |in "
    r"combination |"
    r"simultaneously |alongside )?(?:with|when|if|together|and|for|at the same time)|"
    r"(?:is|are) (?:incompatible|not compatible) with|(?:is|are) mutually exclusive|(?:is|are) only supported "
    r"(?:with|for|on|when|by|in)|"
    r"only supports? |supports? only |(?:is |are )?only valid (?:with|for|when|if) )\b.{0,200}))"
)
NOT_IMPLEMENTED = re.compile(r"^NotImplementedError: (?P<problem>.{8,300})")
SURVIVED = re.compile(r"(?i)will be|ignor|disabl|forcing|falling back|fallback|instead|using|deprecat")
NEEDS = re.compile(r"(?P<problem>\w.{2,100} (?:requires|needs|depends on|only works with) .{3,120})")
# the name of the exception, or of llama.cpp's function
WRAPPING = re.compile(r"^(?:[\w.]+(?:Error|Exception): |(?:srv +)?\w+: (?:error: )?)")
# about the GPU, about one request, or about the model's architecture: other rules read these messages
OTHER_SUBJECT = re.compile(
    r"(?i)\b(?:gfx\d|sm_?\d\d|compute capability|capability|gpu (?:architecture|with)|cuda arch|platform|device type|"
    r"architecture|request|prompt|chat template|content type|file ?system|endpoint|url|https?|certificate|proxy|"
    r"symlink|driver|kernel image|"
    # the CPU's instructions, the operating system, and the arguments of Python functions
    r"cpu (?:does|doesn|is|flag|feature|type|model)|(?:avx|sse|amx|vnni|f16c|fma|bmi|neon|sve)[\w.]*|instructions?|"
    r"processor|operating system|kernel version|windows|wsl2?|kwargs?|keyword|glibc\w*|python ?3?[\d.]*)\b|"
    # a call such as `Tokenizer.apply`
    r"[`'][A-Z]\w*\.\w+[`'(]"
)


def _find_combination(evidence: Evidence) -> Iterator[Hit]:
    """An error that ended the start says that one feature does not work with another."""
    for message in find_messages(evidence, hints=True):
        found = COMBINATION.search(message.text) or NOT_IMPLEMENTED.search(message.text) or NEEDS.search(message.text)
        if not found or OTHER_SUBJECT.search(found["problem"]) or SURVIVED.search(message.text):
            continue
        # much requires something, so both sides must be settings
        if found.re is NEEDS and len(find_settings(found["problem"], message.service.engine, None)) < 2:
            continue
        problem = WRAPPING.sub("", found["problem"]).rstrip(" .\"'")
        index, model = evidence.find_model(message.service.service) or (0, None)
        engine = message.service.engine or detect_engine(message.service.log)
        settings = [str(one) for one in find_concerned((), problem, message.service.log, engine, model, index)]
        settings = settings[:3] or list(find_settings(problem, engine, model))
        is_request = has_request_frame(message.before)
        # the source of the program says more than the words alone
        if not settings and not is_request and find_known_message(message.text, engine):
            continue
        values = {"problem": problem, **({"settings": ", ".join(settings)} if settings else {})}
        if advice := find_advice(message.text):
            values["advice"] = advice
        variant = OF_A_REQUEST if is_request else None if settings else WITHOUT_SETTINGS
        yield Hit(message.service.service, (message.text,), values, highlight=found[0], variant=variant)


def _find_remedy(evidence: Evidence) -> Iterator[Hit]:
    """An error that ended the start names a setting to change."""
    for message in find_messages(evidence):
        if not (found := REMEDY.search(message.text)) or not find_advice(message.text):
            continue
        model = (evidence.find_model(message.service.service) or (0, None))[1]
        words = dict.fromkeys(SETTING.findall(found["remedy"]))
        settings = [f"{word} in extra_env" if word.isupper() else name_setting(word, message.service.engine, model)
                    for word in words]  # fmt: skip
        problem = re.sub(r"^[\w.]+(?:Error|Exception): ", "", message.text[: found.start()]).strip(" .;,")
        if problem and (places := ", ".join(one for one in settings if one)):
            values = {"problem": problem, "remedy": found["remedy"].rstrip(". "), "places": places}
            yield Hit(message.service.service, (message.text,), values, highlight=found["remedy"])


WITHOUT_SETTINGS = Variant(
    (),
    title="the engine reports an unsupported feature",
    cause="the log ends with a message about an unsupported feature. The message names no setting that stackgen "
    "knows: {problem}",
    fix="[[follow the message: {advice}; otherwise ]]compare the message with the model's fields in stack.yaml, "
    "extra_args and extra_env; if one of these settings turns the feature on, start once without this setting "
    "as a test; otherwise search the engine's release notes and issues for the message",
    condition="the message names no setting",
)
OF_A_REQUEST = Variant(
    (),
    title="the engine does not support what a request needs",
    cause="the engine does not support something that a request needs: {problem}. The log does not show that the "
    "server exited",
    fix="[[follow the message: {advice}; otherwise ]]send a minimal request (one short message), and add the other "
    "fields one by one until it fails; if the minimal request fails too, the cause is in the server: compare the "
    "versions of the engine and of the library in the traceback with the model's page",
    condition="the traceback belongs to a request",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V038",
        title="this version of the engine can't combine two settings, or has not implemented one",
        cause="the engine exited because it does not support this: {problem}",
        fix="[[follow the message: {advice}; otherwise ]]remove or change one of the settings that the message "
        "names[[: {settings}]]; if you need all of them, look in the release notes of newer versions for this feature, "
        "and set `image:` to such a version",
        page_fix="if the message gives advice, follow it. Otherwise, remove or change one of the two settings in the "
        "message. If you need both, look in the release notes of newer versions, and set `image` to such a version",
        source="The words are those of vLLM and llama.cpp; vllm-project/vllm issue 42005 (2026-05) and "
        "ggml-org/llama.cpp issue 23567 (2026-05) quote two.",
        explain="The model's files, the GPU's memory and the driver are not the cause. Engines often support a "
        "combination a few versions later.",
        find=_find_combination,
        fallback=True,
        variants=(WITHOUT_SETTINGS, OF_A_REQUEST),
    ),
    Rule(
        "SG-V039",
        title="the engine's message names a setting to change",
        cause="the engine exited with this message: {problem}",
        fix="follow the message: {remedy} ({places})",
        page_fix="change the setting as the message advises. `stackgen diagnose` repeats the advice and names the "
        "field of stack.yaml for each setting in the message",
        source="The words are those of vLLM, torch and llama.cpp.",
        explain="stackgen repeats advice only from messages that name a setting of the engine, and never advice to "
        "install, delete or download something.",
        find=_find_remedy,
        fallback=True,
    ),
)
