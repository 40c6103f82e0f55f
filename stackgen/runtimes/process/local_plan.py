"""The plan of a stack as local processes: programs and environments, and whether this machine can start them."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from stackgen.engines.base import supervisor_entrypoint
from stackgen.errors import MachineError, StackgenError
from stackgen.plan import EnvRef, HealthCheck, Logging, Plan, Service
from stackgen.resolve.hosts import resolve
from stackgen.resources import templates_dir
from stackgen.runtimes.process.procfs import find_port_holder
from stackgen.runtimes.process.task import Probe, Task
from stackgen.stack.envfile import read_env
from stackgen.stack.folder import find_stack_file
from stackgen.stack.load import load_stack
from stackgen.targets.process import LOOPBACK, ProcessSite

__all__ = ["ProcessStack", "describe_differences", "inherited_environment", "open_process_stack"]

# an allow-list of the user's variables: a service must not see keys that happen to be in the shell
INHERITED = re.compile(
    r"PATH|LANG|LC_\w+|TZ|USER|LOGNAME|TMPDIR|LD_LIBRARY_PATH|CC|CXX|(https?|all|no)_proxy|SSL_CERT_(FILE|DIR)|"
    r"REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|(CUDA|NVIDIA|NCCL|HIP|HSA|ROCR|OMP)_\w+",
    re.IGNORECASE,
)
# engine -> its Python module, for engines that start with `python3`; other engines have a program of their own
MODULES = {"fastchat": "fastchat", "sglang": "sglang"}
# engine -> the package to install with pip
PACKAGES = {"vllm": "vllm", "fastchat": "fschat[model_worker]", "sglang": "sglang"}


@dataclass(frozen=True, slots=True)
class ProcessStack:
    """A stack as local processes: its plan, its site (addresses and paths), and its folder (absolute)."""

    plan: Plan
    site: ProcessSite
    folder: Path

    @property
    def state_dir(self) -> Path:
        """The folder with logs, state and the services' home folder."""
        return self.site.state_dir

    def tasks(self) -> list[Task]:
        """The supervisor's tasks, in the plan's order. Raises StackgenError if a required key is missing."""
        values = read_env(self.folder)
        return [self._task(service, values) for service in self.plan.services]

    def check_ready(self) -> None:
        """Raises MachineError if a program is missing or a port is taken, StackgenError if a key is missing."""
        if not Path("/proc/self/stat").exists():
            raise MachineError("`--runtime process` works only on Linux, because it needs /proc", "use containers")
        self.tasks()
        # replicas need the same program, and each check may start a Python
        checked = set()
        for service in self.plan.services:
            if (program := _required_program(service)) not in checked:
                _check_program(service, *program)
                checked.add(program)
        for (service_name, _), port in self.site.ports.items():
            _check_port_free(service_name, port)

    def _task(self, service: Service, values: dict[str, str]) -> Task:
        health, log = service.health, service.logging or Logging("20m", 5)
        # the supervisor replaces supervise.sh, which a container has as its entrypoint
        entrypoint = () if service.entrypoint == supervisor_entrypoint(self.site) else service.entrypoint
        # as in supervise.sh, the policy limits failed starts only: `no` allows one start, `always` has no limit
        limit = re.fullmatch(r"on-failure:(\d+)", service.restart)
        return Task(
            name=service.name,
            role=service.role,
            argv=[*entrypoint, *service.command],
            environment=self._environment(service, values),
            depends_on={dependency.service: dependency.condition for dependency in service.depends_on},
            optional=[dependency.service for dependency in service.depends_on if not dependency.required],
            probe=_probe(health) if health else None,
            one_shot=service.role == "download",
            max_retries=int(limit[1]) if limit else 0 if service.restart == "no" else -1,
            stop_grace_period=service.stop_grace_period,
            ports=[f"{LOOPBACK}:{port}" for (name, _), port in self.site.ports.items() if name == service.name],
            cpus=_parse_cpuset(service.cpuset),
            log_bytes=int(log.max_size[:-1]) << {"k": 10, "m": 20, "g": 30}[log.max_size[-1]],
            log_files=log.max_file,
        )  # fmt: skip

    def _environment(self, service: Service, values: dict[str, str]) -> dict[str, str]:
        environment = _engine_environment(service.engine) | {
            "HOME": self.site.home_dir(),
            "PYTHONUNBUFFERED": "1",
            # also marks the processes of this service in /proc, see procfs
            "STACKGEN_READY_FILE": str(self.state_dir / "ready" / service.name),
        }
        if service.secrets and os.environ.get("HF_TOKEN"):
            environment["HF_TOKEN"] = os.environ["HF_TOKEN"]  # for the download only, as in a container
        # in containers, secrets are mounted at these paths; a process gets the path of the file itself
        files = {f"/run/secrets/{name}": self._secret_path(ref, values) for name, ref in self.plan.secrets}
        for name, value in service.environment:
            text = _resolve_env_ref(value, values) if isinstance(value, EnvRef) else value
            environment[name] = files.get(text, text)
        return environment

    def _secret_path(self, ref: EnvRef, values: dict[str, str]) -> str:
        path = Path(_resolve_env_ref(ref, values)).expanduser()
        return str(self.folder / path)


def open_process_stack(stack_path: Path, state: str) -> ProcessStack:
    """The stack in a file or folder, as local processes; `state` is the name of their folder next to stack.yaml.

    Raises SpecError if stack.yaml has errors.
    """
    path = find_stack_file(str(stack_path)) or stack_path / "stack.yaml"
    folder = path.parent.absolute()
    spec = load_stack(path)

    def resolve_with(reserved: frozenset[int]) -> ProcessStack:
        site = ProcessSite(folder, folder / state, spec.storage.path, reserved)
        return ProcessStack(resolve(spec, site, str(path)), site, folder)

    # resolved twice: internal ports must avoid the published ones, which only the plan knows
    published = resolve_with(frozenset()).plan.services
    return resolve_with(frozenset(port.host for service in published for port in service.ports))


def inherited_environment() -> dict[str, str]:
    """The variables of the user's environment that services may see."""
    return {name: value for name, value in os.environ.items() if INHERITED.fullmatch(name)}


def describe_differences(stack: ProcessStack) -> Iterator[str]:
    """What differs from containers, as lines for the user."""
    services = stack.plan.services
    # on an internal network, a container needs no key; here the same port is open to local users
    internal = [network.name for network in stack.plan.networks if network.internal]
    keyless = [service.name for service in services if internal and service.networks and not service.ports]
    yield "this stack runs as local processes instead of containers. The differences:"
    yield "  - no isolation: the processes run as your user, with your files and your network. Capabilities are not"
    yield "    dropped, the root file system is not read-only, and memory has no limit. `image`, `user`, `read_only`,"
    yield "    `shm_size` and `ipc` have no effect"
    yield f"  - all ports are on {LOOPBACK}, and `bind` has no effect; every local user can reach the ports"
    if keyless:
        yield f"  - no internal network: {', '.join(keyless)} need no key, and every local user can reach them"
    if any(service.gpus for service in services):
        yield "  - no GPU reservation: only CUDA_VISIBLE_DEVICES (AMD: ROCR_VISIBLE_DEVICES) assigns the GPUs"
    if any(service.role == "download" for service in services):
        yield f"  - weights are in {stack.site.models_dir()}/hub"


def _engines_dir() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "stackgen" / "engines"
    return Path(os.environ.get("STACKGEN_ENGINES") or cache).expanduser().absolute()


def _engine_environment(engine: str) -> dict[str, str]:
    """The inherited environment. If the engine has its own virtual environment, that is first on the PATH.

    The file `stackgen.env` in it has the variables that the engine's image sets with ENV, as NAME=VALUE lines.
    """
    # one environment for each engine, because engines need contradictory versions of packages
    environment, venv = inherited_environment(), _engines_dir() / engine
    if not (venv / "bin").is_dir():
        return environment
    environment["PATH"] = f"{venv / 'bin'}:{environment.get('PATH', os.defpath)}"
    if (own := venv / "stackgen.env").is_file():
        pairs = (line.partition("=") for line in own.read_text().splitlines() if "=" in line)
        environment |= {name: value for name, _, value in pairs}
    return environment


def _resolve_env_ref(ref: EnvRef, values: dict[str, str]) -> str:
    value = values.get(ref.name) or os.environ.get(ref.name) or ref.default
    if not value and ref.required:
        raise StackgenError(f"{ref.name} is missing: {ref.required}", "`stackgen render` writes a .env with a new key")
    return value


def _required_program(service: Service) -> tuple[str, str, str]:
    """The engine, program and Python module ("" for none) that the service needs."""
    if service.role == "download":
        return service.engine, "python3", "huggingface_hub"
    return service.engine, service.command[0], MODULES.get(service.engine, "")


def _check_program(service: Service, engine: str, program: str, module: str) -> None:
    environment = _engine_environment(engine)
    found = shutil.which(program, path=environment.get("PATH"))
    if found and module:
        # run by the program's own Python, in / so that a folder with the module's name can't be imported
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
        found = found if subprocess.run([found, "-c", code], env=environment, cwd="/").returncode == 0 else None
    if found:
        return
    venv, script = _engines_dir() / engine, templates_dir().parent / "scripts" / "engine-env"
    if module == "huggingface_hub":
        hint = f"install huggingface_hub with pip, either in {venv} or for the `python3` on the PATH"
    # the script exists in a source checkout only, and installs the CPU build
    elif engine in PACKAGES and script.is_file() and not service.gpus:
        hint = f"`scripts/engine-env {engine}` creates an environment for {engine}"
    elif engine in PACKAGES:
        hint = f"python3 -m venv {venv} && {venv}/bin/pip install '{PACKAGES[engine]}'"
    else:
        hint = f"install the program in a folder of the PATH or in {venv}/bin"
    missing = f"the Python module {module}" if module else f"the program {program}"
    raise MachineError(f"{service.name} needs {missing}, which was found neither in {venv} nor on the PATH", hint)


def _check_port_free(service: str, port: int) -> None:
    try:
        socket.create_server((LOOPBACK, port)).close()
    except PermissionError:
        raise MachineError(f"{service}: only root can use port {port}", "set `port:` to 1024 or above") from None
    except OSError as error:
        holder = find_port_holder(port)
        raise MachineError(
            f"{service}: port {port} is already in use" + (f" by {holder}" if holder else f": {error.strerror}"),
            "stop the program that uses the port, or set another `port:`",
        ) from None


def _parse_cpuset(text: str) -> list[int]:
    """The core numbers of a Compose `cpuset`: `0-2,5` is [0, 1, 2, 5]."""
    ranges = [part.partition("-") for part in text.split(",") if part]
    return [number for first, _, last in ranges for number in range(int(first), int(last or first) + 1)]


def _probe(health: HealthCheck) -> Probe:
    # only a cluster asks for the path
    fields = {name: value for name, value in asdict(health).items() if name != "ready_path"}
    return Probe(**{**fields, "command": list(health.command)})
