"""Rules for missing, truncated and unreadable model files.

The texts are those of vLLM 0.32.0 and of Transformers 4 and 5. The failures were reproduced unless
`source` says otherwise.
"""

from __future__ import annotations

import re

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.rule import Rule, Variant, compile_patterns

__all__ = ["RULES"]

DOWNLOAD_AGAIN = "find the damaged or missing files (`hf cache verify`), and download only these files again"
# SG-H009 reports files that a cache can't create; these patterns match files that can't be read
READING = (
    r"^(?!.*(?:/\.cache/(?!.*/snapshots/.*\.\w)|\.locks?\b|/\.no_exist/|\.incomplete\b|Could not cache|"
    r"error while writing|mkdir|when downloading|cannot download)).*?"
)

UNREADABLE = compile_patterns(
    rf"{READING}Permission ?[Dd]enied.*?"
    r"(?P<path>/[^'\" ]*(?:models|hub|snapshots|blobs|\.safetensors|\.json)[^'\" ]*)",
    # llama.cpp prints the path before the error
    r"(?<![^\s'\"(])(?P<path>/\S+\.(?:safetensors|gguf))\b.{0,300}Permission denied",
)
NO_REPO = compile_patterns(
    r"Repo id must be in the form 'repo_name' or 'namespace/repo_name': '(?P<path>[^']+)'",
    r"Repo id must use alphanumeric chars.*: '(?P<path>[^']+)'",
    # in any wording: an absolute path is never a Hub id
    r"HFValidationError: .{0,300}?'(?P<path>/[^']+)'",
)
# Ray prints the address only of workers on other machines
ON_OTHER = re.compile(r"\(Ray\w+ pid=\d+, ip=[\w.:]+\).{0,300}?(?:Repo id must|HFValidationError: ).{0,250}'/")
# what `ausearch` and the kernel log print about a container
AVC = re.compile(r"avc: +denied .{0,300}container_t")


def _is_on_other_machine(evidence: Evidence, service: str) -> bool:
    """Whether a worker of Ray on another machine does not find the model's path."""
    return bool(ON_OTHER.search(evidence.read_log(service)))


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-L001",
        title="a weight file is truncated",
        cause="a safetensors file is incomplete: a download or a copy was interrupted",
        fix=f"{DOWNLOAD_AGAIN}; if the model is a local folder, copy the folder again",
        source="The messages come from safetensors 0.5 and later. The failure was reproduced with vLLM and FastChat.",
        explain="The header of a safetensors file contains the length of the file. A text file of about 130 bytes "
        "that starts with `version https://git-lfs` is a Git LFS pointer. Git leaves a pointer in place of the file "
        "if the repository is cloned without `git lfs pull`.",
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
        source="The messages come from vLLM 0.32.0 (model_loader/weight_utils.py) and transformers 4.57 "
        "(modeling_utils.py). The failure was reproduced with vLLM and FastChat.",
        explain="Large models are split into shards, and model.safetensors.index.json lists all shards.",
        patterns=compile_patterns(
            # vLLM's text, then that of Transformers, which FastChat uses
            r"Weight files referenced in index but missing: \{?'?(?P<file>[^'}]+)",
            r"FileNotFoundError: No such file or directory: \"?(?P<file>\S+\.(?:safetensors|bin))",
        ),
    ),
    Rule(
        "SG-L003",
        title="the model has no weights",
        cause="the folder of {model} contains no weight file that the engine can load",
        fix=f"set `model:` to the folder that contains `*.safetensors`, or {DOWNLOAD_AGAIN}; for a GGUF file, use the "
        "engine llamacpp",
        source="The messages come from vLLM 0.32.0 (model_loader/default_loader.py) and transformers 4.57. The "
        "failure was reproduced with vLLM and FastChat.",
        explain="vLLM and FastChat load files of the form `*.safetensors` (and `*.bin`). In a cache folder of the "
        "Hugging Face Hub, the weight files are in `snapshots/COMMIT`.",
        patterns=compile_patterns(
            # vLLM's text, then that of Transformers, which FastChat uses
            r"Cannot find any model weights with `(?P<path>[^`]+)`",
            r"Error no file named pytorch_model\.bin, model\.safetensors.* found in directory (?P<path>\S+)",
        ),
    ),
    Rule(
        "SG-L004",
        title="config.json is not valid JSON",
        cause="{path} can't be parsed as JSON",
        fix="compare the size of config.json with its size on the Hub; if they differ, copy this file again; "
        "otherwise look for a trailing comma in the file",
        source="The message comes from transformers 4.57 and 5.x (configuration_utils.py). The failure was reproduced "
        "with vLLM and FastChat.",
        explain="`python3 -m json.tool config.json` shows the position of the error.",
        patterns=compile_patterns(r"config file at '(?P<path>[^']+)' is not a valid JSON file"),
    ),
    Rule(
        "SG-L005",
        title="the folder contains no model",
        cause="{path} contains no config.json",
        fix="set `model:` to the folder that contains config.json, not to a parent folder; write a Hub id in the form "
        "organization/name",
        source="The messages come from vLLM 0.32.0 (transformers_utils/config.py). The failure was reproduced.",
        explain="In a Git folder, or in a folder of the Hub's cache, the model's files are in a subfolder.",
        variants=(
            Variant(
                compile_patterns(
                    r"Could not detect config format for no config file found|No supported config format found"
                ),
                cause="vLLM finds neither config.json nor params.json in the model's folder or repository",
                fix="set `model:` to the folder that contains config.json, not to a parent folder; in the Hub's cache, "
                "set it to the folder below `snapshots`; for a folder with only GGUF files, use `engine: llamacpp`, or "
                "set `model:` to the path of the file",
            ),
        ),
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
        fix="copy the tokenizer files into the folder of the weights, either from the repository of the model or from "
        "the repository of its base model",
        source="The messages come from transformers 4.57 and 5.x (tokenization_utils_tokenizers.py). The failure was "
        "reproduced with vLLM and FastChat.",
        explain="Fine-tuned and merged models are often saved without a tokenizer. The tokenizer of the base model "
        "works if the fine-tuned model has the same vocabulary.",
        patterns=compile_patterns(
            r"Couldn't instantiate the backend tokenizer",
            r"Either model_file or model_proto must be specified",
            r"Can't load tokenizer for '(?P<path>[^']+)'",
        ),
        variants=(
            Variant(
                compile_patterns(r"Unable to load vocabulary from file"),
                title="the tokenizer can't be read",
                cause="a vocabulary file of {model}'s tokenizer can't be read, because it is incomplete or damaged, "
                "or because its permissions are wrong",
                fix="look at the tokenizer files in the model's folder (`ls -l`), and compare their sizes with "
                "those on the Hub",
            ),
        ),
    ),
    Rule(
        "SG-L007",
        title="the model's path does not exist in the container",
        cause="{path} does not exist in the container, and it is not a valid Hub id either",
        fix="set `model:` to a path on the host (for example ./folder), which stackgen mounts into the container; in "
        "extra_args, write paths as they are in the container",
        source="The messages come from huggingface_hub 0.36 and 2.4 (utils/_validators.py). The failure was "
        "reproduced with vLLM and FastChat.",
        explain="If the path in `model:` is not a folder, the engine treats the path as a Hub id. The real cause of "
        "this failure is a missing mount or a typo.",
        patterns=NO_REPO,
        variants=(
            Variant(
                NO_REPO,
                title="the model's path does not exist on another machine",
                cause="{path} does not exist in the container on another machine of the Ray cluster (the log names "
                "its address as `ip=`). Each machine loads the model itself, so the files must have the same path in "
                "the container of every machine",
                fix="copy the model to each machine, or put it on storage that all machines mount, and mount it at the "
                "same path in every container; or pass the name on the Hub instead of a path, so that each machine "
                "downloads it",
                applies=_is_on_other_machine,
                condition="a worker of Ray on another machine reports it",
            ),
        ),
    ),
    Rule(
        "SG-L016",
        title="a JSON file of the model is empty or damaged",
        cause="a JSON file from which the engine reads the model's configuration contains no JSON. Most often, the "
        "file is empty, or a placeholder of Git LFS, or a web page that was saved in its place",
        fix="look at the first lines of the JSON files in the model's folder (`head -c 100 *.json`): config.json, "
        "generation_config.json, tokenizer_config.json, preprocessor_config.json; replace each file that does not "
        "begin with a brace (download it from the model's page), and leave the weights as they are",
        source="The message comes from Python (json/decoder.py), and vLLM's ModelConfig (pydantic) passes it on. "
        "OpenSQZ/MiniCPM-V-CookBook issue 51 (2025-10) quotes it. The failure was not reproduced.",
        explain="`git clone` without Git LFS, and a download that was cut off, leave such files.",
        patterns=compile_patterns(
            r"Value error, Expecting value: line 1 column 1 \(char 0\) \[type=value_error, input_value=ArgsKwargs"
        ),
        engines=("vllm",),
    ),
    Rule(
        "SG-L008",
        title="the engine has no permission to read the model's files",
        cause="the container's user has no permission to read {path}",
        fix="run `chmod -R a+rX FOLDER` on the host, or set `user:` to the owner of the files",
        source="The messages come from Python (errno 13) and safetensors. safetensors reports `No such file` for a "
        "file that it has no permission to open. The failure was reproduced.",
        explain="stackgen's containers run without Linux capabilities, so even root inside the container can't read a "
        "file that belongs to another user and has mode 0600. Files that Transformers saves have mode 0600.",
        patterns=UNREADABLE,
        variants=(
            Variant(
                UNREADABLE,
                title="SELinux denies access to a file",
                cause="SELinux denies the container access to {path}, as the line `avc: denied` shows. The owner and "
                "the mode of the file are not the cause",
                fix="mount the folder with the option `:z` (shared with other containers) or `:Z` (for this container "
                "alone), which gives it the label container_file_t; for a folder that must keep its label, such as a "
                "home folder, run the container with `--security-opt label=disable`",
                applies=lambda evidence, service: bool(AVC.search(evidence.read_log(service))),
                condition="the text shows a denial of SELinux",
            ),
        ),
    ),
    Rule(
        "SG-L009",
        title="the disk or network file system of the model fails",
        cause="reading a file failed with `{problem}`. A disk, or the connection to a network file system, is faulty",
        fix="look for errors of the disk or of the network file system in the kernel log (`sudo dmesg`)",
        source="The messages are errno 5 (EIO) and 116 (ESTALE) of Linux, as Python and Rust print them. They are "
        "quoted in JustVugg/colibri issue 191 (2026-08), vllm-project/vllm-ascend issue 6815 (2026-02) and "
        "modelscope/ms-swift issue 6695. The failure was not reproduced.",
        explain="Neither the engine nor its settings cause these errors. If a file was replaced or moved on its "
        "server, programs can't read it until they open it again.",
        patterns=compile_patterns(
            r"\[Errno 5\] (?P<problem>Input/output error: '[^']+')", r"(?P<problem>Input/output error) \(os error 5\)"
        ),
        variants=(
            Variant(
                # reading prints no path, and neither does writing to a terminal that is gone
                compile_patterns(r"\[Errno 5\] (?P<problem>Input/output error)$"),
                cause="reading or writing failed with `{problem}`. Either a disk or the connection to a network file "
                "system is faulty, or the terminal of the process was closed",
            ),
            Variant(
                compile_patterns(
                    r"\[Errno 116\] (?P<problem>Stale file handle)", r"(?P<problem>Stale file handle) \(os error 116\)"
                ),
                cause="reading a file failed with `{problem}`. The file was replaced or moved on the server of a "
                "network file system",
                fix="run `ls -l` for the folder on the host; if that fails, mount the folder again; then recreate "
                "the container",
            ),
        ),
    ),
    Rule(
        "SG-L015",
        title="the folder of the Hub's cache does not exist",
        cause="the Hub's library looks for models in {path}, but this folder does not exist where the engine runs. "
        "Most often, the volume or folder for models is not mounted there, or a variable names a different path from "
        "the mount",
        fix="mount a volume or folder at {path}, or create the folder; or set HF_HOME or HF_HUB_CACHE in extra_env to "
        "the path of the mount (with HF_HOME, the folder is HF_HOME/hub); compare `docker inspect --format '{{json "
        ".Mounts}}' CONTAINER` (Kubernetes: volumeMounts of the pod) with the path",
        source="The message comes from huggingface_hub 0.36 to 2.4 (utils/_cache_manager.py, scan_cache_dir), and is "
        "quoted in HabanaAI/vllm-fork issue 1474 (2025-06). The failure was not reproduced.",
        explain="Only programs that list the cache print this message. A download creates the folder itself.",
        patterns=compile_patterns(
            r"Cache directory not found: (?P<path>/\S*?)\. Please use `cache_dir` argument or set `HF_HUB_CACHE`"
        ),
    ),
    Rule(
        "SG-L011",
        title="a program has no permission for a file or folder",
        cause="the user of the container has no permission to use {path}",
        fix="find out what is mounted there (`docker inspect --format '{{json .Mounts}}' CONTAINER`), and run `ls -ln` "
        "with this path on the host; give a folder to the container's user (`sudo chown -R UID FOLDER`: Prometheus has "
        "the user id 65534, Grafana 472), or use a named volume instead of a folder; make a configuration file "
        "readable (`chmod a+r FILE`); with SELinux (Fedora, RHEL), add `:z` to the mount",
        source="The messages come from Go (os.PathError), coreutils and Grafana's run.sh, and are quoted in "
        "prometheus/prometheus issue 5976, docker/awesome-compose issue 342 (2023-03) and prahaladramji/"
        "synology-prometheus issue 1. The failure was not reproduced.",
        explain="Monitoring programs such as Prometheus and Grafana run as their own users, not as root. Docker "
        "creates a missing folder of a mount as root, and a program that is not root can't write to it.",
        patterns=compile_patterns(
            r"(?:^|[ :])(?:open|mkdir|stat|lstat|create|rename|unlink|remove|chmod|chown) (?P<path>/[^\s:]+): "
            r"permission denied",
            r"(?:cannot|can't) (?:create directory|touch|open|access) ['‘](?P<path>/[^'’]+)['’]: Permission denied",
            r"^GF_PATHS_\w+='(?P<path>/[^']+)' is not writable",
        ),
        inputs=("log", "compose"),
        variants=(
            Variant(
                compile_patterns(r"(?:^|[ :])mkdir (?P<path>/[^/\s:]+): permission denied"),
                cause="the container has no folder {path}, and only root may create it. Most often, the mount of a "
                "volume or folder at this place is missing in this container",
                fix="mount a volume or folder that the container's user can write at {path} (or at the subfolder that "
                "the program uses); compare the mounts with those of containers that work (`docker inspect --format "
                "'{{json .Mounts}}' CONTAINER`, `kubectl describe pod`); or let the program use another folder",
            ),
        ),
    ),
)
