"""Variants of the rules for folders of the Hub's cache: not writable, read-only, and a full /tmp.

The texts are those of huggingface_hub 0.36 and 2.4.
"""

from __future__ import annotations

import re

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.rule import Variant, compile_patterns

__all__ = ["CACHE_PATH", "DOWNLOAD", "HUB_CACHE", "READ_ONLY", "TEMPORARY"]

# the start of the messages of templates/images/common/download.py
DOWNLOAD = r"cannot download (?P<repo>\S+): "

# SG-H014 explains folders of the image, and SG-L008 files of a model that can't be read
CACHE_PATH = (
    r"'(?P<path>(?!(?:[^']*/)?nvcc')(?!/[^']*/(?:site|dist)-packages/)"
    r"(?![^']*(?:\.safetensors|\.gguf|/config\.json)')[^']+)'"
)
HUB_CACHE = Variant(
    # all of these are files that the Hub's library writes, next to weights that it may be able to read
    compile_patterns(
        r"(?:Could not cache non-existence of file|Ignored error while writing).{0,600}?\[Errno 13\] "
        r"(?P<problem>Permission denied): '(?P<path>[^']+)'",
        r"\[Errno 13\] (?P<problem>Permission denied): '"
        r"(?P<path>/[^']*/(?:\.no_exist|\.locks)/[^']*|/[^']*\.incomplete)'",
    ),
    title="the Hub's cache can't be written",
    cause="the container's user has no permission to write {path}, which belongs to the Hub's cache. The Hub's library "
    "continues without some of these files, but a new download fails",
    fix="run the container as the owner of the folder on the host (`stat -c %u:%g FOLDER` prints the ids): set "
    "storage.user in stack.yaml, or `user:` in a Compose file; or make the container's user the owner of the folder "
    "(`sudo chown -R UID:GID FOLDER`); with rootless Podman, you can also add `:U` to the mount; verify that this user "
    "can also write there, because permission to read is not enough",
)
READ_ONLY = Variant(
    # errno 30 is about the mount, errno 13 about owner and mode
    compile_patterns(
        DOWNLOAD + r"(?P<problem>Read-only file system): (?P<path>\S+?);",
        # not of a file mode that the Hub's library could not set, after which it continues
        rf"(?<!'\. Error: )\[Errno 30\] (?P<problem>Read-only file system): {CACHE_PATH}",
    ),
    title="a cache is on a read-only file system",
    cause="{path} can't be written, because its file system is mounted read-only. Another user or other permissions "
    "do not change this",
    fix="[[?extra_env|remove the variable that sets the cache folder from extra_env, so that stackgen's own cache "
    "folders are used; ]]if the folder is a mount, remove `:ro` or `read_only: true` from it (Kubernetes: `readOnly: "
    "true` of the volumeMount), because the Hub's library writes locks and links even for files that are there; if "
    "the container is read-only (`read_only: true`, readOnlyRootFilesystem), set HF_HOME to a volume that can be "
    "written; if the weights must stay read-only, set `model:` to the path of the model's own folder",
)

# the Hub's library names the file to which it downloads
TO_TMP = re.compile(r"Downloading '[^']+' to '/tmp/")


def _downloads_to_tmp(evidence: Evidence, service: str) -> bool:
    return bool(TO_TMP.search(evidence.read_log(service)))


# with a path, SG-M016 explains the message
TEMPORARY = Variant(
    compile_patterns(r"^(?:\w+: )?\[Errno 28\] No space left on device$"),
    title="the folder for temporary files is full",
    cause="the log shows a download to a folder in /tmp, which has no space left. The disk on which the files will be "
    "stored may have enough space",
    fix="run `df -h /tmp` where the program runs: /tmp may be in memory or on a small disk; set TMPDIR to a folder on "
    "a large disk (in a container, mount it), or download to the folder in which the files stay (`hf download "
    "--local-dir FOLDER`)",
    applies=_downloads_to_tmp,
    condition="the log shows a download to a folder in /tmp",
)
