"""The folder of secrets next to the manifests, written from `.env` with mode 0600. Kustomize makes Secrets of it.

Format of `.env` files for kustomize 5: `api/kv/kv.go`, one `NAME=VALUE` per line, and the value is used unchanged.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from stackgen.errors import StackgenError
from stackgen.kubernetes.manifests import SECRETS_FOLDER, SecretFiles, secret_files
from stackgen.plan import EnvRef, Plan
from stackgen.render.read import read_regular
from stackgen.render.write import write_atomically
from stackgen.stack.envfile import env_file, read_env
from stackgen.stack.folder import Stack
from stackgen.stack.keys import MAP

__all__ = ["read_secrets", "write_secrets"]

# in .env: the file with the token
TOKEN_FILE = "HF_TOKEN_FILE"  # noqa: S105


def write_secrets(stack: Stack, without: Collection[str] = ()) -> list[Path]:
    """Writes the files of the stack's Secrets, and returns those that changed.

    Variables `without` a value are left out. Raises StackgenError if another variable or a file is missing that a pod
    requires.
    """
    needed, env = secret_files(stack.plan, stack.spec.cluster), read_env(stack.folder)
    folder = stack.output / SECRETS_FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    wanted: dict[str, str | bytes] = {"engine.env": "".join(_lines(stack.plan, needed, env, stack.folder, without))}
    wanted |= {name: _require(name, env, stack.folder) for name in needed.client if name not in without}
    # without a map, the key from .env is the only valid one
    wanted["keys.map"] = _read(stack.folder / MAP) or b"# hash of the key -> name of the key\n"
    if needed.token:
        named = env.get(TOKEN_FILE, "")
        wanted["hf_token"] = _read(env_file(stack.folder, named), required=True) if named else b""
    tls = stack.spec.gateway.tls if stack.spec.gateway else None
    if needed.tls and tls and tls.certificate and tls.key:
        for name, source in (("tls.crt", tls.certificate), ("tls.key", tls.key)):
            wanted[name] = _read(Path(stack.site.find_on_disk(source)), required=True)
    changed = []
    for name, text in wanted.items():
        data = text.encode() if isinstance(text, str) else text
        path = folder / name
        if not path.is_file() or _read(path) != data or path.stat().st_mode & 0o077:
            write_atomically(path, data, mode=0o600)
            changed.append(path)
    for path in folder.iterdir():
        # a key that the stack no longer needs
        if path.name not in (*wanted, *without) and path.is_file():
            path.unlink()
            changed.append(path)
    return changed


def read_secrets(stack: Stack) -> dict[str, str]:
    """The variables of `.env` that the files of the Secrets contain, as a former start has written them."""
    needed, folder = secret_files(stack.plan, stack.spec.cluster), stack.output / SECRETS_FOLDER
    text = _read(folder / "engine.env").decode("utf-8", "replace")
    found = dict(line.split("=", 1) for line in text.split("\n") if "=" in line)
    return found | {name: _read(folder / name).decode("utf-8", "replace") for name in needed.client}


def _lines(plan: Plan, needed: SecretFiles, env: dict[str, str], folder: Path, without: Collection[str]) -> list[str]:
    found = []
    references = {
        value.name: value for service in plan.services for _, value in service.environment if isinstance(value, EnvRef)
    }
    for name in needed.engine:
        if name in without:
            continue
        reference = references[name]
        value = env.get(name) or (env.get(reference.alternative, "") if reference.alternative else reference.default)
        if reference.required and not value:
            value = _require(name, env, folder)
        if value:
            found.append(f"{name}={value}\n")
    return found


def _require(name: str, env: dict[str, str], folder: Path) -> str:
    if value := env.get(name):
        return value
    raise StackgenError(f"{folder / '.env'} does not set {name}", f"write the line {name}=… into the file, and run "
                        "`stackgen render` again")  # fmt: skip


def _read(path: Path, required: bool = False) -> bytes:
    try:
        return read_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        if not required:
            return b""
        reason = "does not exist"
    except OSError as error:
        reason = f"can't be read: {error.strerror}"
    raise StackgenError(
        f"{path} {reason}",
        "correct the path of this file, or create the file, because a Secret of the cluster contains it",
    )
