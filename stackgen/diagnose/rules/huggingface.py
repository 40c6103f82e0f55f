"""The Hugging Face Hub: access, names, network, space. Texts of our download.py and of huggingface_hub 0.36 and 2.4."""

from __future__ import annotations

from stackgen.diagnose.rule import Rule, patterns

__all__ = ["RULES"]

DOWNLOAD = r"cannot download (?P<repo>\S+): "
OURS = "templates/images/common/download.py"
HUB = "huggingface_hub 0.36 and 2.4, utils/_http.py"
TOKEN = "accept the licence on the model's page, then `HF_TOKEN_FILE=/path/to/token` in .env"  # noqa: S105

FORBIDDEN = patterns(
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
        "the model is gated, and no token was given",
        "{repo} wants a token: its licence must be accepted first",
        TOKEN,
        f"{OURS}; {HUB}",
        "Gated models (Llama, Gemma, …) ask for a licence on their page. The token of the account that accepted it "
        "goes into a file, named by HF_TOKEN_FILE: it shows in no process list and no container's environment.",
        patterns(
            DOWNLOAD + r"it needs a token and none was given",
            r"GatedRepoError: 401.*",
            r"Access to model (?P<repo>\S+) is restricted.*(?:log ?in|authenticated)",
            r"You are trying to access a gated repo",
            r"(?<!\S)(?P<repo>\S+) is a gated repository",
        ),
        # Transformers says the same of both
        unless=FORBIDDEN,
    ),
    Rule(
        "SG-H002",
        "the token's account has no access to the model",
        "{repo} is gated, and the account of the token has not been let in",
        "accept the licence on the model's page with the account of the token; some owners answer after days",
        f"{OURS}; {HUB}; transformers 4.57 and 5.24, utils/hub.py",
        "HTTP 403. A fine-grained token also needs the permission to read public gated repositories. `hf` of "
        "huggingface_hub 2.4 says the same without any token.",
        FORBIDDEN,
    ),
    Rule(
        "SG-H003",
        "the Hub refuses the token",
        "the token is wrong, has expired or was revoked",
        "make a new one on the Hub's settings page and put it into the file that HF_TOKEN_FILE names",
        f"{OURS}; {HUB}",
        "HTTP 401 with a token. A line end or quotes in the file do no harm; half a token does.",
        patterns(
            DOWNLOAD + r"the hub refuses the token", r"Invalid (?:user token|credentials in Authorization header)"
        ),
    ),
    Rule(
        "SG-H004",
        "the model has no such revision",
        "{repo} has no such revision[[: {revision}]]",
        "see its branches on the Hub, and correct or leave out revision",
        f"{OURS}; {HUB}",
        "A commit is safest: branches move. Many GPTQ repositories have a branch for each variant.",
        patterns(
            DOWNLOAD + r"it has no revision '(?P<revision>[^']+)'",
            r"RevisionNotFoundError",
            r"(?<!\S)(?P<revision>\S+) is not a valid git identifier",
        ),
    ),
    Rule(
        "SG-H005",
        "there is no such model on the Hub",
        "the Hub knows no {repo}, or it is private",
        "check spelling, case and organization: the id is organization/name; a private one needs HF_TOKEN_FILE",
        f"{OURS}; {HUB}",
        "The Hub answers 401 to strangers for both, unknown and private repositories. A local folder starts with / or "
        "./ in stack.yaml.",
        patterns(
            DOWNLOAD + r"\S+ has no such model",
            r"RepositoryNotFoundError: 40[14].*",
            r"(?<!\S)(?P<repo>\S+) is not a local folder and is not a valid model identifier",
            DOWNLOAD + r"none of its files matches",
        ),
    ),
    Rule(
        "SG-H006",
        "offline, and the model is not in the store",
        "nothing may be downloaded (offline), and {model} is not in the store, or not whole",
        "set storage.offline: false for one start, or put the model into the store on a machine with a network",
        "huggingface_hub 0.36 and 2.4, _snapshot_download.py, file_download.py; provoked for real with both engines",
        "HF_HUB_OFFLINE=1 forbids every request. The store holds models by id and revision: another revision than the "
        "one downloaded counts as missing.",
        patterns(
            r"outgoing traffic has been disabled", r"OfflineModeIsEnabled|Cannot reach .* offline mode is enabled"
        ),
    ),
    Rule(
        "SG-H007",
        "the Hub limits how often it is asked",
        "the Hub answered 429: too many requests from this address",
        "wait some minutes, and use a token (HF_TOKEN_FILE): accounts have a higher limit",
        f"{OURS}; {HUB}",
        "Many machines behind one address share the limit. A mirror helps: storage.hub_endpoint.",
        patterns(
            DOWNLOAD + r"the hub answers HTTP 429",
            r"429 (?:Client Error|Too Many Requests)",
            r"HTTP Error 429|You have been rate[- ]limited|rate limit.*hugging",
        ),
    ),
    Rule(
        "SG-H008",
        "the disk is full",
        "there is no space left[[ on {where}]]",
        "free some space (`docker system df`), or set storage.path to a folder on a larger disk",
        f"errno 28, ENOSPC; {OURS}; huggingface_hub 2.4; provoked for real",
        "Weights take 2 bytes a parameter, and compile caches some GB. `docker system "
        "prune` removes old images; volumes with weights stay.",
        patterns(
            DOWNLOAD + r".*(?:disk of (?P<where>\S+) is full|bytes are missing and)",
            r"(?i)\[errno 28\]|no space left on device|not enough free disk space",
        ),
        places=("log", "compose", "docker"),
    ),
    Rule(
        "SG-H009",
        "a cache can't be written",
        "{path} can't be written: {problem}",
        "let the caches lie where stackgen puts them (take the variable out of extra_env), or give the container's "
        "user the folder (`user:`, storage.user)",
        f"errno 13 and 30; {OURS}; transformers 4.57 and 5.24, utils/hub.py, cached_files; provoked for real",
        "Containers run read-only but for /tmp and the caches' volumes. A volume that was made by another user keeps "
        "its owner: remove it (`docker volume rm`), caches are built anew.",
        patterns(
            DOWNLOAD + r"(?P<problem>Permission denied|Read-only file system): (?P<path>\S+?);",
            r"\[Errno (?:13|30)\] (?P<problem>Permission denied|Read-only file system): '(?P<path>[^']+)'",
            r"(?P<problem>PermissionError) at (?P<path>\S+) when downloading",
        ),
    ),
    Rule(
        "SG-H010",
        "the Hub can't be reached",
        "there is no connection to the Hub[[ at {where}]]",
        "check network, DNS and proxy of the machine; with all weights in the store: storage.offline: true",
        f"transformers 4.57 and 5.x, utils/hub.py; huggingface_hub 0.36 and 2.4, file_download.py; {OURS}; "
        "provoked for real",
        "An engine that was given a Hub id asks the Hub even for a cached model, unless it is offline. stackgen's "
        "download service fetches once, and engines then run offline.",
        patterns(
            DOWNLOAD + r"(?:no connection to (?P<where>\S+)|the hub answers HTTP 5\d\d)",
            r"We couldn't connect to '(?P<where>[^']+)' to load",
            r"An error happened while trying to locate the files? on the Hub,? and we cannot find",
        ),
        fallback=True,
    ),
)
