"""The model's files: missing, cut off, unreadable. Texts of vLLM 0.32.0 and Transformers 4 and 5, all provoked."""

from __future__ import annotations

from stackgen.diagnose.rule import Rule, patterns

__all__ = ["RULES"]

AGAIN = (
    "download it again (`stackgen down --volumes` drops all weights of the stack; `hf cache verify` names bad files)"
)
# what a cache refuses is told by SG-H009: a file that is being made, and not one that is read
READING = r"^(?!.*(?:/\.cache/(?!.*/snapshots/.*\.\w)|\.locks?\b|mkdir|when downloading|cannot download)).*?"

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-L001",
        "a file of weights is cut off",
        "a safetensors file ends before it should: a download or a copy broke off",
        f"{AGAIN}; with a local folder: copy it again",
        "safetensors 0.5 and later; provoked for real with both engines",
        "The header of a safetensors file says how long it is. A text file of about 130 bytes that starts with "
        "`version https://git-lfs` is a pointer: the repository was cloned without `git lfs pull`.",
        patterns(
            r"SafetensorError: (?P<problem>Error while deserializing header.*|.*incomplete metadata.*|"
            r".*(?:InvalidHeader|HeaderTooLarge|MetadataIncompleteBuffer).*)"
        ),
    ),
    Rule(
        "SG-L002",
        "a shard of the weights is missing",
        "model.safetensors.index.json names {file}, which is not there",
        f"{AGAIN}; with a local folder: add the file",
        "vLLM 0.32.0, model_loader/weight_utils.py; transformers 4.57, modeling_utils.py; provoked for real with both",
        "Large models come in shards, and the index lists them all.",
        patterns(
            r"Weight files referenced in index but missing: \{?'?(?P<file>[^'}]+)",
            r"FileNotFoundError: No such file or directory: \"?(?P<file>\S+\.(?:safetensors|bin))",
        ),
    ),
    Rule(
        "SG-L003",
        "the model has no weights",
        "the folder of {model} holds no file of weights that the engine can load",
        f"name the folder that holds *.safetensors, or {AGAIN}; a GGUF file wants engine: llamacpp",
        "vLLM 0.32.0, model_loader/default_loader.py; transformers 4.57; provoked for real with both engines",
        "The engines load *.safetensors (and *.bin). A cache folder of the Hub holds them below snapshots/COMMIT.",
        patterns(
            r"Cannot find any model weights with `(?P<path>[^`]+)`",
            r"Error no file named pytorch_model\.bin, model\.safetensors.* found in directory (?P<path>\S+)",
        ),
    ),
    Rule(
        "SG-L004",
        "config.json is no JSON",
        "{path} can't be read as JSON",
        "restore the file from the Hub; a trailing comma or a cut-off copy does this",
        "transformers 4.57 and 5.x, configuration_utils.py; provoked for real with both engines",
        "`python3 -m json.tool config.json` names the place.",
        patterns(r"config file at '(?P<path>[^']+)' is not a valid JSON file"),
    ),
    Rule(
        "SG-L005",
        "the folder holds no model",
        "{path} holds no config.json",
        "name the folder that holds config.json itself, not one above it; a Hub id has the form organization/name",
        "vLLM 0.32.0, transformers_utils/config.py; provoked for real",
        "A folder of Git or of the Hub's cache has the files one level deeper.",
        patterns(
            r"Invalid repository ID or local directory specified: '(?P<path>[^']+)'",
            r"(?<![^\s'\"(])(?P<path>/\S+) does not appear to have a file named config\.json",
        ),
    ),
    Rule(
        "SG-L006",
        "the tokenizer is missing",
        "{model} has no tokenizer that can be loaded: tokenizer.json or tokenizer.model is missing",
        "add the tokenizer's files beside the weights, from the repository or its base model",
        "transformers 4.57 and 5.x, tokenization_utils_tokenizers.py; provoked for real with both engines",
        "Fine-tunes and merges are often saved without it. The tokenizer of the base model serves, if the vocabulary "
        "was not extended.",
        patterns(
            r"Couldn't instantiate the backend tokenizer",
            r"Either model_file or model_proto must be specified",
            r"Can't load tokenizer for '(?P<path>[^']+)'",
            r"Unable to load vocabulary from file",
        ),
    ),
    Rule(
        "SG-L007",
        "the model's path does not exist in the container",
        "{path} is not there, so it was taken for the id of a Hub repository, which it can't be",
        "write the folder as the machine has it (`model: ./folder`): stackgen mounts it; a path in extra_args is one "
        "inside the container",
        "huggingface_hub 0.36 and 2.4, utils/_validators.py; provoked for real with both engines",
        "Engines take what is no folder for a Hub id. The real cause is a mount that is missing, or a typing error.",
        patterns(
            r"Repo id must be in the form 'repo_name' or 'namespace/repo_name': '(?P<path>[^']+)'",
            r"Repo id must use alphanumeric chars.*: '(?P<path>[^']+)'",
        ),
    ),
    Rule(
        "SG-L008",
        "the engine may not read the model's files",
        "the container's user has no permission to read {path}",
        "`chmod -R a+rX FOLDER` on the machine, or set `user:` to who owns them",
        "Python, errno 13; safetensors says `No such file` for a file it may not open; provoked for real",
        "Our containers run without capabilities, so even root inside may not read what belongs to others with mode "
        "0600. Files that Transformers saves have that mode.",
        patterns(
            rf"{READING}Permission ?[Dd]enied.*?"
            r"(?P<path>/[^'\" ]*(?:models|hub|snapshots|blobs|\.safetensors|\.json)[^'\" ]*)",
            r"(?<![^\s'\"(])(?P<path>/\S+\.(?:safetensors|gguf))\b.{0,300}Permission denied",
        ),
    ),
)
