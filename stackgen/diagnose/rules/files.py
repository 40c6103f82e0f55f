"""Rules for missing, truncated and unreadable model files.

The texts are those of vLLM 0.32.0 and of Transformers 4 and 5. All failures were reproduced.
"""

from __future__ import annotations

from stackgen.diagnose.rule import Rule, compile_patterns

__all__ = ["RULES"]

DOWNLOAD_AGAIN = (
    "download the model again (`hf cache verify` lists bad files; `stackgen down --volumes` deletes all weights of the "
    "stack)"
)
# SG-H009 reports files that a cache can't create; these patterns match files that can't be read
READING = r"^(?!.*(?:/\.cache/(?!.*/snapshots/.*\.\w)|\.locks?\b|mkdir|when downloading|cannot download)).*?"

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-L001",
        title="a weight file is truncated",
        cause="a safetensors file is incomplete: a download or a copy was interrupted",
        fix=f"{DOWNLOAD_AGAIN}; if the model is a local folder, copy the folder again",
        source="safetensors 0.5 and later; failure reproduced with both engines",
        explain="The header of a safetensors file contains the length of the file. A text file of about 130 bytes "
        "that starts with `version https://git-lfs` is a Git LFS pointer: the repository was cloned without `git lfs "
        "pull`.",
        patterns=compile_patterns(
            r"SafetensorError: (?P<problem>Error while deserializing header.*|.*incomplete metadata.*|"
            r".*(?:InvalidHeader|HeaderTooLarge|MetadataIncompleteBuffer).*)"
        ),
    ),
    Rule(
        "SG-L002",
        title="a shard of the weights is missing",
        cause="model.safetensors.index.json lists {file}, but this file does not exist",
        fix=f"{DOWNLOAD_AGAIN}; if the model is a local folder, add the missing file",
        source="vLLM 0.32.0, model_loader/weight_utils.py; transformers 4.57, modeling_utils.py; failure reproduced "
        "with both",
        explain="Large models are split into shards, and the index lists all shards.",
        patterns=compile_patterns(
            r"Weight files referenced in index but missing: \{?'?(?P<file>[^'}]+)",
            r"FileNotFoundError: No such file or directory: \"?(?P<file>\S+\.(?:safetensors|bin))",
        ),
    ),
    Rule(
        "SG-L003",
        title="the model has no weights",
        cause="the folder of {model} contains no weight file that the engine can load",
        fix=f"use the folder that contains *.safetensors, or {DOWNLOAD_AGAIN}; a GGUF file needs engine: llamacpp",
        source="vLLM 0.32.0, model_loader/default_loader.py; transformers 4.57; failure reproduced with both engines",
        explain="The engines load *.safetensors (and *.bin). In a cache folder of the Hugging Face Hub, the weight "
        "files are in snapshots/COMMIT.",
        patterns=compile_patterns(
            r"Cannot find any model weights with `(?P<path>[^`]+)`",
            r"Error no file named pytorch_model\.bin, model\.safetensors.* found in directory (?P<path>\S+)",
        ),
    ),
    Rule(
        "SG-L004",
        title="config.json is not valid JSON",
        cause="{path} can't be parsed as JSON",
        fix="download config.json again from the Hub; possible reasons are a trailing comma or an incomplete copy",
        source="transformers 4.57 and 5.x, configuration_utils.py; failure reproduced with both engines",
        explain="`python3 -m json.tool config.json` shows the position of the error.",
        patterns=compile_patterns(r"config file at '(?P<path>[^']+)' is not a valid JSON file"),
    ),
    Rule(
        "SG-L005",
        title="the folder contains no model",
        cause="{path} contains no config.json",
        fix="set `model:` to the folder that contains config.json, not to a parent folder; a Hub id has the form "
        "organization/name",
        source="vLLM 0.32.0, transformers_utils/config.py; failure reproduced",
        explain="In a Git folder, or in a folder of the Hub's cache, the model's files are one level deeper.",
        patterns=compile_patterns(
            r"Invalid repository ID or local directory specified: '(?P<path>[^']+)'",
            # the lookbehind starts a match only where a path starts: without it a long line takes quadratic time
            r"(?<![^\s'\"(])(?P<path>/\S+) does not appear to have a file named config\.json",
        ),
    ),
    Rule(
        "SG-L006",
        title="the tokenizer is missing",
        cause="{model} has no tokenizer that can be loaded: tokenizer.json or tokenizer.model is missing",
        fix="copy the tokenizer files from the model's repository or its base model into the folder of the weights",
        source="transformers 4.57 and 5.x, tokenization_utils_tokenizers.py; failure reproduced with both engines",
        explain="Fine-tuned and merged models are often saved without a tokenizer. The tokenizer of the base model "
        "works if the vocabulary was not extended.",
        patterns=compile_patterns(
            r"Couldn't instantiate the backend tokenizer",
            r"Either model_file or model_proto must be specified",
            r"Can't load tokenizer for '(?P<path>[^']+)'",
            r"Unable to load vocabulary from file",
        ),
    ),
    Rule(
        "SG-L007",
        title="the model's path does not exist in the container",
        cause="{path} does not exist in the container, so the engine treats it as a Hub repository id, which is not "
        "valid",
        fix="set `model:` to the path on the host (`model: ./folder`), because stackgen mounts this path; a path in "
        "extra_args is a path inside the container",
        source="huggingface_hub 0.36 and 2.4, utils/_validators.py; failure reproduced with both engines",
        explain="Engines treat everything that is not a folder as a Hub id. The real cause is a missing mount or a "
        "typo.",
        patterns=compile_patterns(
            r"Repo id must be in the form 'repo_name' or 'namespace/repo_name': '(?P<path>[^']+)'",
            r"Repo id must use alphanumeric chars.*: '(?P<path>[^']+)'",
        ),
    ),
    Rule(
        "SG-L008",
        title="the engine has no permission to read the model's files",
        cause="the container's user has no permission to read {path}",
        fix="run `chmod -R a+rX FOLDER` on the host, or set `user:` to the owner of the files",
        source="Python, errno 13; safetensors reports `No such file` for a file that it has no permission to open; "
        "failure reproduced",
        explain="stackgen's containers run without Linux capabilities. So even root inside the container can't read "
        "files that belong to another user and have mode 0600. Files that Transformers saves have mode 0600.",
        patterns=compile_patterns(
            rf"{READING}Permission ?[Dd]enied.*?"
            r"(?P<path>/[^'\" ]*(?:models|hub|snapshots|blobs|\.safetensors|\.json)[^'\" ]*)",
            r"(?<![^\s'\"(])(?P<path>/\S+\.(?:safetensors|gguf))\b.{0,300}Permission denied",
        ),
    ),
)
