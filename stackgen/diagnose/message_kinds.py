"""What kind of refusal an engine's own message is, and the step that follows from it. No guess beyond the words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from stackgen.diagnose.concerned import Concerned

__all__ = ["LIBRARY", "OTHER", "Kind", "describe_step", "find_kind"]

# settings that one message shows
SHOWN = 3
NOT_SET = "no setting in stack.yaml"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of message. `title` is the finding's.

    `change` is what to do with the settings of the stack that the message concerns (`{settings}`), `otherwise` what to
    do if the stack sets none of them.
    """

    name: str
    pattern: re.Pattern[str]
    title: str
    change: str
    otherwise: str


def _kind(name: str, pattern: str, title: str, change: str, otherwise: str) -> Kind:
    return Kind(name, re.compile(pattern, re.I), title, change, otherwise)


TRY_WITHOUT = (
    "change or remove {settings} (one at a time); if you need this feature, search the release notes "
    "of newer versions for it, and set `image:` to a version that supports it"
)
FILES_OR_DEFAULT = (
    "no setting in stack.yaml asks for this, so the model's own files (config.json) or a default of this version ask "
    "for it: use the version of the image that the model's page names, or another variant of the model"
)
NEWER = (
    "set `image:` to the version that the model's page names, most often a newer one, or use another variant of the "
    "model; don't download the same files again, because they are not damaged"
)
# the first kind that fits counts
KINDS = (
    _kind(
        "check",
        r"^(?:\w+: )?Check failed|GGML_ASSERT|internal error|(?:is|be) a bug|please "
        r"(?:file|report|open|raise) (?:a|an|this)",
        "an internal check of the engine failed",
        "as a test, start once without {settings} (one at a time); read the release notes of newer "
        "versions, because most often such a check fails because of a bug in this version",
        "search the release notes of newer versions for this check, because most often such a check fails because of "
        "a bug in this version; as a test, start with another version of the image",
    ),
    _kind(
        "newer",
        r"unknown (?:model )?(?:architecture|projector|quantization|ggml type)|not recognize this "
        r"(?:architecture|model)|"
        r"missing tensor|has wrong shape|no module or parameter named|Tokenizer class \S+ does not exist",
        "the model's files are too new for this version of the program, or were made for another program",
        NEWER,
        NEWER,
    ),
    _kind(
        "package",
        r"^(?:ImportError|ModuleNotFoundError)|is not installed|not been installed|[Pp]lease install|pip install|"
        r"No module named|could not be imported|is required (?:to|for) .{0,60}(?:package|install)",
        "the image lacks a package that this model or setting needs",
        "use an image that contains the package (see the model's page or the engine's release notes), or add the "
        "package in an image of your own (`FROM` this image), and set `image:` to it; without {settings}, the engine "
        "may not need the package",
        "use an image that contains the package (see the model's page or the engine's release notes), or add the "
        "package in an image of your own (`FROM` this image), and set `image:` to it",
    ),
    _kind(
        "memory",
        r"out of memory|OutOfMemory|not enough (?:gpu )?memory|insufficient memory|memory .{0,60}(?:exceed|too small)|"
        r"(?:exceed|larger than).{0,60}memory|No available memory|failed to allocate|offloaded to (?:the )?disk",
        "the engine's settings need more memory than is available",
        "lower {settings}, or another setting that the message names",
        "lower max_model_len or max_num_seqs, or give the model more or larger GPUs",
    ),
    _kind(
        "hardware",
        r"compute capability|\bsm_?\d{2,3}\b|\bgfx\d|\bCUDA arch|(?:current|this) (?:gpu|device|platform)|"
        r"(?:requires?|only|supported|support) "
        r".{0,40}(?:\bgpus?\b|\bcuda\b|\brocm\b|hopper|blackwell|ampere|platforms?\b|"
        r"\bdevices?\b)|on (?:rocm|cuda|hip|xpu|cpu)\b",
        "this feature needs another kind of GPU or platform",
        "change or remove {settings}, because the feature does not support this GPU or platform",
        "no setting in stack.yaml asks for the feature, so the model's files or a default of this version ask for "
        "it: use a variant of the model (quantization, data type) for this GPU, or another version of the image",
    ),
    _kind(
        "unsupported",
        r"not (?:yet |currently )?(?:been )?support|unsupported|not (?:yet )?implement|NotImplementedError|incompatib|"
        r"not compatible|cannot be (?:used|combined|enabled|set)|can't be (?:used|combined)|only (?:be )?support|"
        r"only (?:valid|available|implemented|works?)\b|supports? only|only .{2,60} (?:is|are) "
        r"supported|mutually exclusive|does(?:n't| not) support|"
        r"(?:do|does) not (?:work|have)|not (?:valid|allowed|available) (?:for|with|in|on)|no .{2,60} supports?|"
        r"\brequires?\b|must be (?:enabled|disabled|used)|cannot use|not (?:valid|applicable)",
        "the engine refuses a combination of settings, or a setting for this model",
        TRY_WITHOUT,
        FILES_OR_DEFAULT,
    ),
    _kind(
        "file",
        r"^(?:FileNotFoundError|IsADirectoryError|NotADirectoryError)|no such "
        r"file|(?:file|folder|directory|path|weights|"
        r"checkpoints?|index)\b.{0,80}(?:not found|does(?:n't| not) exist|missing)|"
        r"(?:cannot|could not|can't|unable to|failed to) (?:find|open|locate|load|read) .{0,60}"
        r"(?:\bfiles?\b|folder|director|\bpath|weights|checkpoint|\.json|\.gguf|safetensors|'/|magic|key-value)",
        "the engine does not find a file, or can't read it",
        "compare {settings} with the files in the container: run `ls -l` there with the path from the message",
        "compare `model`, `revision` and `file` with the model's page, and with the files in the container (run `ls "
        "-l` there with the path from the message)",
    ),
    _kind(
        "size",
        r"divisib|divide|multiple of|\bshapes?\b|dimension|size mismatch|align|same (?:size|length|shape)",
        "a size of the model does not match the settings",
        "change {settings} so that the sizes in the message match",
        "no setting in stack.yaml decides these sizes, so they come from the model's files: use the version "
        "of the image "
        "that the model's page names, or another variant of the model",
    ),
    _kind(
        "choice",
        r"\b(?:valid|available|allowed|accepted|possible|supported|known) "
        r"(?:\w+ ){0,2}(?:options|values|choices|backends|types|methods|formats|names|parsers|modes)\b.{0,20}?"
        r"(?: are|:|=|\[|\{)|"
        r"(?:must be|choose|expected|should be|choose from|is not) (?:one of|in|from) ?:? ?[\[({']|"
        r"(?:Available|Supported|Choices|Options): ",
        "the engine does not know a value",
        "set {settings} to a value that the message lists; if you need the other value, set `image:` to the version "
        "or build of the engine that has it",
        "no setting in stack.yaml has this value, so it comes from the model's files or from a default: use the "
        "version or build of the engine that knows the value, or set a value that the message lists",
    ),
    _kind(
        "value",
        r"\b(?:must|should|expect\w*|invalid|unknown|unrecognized|unexpected|illegal|at least|at "
        r"most|greater|less than|"
        r"larger|smaller|exceed\w*|between|choose|one of|cannot be|can't be|not (?:a )?valid|got|but|missing|needs?|"
        r"disabled|specify|specified|provide|set)\b",
        "the engine refuses a value",
        "change {settings} to what the message requires, or remove {settings} from stack.yaml",
        "no setting in stack.yaml has this value, so it comes from the model's files (config.json, tokenizer, "
        "generation_config.json) or from a default: compare these files with the model's page, and use the version "
        "of the image that the page names",
    ),
)  # fmt: skip
OTHER = _kind(
    "other",
    "",
    "the engine exited with an error message",
    "as a test, start once without {settings} (one at a time)",
    "search the issues of the program's project for the message and the program's version (at the start of the log); "
    "as a test, start with another version of the image",
)


# instead of kinds that don't say where a value comes from, if no setting is concerned and a library raises the message
LIBRARY = _kind(
    "library",
    "",
    "a library does not accept what the engine or the model's files request",
    "",
    "the message comes from a library, not from the engine; if the versions of the library and the engine are not "
    "compatible, use an image with versions that were released for each other (most often, a newer image of the "
    "engine); don't upgrade one package alone; if the model's files need another version, use the version that the "
    "model's page names",
)


def find_kind(text: str) -> Kind:
    """The kind of the message `text`, which begins with the name of its exception if it has one."""
    return next((one for one in KINDS if one.pattern.search(text)), OTHER)


def describe_step(
    kind: Kind, concerned: Sequence[Concerned], tested: Sequence[str], *, has_stack: bool, features: str = ""
) -> str:
    """The next step: the settings of the stack to change, or where else the value comes from.

    `tested` are settings that the program tests, whether the stack sets them or not. Without a stack, nothing is said
    about what stack.yaml sets, but `features` are those that the code belongs to.
    """
    if concerned:
        step = kind.change if len(concerned) > 1 else kind.change.replace(" (one at a time)", "")
        return step.format(settings=", ".join(map(str, concerned[:SHOWN])))
    named = f" (the program's code checks {', '.join(tested[:SHOWN])})" if tested else ""
    if has_stack or not kind.otherwise.startswith(NOT_SET):
        return f"{kind.otherwise}{named}"
    if features and not tested:
        named = f"; the code belongs to {features}"
    return f"look in stack.yaml for the setting that asks for this{named}; if there is no such setting, "
    f"{_unknown_origin(kind)}"


def _unknown_origin(kind: Kind) -> str:
    """`otherwise`, without what it says about a stack that is not known."""
    return re.sub(rf"^{NOT_SET} [^,]+, so ", "", kind.otherwise)
