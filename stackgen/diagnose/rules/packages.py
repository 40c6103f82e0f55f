"""Rules for packages that do not match: Python packages in an image, and compiled extensions and their libraries.

None of these failures was reproduced. `source` names the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from stackgen.diagnose.error_lines import find_root_lines
from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import lines_since_ready, strip_prefix
from stackgen.diagnose.messages import Message, find_messages
from stackgen.diagnose.rule import Hit, Rule, Variant
from stackgen.diagnose.tracebacks import has_request_frame

__all__ = ["RULES"]

MISMATCH = re.compile(
    r"^(?:ImportError: cannot import name '(?P<name>\w+)' from (?:partially initialized module "
    r")?'(?P<module>(?P<package>\w+)[\w.]*)'|"
    r"AttributeError: (?:partially initialized )?module '(?P<package2>\w+)[\w.]*' has no attribute '(?P<name2>\w+)'|"
    r"AttributeError: (?:type object )?'(?P<owner>\w+)' object has no attribute '(?P<name3>\w+)'|"
    r"AttributeError: type object '(?P<owner2>\w+)' has no attribute '(?P<name5>\w+)'|"
    r"TypeError: (?P<owner3>[\w.]+)\(\) got an unexpected keyword argument '(?P<name4>\w+)'|"
    # transformers and its tokenizers check the arguments themselves
    r"(?:Value|Type)Error: .{0,40}?\b[Kk](?:wargs|eyword arguments?) \[?'(?P<name6>\w+)'.{0,80}? (?:are|is) not "
    r"supported by [`'](?P<owner4>\w+)\.(?P<method>\w+)[`'])"
)
# a call with more or fewer arguments than the function has
ARITY = re.compile(
    r"^(?:TypeError: |(?!\w*Error).{0,200}?[\s\]])(?P<name>(?:[A-Z]\w{1,60}\.)?[a-z_]\w{3,60}(?:\.\w+)*)\(\) (?:takes "
    r"(?:from \d+ to )?\d+ positional arguments? but \d+ (?:was|were) given|missing \d+ required (?:positional|"
    r"keyword-only) arguments?: )"
)
# of the package kernels
NO_VERSION = "ValueError: Either a revision or a version must be specified"
MISSING = re.compile(
    r"^ModuleNotFoundError: No module named '(?P<module>[\w.]+)'|"
    r"^(?:importlib\.metadata\.)?PackageNotFoundError: No package metadata was found for (?P<package>[\w.-]+)"
)
# what pydantic 1's ModelField has, and pydantic 2's FieldInfo has not
FIELD_INFO = re.compile(r"'FieldInfo' object has no attribute '(?:required|type_|outer_type_|field_info|allow_none)'")
FRAME = re.compile(r'File "(?:\S*/)?(?:site-packages|dist-packages|src|app)/(?P<package>[A-Za-z]\w+)/|'
                   r'File "\S*?/(?P<checkout>vllm|fastchat|transformers|FastChat)/')  # fmt: skip
# objects whose package the message does not name
OWNERS = {"AsyncLLM": "vllm", "LLMEngine": "vllm", "AsyncLLMEngine": "vllm", "EngineArgs": "vllm",
          "PreTrainedModel": "transformers", "AutoConfig": "transformers"}  # fmt: skip
# packages that many others import, each for certain versions
SHARED = {"transformers", "torch", "huggingface_hub", "tokenizers", "triton", "flashinfer", "pydantic", "timm"}
FAILED_IMPORT = re.compile(r"(?<![\w.-])(?P<file>[\w.-]{1,200}?\.so[\w.]*): undefined symbol: (?P<symbol>\w+)")
MODEL_CLASS = re.compile(r"For(?:CausalLM|ConditionalGeneration)|Model\b|Model\.|^(?:forward|load_weights)")
OFFICIAL = re.compile(r"(?:docker\.io/)?(?:vllm/vllm-|rocm/vllm|ghcr\.io/ggml-org/)")
MATCHING_IMAGE = (
    "set `image:` to a version in which both packages were tested together: the engine's official image, without "
    "other packages; if the image is already official, try another version of it, newer or older, and search its "
    "release notes and issues for this message; don't install packages into a running container"
)


def _find_mismatch(evidence: Evidence) -> Iterator[Hit]:
    """A start ended because one Python package calls something that another package does not have."""
    for message in find_messages(evidence):
        if NO_VERSION in message.text and any("hub_kernels" in line for line in message.before):
            yield Hit(message.service.service, (message.text,), highlight=NO_VERSION, variant=KERNELS)
        if old := FIELD_INFO.search(message.text):
            yield Hit(message.service.service, (message.text,), highlight=old[0], variant=NEW_PYDANTIC)
            continue
        if not (found := MISMATCH.search(message.text)):
            yield from _find_wrong_call(message)
            continue
        groups = {key.rstrip("23456"): value for key, value in found.groupdict().items() if value}
        frames = [(one["package"] or one["checkout"]).lower() for line in message.before if (one := FRAME.search(line))]
        caller = frames[-1] if frames else ""
        owner = groups.get("owner", "")
        callee = groups.get("package") or OWNERS.get(owner.partition(".")[0], "")
        # the function that refuses the argument raises this error itself
        if "method" in groups and frames:
            callee, caller = frames[-1], next((one for one in reversed(frames) if one != frames[-1]), "")
        if callee in SHARED and "module" in groups and not any('File "' in line for line in message.before):
            yield Hit(message.service.service, (message.text,), groups, highlight=found[0], variant=BY_UNKNOWN)
            continue
        if not caller or (callee and callee.lower() == caller):
            # a package that does not find its own names has files of two versions, or was built wrongly
            if caller and groups.get("package") and message.text.startswith("ImportError: cannot import name"):
                values = {"caller": caller, "name": groups["name"], "module": groups["module"]}
                yield Hit(message.service.service, (message.text,), values, highlight=found[0], variant=BROKEN_BUILD)
            continue
        # an object of an unknown package, such as None or a model class, is more often a bug of the caller
        if not callee and ("object has no attribute" in message.text or MODEL_CLASS.search(owner)):
            continue
        image = getattr((evidence.find_model(message.service.service) or (0, None))[1], "image", None) or ""
        values = {
            "caller": caller,
            "name": groups["name"],
            "owner": callee or f"the object {owner}",
            "place": "your own image" if image and not OFFICIAL.match(image) else "the image",
        }
        variant = FAILS_REQUESTS if has_request_frame(message.before) else None
        if (caller, callee) == ("fastchat", "vllm"):
            variant = replace(variant or OLD_WORKER, fix=OLD_WORKER.fix)
        yield Hit(message.service.service, (message.text,), values, highlight=found[0], variant=variant)


def _find_wrong_call(message: Message) -> Iterator[Hit]:
    found = ARITY.search(message.text)
    files = [line for line in message.before if line.lstrip().startswith('File "')]
    frames = [one["package"] or one["checkout"] for line in files if (one := FRAME.search(line))]
    # without a traceback, the packages are unknown; a program's own script may simply be wrong
    if found and (not files or FRAME.search(files[-1])):
        values = {"name": found["name"], **({"caller": frames[-1].lower()} if frames else {})}
        yield Hit(message.service.service, (message.text,), values, highlight=found[0].strip(), variant=WRONG_CALL)


def _find_broken_extension(evidence: Evidence) -> Iterator[Hit]:
    """A compiled extension can't be loaded because a library that it was built with has another version."""
    for service in evidence.services:
        lines = [] if service.is_working else lines_since_ready(service.log)
        # the pattern is slow on long words, and few logs have the phrase
        for line in (one for one in lines if "undefined symbol" in one):
            if found := FAILED_IMPORT.search(strip_prefix(line)):
                symbol = found["symbol"]
                library = "PyTorch" if re.search(r"c10|torch|at\d|_ZN2at", symbol) else "a library"
                # what the missing functions lead to: torch.ops._C has no operators
                later = [
                    root.text for root in find_root_lines(lines) if "_OpNamespace" in root.text or symbol in root.text
                ]
                values = {"file": found["file"], "library": library}
                yield Hit(
                    service.service, (strip_prefix(line).strip(), *dict.fromkeys(later)), values, highlight=found[0]
                )
                break


def _find_missing_package(evidence: Evidence) -> Iterator[Hit]:
    """A start ended because a Python package is not in the image."""
    for message in find_messages(evidence):
        if not (found := MISSING.search(message.text)):
            continue
        frames = [(one["package"] or one["checkout"]).lower() for line in message.before if (one := FRAME.search(line))]
        module, caller = found["module"] or found["package"], frames[-1] if frames else ""
        root = module.partition(".")[0]
        values = {"module": module, **({"caller": caller} if caller else {})}
        if module == "vllm" and any("litellm/llms/vllm" in line for line in message.before):
            yield Hit(message.service.service, (message.text,), values, highlight=found[0], variant=IN_LITELLM)
            continue
        of_model = any("transformers_modules" in line for line in message.before[-8:])
        # Python names the first part that is missing, so the package itself is there
        is_part = "." in module
        values["package"] = root
        variant = OF_MODEL if of_model else MIXED if caller == root.lower() else PART if is_part else None
        yield Hit(message.service.service, (message.text,), values, highlight=found[0], variant=variant)


UNMIXED = (
    "if files or folders are mounted over {caller} in the image, remove these mounts; set `image:` to a released "
    "version instead of a nightly build, or to another build; don't install {caller} again into a running container"
)
BROKEN_BUILD = Variant(
    (),
    title="a package does not find a name in its own modules",
    cause="{caller} imports `{name}` from its own module {module}, and Python does not find the name there. Most "
    "often, the image contains files of two versions of {caller}, or this build of the image is broken. But "
    "Python prints the same message if {module} failed earlier and hides its first error",
    fix="run `python3 -c 'import {module}; {module}.{name}'` in a container of this image, which also prints the first "
    f"error if there is one: then solve the first error (it may be the driver); otherwise, {UNMIXED}",
    condition="a package does not find a name in its own modules",
)
BY_UNKNOWN = Variant(
    (),
    cause="a package, a plugin or the model's own code imports `{name}` from {module}, and the installed {package} "
    "does not have it. So {package} is too new or too old for what imports it. The frames above the message, which "
    "are not in this log, name that file",
    condition="the log contains no traceback",
)
OF_MODEL = Variant(
    (),
    title="the model's own code needs a package that the image lacks",
    cause="the Python code in the model's repository imports {module}, which the image does not contain",
    fix="build an image with the package: `FROM` the engine's image, and `RUN pip install` with the package that the "
    "model's page names; or use another variant of the model, which needs no code of its own",
    condition="the code of the model's repository imports it",
)
IN_LITELLM = Variant(
    (),
    title="LiteLLM's prefix `vllm/` is not for a server",
    cause="the model's name in LiteLLM begins with `vllm/`. With this prefix, LiteLLM loads vLLM inside its own "
    "process, where vLLM is not installed. It does not send the request to a vLLM server",
    fix="in LiteLLM's configuration (or in the call of its library), set `model` to `hosted_vllm/NAME`, where NAME is "
    "a name from the server's `/v1/models`, and `api_base` to `http://HOST:PORT/v1`; don't install vLLM next to "
    "LiteLLM",
    condition="the failed import of vllm is in LiteLLM's code for the prefix `vllm/`",
)
MIXED = Variant(
    (),
    title="the image contains files of two versions of a package",
    cause="{caller} imports its own module {module}, which is not in the image. So the image contains files of two "
    "versions of {caller}, or this build of the image is broken",
    fix=UNMIXED,
    condition="a package does not find one of its own modules",
)
PART = Variant(
    (),
    title="two Python packages in the image do not match",
    cause="the image contains the package {package}, but not its module {module}[[, which {caller} imports]]. So the "
    "versions of the two packages do not match: one is too new or too old for the other",
    fix="use an image in which both packages were released for each other (an official image, or the versions that "
    "the page of the importing package names); if you build the image, pin both versions; don't upgrade {package} "
    "alone in a running container",
    condition="a package is present, but one of its parts is missing",
)
FAILS_REQUESTS = Variant(
    (),
    cause="{caller} uses `{name}` when it answers a request, but {owner} in {place} does not have `{name}`. One of "
    "the two packages is too new for the other. The server can use `{name}` even if the client does not send it",
    condition="the traceback belongs to a request",
)
WRONG_CALL = Variant(
    (),
    cause="`{name}()` is called[[ by {caller}]] with a wrong number of arguments. Most often, one of the packages in "
    "the image (for example transformers) is too new or too old for the package that calls it",
    condition="a function is called with a wrong number of arguments",
)
OLD_WORKER = Variant(
    (),
    fix="serve the model with `engine: vllm` instead of FastChat's vllm_worker, which was written for an older vLLM; "
    f"or use an image with the vLLM version that this FastChat was tested with; otherwise {MATCHING_IMAGE}",
    condition="FastChat's vllm_worker calls vLLM",
)

KERNELS = Variant(
    (),
    cause="transformers loads GPU kernels from the Hub without a version, and since version 0.15, the package "
    "`kernels` refuses this. So the installed `kernels` is too new for this transformers",
    fix="use an official image of the engine, or a newer version of it; if you build the environment yourself, install "
    "`kernels<0.15` with this transformers, or a transformers that names versions (5.10.1 or newer), and pin both",
    condition="the traceback passes through transformers/integrations/hub_kernels.py",
)
NEW_PYDANTIC = Variant(
    (),
    title="a package was written for pydantic 1",
    cause="a package reads the fields of a pydantic model as in pydantic 1, but the installed pydantic is version 2, "
    "whose FieldInfo does not have them",
    fix="use an official image of the engine, whose packages match; in your own installation, read the traceback above "
    "this line: update the package whose file called pydantic (in reports: DeepSpeed, with transformers and "
    "accelerate), or, if no newer one fits, install `pydantic<2`, unless another package needs pydantic 2",
    condition="the message names an attribute that only fields of pydantic 1 have",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-G043",
        title="a compiled file of the image does not match its libraries",
        cause="{file} was built for a different version of {library} from the one in the image, so it could not be "
        "loaded. Later errors about missing operators or attributes are only consequences of this one",
        fix="set `image:` to a version whose packages were built together: an official one, without other packages "
        "installed into it; don't change flags or drivers, because they do not affect this file; don't install "
        "packages into a running container, because this can replace further packages",
        source="The message comes from the dynamic linker, and is quoted in lemonade-sdk/vllm-rocm issue 11 (2026-05). "
        "The failure was not reproduced.",
        explain="vLLM logs the failed import as a warning and continues. The engine then ends at the first operator "
        "that the missing file should provide.",
        find=_find_broken_extension,
    ),
    Rule(
        "SG-V040",
        title="two Python packages in the image do not match",
        cause="{caller} uses `{name}`, which {owner} in {place} does not have. One of the two packages is too new "
        "for the other",
        fix=MATCHING_IMAGE,
        source="The messages come from Python; lm-sys/FastChat issue 3704 (2025-03) and vllm-project/vllm "
        "issue 44759 (2026-06) quote some, and xorbitsai/inference issue 4803 (2026-04) one without the name of the "
        "exception. The message of `kernels` is in sgl-project/sglang issue 27654 (2026-06) and pull request 26704, "
        "and in huggingface/transformers issue 46291 (2026-05), and the message of pydantic is in lm-sys/FastChat "
        "issue 3190 (2024-03) and huggingface/transformers issue 27273 (2023-11).",
        explain="The model's files and the GPU are not the cause, because the program ended while one package called "
        "another.",
        find=_find_mismatch,
        fallback=True,
        variants=(FAILS_REQUESTS, OLD_WORKER, BY_UNKNOWN, BROKEN_BUILD, WRONG_CALL, KERNELS, NEW_PYDANTIC),
    ),
    Rule(
        "SG-V047",
        title="a Python package is missing in the image",
        cause="the image does not contain the Python module {module}[[, which {caller} imports]]",
        fix="set `image:` to a released version of the official image instead of a nightly build or your own build; if "
        "the image is already released, search its issues for the module's name; if your own image lacks the "
        "package, add it when you build the image, not in a running container",
        source="The message comes from Python 3. vllm-project/vllm issue 43528 (2026-05) quotes it for a nightly "
        "image, and LMCache/lmcache-vllm issue 60 (2025-04) for a part of another package, and "
        "BerriAI/litellm issue 2831 (2024-04) for LiteLLM's prefix. The failure was not reproduced.",
        explain="The image was built incorrectly: it lacks a module that one of its packages imports. Often, the "
        "package needs this module only for an optional feature that your stack does not use.",
        find=_find_missing_package,
        fallback=True,
        variants=(OF_MODEL, IN_LITELLM, MIXED, PART),
    ),
)
