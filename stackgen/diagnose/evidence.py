"""The evidence about a failed stack, as plain data. `stackgen.runtimes.observation.evidence` collects it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stackgen.diagnose.gpus import GpuDevice, GpuState
from stackgen.diagnose.machine import Machine, find_capability, is_jetson_text, is_virtual_text, is_wsl_text
from stackgen.plan import Plan, Service
from stackgen.spec import ModelSpec, StackSpec

__all__ = ["HEAD_LINES", "LOG_LINES", "Evidence", "ServiceEvidence", "detect_engine"]

# how many of the last lines of a log are read: enough for vLLM's usage text and a few attempts
LOG_LINES = 2000
# how many of the first lines of a longer log are read: they show how a server was started days ago
HEAD_LINES = 500
# text that only one engine prints
ENGINE_MARKERS = (
    (
        "sglang",
        (
            "sglang serve: error:",
            "launch_server.py: error:",
            "/sglang/",
            "sglang.",
            "SGLANG_",
            "server_args={",
            "Load weight begin",
        ),
    ),
    ("vllm", ("(EngineCore", "(APIServer", "vllm: error:", "/vllm/", "vllm.", "VLLM_")),
    ("fastchat", ("| model_worker |", "| controller |", "| openai_api_server |", "fastchat/", "fastchat.")),
    (
        "llamacpp",
        (
            "llama_model_load",
            "llama-server",
            "srv  ",
            "main: server",
            "error: invalid argument: -",
            'error while handling argument "-',
        ),
    ),
)

# words that only AMD's libraries print, and words that only NVIDIA's print; torch for AMD also prints `cuda`
AMD_WORDS = re.compile(
    r"\bHIP (?:error|out of memory|GPUs)|\bhip[A-Z]\w+|ROCm\d|ROCm(?: "
    r"devices|-capable)|rocBLAS|\bRCCL|\bgfx\d{3,4}|/dev/kfd"
)
NVIDIA_WORDS = re.compile(r"nvidia|NVIDIA|CUDA (?:error|out of memory)|libcuda|NVML")


@dataclass(frozen=True, slots=True)
class ServiceEvidence:
    """One service: the state of its container (or local process), and its log.

    `state` is Docker's State.Status (running, exited, restarting, created, paused, dead). It is `absent` without a
    container, and "" if only a log is known. `health` is Docker's health status, or `unsupervised` for a local process
    whose supervisor was killed. `error` is Docker's `State.Error`. `health_log` is the output of the last health
    checks. `log` has at most `HEAD_LINES` plus `LOG_LINES` lines (see `log_text.keep_head_and_tail`). `metrics` is
    the text of vLLM's /metrics.
    """

    service: str
    role: str = "engine"
    engine: str = ""
    state: str = ""
    health: str = ""
    exit_code: int | None = None
    oom_killed: bool = False
    restarts: int = 0
    error: str = ""
    health_log: str = ""
    log: str = ""
    image: str = ""
    command: tuple[str, ...] = ()
    metrics: str = ""

    @property
    def is_working(self) -> bool:
        """Whether the service runs and passes its health check, if any. A download that finished also counts."""
        if self.role == "download" and self.state == "exited":
            return self.exit_code == 0
        # without a health check, `running` is all that Docker knows
        return self.state == "running" and self.health in ("healthy", "")

    @property
    def is_loading(self) -> bool:
        """Whether the service is still in its first start and not ready yet."""
        return self.state == "running" and self.health == "starting" and self.restarts == 0

    @property
    def has_failed(self) -> bool:
        """Whether Docker reports that the service failed; False if only a log is known."""
        # in these states the service answers no request, even if Docker may restart it
        ended = self.state in ("exited", "dead", "restarting", "paused") and not self.is_working
        return ended or self.health == "unhealthy" or bool(self.error)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that is known about a failure.

    `compose_output` is what `docker compose up` printed, `checks` are (check, message) pairs of failed checks,
    `secrets` are values that no output may show. `gpus` and `machine` describe this machine; they are None for a log
    alone, which may come from another machine.
    """

    services: tuple[ServiceEvidence, ...] = ()
    compose_output: str = ""
    spec: StackSpec | None = None
    plan: Plan | None = None
    checks: tuple[tuple[str, str], ...] = ()
    secrets: tuple[str, ...] = ()
    gpus: GpuState | None = None
    machine: Machine | None = None

    def planned_service(self, service: str) -> Service | None:
        """The service in the plan; None without a plan, or if the plan has no such service."""
        return next((one for one in self.plan.services if one.name == service), None) if self.plan else None

    def gpu_devices(self, service: str) -> tuple[GpuDevice, ...]:
        """The GPUs that the plan gives to the service; all GPUs of the machine if the plan lists no ids."""
        planned = self.planned_service(service)
        # CDI writes a GPU as nvidia.com/gpu=0
        ids = [id.rpartition("=")[2] for id in planned.gpus.ids] if planned and planned.gpus else []
        return self.gpus.select_devices([] if "all" in ids else ids) if self.gpus else ()

    def may_use_nvidia(self, service: str) -> bool:
        """Whether the plan gives NVIDIA GPUs to the service; True without a plan, because then it is unknown."""
        planned = self.planned_service(service)
        return planned is None or bool(planned.gpus and planned.gpus.driver != "amd")

    def gpu_maker(self, service: str) -> str:
        """`nvidia` or `amd`, by stack.yaml or else by the words of the service's log; "" if neither shows it."""
        planned = self.planned_service(service)
        if planned and planned.gpus:
            return "amd" if planned.gpus.driver == "amd" else "nvidia"
        # `gpu_driver` has a default, so only `amd` was chosen by a person
        if self.spec and self.spec.gpu_driver == "amd":
            return "amd"
        text = next((one.log for one in self.services if one.service == service), self.compose_output)
        if NVIDIA_WORDS.search(text):
            return "nvidia"
        return "amd" if AMD_WORDS.search(text) else ""

    def read_log(self, service: str) -> str:
        """The log and the error of the service; for "", what Compose printed."""
        return next((f"{one.log}\n{one.error}" for one in self.services if one.service == service), self.compose_output)

    def is_wsl(self, service: str) -> bool:
        """Whether this machine, or the words of the service's log, show WSL; False if that is unknown."""
        return bool(self.machine and self.machine.wsl) or is_wsl_text(self.read_log(service))

    def is_virtual(self, service: str) -> bool:
        """Whether this machine, or the words of the service's log, show a virtual machine; False if unknown."""
        return bool(self.machine and self.machine.virtual) or is_virtual_text(self.read_log(service))

    def is_jetson(self, service: str) -> bool:
        """Whether this machine, the words of a log, or stack.yaml name a Jetson; False if that is unknown."""
        named = is_jetson_text(self.read_log(service)) or bool(self.spec and is_jetson_text(repr(self.spec)))
        return named or bool(self.machine and self.machine.jetson)

    def gpu_capability(self, service: str) -> float | None:
        """The lowest compute capability of the service's GPUs, or what its log names; None if that is unknown."""
        known = [float(one.compute) for one in self.gpu_devices(service) if one.compute]
        return min(known) if known else find_capability(self.read_log(service))

    def find_model(self, service: str) -> tuple[int, ModelSpec] | None:
        """The index in stack.yaml and the spec of the model that the service serves; None if that is unknown."""
        if self.spec is None:
            return None
        planned = self.planned_service(service)
        models: list[tuple[int, ModelSpec]] = [
            (index, model)
            for index, model in enumerate(self.spec.models)
            if planned is None or not planned.engine or model.engine == planned.engine
        ]
        # FastChat takes several names in one argument, separated by commas
        arguments = {part for argument in (planned.command if planned else ()) for part in argument.split(",")}
        named = [(i, one) for i, one in models if arguments & set(one.served_names or (one.model,))]
        # without a matching name, the first model of this engine is the best guess
        return next(iter(named or models), None)


def detect_engine(text: str) -> str:
    """The engine that wrote the log `text`; "" if `text` contains no marker of an engine."""
    counted = [(sum(text.count(marker) for marker in markers), name) for name, markers in ENGINE_MARKERS]
    count, name = max(counted)
    return name if count else ""
