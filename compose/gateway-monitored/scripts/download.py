"""Fetches models from a Hugging Face hub into the folder that the engines share, then exits.

    download.py [--attempts 5] --model REPO [--revision REV] [--file PATTERN]... [--model ...]...

Reads HF_HUB_CACHE (or HF_HOME), HF_ENDPOINT, and the token in the file HF_TOKEN_PATH unless that is empty.
A finished model leaves a marker, <cache>/../.stackgen/<repo>@<revision>+….json. While the marker's files are all there
the network isn't touched: delete the marker to follow a branch that has moved.
Prints `stackgen: download REPO 123/456 bytes`; a failure ends with `stackgen: cannot download REPO: CAUSE; REMEDY`
and exit code 10 no access (token, licence), 11 no such repository, revision or file, 12 network, 13 disk full,
14 no permission on the cache or the token file, 2 wrong words, 1 anything else; 143 when stopped.
Source: huggingface_hub 0.36.2 and 2.4.0 (`hf download`, file_download.py, _snapshot_download.py): it works with both.
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
# Copies in formats that neither vLLM nor FastChat loads; pickles are left out only where safetensors lie beside them.
COPIES = ("original/*", "onnx/*", "openvino/*", "*.pth", "*.onnx", "*.onnx_data", "*.gguf", "*.h5", "*.msgpack",
          "*.tflite", "*.ot", "*.mlmodel", "*.mlpackage/*")  # fmt: skip
SPACE = "free some space, or set storage.path to a folder on a larger disk"


class Failure(Exception):
    def __init__(self, code: int, cause: str, remedy: str, retry: bool = False, wait: int = 0) -> None:
        super().__init__(cause)
        self.code, self.cause, self.remedy, self.retry, self.wait = code, cause, remedy, retry, wait


class Model:
    def __init__(self, repo: str) -> None:
        self.repo, self.revision, self.patterns = repo, "main", list[str]()
        self.safe = repo.replace("/", "--")
        self.folder = CACHE / f"models--{self.safe}"

    def marker(self) -> Path:
        files = hashlib.sha256("\n".join(sorted(self.patterns)).encode()).hexdigest()[:12] if self.patterns else "all"
        return STATE / f"{self.safe}@{quote(self.revision, safe='')}+{files}.json"

    def bad(self, commit: str, files: dict[str, int]) -> list[Path]:
        paths = {self.folder / "snapshots" / commit / name: size for name, size in files.items()}
        ref = self.folder / "refs" / self.revision  # without it an offline engine doesn't find the commit
        known = commit == self.revision or (ref.exists() and ref.read_text().strip() == commit)
        return [p for p, size in paths.items() if not p.exists() or p.stat().st_size != size] + [ref] * (not known)

    def ready(self) -> bool:
        try:
            mark = json.loads(self.marker().read_text())
            return not self.bad(mark["commit"], mark["files"])
        except (OSError, ValueError, KeyError):
            return False


def say(text: str) -> None:
    print(f"stackgen: {text}", flush=True)


def match(name: str, patterns: tuple[str, ...] | list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def explain(error: Exception, model: Model) -> Failure:
    """Cause and remedy, from the exception of either huggingface_hub."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, ImportError):
        return Failure(OTHER, str(error), "run it in an image that holds huggingface_hub")
    from huggingface_hub import constants, errors, get_token

    hub, response = constants.ENDPOINT, getattr(error, "response", None)
    status: int = getattr(response, "status_code", 0)
    page, http, gated = f"{hub}/{model.repo}", f"(HTTP {status})", isinstance(error, errors.GatedRepoError)
    chain: list[BaseException] = [error]  # the system's own words stand at its end if an HTTP library's come first
    while link := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(link)
    links = [error, *reversed(chain)]
    system = next((link for link in links if isinstance(link, OSError) and link.strerror), OSError())
    number, library = system.errno, type(error).__module__.partition(".")[0]
    for applies, code, cause, remedy in (
        (isinstance(error, errors.RevisionNotFoundError),
         MISSING, f"it has no revision {model.revision!r} {http}", f"see its branches at {page}/tree/main"),
        (isinstance(error, errors.RepositoryNotFoundError) and not gated,
         MISSING, f"{hub} has no such model, or it is private {http}",
         "check its name, and HF_TOKEN_FILE if it is private"),
        (status == 401 and not get_token(),
         ACCESS, f"it needs a token and none was given {http}",
         f"accept its licence at {page}, then set HF_TOKEN_FILE"),
        (status == 401, ACCESS, f"the hub refuses the token {http}", f"make a new one at {hub}/settings/tokens"),
        (status == 403, ACCESS, f"the token's account has no access {http}", f"accept its licence at {page} with it"),
        (status, NETWORK, f"the hub answers HTTP {status}", "try again later"),
        (number == errno.ENOSPC, DISK, f"the disk of {CACHE} is full", SPACE),
        (number in (errno.EACCES, errno.EPERM, errno.EROFS),
         PERMISSION, f"{system.strerror}: {system.filename}", f"give uid {os.getuid()} access to it"),
        (library in ("httpx2", "httpx", "requests", "urllib3"),
         NETWORK, f"no connection to {hub}: {system.strerror or error or 'timed out'}", "check network, DNS and proxy"),
    ):  # fmt: skip
        if applies:
            told = response.headers.get("Retry-After", "") if response is not None else ""
            transient = code == NETWORK and (not status or status in (408, 429) or status >= 500)
            return Failure(code, cause, remedy, transient, min(int(told), 300) if told.isdigit() else 0)
    return Failure(OTHER, f"{type(error).__name__}: {error}", f"try by hand: hf download {model.repo}")


def arrived(model: Model, blobs: dict[str, int]) -> int:
    """Bytes of whole and partial blobs; a partial one may be sparse, so only its blocks count."""
    sizes: dict[str, int] = {}
    for path in (model.folder / "blobs").glob("*"):
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
            found, blob = path.stat(), path.name.partition(".")[0]
            size = min(found.st_size, found.st_blocks * 512) if path.suffix else found.st_size
            sizes[blob] = max(sizes.get(blob, 0), min(size, blobs.get(blob, 0)))
    return sum(sizes.values())


def run_hf(model: Model, names: list[str], blobs: dict[str, int]) -> str:
    """Runs `hf download`, printing progress. Returns its last words if it failed."""

    def partial() -> set[Path]:  # what hub 2 never takes up again; 0.36 resumes its own, named <blob>.incomplete
        return set((model.folder / "blobs").glob("*.????????.incomplete"))

    before = partial()
    for path in before:
        if time.time() - path.stat().st_mtime > 3600:  # a killed run's; a younger one may be another program's
            path.unlink()
    # Names, not --include, whose words the two versions read differently; right after REPO, or argparse loses them.
    words = names if len(names) == 1 else [glob.escape(name) for name in names]
    hf = shutil.which("hf", path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}") or "hf"
    quiet = {f"HF_HUB_DISABLE_{what}": "1" for what in ("PROGRESS_BARS", "TELEMETRY", "UPDATE_CHECK")}
    with tempfile.TemporaryFile() as log:
        command = [hf, "download", model.repo, *words, "--revision", model.revision]
        child = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | quiet)
        try:
            while child.poll() is None:
                say(f"download {model.repo} {arrived(model, blobs)}/{sum(blobs.values())} bytes")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(2)
        finally:
            child.terminate()
            child.wait()
            for path in partial() - before:
                path.unlink(missing_ok=True)
        log.seek(0)
        said = [line for line in log.read().decode(errors="replace").splitlines() if line and "Hint" not in line]
        last = (said or [f"hf exited {child.returncode}"])[-1]
        return "" if child.returncode == 0 else last.partition("?")[0][:300]  # a CDN's address is signed after the "?"


def fetch(model: Model) -> None:
    """One attempt at a model, from its list of files to its marker."""
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url

    info = HfApi().model_info(model.repo, revision=model.revision, files_metadata=True, timeout=30)
    commit, found = str(info.sha), {item.rfilename: item for item in info.siblings or ()}
    safe = {os.path.dirname(name) for name in found if name.endswith(".safetensors")}
    copies = {n for n in found if match(n, COPIES) or (match(n, PICKLES) and os.path.dirname(n) in safe)}
    names = [n for n in found if (match(n, model.patterns) if model.patterns else n not in copies)]
    if not any(model.patterns or match(name, WEIGHTS) for name in names):
        raise Failure(MISSING, f"none of its files matches {model.patterns or WEIGHTS}", "look at its list of files")
    files = {name: found[name].size or 0 for name in names}
    # A gated model's list is public: only asking for a file shows whether its licence was accepted.
    get_hf_file_metadata(hf_hub_url(model.repo, max(names, key=files.__getitem__), revision=commit), timeout=30)
    blobs = {str(lfs.sha256 if (lfs := found[n].lfs) else found[n].blob_id): size for n, size in files.items()}
    total = sum(blobs.values())
    missing, free = total - arrived(model, blobs), shutil.disk_usage(CACHE).free
    if missing > free:
        raise Failure(DISK, f"{missing} bytes are missing and {CACHE} has {free} bytes free", SPACE)
    said = run_hf(model, names, blobs)
    for number in (errno.ENOSPC, errno.EACCES, errno.EROFS):
        if os.strerror(number) in said:
            raise OSError(number, os.strerror(number), str(CACHE))
    if bad := model.bad(commit, files):
        for path in bad:  # hf would take one of the wrong length for whole; a ref stays, engines may run on it
            if path.is_relative_to(model.folder / "snapshots") and path.resolve().is_relative_to(CACHE.resolve()):
                path.resolve().unlink(missing_ok=True)
                path.unlink(missing_ok=True)
        raise Failure(NETWORK, said or f"{len(bad)} files are not whole, e.g. {bad[0].name}", "try again", True)
    if len(names) < len(found):  # by this list hub 2 would refuse, offline, a snapshot that lacks any file
        (model.folder / "trees" / f"{commit}.json").unlink(missing_ok=True)
    say(f"download {model.repo} {total}/{total} bytes")
    draft = model.marker().with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps({"repo": model.repo, "revision": model.revision, "commit": commit, "files": files}))
    draft.replace(model.marker())


def once(model: Model) -> None:
    """Fetches what its marker doesn't vouch for, one process at a time."""
    if not model.ready():
        STATE.mkdir(parents=True, exist_ok=True)
        CACHE.mkdir(exist_ok=True)
        with (STATE / f"{model.safe}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"another process downloads {model.repo}: waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not model.ready():
                fetch(model)
                return link(model)
    link(model)
    say(f"{model.repo} is already there")


def link(model: Model) -> None:
    """Leaves by-name/REPO/REVISION beside the cache: a path known before the commit is, for engines that load files."""
    target = CACHE.parent / "by-name" / model.repo / quote(model.revision, safe="")
    snapshot = model.folder / "snapshots" / json.loads(model.marker().read_text())["commit"]
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft.symlink_to(os.path.relpath(snapshot, target.parent))
    draft.replace(target)


def download(model: Model, attempts: int) -> None:
    for attempt in range(1, attempts + 1):
        try:
            return once(model)
        except Exception as error:
            failure = explain(error, model)
            if not failure.retry or attempt == attempts:
                raise failure from error
        pause = max(failure.wait, min(2**attempt, 30))
        say(f"attempt {attempt} of {attempts} at {model.repo}: {failure.cause}; again in {pause} s")
        time.sleep(pause)


def main(words: list[str]) -> int:
    models, attempts = list[Model](), 5
    os.umask(0o022)  # engines of any user read the files
    for number in (signal.SIGTERM, signal.SIGINT):  # as process 1 it would otherwise not hear them
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        for option, value in zip(words[::2], words[1::2], strict=True):
            if option == "--model":
                models.append(Model(value))
            elif option == "--revision":
                models[-1].revision = value
            elif option == "--file":
                models[-1].patterns.append(value)
            elif option == "--attempts":
                attempts = int(value)
            else:
                raise ValueError(option)
    except (IndexError, ValueError):
        print(__doc__, file=sys.stderr)
        return USAGE
    for model in models:
        try:
            download(model, attempts)
        except Failure as failure:
            print(f"stackgen: cannot download {model.repo}: {failure.cause}; {failure.remedy}", file=sys.stderr)
            return failure.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
