"""The key between the machines of a stack: the first machine's gateway sends it, and the others check it.

It is STACKGEN_ENGINE_KEY in the .env of the first machine, and STACKGEN_API_KEY in that of each other one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from stackgen.errors import StackgenError
from stackgen.plan import Plan
from stackgen.render.write import write_atomically
from stackgen.stack.envfile import API_KEY, complete_env, create_env, env_path, has_run, read_env

__all__ = ["ENGINE_KEY", "share_key"]

ENGINE_KEY = "STACKGEN_ENGINE_KEY"


def share_key(front: Path, folder: Path, plan: Plan) -> None:
    """Writes the .env of the machine in `folder` with the key of the first one, which is in `front`.

    Raises StackgenError if a .env is there with another key, because nobody knows which of the two is in use, and if
    the first machine has lost its key.
    """
    if folder == front:
        return
    create_env(front)
    if has_run(front) and not read_env(front).get(ENGINE_KEY):
        raise StackgenError(
            f"{front / '.env'} lacks {ENGINE_KEY}, but the gateways of the other machines accept only the old key",
            f"write the value of {API_KEY} in the .env of another machine into {front / '.env'}, as {ENGINE_KEY}=…",
        )
    complete_env(front, [ENGINE_KEY])
    key = read_env(front)[ENGINE_KEY]
    if create_env(folder):
        path = env_path(folder)
        text = re.sub(rf"(?m)^{API_KEY}=.*$", lambda _: f"{API_KEY}={key}", path.read_text(encoding="utf-8"))
        write_atomically(path, text, mode=0o600)
        return
    # the process's environment overrides the file only where a stack runs
    known = {**read_env(folder), **({} if API_KEY not in os.environ else {API_KEY: key})}
    if known.get(API_KEY) != key:
        raise StackgenError(
            f"{folder / '.env'} and {front / '.env'} have different keys, so the first machine's gateway would get no "
            "answer",
            f"set {API_KEY} in {folder / '.env'} to the value of {ENGINE_KEY} in {front / '.env'}",
        )
