"""Lets the download service run as the user who owns the store of weights, instead of as root.

The container starts as root with the capabilities SETUID and SETGID, and CHOWN if the store is a volume. Docker creates
a new volume for root (moby 28, volume/local). A store that root has filled stays root's, and the download runs as root.
"""

import os
from pathlib import Path


def become_owner(store: Path, new: str) -> None:
    """Continues as the owner of `store`. `new` (UID:GID) gets a store that is empty and belongs to root.

    With `keep`, the store's owner never changes. Raises OSError if the owner can't be changed or doesn't exist here.
    """
    if new != "keep" and store.stat().st_uid == 0 and not any(store.iterdir()):
        uid, gid = map(int, new.split(":"))
        # before chown, because afterwards root needs a further capability to change the mode
        store.chmod(0o2775)
        os.chown(store, uid, gid)
    read_token()
    # stacks of earlier versions write to the store as root, which is in group 0
    os.umask(0o002)
    owner = store.stat()
    if owner.st_uid:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def read_token() -> None:
    """Copies the token to HF_TOKEN as the user who owns its file: without capabilities, root can't read that file."""
    path = Path(os.environ.get("HF_TOKEN_PATH", ""))
    try:
        os.seteuid(path.stat().st_uid)
        if token := path.read_text().strip():
            os.environ["HF_TOKEN"] = token
    except OSError:
        # hf reads the file again, and reports the reason
        pass
    finally:
        os.seteuid(0)
