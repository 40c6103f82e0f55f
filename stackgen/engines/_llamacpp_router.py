"""llama-server's router mode: one process serves the GGUF files of a folder, and loads each when it is asked for.

Facts: build 11434, `tools/server/README.md` ("router mode"), `common/preset.cpp` (`load_from_models_dir`), and the
running server: an unknown name gets a 400, a model is unloaded only after its requests in flight have ended, and
each model is a process of its own, which listens at a port of 127.0.0.1.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from stackgen.engines.base import Replica
from stackgen.errors import Mistake
from stackgen.plan import Dialect, Site
from stackgen.spec import is_local

__all__ = ["ROUTER_WATCH", "find_router_mistakes", "list_gguf_models", "router_dialect"]

ROUTER_WATCH = "llamacpp_router_watch.sh"

# `is_mmproj_file` and `is_draft_file`: companions of a model
COMPANION = re.compile(r".*mmproj|mtp-|dspark-|dflash-")
SHOWN = 12


def list_gguf_models(folder: Path) -> tuple[str, ...]:
    """The names under which the router serves the models in `folder`, sorted: files, and folders with a file.

    Links out of the folder are left out, because the container does not see their target. Raises OSError.
    """
    found = []
    for entry in os.scandir(folder):
        path = Path(entry.path)
        if entry.is_dir():
            with suppress(OSError):
                if any(_is_model(one, folder) for one in path.iterdir()):
                    found.append(entry.name)
        elif _is_model(path, folder):
            # as the server does, which removes the text wherever it is
            found.append(entry.name.replace(".gguf", ""))
    return tuple(sorted(found))


def _is_model(path: Path, folder: Path) -> bool:
    if not path.name.endswith(".gguf") or COMPANION.match(path.name) or not path.is_file():
        return False
    return path.resolve().is_relative_to(folder.resolve())


def router_dialect(dialect: Dialect) -> Dialect:
    """The dialect of a router: it answers only for the names that it knows, and reports the requested name."""
    deviations = tuple(one for one in dialect.deviations if not one.pattern.startswith("unknown model"))
    # measured: 400 with the code 400, `model 'x' not found`; /tokenize needs a model too
    return replace(dialect, unknown_model=(400, 400), reports_first_name=False, deviations=deviations, tokenize=None)


def find_router_mistakes(replica: Replica, site: Site) -> Iterator[Mistake]:
    """Fields that have no effect in router mode, and names that the folder does not contain."""
    model, path = replica.spec, replica.path
    if not model.models_dir:
        if model.models_max is not None:
            yield Mistake(f"{path}.models_max", "has no effect without models_dir",
                          hint="remove models_max, or set models_dir to a folder with GGUF files")  # fmt: skip
        return
    if not is_local(model.models_dir):
        yield Mistake(f"{path}.models_dir", f"{model.models_dir!r} is not a local folder",
                      hint="a local path starts with `/`, `./` or `~`")  # fmt: skip
        return
    for field in ("file", "revision", "fallback"):
        if field in model.model_fields_set and getattr(model, field) is not None:
            yield Mistake(f"{path}.{field}", "has no effect with models_dir: the field is for a single model",
                          hint=f"remove {field}")  # fmt: skip
    yield from _find_unknown_names(model, path, Path(site.find_on_disk(model.models_dir)))


def _find_unknown_names(model: Any, path: str, folder: Path) -> Iterator[Mistake]:
    try:
        names = list_gguf_models(folder)
    # doctor reports a folder that does not exist: a stack may be rendered on another machine
    except OSError:
        names = ()
    listed = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
    if not model.served_names:
        hint = f"set `served_names: [{listed}]`, or some of these names" if names else "list the names of the models"
        yield Mistake(f"{path}.served_names", "is required with models_dir: the names of the models that clients may "
                      "use", hint=hint)  # fmt: skip
    for index, name in enumerate(model.served_names if names else ()):
        if name not in names:
            yield Mistake(f"{path}.served_names[{index}]", f"{model.models_dir} contains no model {name!r}",
                          hint=f"the folder contains: {listed}. The name of a model is its file name without .gguf, "
                          "or the name of its subfolder")  # fmt: skip
