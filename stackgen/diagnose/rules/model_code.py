"""Rules for the Python code of a model's repository, and for the libraries that build the parts of a model.

None of these failures was reproduced. `source` names the programs and the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.messages import find_messages
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns

__all__ = ["RULES"]

# Transformers copies the code of a model into this package
LOST = re.compile(r"^ModuleNotFoundError: No module named '(?P<module>transformers_modules(?:\.(?P<rest>[\w.-]+))?)'")
PYTHON_FILE = re.compile(r'^\s*File "(?P<path>[^"]{1,500})", line \d+')
OWN_FILE = re.compile(r"/transformers_modules/(?:[^/]+/)*(?P<file>\w+\.py)$")
FAILS = re.compile(
    r"^(?P<problem>ImportError: cannot import name '\w+' from '[\w.]+'|"
    r"AttributeError: (?:'\w+' object|type object '\w+'|module '[\w.]+') has no attribute '\w+'|"
    r"TypeError: (?:[\w.]+\(\) (?:got an unexpected keyword argument '\w+'|missing \d+ required .{3,80}|takes .{3,80})|"
    r"'NoneType' object is not \w+))"
)
TYPE_KEY = re.compile(r"^KeyError: '(?P<type>[a-z][a-z0-9_]{3,40})'$")
MODEL_ARGUMENT = re.compile(
    r"(?:--model(?:-path)?[ =]|\bmodel(?:_path|_tag)?['\"]?[=:] ?|vllm serve |sglang serve )['\"]?"
    r"(?P<model>[\w./-]{4,200})"
)


def _find_lost_module(evidence: Evidence) -> Iterator[Hit]:
    """A start ended because Python does not find the code of the model's repository as a module."""
    for message in find_messages(evidence):
        if not (found := LOST.match(message.text)):
            continue
        rest = found["rest"] or ""
        last = rest.split(".")[-1]
        log = message.service.log
        # Python ends the name at the dot of the folder's name, and the log has the whole name
        folder = re.search(rf"(?<![\w-])(?P<folder>{re.escape(last)}\.\d[\w.-]*)", log) if last else None
        if not folder and "." in rest:
            folder = re.search(rf"/transformers_modules/(?P<folder>{re.escape(rest)})/", log)
        values = {"module": found["module"], **({"folder": folder["folder"]} if folder else {})}
        dotted = bool(folder or re.search(r"[-_]v?\d+(?:\.\d|$)", rest))
        yield Hit(message.service.service, (message.text,), values, highlight=found[0],
                  variant=None if dotted else OTHER_PROCESS)  # fmt: skip


def _find_failing_code(evidence: Evidence) -> Iterator[Hit]:
    """A start ended in a file of the model's repository."""
    for message in find_messages(evidence):
        found = FAILS.match(message.text)
        files = [one["path"] for line in message.before if (one := PYTHON_FILE.match(line))] if found else []
        if found and files and (own := OWN_FILE.search(files[-1])):
            values = {"file": own["file"], "problem": found["problem"]}
            yield Hit(message.service.service, (message.text,), values, highlight=found[0])


def _find_unknown_type(evidence: Evidence) -> Iterator[Hit]:
    """A table of Transformers or of the engine has no entry with the model's type."""
    for message in find_messages(evidence):
        if not (found := TYPE_KEY.match(message.text)):
            continue
        plain = found["type"].replace("_", "")
        models = [one["model"] for one in MODEL_ARGUMENT.finditer(message.service.log[:200_000])]
        in_name = any(plain in re.sub(r"[^a-z0-9]", "", one.lower()) for one in models)
        in_table = any("/configuration_auto.py" in line or "CONFIG_MAPPING[" in line for line in message.before[-8:])
        if in_table or in_name:
            yield Hit(message.service.service, (message.text,), {"type": found["type"]}, highlight=found[0])


OTHER_PROCESS = Variant(
    (),
    title="a process does not find the code of the model's repository",
    cause="the model has Python code of its own, which Transformers keeps as the module {module}. One process of the "
    "engine loaded the code, and another process (a worker, or another node) does not find it",
    fix="use a newer image, because newer engines load the code in each process; with several nodes, use the same path "
    "of the model and the same HF_HOME on all of them; as a test, start with tensor_parallel_size 1; don't install a "
    "package with this name, because there is none",
    condition="the missing name shows no dot in the folder's name",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V076",
        title="the dot in the name of the model's folder ends a module's name",
        cause="the model has Python code of its own, which Transformers loads as the module transformers_modules with "
        "the name of the model's folder[[, {folder}]]. Python reads a dot as the end of a module's name, so it looks "
        "for {module}, which does not exist. Transformers before 4.57 keeps the dot",
        fix="use a newer image, whose Transformers (4.57 and newer) replaces the dot; or load the model from a folder "
        "whose name has no dot: set `model:` to another name of the folder (`ln -s`, or another mount path), and set "
        "served_model_name so that clients keep the old name; don't install a package with this name",
        source="The code is in transformers (dynamic_module_utils.py): 4.57 replaces the dot with `_dot_`, and 4.56 "
        "does not. The message is quoted in vllm-project/vllm issue 20654 (2025-07), OpenBMB/MiniCPM-V issue 41 "
        "(2024-04), and MILVLG/imp issue 23 (2024-08); vllm-project/vllm issues 4169 (2024-04) and 4285 (2024-04) "
        "quote it for other processes. The failure was not reproduced.",
        explain="The files are complete, so a new download does not help. Models whose classes are part of the engine "
        "do not need code of their own.",
        find=_find_lost_module,
        variants=(OTHER_PROCESS,),
    ),
    Rule(
        "SG-V077",
        title="the Python code of the model's repository fails",
        cause="the model brings Python code of its own, and this code failed in {file}: {problem}. Most often, it was "
        "written for another version of Transformers than the one in the image",
        fix="set `image:` to the version of the engine that the model's page names, or use a newer revision of the "
        "model, whose code fits newer versions; if the engine has its own code for this model, leave "
        "trust_remote_code out; don't install another Transformers into a running container",
        source="The messages come from Python. vllm-project/vllm issue 17077 (2025-04) quotes one for a name that "
        "Transformers removed.",
        explain="With trust_remote_code, Transformers runs the files of the model's repository. They import names of "
        "Transformers that later versions remove or rename.",
        find=_find_failing_code,
        fallback=True,
    ),
    Rule(
        "SG-V078",
        title="the image's timm does not know a part of the model",
        cause="the model uses the vision model {part} of the package timm, and the timm of the image does not have it. "
        "The model is newer than the image's timm",
        fix="set `image:` to a newer version of the engine, whose timm is newer (Gemma 3n needs timm 1.0.17: vLLM "
        "0.10.2 or newer); otherwise build an image: `FROM` the engine's image and `RUN pip install --upgrade timm`",
        source="The message comes from timm (models/_factory.py, create_model), and is quoted in vllm-project/vllm "
        "issue 23821 (2025-08), whose pull request 24189 updates timm in the image, and in unslothai/unsloth issue "
        "3087 (2025-08). The failure was not reproduced.",
        explain="The name is in the model's config.json. The weights are complete, so a new download does not help.",
        patterns=compile_patterns(r"RuntimeError: Unknown model \((?P<part>[a-z]\w{2,80}(?:\.[\w.]{1,60})?)\)"),
    ),
    Rule(
        "SG-V079",
        title="the model's processor does not accept a class of this Transformers",
        cause="the processor of the model expects a {expected} as {argument}, and the image's Transformers gave it a "
        "{given}. So the code or the configuration of the processor was written for another version of Transformers",
        fix="set `image:` to the version of the engine that the model's page names, or use a newer revision of the "
        "model, whose processor fits; for a fine-tuned model, use preprocessor_config.json and processor_config.json "
        "of its base model",
        source="The message comes from transformers (processing_utils.py, check_argument_for_proper_class), and is "
        "quoted in vllm-project/vllm issue 20855 (2025-07). The failure was not reproduced.",
        explain="Newer versions of Transformers load faster classes (with the ending Fast) by default. The weights and "
        "the GPU are not the cause.",
        patterns=compile_patterns(
            r"Received an? (?P<given>\w+) for argument (?P<argument>\w+), but an? (?P<expected>[\w(', )]{3,200}?) was "
            r"expected"
        ),
    ),
    Rule(
        "SG-V080",
        title="the image does not know the model's type",
        cause="Transformers or the engine has no entry for the model type {type}, which the model's configuration "
        "names. Most often, the model is newer than the image",
        fix="set `image:` to a newer version of the engine, or to the version that the model's page names; don't "
        "update Transformers alone, because other packages of the image then no longer match",
        source="The message comes from Python; transformers (models/auto/configuration_auto.py) raises it for an "
        "unknown type. sgl-project/sglang issue 18819 (2026-02) quotes it. The failure was not reproduced.",
        explain="The type is `model_type` in config.json, or in a part of it such as text_config. The files are "
        "complete, so a new download does not help.",
        find=_find_unknown_type,
        fallback=True,
    ),
)
