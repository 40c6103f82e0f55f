"""The evidence about a failed stack, as plain data. `stackgen.runtimes.observation.evidence` collects it."""

from __future__ import annotations

from dataclasses import dataclass

from stackgen.diagnose.gpus import GpuDevice, GpuState
from stackgen.plan import Plan, Service
from stackgen.spec import ModelSpec, StackSpec

__all__ = ["HEAD_LINES", "LOG_LINES", "Evidence", "ServiceEvidence", "detect_engine"]

# how many of the last lines of a log are read: enough for vLLM's usage text and a few attempts
LOG_LINES = 2000
# how many of the first lines of a longer log are read: they show how a server was started days ago
HEAD_LINES = 500
# text that only one engine prints
ENGINE_MARKERS = (
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


@dataclass(frozen=True, slots=True)
class ServiceEvidence:
    """One service: the state of its container (or local process), and its log.

    `state` is Docker's State.Status (running, exited, restarting, created, paused, dead). It is `absent` without a
    container, and "" if only a log is known. `health` is Docker's health status, or `unsupervised` for a local process
    whose supervisor was killed. `error` is Docker's `State.Error`. `health_log` is the output of the last health
    checks. `log` has at most `HEAD_LINES` plus `LOG_LINES` lines (see `log_lines.keep_head_and_tail`). `metrics` is
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
    `secrets` are values that no output may show. `gpus` is the state of this machine's GPUs, or None for a log alone,
    which may come from another machine.
    """

    services: tuple[ServiceEvidence, ...] = ()
    compose_output: str = ""
    spec: StackSpec | None = None
    plan: Plan | None = None
    checks: tuple[tuple[str, str], ...] = ()
    secrets: tuple[str, ...] = ()
    gpus: GpuState | None = None

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
