"""The watch for hangs, which supervise.sh starts next to an engine (see `templates/images/common/watch.py`)."""

from __future__ import annotations

from stackgen.plan import Asset, Site
from stackgen.spec import ModelSpec

__all__ = ["WATCH_ASSETS", "watch_environment"]

NAMES = ("watch.py", "watch_metrics.py", "watch_processes.py")
WATCH_ASSETS = tuple(Asset(f"images/common/{name}", f"scripts/{name}") for name in NAMES)


def watch_environment(
    model: ModelSpec, site: Site, engine: str, url: str, script: str = "llamacpp_watch.sh"
) -> dict[str, str]:
    """The variable with the command of the watch of one replica, which listens at `url` inside its container.

    `script` is for llama.cpp. Empty for local processes, and with `restart_hung: false`.
    """
    # local processes have no supervise.sh
    if not (model.restart_hung and site.uses_containers):
        return {}
    # upstream's image of llama.cpp has no python3
    watch = f"bash {site.script(script)}"
    if engine != "llamacpp":
        watch = f"python3 {site.script('watch.py')} {engine}"
    return {"STACKGEN_WATCH": f"{watch} {url} {model.hang_timeout}"}
