"""Rules for the Hugging Face Hub: access, names, network, disk space.

The texts are those of stackgen's download.py and of huggingface_hub 0.36 and 2.4.
"""

from __future__ import annotations

from stackgen.diagnose.rule import Rule, compile_patterns

__all__ = ["RULES"]

DOWNLOAD = r"cannot download (?P<repo>\S+): "
DOWNLOAD_SCRIPT = "templates/images/common/download.py"
HUB = "huggingface_hub 0.36 and 2.4, utils/_http.py"
TOKEN = "accept the licence on the model's page, then set `HF_TOKEN_FILE=/path/to/token` in .env"  # noqa: S105

# shared with SG-H001, which must not apply if one of these matches
FORBIDDEN = compile_patterns(
    DOWNLOAD + r"the token's account has no access",
    r"GatedRepoError: 403.*",
    r"Access to model (?P<repo>\S+) is restricted and you are not in the authorized list",
    r"Access denied\. Model '(?P<repo>[^']+)' requires approval",
    r"403 Forbidden: Please enable access",
    r"Your request to access model (?P<repo>\S+) is awaiting",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-H001",
        title="the model is gated, and no token was given",
        cause="{repo} needs a token, and its licence must be accepted first",
        fix=TOKEN,
        source=f"{DOWNLOAD_SCRIPT}; {HUB}",
        explain="To use a gated model (Llama, Gemma, …), you must accept a licence on the model's page. Save the "
        "token of the account that accepted the licence in a file, and set HF_TOKEN_FILE to that file. The token then "
        "appears in no process list and in no container's environment.",
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
        fix="accept the licence on the model's page with the token's account; some owners take days to grant access",
        source=f"{DOWNLOAD_SCRIPT}; {HUB}; transformers 4.57 and 5.24, utils/hub.py",
        explain="The Hub answers HTTP 403. A fine-grained token also needs the permission to read public gated "
        "repositories. Without any token, `hf` of huggingface_hub 2.4 prints the same message.",
        patterns=FORBIDDEN,
    ),
    Rule(
        "SG-H003",
        title="the Hub rejects the token",
        cause="the token is wrong, has expired or was revoked",
        fix="create a new token on the Hub's settings page, and write it to the file that HF_TOKEN_FILE is set to",
        source=f"{DOWNLOAD_SCRIPT}; {HUB}",
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
        source=f"{DOWNLOAD_SCRIPT}; {HUB}",
        explain="A commit is the safest revision, because branches move. Many GPTQ repositories have a branch for "
        "each variant.",
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
        source=f"{DOWNLOAD_SCRIPT}; {HUB}",
        explain="Without access, the Hub answers 401 for both unknown and private repositories. In stack.yaml, the "
        "path of a local folder starts with / or ./.",
        patterns=compile_patterns(
            DOWNLOAD + r"\S+ has no such model",
            r"RepositoryNotFoundError: 40[14].*",
            r"(?<!\S)(?P<repo>\S+) is not a local folder and is not a valid model identifier",
            DOWNLOAD + r"none of its files matches",
        ),
    ),
    Rule(
        "SG-H006",
        title="the stack is offline, and the model is not in the storage",
        cause="downloads are not allowed (offline), and {model} is missing from the storage or incomplete",
        fix="set storage.offline: false for one start, or download the model into the storage on a machine with "
        "network access",
        source="huggingface_hub 0.36 and 2.4, _snapshot_download.py, file_download.py; failure reproduced with both "
        "engines",
        explain="HF_HUB_OFFLINE=1 forbids every request to the Hub. The storage keeps models by id and revision. If "
        "stack.yaml sets another revision than the downloaded one, the model counts as missing.",
        patterns=compile_patterns(
            r"outgoing traffic has been disabled", r"OfflineModeIsEnabled|Cannot reach .* offline mode is enabled"
        ),
    ),
    Rule(
        "SG-H007",
        title="the Hub's rate limit is reached",
        cause="the Hub answered 429: too many requests from this address",
        fix="wait a few minutes, and use a token (HF_TOKEN_FILE): accounts have a higher limit",
        source=f"{DOWNLOAD_SCRIPT}; {HUB}",
        explain="Machines behind the same public address share the rate limit. A mirror avoids the limit: set "
        "storage.hub_endpoint.",
        patterns=compile_patterns(
            DOWNLOAD + r"the hub answers HTTP 429",
            r"429 (?:Client Error|Too Many Requests)",
            r"HTTP Error 429|You have been rate[- ]limited|rate limit.*hugging",
        ),
    ),
    Rule(
        "SG-H008",
        title="the disk is full",
        cause="the disk[[ of {where}]] has no space left",
        fix="free some space (see `docker system df`), or set storage.path to a folder on a larger disk",
        source=f"errno 28, ENOSPC; {DOWNLOAD_SCRIPT}; huggingface_hub 2.4; failure reproduced",
        explain="Weights take 2 bytes per parameter, and compile caches take some GB. `docker system prune` removes "
        "old images but keeps volumes with weights.",
        patterns=compile_patterns(
            DOWNLOAD + r".*(?:disk of (?P<where>\S+) is full|bytes are missing and)",
            r"(?i)\[errno 28\]|no space left on device|not enough free disk space",
        ),
        inputs=("log", "compose", "docker"),
    ),
    Rule(
        "SG-H009",
        title="a cache is not writable",
        cause="{path} can't be written: {problem}",
        fix="use stackgen's own cache folders (remove the cache variable from extra_env), or give the container's "
        "user access to the folder (`user:`, storage.user)",
        source=f"errno 13 and 30; {DOWNLOAD_SCRIPT}; transformers 4.57 and 5.24, utils/hub.py, cached_files; "
        "failure reproduced",
        explain="Containers are read-only except for /tmp and the cache volumes. A volume that another user created "
        "keeps its owner. Remove this volume (`docker volume rm`), and the caches are rebuilt.",
        patterns=compile_patterns(
            DOWNLOAD + r"(?P<problem>Permission denied|Read-only file system): (?P<path>\S+?);",
            r"\[Errno (?:13|30)\] (?P<problem>Permission denied|Read-only file system): '(?P<path>[^']+)'",
            r"(?P<problem>PermissionError) at (?P<path>\S+) when downloading",
        ),
    ),
    Rule(
        "SG-H010",
        title="the Hub can't be reached",
        cause="there is no connection to the Hub[[ at {where}]]",
        fix="check the machine's network, DNS and proxy; if all weights are in the storage, set storage.offline: true",
        source=f"transformers 4.57 and 5.x, utils/hub.py; huggingface_hub 0.36 and 2.4, file_download.py; "
        f"{DOWNLOAD_SCRIPT}; failure reproduced",
        explain="If `model:` is a Hub id, the engine contacts the Hub even for a cached model, unless the engine runs "
        "offline. stackgen's download service downloads the model once, and the engines then run offline.",
        patterns=compile_patterns(
            DOWNLOAD + r"(?:no connection to (?P<where>\S+)|the hub answers HTTP 5\d\d)",
            r"We couldn't connect to '(?P<where>[^']+)' to load",
            r"An error happened while trying to locate the files? on the Hub,? and we cannot find",
        ),
        fallback=True,
    ),
)
