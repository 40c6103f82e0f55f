"""Rules for GGUF files that llama.cpp can't load.

The texts are those of llama-server, build 11434. The failures were reproduced in containers unless
`source` says otherwise.
"""

from __future__ import annotations

from stackgen.diagnose.rule import Rule, Variant, compile_patterns

__all__ = ["REPRODUCED", "RULES", "SERVER"]

SERVER = "build 11434 of llama-server"
REPRODUCED = "The failure was reproduced."
DOWNLOAD_AGAIN = (
    "compare the size of the file with its size on the Hub; if the sizes differ, download or copy this file again"
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-A004",
        title="a GGUF file does not exist",
        cause="the file {path} does not exist in llama.cpp's container",
        fix="correct `model:` and `file:` (names are case-sensitive); in extra_args (--lora, --mmproj, "
        "--model-draft), write paths as they are in the container; if the file exists on the host, it may be a "
        "symbolic link to a folder that is not mounted: find the real file with `readlink -f`, and set `model:` to "
        "its folder",
        source=f"The messages come from {SERVER} (ggml/src/gguf.cpp and src/llama-adapter.cpp). {REPRODUCED}",
        explain="If `model` is a folder, set `file` to the name of the GGUF file in that folder. Without `file`, set "
        "`model` to the path of the GGUF file. Large models are split into several files (-00001-of-00003.gguf). "
        "Specify the first file, and keep the other files in the same folder.",
        patterns=compile_patterns(
            r"failed to open GGUF file '(?P<path>[^']+)' \(No such file or directory\)",
            r"llama_adapter_lora_init: failed to open '(?P<path>[^']+)': No such file",
        ),
        variants=(
            Variant(
                # builds before 2026 did not print the reason
                compile_patterns(r"failed to open GGUF file '(?P<path>[^']+)'\s*$"),
                title="a GGUF file can't be opened",
                cause="llama.cpp can't open the file {path}: either it does not exist in llama.cpp's container, or the "
                "container's user has no permission to read it. The file itself is not damaged, because nothing was "
                "read",
                fix="run `ls -lL {path}` in the container; if the file is missing, correct `model:` and `file:` or the "
                "mount (names are case-sensitive, and a relative path depends on the working folder); if it is a link, "
                "mount the folder that it points to; if the file is there, give the container's user the right to read "
                "it and its folders",
            ),
        ),
    ),
    Rule(
        "SG-A005",
        title="the file is not a GGUF file",
        cause="the model file does not start with 'GGUF'[[, but with '{magic}']]",
        fix=f"{DOWNLOAD_AGAIN}; for a model in safetensors format, use the engine vllm or a GGUF version of the model",
        source=f"The message comes from {SERVER} (ggml/src/gguf.cpp). The failure was reproduced with a Git LFS "
        "pointer and with a safetensors file.",
        explain="A file that starts with 'vers' (`version https://git-lfs`) is a Git LFS pointer. Git leaves a "
        "pointer in place of the file if the repository is cloned without `git lfs pull`. A file that starts with "
        "'<!DO' or '<htm' is a web page that was saved in place of the model file.",
        # bytes that are not text are printed as `?`, and are not worth showing
        patterns=compile_patterns(r"invalid magic characters: '(?:(?P<magic>[^?']+)|[^']*)', expected 'GGUF'"),
    ),
    Rule(
        "SG-A006",
        title="the GGUF file is empty, or is a folder",
        cause="llama.cpp can't read the first bytes of the model file",
        fix=f"if the path is a folder, set `file` to the name of the GGUF file; otherwise {DOWNLOAD_AGAIN}",
        source=f"The message comes from {SERVER} (ggml/src/gguf.cpp). The failure was reproduced with an empty file "
        "and with a folder.",
        explain="A download that was interrupted right after it began leaves an empty file. A full disk can also leave "
        "an empty file.",
        patterns=compile_patterns(r"gguf_init_from_reader: failed to read magic"),
    ),
    Rule(
        "SG-A007",
        title="the GGUF file needs a newer llama.cpp",
        cause="the GGUF file has format version {found}, but this build of llama.cpp reads versions up to {known}",
        fix="set `image:` to a newer build of llama.cpp, or use another GGUF file",
        source=f"The message comes from {SERVER} (ggml/src/gguf.cpp). The failure was reproduced with a patched file.",
        explain="A file that is damaged or has swapped bytes can also contain a meaningless version number.",
        patterns=compile_patterns(
            r"this GGUF file is version (?P<found>\d+) but this software only supports up to version (?P<known>\d+)"
        ),
    ),
    Rule(
        "SG-A008",
        title="the GGUF file is truncated",
        cause="the GGUF file ends too early[[, within tensor {tensor}]], because a download or a copy was interrupted",
        fix=DOWNLOAD_AGAIN,
        source=f"The messages come from {SERVER} (ggml/src/gguf.cpp and src/llama-model-loader.cpp). {REPRODUCED}",
        explain="The header of a GGUF file contains the position of each tensor. Compare the size of the local file "
        "with its size on the Hub.",
        patterns=compile_patterns(
            r"tensor '(?P<tensor>[^']+)' data is not within the file bounds",
            r"gguf_init_from_\w+: failed to read (?:key-value pairs|tensor info|tensor data|header)",
        ),
        # a file of another version has the same last line, and is whole
        consequence_of=("SG-A005", "SG-A007", "SG-A021", "*"),
    ),
    Rule(
        "SG-A009",
        title="llama.cpp does not know the model's architecture",
        cause="the GGUF file has architecture '{architecture}', which this build of llama.cpp can't run",
        fix="set `image:` to a newer build of llama.cpp, or use another model",
        source=f"The message comes from {SERVER} (src/llama-model.cpp). The failure was reproduced with a patched "
        "file.",
        explain="A new architecture needs a newer build of llama.cpp. Image models and adapters can also be GGUF "
        "files. These files are made for other programs, and have architectures that no language model has.",
        patterns=compile_patterns(r"unknown model architecture: '(?P<architecture>[^']*)'"),
    ),
    Rule(
        "SG-A026",
        title="the file is not the first part of a split model",
        cause="llama.cpp must load a split GGUF model from its first part, but got another part: {problem}",
        fix="set `file:` to the part whose name ends with -00001-of-N.gguf, and keep all parts in one folder",
        source="The messages come from build 11434 of llama-server (src/llama-model-loader.cpp), and are quoted in "
        "lemonade-sdk/lemonade issue 499 (2025-10) and ggml-org/llama.cpp issue 9613. The failure was not reproduced.",
        explain="The first part contains the number of parts. llama.cpp finds the other parts by their names.",
        patterns=compile_patterns(r"(?P<problem>illegal split file idx: \d+)"),
        variants=(
            Variant(
                compile_patterns(
                    r"(?P<problem>invalid split file(?: name| idx)?: [^\n]{0,200})",
                    r"(?P<problem>invalid split count, given: \d+ splits, but expected \d+)",
                ),
                title="the parts of a split model do not belong together",
                cause="the header of a split GGUF model does not match the names of its files: {problem}. The parts "
                "were renamed, come from different models, or were not joined with llama-gguf-split",
                fix="keep all parts in one folder, with the names that they have on the Hub; set `file:` to the part "
                "that ends with -00001-of-N.gguf; to join parts, use `llama-gguf-split --merge`",
            ),
        ),
    ),
    Rule(
        "SG-A027",
        title="the draft model does not match the model",
        cause="the draft model for speculative decoding has a different vocabulary from the model",
        fix="use a draft model of the same family and version[[?extra_args.--model-draft|, or remove "
        "--model-draft from "
        "extra_args]]",
        source="The messages come from build 11434 of llama-server (common/speculative.cpp), and are quoted in "
        "LostRuins/koboldcpp issue 2325. The failure was not reproduced.",
        explain="The model checks the tokens that the draft model proposes, so both models need the same vocabulary.",
        patterns=compile_patterns(
            r"draft model (?:vocab(?: type)?|[be]os tokens) must (?:closely )?match target model",
            r"the target and draft vocabs are not compatible",
        ),
    ),
)
