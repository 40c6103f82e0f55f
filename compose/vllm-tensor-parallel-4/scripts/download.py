"""Downloads models from a Hugging Face Hub into the cache that all engines share, then exits.

    download.py [--attempts 5] --model REPO [--revision R] [--file G]... [--model ...]... [--owner ID] [--vocabulary X]

Reads HF_HUB_CACHE (or HF_HOME), HF_ENDPOINT, and the token in the file HF_TOKEN_PATH (default: the secret hf_token).
For --owner and --vocabulary, see store_owner.py and vocabulary.py. A complete model has a marker file,
<cache>/../.stackgen/<repo>@<revision>+….json. While all files listed in it exist, no request is sent: delete the marker
to follow a branch that has moved. Progress: `stackgen: download REPO 123/456 bytes`. A failure prints `stackgen: cannot
download REPO: CAUSE; REMEDY` and exits with 10 (no access), 11 (no such repository, revision or file), 12 (network), 13
(disk full), 14 (no permission on cache or token), 2 (wrong arguments), 1 (other), or 143 when stopped by SIGTERM.
Works with huggingface_hub 0.36.2 and 2.4.0. Source: `hf download`, file_download.py, _snapshot_download.py of both.
"""

import contextlib
import errno
import fcntl
import fnmatch
import glob
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

OTHER, USAGE, ACCESS, MISSING, NETWORK, DISK, PERMISSION = 1, 2, 10, 11, 12, 13, 14
CACHE = Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HF_HOME", "~/.cache/huggingface") + "/hub").expanduser()
STATE = CACHE.parent / ".stackgen"
WEIGHTS, PICKLES = ("*.safetensors", "*.bin", "*.pt"), ("*.bin", "*.pt", "*.ckpt")
# Formats that neither vLLM nor FastChat loads. Pickles are skipped only when safetensors are in the same folder.
COPIES = ("original/*", "onnx/*", "openvino/*", "*.pth", "*.onnx", "*.onnx_data", "*.gguf", "*.h5", "*.msgpack",
          "*.tflite", "*.ot", "*.mlmodel", "*.mlpackage/*")  # fmt: skip
SECRET = "/run/secrets/hf_token"
SPACE = "free some space, or set storage.path to a folder on a larger disk"


class Failure(Exception):
    """A failed download. `retry`: another attempt may help; `wait`: the Hub's Retry-After in seconds."""

    def __init__(self, code: int, cause: str, remedy: str, retry: bool = False, wait: int = 0) -> None:
        super().__init__(cause)
        self.code, self.cause, self.remedy, self.retry, self.wait = code, cause, remedy, retry, wait


class Model:
    """One repository at one revision; `patterns` (fnmatch) restrict the files, none means all that engines load."""

    def __init__(self, repo: str) -> None:
        self.repo, self.revision, self.patterns = repo, "main", list[str]()
        self.safe = repo.replace("/", "--")
        self.folder = CACHE / f"models--{self.safe}"

    def marker(self) -> Path:
        files = hashlib.sha256("\n".join(sorted(self.patterns)).encode()).hexdigest()[:12] if self.patterns else "all"
        # the name contains a hash of the patterns: another model may need other files of the same repository
        return STATE / f"{self.safe}@{quote(self.revision, safe='')}+{files}.json"

    def find_incomplete(self, commit: str, files: dict[str, int]) -> list[Path]:
        """Files that are missing or have another size than `files` (bytes), and the ref if it points elsewhere."""
        paths = {self.folder / "snapshots" / commit / name: size for name, size in files.items()}
        ref = self.folder / "refs" / self.revision  # an offline engine finds the commit only through the ref
        known = commit == self.revision or (ref.exists() and ref.read_text().strip() == commit)
        return [p for p, size in paths.items() if not p.exists() or p.stat().st_size != size] + [ref] * (not known)

    def ready(self) -> bool:
        try:
            mark = json.loads(self.marker().read_text())
            return not self.find_incomplete(mark["commit"], mark["files"])
        except (OSError, ValueError, KeyError):
            return False


def say(text: str) -> None:
    print(f"stackgen: {text}", flush=True)


def match(name: str, patterns: tuple[str, ...] | list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def explain(error: Exception, model: Model) -> Failure:
    """Cause and remedy of an exception, for both versions of huggingface_hub."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, ImportError):
        return Failure(OTHER, str(error), "run download.py in an image that has huggingface_hub installed")
    from huggingface_hub import constants, errors, get_token

    hub, response = constants.ENDPOINT, getattr(error, "response", None)
    status: int = getattr(response, "status_code", 0)
    page, http, gated = f"{hub}/{model.repo}", f"(HTTP {status})", isinstance(error, errors.GatedRepoError)
    chain: list[BaseException] = [error]  # HTTP libraries wrap the OSError, so it is the last link
    while link := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(link)
    links = [error, *reversed(chain)]
    system = next((link for link in links if isinstance(link, OSError) and link.strerror), OSError())
    number, library = system.errno, type(error).__module__.partition(".")[0]
    for applies, code, cause, remedy in (
        (isinstance(error, errors.RevisionNotFoundError),
         MISSING, f"it has no revision {model.revision!r} {http}", f"see the branches at {page}/tree/main"),
        (isinstance(error, errors.RepositoryNotFoundError) and not gated,
         MISSING, f"{hub} has no such model, or it is private {http}",
         "check the model's name, and HF_TOKEN_FILE if the model is private"),
        (status == 401 and not get_token(),
         ACCESS, f"it needs a token and none was given {http}",
         f"accept the model's license at {page}, then set HF_TOKEN_FILE"),
        (status == 401, ACCESS, f"the hub refuses the token {http}", f"create a new token at {hub}/settings/tokens"),
        (status == 403, ACCESS, f"the token's account has no access {http}",
         f"accept the model's license at {page} with that account"),
        (status, NETWORK, f"the hub answers HTTP {status}", "try again later"),
        (number == errno.ENOSPC, DISK, f"the disk of {CACHE} is full", SPACE),
        (number in (errno.EACCES, errno.EPERM, errno.EROFS),
         PERMISSION, f"{system.strerror}: {system.filename}", f"give uid {os.getuid()} access to this path"),
        (library in ("httpx2", "httpx", "requests", "urllib3"),
         NETWORK, f"no connection to {hub}: {system.strerror or error or 'timed out'}", "check network, DNS and proxy"),
    ):  # fmt: skip
        if applies:
            after = response.headers.get("Retry-After", "") if response is not None else ""
            transient = code == NETWORK and (not status or status in (408, 429) or status >= 500)
            return Failure(code, cause, remedy, transient, min(int(after), 300) if after.isdigit() else 0)
    return Failure(OTHER, f"{type(error).__name__}: {error}", f"run this command by hand: hf download {model.repo}")


def downloaded_bytes(model: Model, blobs: dict[str, int]) -> int:
    """Bytes of complete and partial blobs. `blobs` maps a blob's name to its full size in bytes."""
    sizes: dict[str, int] = {}
    for path in (model.folder / "blobs").glob("*"):
        with contextlib.suppress(FileNotFoundError):  # hf renames a blob when it is complete
            found, blob = path.stat(), path.name.partition(".")[0]
            # a partial blob may be sparse, so its allocated blocks count, not its length
            size = min(found.st_size, found.st_blocks * 512) if path.suffix else found.st_size
            sizes[blob] = max(sizes.get(blob, 0), min(size, blobs.get(blob, 0)))
    return sum(sizes.values())


def run_hf(model: Model, names: list[str], blobs: dict[str, int]) -> str:
    """Runs `hf download` and prints progress every 2 s. Returns the last line of its output if it failed, else ""."""

    def partial() -> set[Path]:  # huggingface_hub 2 never resumes these; 0.36 resumes its own, <blob>.incomplete
        return set((model.folder / "blobs").glob("*.????????.incomplete"))

    before = partial()
    for path in before:
        if time.time() - path.stat().st_mtime > 3600:  # left by a killed run; a younger one may be in use
            path.unlink()
    # Names, not --include, which the two versions parse differently; right after REPO, or argparse drops them.
    file_arguments = names if len(names) == 1 else [glob.escape(name) for name in names]
    hf = shutil.which("hf", path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}") or "hf"
    quiet = {f"HF_HUB_DISABLE_{what}": "1" for what in ("PROGRESS_BARS", "TELEMETRY", "UPDATE_CHECK")}
    with tempfile.TemporaryFile() as log:
        command = [hf, "download", model.repo, *file_arguments, "--revision", model.revision]
        child = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | quiet)
        try:
            while child.poll() is None:
                say(f"download {model.repo} {downloaded_bytes(model, blobs)}/{sum(blobs.values())} bytes")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(2)
        finally:
            child.terminate()
            child.wait()
            for path in partial() - before:
                path.unlink(missing_ok=True)
        log.seek(0)
        output = [line for line in log.read().decode(errors="replace").splitlines() if line and "Hint" not in line]
        last = (output or [f"hf exited {child.returncode}"])[-1]
        return "" if child.returncode == 0 else last.partition("?")[0][:300]  # a CDN's URL is signed after "?"


def fetch(model: Model) -> None:
    """One attempt: lists the files, downloads them, checks their sizes and writes the marker."""
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url

    info = HfApi().model_info(model.repo, revision=model.revision, files_metadata=True, timeout=30)
    commit, found = str(info.sha), {item.rfilename: item for item in info.siblings or ()}
    safetensors_dirs = {os.path.dirname(name) for name in found if name.endswith(".safetensors")}
    copies = {n for n in found if match(n, COPIES) or (match(n, PICKLES) and os.path.dirname(n) in safetensors_dirs)}
    names = [n for n in found if (match(n, model.patterns) if model.patterns else n not in copies)]
    if not any(model.patterns or match(name, WEIGHTS) for name in names):
        raise Failure(MISSING, f"none of its files matches {model.patterns or WEIGHTS}", "check the list of its files")
    files = {name: found[name].size or 0 for name in names}
    # A gated model's file list is public: only requesting a file shows whether its license was accepted.
    get_hf_file_metadata(hf_hub_url(model.repo, max(names, key=files.__getitem__), revision=commit), timeout=30)
    blobs = {str(lfs.sha256 if (lfs := found[n].lfs) else found[n].blob_id): size for n, size in files.items()}
    total = sum(blobs.values())
    missing, free = total - downloaded_bytes(model, blobs), shutil.disk_usage(CACHE).free
    if missing > free:
        raise Failure(DISK, f"{missing} bytes are missing and {CACHE} has {free} bytes free", SPACE)
    failure = run_hf(model, names, blobs)
    for number in (errno.ENOSPC, errno.EACCES, errno.EROFS):
        if os.strerror(number) in failure:
            raise OSError(number, os.strerror(number), str(CACHE))
    if incomplete := model.find_incomplete(commit, files):
        for path in incomplete:  # hf accepts a file of any length; the ref stays, as running engines may use it
            if path.is_relative_to(model.folder / "snapshots") and path.resolve().is_relative_to(CACHE.resolve()):
                path.resolve().unlink(missing_ok=True)
                path.unlink(missing_ok=True)
        cause = failure or f"{len(incomplete)} files are incomplete, e.g. {incomplete[0].name}"
        raise Failure(NETWORK, cause, "try again", True)
    if len(names) < len(found):  # with this list, huggingface_hub 2 refuses a partial snapshot offline
        (model.folder / "trees" / f"{commit}.json").unlink(missing_ok=True)
    say(f"download {model.repo} {total}/{total} bytes")
    draft = model.marker().with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps({"repo": model.repo, "revision": model.revision, "commit": commit, "files": files}))
    draft.replace(model.marker())


def ensure_downloaded(model: Model) -> None:
    """Downloads the model unless its marker says that it is complete; one process at a time."""
    if not model.ready():
        STATE.mkdir(parents=True, exist_ok=True)
        CACHE.mkdir(exist_ok=True)
        with (STATE / f"{model.safe}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"another process is downloading {model.repo}: waiting until that download ends")
                fcntl.flock(lock, fcntl.LOCK_EX)
            # the process that held the lock may have downloaded it
            if not model.ready():
                fetch(model)
                return link(model)
    link(model)
    say(f"{model.repo} is already there")


def link(model: Model) -> None:
    """Links by-name/REPO/REVISION next to the cache to the snapshot: a path that is known before the commit is."""
    target = CACHE.parent / "by-name" / model.repo / quote(model.revision, safe="")
    snapshot = model.folder / "snapshots" / json.loads(model.marker().read_text())["commit"]
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    # relative, because the host and the containers mount the store at different paths
    draft.symlink_to(os.path.relpath(snapshot, target.parent))
    draft.replace(target)


def download(model: Model, attempts: int) -> None:
    for attempt in range(1, attempts + 1):
        try:
            return ensure_downloaded(model)
        except Exception as error:
            failure = explain(error, model)
            if not failure.retry or attempt == attempts:
                raise failure from error
        pause = max(failure.wait, min(2**attempt, 30))
        say(f"attempt {attempt} of {attempts} at {model.repo}: {failure.cause}; again in {pause} s")
        time.sleep(pause)


def main(arguments: list[str]) -> int:
    models, settings = list[Model](), {"--attempts": "5", "--owner": "", "--vocabulary": ""}
    if os.path.exists(SECRET):
        os.environ.setdefault("HF_TOKEN_PATH", SECRET)
    os.umask(0o022)  # engines run as other users and must be able to read the files
    for number in (signal.SIGTERM, signal.SIGINT):  # process 1 ignores signals without a handler
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        for option, value in zip(arguments[::2], arguments[1::2], strict=True):
            if option == "--model":
                models.append(Model(value))
            elif option == "--revision":
                models[-1].revision = value
            elif option == "--file":
                models[-1].patterns.append(value)
            elif option in settings:
                settings[option] = value
            else:
                raise ValueError(option)
        attempts = int(settings["--attempts"])
    except (IndexError, ValueError):
        print(__doc__, file=sys.stderr)
        return USAGE
    if (owner := settings["--owner"]) and os.geteuid() == 0:
        import store_owner

        try:
            store_owner.become_owner(CACHE.parent, owner)
        except OSError as error:
            failure = f"cannot become the owner of {CACHE.parent}: {error.strerror}"
            print(f"stackgen: {failure}; set storage.user in stack.yaml to its uid:gid", file=sys.stderr)
            return PERMISSION
    if name := settings["--vocabulary"]:
        import vocabulary

        if code := vocabulary.ensure_downloaded(CACHE.parent / "tiktoken", name, attempts):
            return code
    for model in models:
        try:
            download(model, attempts)
        except Failure as failure:
            print(f"stackgen: cannot download {model.repo}: {failure.cause}; {failure.remedy}", file=sys.stderr)
            return failure.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
