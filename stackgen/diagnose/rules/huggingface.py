"""Rules for the Hugging Face Hub: access, names, network, disk space.

The texts are those of stackgen's download.py and of huggingface_hub 0.36 and 2.4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import lines_since_ready, strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns
from stackgen.diagnose.rules.hub_folders import CACHE_PATH, DOWNLOAD, HUB_CACHE, READ_ONLY, TEMPORARY

__all__ = ["RULES"]

DOWNLOAD_SCRIPT = "templates/images/common/download.py"
HUB = "huggingface_hub 0.36 and 2.4 (utils/_http.py)"
TOKEN = "accept the license on the model's page, then set `HF_TOKEN_FILE=/path/to/token` in .env"  # noqa: S105

# shared with SG-H001, which must not apply if one of these matches
FORBIDDEN = compile_patterns(
    DOWNLOAD + r"the token's account has no access",
    r"GatedRepoError: 403.*",
    r"Access to model (?P<repo>\S+) is restricted and you are not in the authorized list",
    r"Access denied\. Model '(?P<repo>[^']+)' requires approval",
    r"403 Forbidden: Please enable access",
    r"Your request to access model (?P<repo>\S+) is awaiting",
)

# huggingface_hub hides the exception of the request behind this message
LOCATE = compile_patterns(r"An error happened while trying to locate the files? on the Hub,? and we cannot find")

# errno 28 of things that are no disk: shared memory, and tables of the kernel
NOT_THE_DISK = r"^(?!.*(?:/dev/shm|</?torch_|shared memory|inotify|/sys/fs/cgroup|semaphore))"

DENIED = "[Errno 13]"
DENIED_CACHE = re.compile(r"\[Errno 13\] Permission denied: '(?P<path>/[^']*/\.cache/[^'/]+)'")


def _find_shared_folder(evidence: Evidence) -> Iterator[Hit]:
    """Several caches could not be written, and all are in one folder."""
    for service in evidence.services:
        lines = [strip_prefix(line).strip() for line in lines_since_ready(service.log)] if DENIED in service.log else []
        denied = {found["path"]: line for line in lines if (found := DENIED_CACHE.search(line))}
        parents = {path.rpartition("/")[0] for path in denied}
        if len(denied) > 1 and len(parents) == 1 and not service.is_working:
            yield Hit(service.service, tuple(denied.values())[:4], {"path": ", ".join(denied), "folder": parents.pop()},
                      variant=SHARED_FOLDER)  # fmt: skip


SHARED_FOLDER = Variant(
    (),
    cause="the container's user can't create folders in {folder} ({path}). Often, such a folder belongs to root "
    "because Docker created it for a volume that is mounted below it",
    fix="give the container's user access to {folder}: in your own image when you build it, or with a volume that "
    "belongs to this user; or set VLLM_CACHE_ROOT, FLASHINFER_WORKSPACE_BASE or XDG_CACHE_HOME to a folder that this "
    "user can write",
    condition="the folders that can't be created have the same parent",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-H001",
        title="the model is gated, and no token was given",
        cause="{repo} needs a token of an account that has accepted the model's license",
        fix=TOKEN,
        source=f"The messages come from {DOWNLOAD_SCRIPT} and {HUB}.",
        explain="To use a gated model (Llama, Gemma, …), you must accept a license on the model's page. Save the "
        "token of the account that accepted the license in a file, and set HF_TOKEN_FILE to the path of that file. "
        "The token then appears in no process list and in no container's environment.",
        patterns=compile_patterns(
            DOWNLOAD + r"it needs a token and none was given",
            r"GatedRepoError: 401.*",
            r"Access to model (?P<repo>\S+) is restricted.*(?:log ?in|authenticated)",
            r"You are trying to access a gated repo",
            # the lookbehind starts a match only at a word: without it a long line takes quadratic time
            r"(?<!\S)(?P<repo>\S+) is a gated repository",
        ),
        # Transformers prints the same text for SG-H001 and SG-H002
        unless=FORBIDDEN,
    ),
    Rule(
        "SG-H002",
        title="the token's account has no access to the model",
        cause="{repo} is gated, and the token's account has not been granted access",
        fix="log in to the Hub with the token's account, and accept the license on the model's page; if access needs "
        "an approval, wait: some owners take days",
        source=f"The messages come from {DOWNLOAD_SCRIPT}, {HUB}, and transformers 4.57 and 5.24 (utils/hub.py).",
        explain="The Hub answers HTTP 403. A fine-grained token also needs the permission to read public gated "
        "repositories. If no token is set at all, the command `hf` of huggingface_hub 2.4 prints the same message as "
        "for a token without access.",
        patterns=FORBIDDEN,
    ),
    Rule(
        "SG-H003",
        title="the Hub rejects the token",
        cause="the token is wrong, has expired or was revoked",
        fix="create a new token on the Hub's settings page, and write the token to the file that HF_TOKEN_FILE names",
        source=f"The messages come from {DOWNLOAD_SCRIPT} and {HUB}.",
        explain="The Hub answers HTTP 401 to a request with a token. A trailing newline or quotes in the token file "
        "do no harm, but an incomplete token is rejected.",
        patterns=compile_patterns(
            DOWNLOAD + r"the hub refuses the token", r"Invalid (?:user token|credentials in Authorization header)"
        ),
    ),
    Rule(
        "SG-H004",
        title="the model does not have this revision",
        cause="{repo} has no such revision[[: {revision}]]",
        fix="look up the model's branches on the Hub, and correct or remove `revision`",
        source=f"The messages come from {DOWNLOAD_SCRIPT} and {HUB}.",
        explain="A commit is the safest revision, because a branch can move to another commit. Many GPTQ repositories "
        "have a branch for each variant.",
        patterns=compile_patterns(
            DOWNLOAD + r"it has no revision '(?P<revision>[^']+)'",
            r"RevisionNotFoundError",
            r"(?<!\S)(?P<revision>\S+) is not a valid git identifier",
        ),
    ),
    Rule(
        "SG-H005",
        title="the model is not on the Hub",
        cause="the Hub has no model {repo}, or the model is private",
        fix="check spelling, case and organization of the id (organization/name); for a private model, set "
        "HF_TOKEN_FILE",
        source=f"The messages come from {DOWNLOAD_SCRIPT} and {HUB}.",
        explain="The Hub answers 401 if a repository does not exist, and also if you have no access to a private "
        "repository. For a local folder, set `model:` in stack.yaml to a path that starts with `/` or `./`.",
        patterns=compile_patterns(
            DOWNLOAD + r"\S+ has no such model",
            r"RepositoryNotFoundError: 40[14].*",
            r"(?<!\S)(?P<repo>\S+) is not a local folder and is not a valid model identifier",
        ),
        variants=(
            Variant(
                compile_patterns(DOWNLOAD + r"none of its files matches (?P<pattern>[^;]+)"),
                title="the repository does not contain the requested file",
                cause="{repo} is on the Hub, but none of its files matches {pattern}",
                fix="look at the repository's list of files, and correct `file:` (names are case-sensitive)",
            ),
        ),
    ),
    Rule(
        "SG-H006",
        title="the stack is offline, but the model is not in the storage",
        cause="storage.offline forbids downloads, and {model} is missing or incomplete in the storage",
        fix="set storage.offline to false for one start, or download the model into the storage on a machine with "
        "network access",
        source="The messages come from huggingface_hub 0.36 and 2.4 (_snapshot_download.py, file_download.py). The "
        "failure was reproduced with vLLM and FastChat.",
        explain="HF_HUB_OFFLINE=1 forbids every request to the Hub. The storage identifies models by id and revision. "
        "If the revision in stack.yaml is not the downloaded revision, the model counts as missing.",
        patterns=compile_patterns(
            r"outgoing traffic has been disabled", r"OfflineModeIsEnabled|Cannot reach .* offline mode is enabled"
        ),
    ),
    Rule(
        "SG-H007",
        title="the Hub's rate limit is reached",
        cause="the Hub answered HTTP 429: too many requests from this address",
        fix="wait a few minutes, and use a token (HF_TOKEN_FILE), because accounts have a higher limit; if the files "
        "are already in the storage, start without requests to the Hub: set storage.offline to true (llama-server "
        "alone: use the file's path, or --offline)",
        source=f"The messages come from {DOWNLOAD_SCRIPT} and {HUB}.",
        explain="Machines behind the same public address share the rate limit. To avoid the limit, set "
        "storage.hub_endpoint to a mirror.",
        patterns=compile_patterns(
            DOWNLOAD + r"the hub answers HTTP 429",
            r"429 (?:Client Error|Too Many Requests)|(?:GET failed \(|HEAD failed, status: )429\b",
            r"HTTP Error 429|You have been rate[- ]limited|rate limit.*hugging",
        ),
    ),
    Rule(
        "SG-H008",
        title="the disk is full",
        cause="the disk[[ of {where}]] has no space left",
        fix="free some space (see `docker system df`), or set storage.path to a folder on a larger disk",
        source=f"The messages for errno 28 (ENOSPC) come from {DOWNLOAD_SCRIPT} and huggingface_hub 2.4. The failure "
        "was reproduced. containers/ramalama issue 1778 (2025-07) reports a download to /tmp.",
        explain="Weights take 2 bytes per parameter, and compile caches take some GB. `docker system prune` removes "
        "old images, but keeps volumes with weights.",
        patterns=compile_patterns(
            # stackgen's own text comes first, because it contains the folder
            DOWNLOAD + r".*(?:disk of (?P<where>\S+) is full|bytes are missing and)",
            r"(?i)not enough free disk space",
            rf"(?i){NOT_THE_DISK}.*?(?:\[errno 28\]|no space left on device)",
        ),
        # memory that looks like a disk
        consequence_of=("SG-M010", "SG-M015", "SG-M016"),
        # the layers of an image can also fill the disk, before any container runs
        inputs=("log", "compose", "docker"),
        variants=(
            Variant(
                compile_patterns(
                    r"(?i)(?:failed to (?:extract|register|commit|write) \w*|snapshotter|/overlay2?/|overlayfs)"
                    r".{0,1500}?no space left on device"
                ),
                title="the disk on which Docker keeps images is full",
                cause="Docker has no space left to unpack the image's layers. In Docker Desktop, this space is a "
                "virtual disk, which can be full while the machine's disk is not",
                fix="run `docker system df`, which shows what uses the space; with Docker Desktop, enlarge the "
                "virtual disk (Settings > Resources); without Docker Desktop, enlarge the disk that contains Docker's "
                "folder (`docker info` prints it as Docker Root Dir); or remove images that you don't need",
            ),
            TEMPORARY,
            Variant(
                # the message names no file
                compile_patterns(r"^(?:\w+: )?\[Errno 28\] No space left on device$"),
                title="a file system is full",
                cause="a file system has no space left, and the message does not name it. It may be the disk, or "
                "/dev/shm or /tmp, which are in memory",
                fix="run `df -h` on the host, and `df -h /dev/shm /tmp` in the container; if the disk is full, free "
                "some space (see `docker system df`); if /dev/shm is full, set shm_size",
            ),
            Variant(
                compile_patterns(r"(?i)disk quota exceeded"),
                title="a disk quota is used up",
                cause="the disk quota of the user or folder is used up, although the disk may have space left",
                fix="ask for a larger quota (`quota -s` shows it), or set storage.path to a folder without a quota",
            ),
        ),
    ),
    Rule(
        "SG-H009",
        title="a cache is not writable",
        cause="{path} can't be written: {problem}[[. The home folder of the container's user is {home_folder}, which "
        "only root can write]]",
        fix="[[set HOME in extra_env to a folder that the container's user can write, instead of {home_folder}; or ]]"
        "use stackgen's own cache folders: remove the variable that sets the cache folder from extra_env; or give the "
        "container's user access to the folder (`user:`, storage.user)",
        source=f"The messages for errno 13 and 30 come from {DOWNLOAD_SCRIPT} and transformers 4.57 and 5.24 "
        "(utils/hub.py, cached_files). The failure was reproduced. llm-d-incubation/llm-d-modelservice issue 243 "
        "(2026-03) reports a volume that is mounted read-only; huggingface/datasets issue 7900 (2025-12) reports a "
        "cache that belongs to another user (file_download.py of huggingface_hub, `Could not cache`).",
        explain="Containers are read-only except for /tmp and the cache volumes. A volume that another user created "
        "keeps its owner. If you remove such a cache volume (`docker volume rm`), the caches in it are rebuilt.",
        patterns=compile_patterns(
            DOWNLOAD + r"(?P<problem>Permission denied): (?P<path>\S+?);",
            r"\[Errno 13\] (?P<problem>Permission denied): '(?P<path>(?P<home_folder>/)\.[^']+)'",
            rf"\[Errno 13\] (?P<problem>Permission denied): {CACHE_PATH}",
            r"(?P<problem>PermissionError) at (?P<path>\S+) when downloading",
        ),
        consequence_of=("SG-H014",),
        find=_find_shared_folder,
        variants=(SHARED_FOLDER, HUB_CACHE, READ_ONLY),
    ),
    Rule(
        "SG-H010",
        title="the Hub can't be reached",
        cause="the Hub can't be reached[[ at {where}]]",
        fix="check the machine's network, DNS and proxy; if all weights are already in the storage, set "
        "storage.offline to true",
        source="The messages come from transformers 4.57 and 5.x (utils/hub.py), huggingface_hub 0.36 and 2.4 "
        f"(file_download.py), and {DOWNLOAD_SCRIPT}. The failure was reproduced. huggingface/huggingface_hub issue "
        "3913 (2026-03) reports a mirror whose certificate is not trusted.",
        explain="If `model:` is a Hub id, an engine that does not run offline contacts the Hub even for a cached "
        "model. stackgen's download service downloads the model once, and the engines then run offline.",
        patterns=compile_patterns(
            DOWNLOAD + r"no connection to (?P<where>\S+)",
            r"We couldn't connect to '(?P<where>[^']+)' to load",
        ),
        # printed for every failed request, also for one that the Hub refused
        consequence_of=("SG-H007", "SG-H011", "SG-H012", "SG-H018"),
        fallback=True,
        variants=(
            Variant(
                compile_patterns(DOWNLOAD + r"the hub answers HTTP (?P<status>5\d\d)"),
                title="the Hub has a failure",
                cause="the Hub, or a proxy in front of it, answered HTTP {status}",
                fix="wait, and see status.huggingface.co; if all weights are already in the storage, set "
                "storage.offline to true",
            ),
            Variant(
                LOCATE,
                title="the request to the Hub failed",
                cause="a request to the Hub failed, and the model is not in the local cache. The message does not "
                "contain the reason: it may be the network, DNS, a proxy, a mirror, or a certificate that the "
                "container does not trust",
                fix="read the errors above this message; in the same container, run `curl -v "
                "${HF_ENDPOINT:-https://huggingface.co}/api/models/` with the model's id at the end, which shows the "
                "reason; for a mirror, check HF_ENDPOINT (storage.hub_endpoint); for a certificate of your own "
                "authority, set ca_certificates (outside stackgen: SSL_CERT_FILE and REQUESTS_CA_BUNDLE); if all "
                "weights are already in the storage, set storage.offline to true",
            ),
        ),
    ),
)
