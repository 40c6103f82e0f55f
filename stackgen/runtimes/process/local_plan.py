"""A plan for local processes: which program runs with which environment, and what must be there before it can."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from stackgen.engines.base import supervised
from stackgen.errors import MachineError, StackgenError
from stackgen.plan import EnvRef, Logging, Plan, Service
from stackgen.resolve.pipeline import resolve
from stackgen.resources import templates_dir
from stackgen.runtimes.process.procfs import holder
from stackgen.runtimes.process.task import Probe, Task
from stackgen.stack.envfile import read_env
from stackgen.stack.folder import stack_file
from stackgen.stack.load import load_stack
from stackgen.targets.process import LOOPBACK, ProcessSite

__all__ = ["Local", "differences", "inherited", "open_local"]

# All that a service gets of the user's own environment: a key that stands there is none of its business
INHERITED = re.compile(
    r"PATH|LANG|LC_\w+|TZ|USER|LOGNAME|TMPDIR|LD_LIBRARY_PATH|CC|CXX|(https?|all|no)_proxy|SSL_CERT_(FILE|DIR)|"
    r"REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|(CUDA|NVIDIA|NCCL|HIP|HSA|ROCR|OMP)_\w+",
    re.IGNORECASE,
)
# What an engine is in an environment: a Python module where `python3` starts it, else the program of that name
MODULES = {"fastchat": "fastchat"}
PACKAGES = {"vllm": "vllm", "fastchat": "fschat[model_worker]"}


@dataclass(frozen=True, slots=True)
class Local:
    """A stack as local processes: its plan, the site it stands on, and its folder (absolute)."""

    plan: Plan
    site: ProcessSite
    folder: Path

    @property
    def state_dir(self) -> Path:
        """Where logs, state and the programs' home are."""
        return self.site.state_dir

    def tasks(self) -> list[Task]:
        """What the supervisor is told. Raises StackgenError where `.env` lacks a key."""
        values = read_env(self.folder)
        return [self._task(service, values) for service in self.plan.services]

    def prove_ready(self) -> None:
        """Raises MachineError where a program is missing or a port is taken, StackgenError where a key is missing."""
        if not Path("/proc/self/stat").exists():
            raise MachineError("--runtime process needs Linux: it finds its processes in /proc", "use containers")
        self.tasks()
        proven = set()
        for service in self.plan.services:
            if (what := _needed(service)) not in proven:
                _prove_program(service, *what)
                proven.add(what)
        for (service_name, _), port in self.site.ports.items():
            _prove_free(service_name, port)

    def _task(self, service: Service, values: dict[str, str]) -> Task:
        health, log = service.health, service.logging or Logging("20m", 5)
        # our supervisor does what supervise.sh does in a container
        words = () if service.entrypoint == supervised(self.site) else service.entrypoint
        # as in supervise.sh, a policy bounds only starts that fail: `no` is one start, `always` has no bound
        bound = re.fullmatch(r"on-failure:(\d+)", service.restart)
        return Task(
            name=service.name,
            role=service.role,
            argv=[*words, *service.command],
            environment=self._environment(service, values),
            after={dependency.service: dependency.condition for dependency in service.depends_on},
            probe=Probe(**{**asdict(health), "command": list(health.command)}) if health else None,
            once=service.role == "download",
            tries=int(bound[1]) if bound else 0 if service.restart == "no" else -1,
            grace=service.stop_grace_period,
            ports=[f"{LOOPBACK}:{port}" for (name, _), port in self.site.ports.items() if name == service.name],
            cpus=_cpus(service.cpuset),
            log_bytes=int(log.max_size[:-1]) << {"k": 10, "m": 20, "g": 30}[log.max_size[-1]],
            log_files=log.max_file,
        )  # fmt: skip

    def _environment(self, service: Service, values: dict[str, str]) -> dict[str, str]:
        environment = _engine_environment(service.engine) | {
            "HOME": self.site.home_dir(),
            "PYTHONUNBUFFERED": "1",
            "STACKGEN_READY_FILE": str(self.state_dir / "ready" / service.name),
        }
        if service.secrets and os.environ.get("HF_TOKEN"):
            environment["HF_TOKEN"] = os.environ["HF_TOKEN"]  # for the download alone, as its secret is
        files = {f"/run/secrets/{name}": self._secret(ref, values) for name, ref in self.plan.secrets}
        for name, value in service.environment:
            text = _value(value, values) if isinstance(value, EnvRef) else value
            environment[name] = files.get(text, text)
        return environment

    def _secret(self, ref: EnvRef, values: dict[str, str]) -> str:
        path = Path(_value(ref, values)).expanduser()
        return str(self.folder / path)


def open_local(words: Path, state: str) -> Local:
    """The stack in the file or folder `words`, for local processes; `state` names their folder beside it.

    Raises SpecError.
    """
    path = stack_file(str(words)) or words / "stack.yaml"
    folder = path.parent.absolute()
    spec = load_stack(path)

    def at(reserved: frozenset[int]) -> Local:
        site = ProcessSite(folder, folder / state, spec.storage.path, reserved)
        return Local(resolve(spec, site, str(path)), site, folder)

    # internal ports keep clear of the published ones, which are known only when the plan is made
    published = at(frozenset()).plan.services
    return at(frozenset(port.host for service in published for port in service.ports))


def inherited() -> dict[str, str]:
    """The part of the user's environment that any service may see."""
    return {name: value for name, value in os.environ.items() if INHERITED.fullmatch(name)}


def differences(local: Local) -> Iterator[str]:
    """What is not as it would be in containers, for the user, a line each."""
    services = local.plan.services
    inner = [network.name for network in local.plan.networks if network.internal]
    open_ones = [service.name for service in services if inner and service.networks and not service.ports]
    yield "local processes instead of containers. What differs:"
    yield "  - no isolation: they run as you, with your rights, your files and your network; no capability is dropped, "
    yield "    no root is read-only, no memory limit holds; image, user, read_only, shm_size and ipc mean nothing here"
    yield f"  - all ports are on {LOOPBACK}, whatever `bind` says; every user of this machine reaches them"
    if open_ones:
        yield f"  - no internal network: {', '.join(open_ones)} ask for no key, and every local user reaches them"
    if any(service.gpus for service in services):
        yield "  - no GPU is reserved: CUDA_VISIBLE_DEVICES (AMD: ROCR_VISIBLE_DEVICES) alone says who uses which"
    if any(service.role == "download" for service in services):
        yield f"  - weights are kept in {local.site.models_dir()}/hub"


def _engines_dir() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "stackgen" / "engines"
    return Path(os.environ.get("STACKGEN_ENGINES") or cache).expanduser().absolute()


def _engine_environment(engine: str) -> dict[str, str]:
    """The user's environment, with the engine's own virtual environment first where there is one.

    `stackgen.env` in it holds what the engine's image sets by ENV, as NAME=VALUE lines.
    """
    environment, venv = inherited(), _engines_dir() / engine
    if not (venv / "bin").is_dir():
        return environment
    environment["PATH"] = f"{venv / 'bin'}:{environment.get('PATH', os.defpath)}"
    if (own := venv / "stackgen.env").is_file():
        pairs = (line.partition("=") for line in own.read_text().splitlines() if "=" in line)
        environment |= {name: value for name, _, value in pairs}
    return environment


def _value(ref: EnvRef, values: dict[str, str]) -> str:
    value = values.get(ref.name) or os.environ.get(ref.name) or ref.default
    if not value and ref.required:
        raise StackgenError(f"{ref.name} is missing: {ref.required}", "`stackgen init` writes .env with a new key")
    return value


def _needed(service: Service) -> tuple[str, str, str]:
    """Engine, program and Python module ("" for none) that the service can't do without."""
    if service.role == "download":
        return service.engine, "python3", "huggingface_hub"
    return service.engine, service.command[0], MODULES.get(service.engine, "")


def _prove_program(service: Service, engine: str, program: str, module: str) -> None:
    environment = _engine_environment(engine)
    found = shutil.which(program, path=environment.get("PATH"))
    if found and module:
        ask = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
        found = found if subprocess.run([found, "-c", ask], env=environment, cwd="/").returncode == 0 else None
    if found:
        return
    venv, script = _engines_dir() / engine, templates_dir().parent / "scripts" / "engine-env"
    if module == "huggingface_hub":
        hint = f"pip install huggingface_hub, into {venv} or for the python3 on your PATH"
    elif engine in PACKAGES and script.is_file() and not service.gpus:
        hint = f"`scripts/engine-env {engine}` makes an environment with it"
    elif engine in PACKAGES:
        hint = f"python3 -m venv {venv} && {venv}/bin/pip install '{PACKAGES[engine]}'"
    else:
        hint = f"install it, and put it on the PATH or into {venv}/bin"
    what = f"the Python module {module}" if module else f"the program {program}"
    raise MachineError(f"{service.name} needs {what}, which is neither in {venv} nor on the PATH", hint)


def _prove_free(service: str, port: int) -> None:
    try:
        socket.create_server((LOOPBACK, port)).close()
    except PermissionError:
        raise MachineError(f"{service}: port {port} is for root only", "set `port:` to 1024 or above") from None
    except OSError as error:
        who = holder(port)
        raise MachineError(
            f"{service}: port {port} is taken" + (f" by {who}" if who else f": {error.strerror}"),
            "stop it, or set another `port:`",
        ) from None


def _cpus(text: str) -> list[int]:
    """`0-2,5` as numbers."""
    ranges = [part.partition("-") for part in text.split(",") if part]
    return [number for first, _, last in ranges for number in range(int(first), int(last or first) + 1)]
