"""The Hugging Face Hub: access, names, network, disk space.

Texts of stackgen's download.py and of huggingface_hub 0.36 and 2.4.
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
        explain="Gated models (Llama, Gemma, …) ask for a licence on their page. Save the token of the account that "
        "accepted it in a file, and set HF_TOKEN_FILE to that file. The token then shows in no process list and in no "
        "container's environment.",
        patterns=compile_patterns(
            DOWNLOAD + r"it needs a token and none was given",
            r"GatedRepoError: 401.*",
            r"Access to model (?P<repo>\S+) is restricted.*(?:log ?in|authenticated)",
            r"You are trying to access a gated repo",
            # the lookbehind starts a match only at a word: without it a long line takes quadratic time
            r"(?<!\S)(?P<repo>\S+) is a gated repository",
        ),
        # Transformers prints the same for both
        unless=FORBIDDEN,
    ),
    Rule(
        "SG-H002",
        title="the token's account has no access to the model",
        cause="{repo} is gated, and the token's account has not been granted access",
        fix="accept the licence on the model's page with the token's account; some owners take days to answer",
        source=f"{DOWNLOAD_SCRIPT}; {HUB}; transformers 4.57 and 5.24, utils/hub.py",
        explain="HTTP 403. A fine-grained token also needs the permission to read public gated repositories. `hf` of "
        "huggingface_hub 2.4 prints the same without any token.",
        patterns=FORBIDDEN,
    ),
    Rule(
        "SG-H003",
        title="the Hub rejects the token",
        cause="the token is wrong, has expired or was revoked",
        fix="create a new one on the Hub's settings page, and put it into the file that HF_TOKEN_FILE names",
        source=f"{DOWNLOAD_SCRIPT}; {HUB}",
        explain="HTTP 401 with a token. A trailing newline or quotes in the file do no harm; an incomplete token does.",
        patterns=compile_patterns(
            DOWNLOAD + r"the hub refuses the token", r"Invalid (?:user token|credentials in Authorization header)"
        ),
    ),
    Rule(
        "SG-H004",
        title="the model has no such revision",
        cause="{repo} has no such revision[[: {revision}]]",
        fix="look up its branches on the Hub, and correct or remove revision",
        source=f"{DOWNLOAD_SCRIPT}; {HUB}",
        explain="A commit is safest, because branches move. Many GPTQ repositories have a branch for each variant.",
        patterns=compile_patterns(
            DOWNLOAD + r"it has no revision '(?P<revision>[^']+)'",
            r"RevisionNotFoundError",
            r"(?<!\S)(?P<revision>\S+) is not a valid git identifier",
        ),
    ),
    Rule(
        "SG-H005",
        title="the Hub has no such model",
        cause="the Hub has no {repo}, or it is private",
        fix="check spelling, case and organization: the id is organization/name; a private model needs HF_TOKEN_FILE",
        source=f"{DOWNLOAD_SCRIPT}; {HUB}",
        explain="Without access, the Hub answers 401 for both unknown and private repositories. A local folder starts "
        "with / or ./ in stack.yaml.",
        patterns=compile_patterns(
            DOWNLOAD + r"\S+ has no such model",
            r"RepositoryNotFoundError: 40[14].*",
            r"(?<!\S)(?P<repo>\S+) is not a local folder and is not a valid model identifier",
            DOWNLOAD + r"none of its files matches",
        ),
    ),
    Rule(
        "SG-H006",
        title="offline, and the model is not in the store",
        cause="downloads are not allowed (offline), and {model} is missing from the store or incomplete",
        fix="set storage.offline: false for one start, or put the model into the store on a machine with network "
        "access",
        source="huggingface_hub 0.36 and 2.4, _snapshot_download.py, file_download.py; reproduced with both engines",
        explain="HF_HUB_OFFLINE=1 forbids every request. The store keeps models by id and revision: a revision other "
        "than the downloaded one counts as missing.",
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
        explain="Machines behind the same address share the limit. A mirror helps: storage.hub_endpoint.",
        patterns=compile_patterns(
            DOWNLOAD + r"the hub answers HTTP 429",
            r"429 (?:Client Error|Too Many Requests)",
            r"HTTP Error 429|You have been rate[- ]limited|rate limit.*hugging",
        ),
    ),
    Rule(
        "SG-H008",
        title="the disk is full",
        cause="there is no space left[[ on {where}]]",
        fix="free some space (see `docker system df`), or set storage.path to a folder on a larger disk",
        source=f"errno 28, ENOSPC; {DOWNLOAD_SCRIPT}; huggingface_hub 2.4; reproduced",
        explain="Weights take 2 bytes per parameter, and compile caches take some GB. `docker system prune` removes "
        "old images; volumes with weights stay.",
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
        fix="keep the caches where stackgen puts them (remove the variable from extra_env), or give the container's "
        "user access to the folder (`user:`, storage.user)",
        source=f"errno 13 and 30; {DOWNLOAD_SCRIPT}; transformers 4.57 and 5.24, utils/hub.py, cached_files; "
        "reproduced",
        explain="Containers are read-only except for /tmp and the cache volumes. A volume that another user created "
        "keeps its owner: remove it (`docker volume rm`), and the caches are rebuilt.",
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
        fix="check the machine's network, DNS and proxy; if all weights are in the store, set storage.offline: true",
        source=f"transformers 4.57 and 5.x, utils/hub.py; huggingface_hub 0.36 and 2.4, file_download.py; "
        f"{DOWNLOAD_SCRIPT}; reproduced",
        explain="An engine with a Hub id contacts the Hub even for a cached model, unless it is offline. stackgen's "
        "download service downloads once, and the engines then run offline.",
        patterns=compile_patterns(
            DOWNLOAD + r"(?:no connection to (?P<where>\S+)|the hub answers HTTP 5\d\d)",
            r"We couldn't connect to '(?P<where>[^']+)' to load",
            r"An error happened while trying to locate the files? on the Hub,? and we cannot find",
        ),
        fallback=True,
    ),
)
