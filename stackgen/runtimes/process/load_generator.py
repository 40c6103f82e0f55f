"""Runs GuideLLM for one measurement: its files go into the folder of the run, and the key into its environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from stackgen.bench.guidellm import Plan, build_scenario, find_failure, key_environment, read_report
from stackgen.bench.result import Level
from stackgen.check.target import Target
from stackgen.errors import MachineError, StartError

__all__ = ["measure"]

SCENARIO, REPORT, LOG = "scenario.json", "guidellm.json", "guidellm.log"
# seconds: the imports of the tool, on a busy machine; and for each level, requests that are not answered yet
START, REST = 900.0, 120.0
STEP = 1.0
MAX_WORKERS = 10


def measure(
    python: Path, plan: Plan, target: Target, folder: Path, progress: Callable[[float], None]
) -> tuple[Level, ...]:
    """Runs all levels, and returns them. `progress` gets the seconds since the start, once a second.

    Raises MachineError if GuideLLM fails or takes far too long, and StartError if no request succeeded.
    """
    # GuideLLM runs in the folder
    folder = folder.absolute()
    report = folder / REPORT
    (folder / SCENARIO).write_text(json.dumps(build_scenario(plan, report), indent=2) + "\n", "utf-8")
    command = [str(python), "-m", "guidellm", "run", "--config", SCENARIO, "--disable-console-interactive"]
    with (folder / LOG).open("wb") as log:
        # a session of its own: its workers end with it
        process = subprocess.Popen(command, cwd=folder, env=_environment(plan, target), stdin=subprocess.DEVNULL,
                                   stdout=log, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        try:
            code = _wait(process, START + len(plan.loads) * (plan.seconds + REST), progress)
        finally:
            _end(process)
    # GuideLLM prints no key, but a server may repeat it in an error
    for path in (one for one in (folder / LOG, report) if one.is_file()):
        path.write_text(_redact(path.read_text("utf-8", "replace"), target), "utf-8")
    text = (folder / LOG).read_text("utf-8")
    if code or not report.is_file():
        ended = "did not end in time" if code is None else f"ended with exit code {code}"
        raise MachineError(f"GuideLLM {ended}: {find_failure(text)}", f"all output of GuideLLM is in {folder / LOG}")
    levels = read_report(report)
    if not any(level.succeeded for level in levels):
        errors = next((level.errors[0][0] for level in levels if level.errors), "no request finished in time")
        raise StartError(
            f"no request of the measurement succeeded: {errors}",
            "run `stackgen check`, which tests the endpoint. For a slow model, raise --seconds",
        )
    return levels


def _redact(text: str, target: Target) -> str:
    for secret in filter(None, (target.api_key, *target.secrets)):
        text = text.replace(secret, "[key]")
    return text


def _environment(plan: Plan, target: Target) -> dict[str, str]:
    # the user's variables of GuideLLM would change what is measured
    values = {name: value for name, value in os.environ.items() if not name.startswith("GUIDELLM__")}
    if target.ca_file:
        values["SSL_CERT_FILE"] = os.path.abspath(target.ca_file)
    if target.loopback:
        # httpx would send these requests to the proxy too
        for name in ("NO_PROXY", "no_proxy"):
            values[name] = ",".join(filter(None, (values.get(name), target.host)))
    # each worker imports PyTorch: ten of them, the default, keep a small machine busy for minutes
    values["GUIDELLM__MAX_WORKER_PROCESSES"] = str(min(MAX_WORKERS, max(1, (os.cpu_count() or 1) // 4)))
    if os.path.isdir(plan.tokenizer):
        values["HF_HUB_OFFLINE"] = "1"
    return values | key_environment(target.api_key)


def _wait(process: subprocess.Popen[bytes], limit: float, progress: Callable[[float], None]) -> int | None:
    started = time.monotonic()
    while (elapsed := time.monotonic() - started) < limit:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(STEP)
        progress(elapsed)
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    # also after a good end: a worker that is left would keep sending requests
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
