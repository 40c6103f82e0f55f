"""What is known about a stack that failed, as plain data. Collected by `stackgen.runtimes.observation.evidence`."""

from __future__ import annotations

from dataclasses import dataclass

from stackgen.diagnose.gpus import Card, GpuState
from stackgen.plan import Plan, Service
from stackgen.spec import ModelSpec, StackSpec

__all__ = ["HEAD_LINES", "LOG_LINES", "Evidence", "ServiceEvidence", "guess_engine"]

# lines of each log that are read: the last ones, where vLLM's own usage text and a few tries fit, and the first ones,
# which say how a server that runs for days was started
LOG_LINES = 2000
HEAD_LINES = 500
# the engine by what only it prints
MARKS = (
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
    """One service: its container as Docker sees it, and its log.

    `state` is Docker's word (running, exited, restarting, created, paused, dead, or absent), "" where only a log is
    known. `health` is Docker's word too, or `unsupervised` for a local process whose supervisor was killed. `error` is
    Docker's own `State.Error`, `health_log` what the last health checks said, `log` at most `HEAD_LINES` and
    `LOG_LINES` lines (see `lines.window`), `metrics` the text of vLLM's /metrics.
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
    def works(self) -> bool:
        """It runs and its health check, where it has one, passes; a finished download works too."""
        if self.role == "download" and self.state == "exited":
            return self.exit_code == 0
        return self.state == "running" and self.health in ("healthy", "")

    @property
    def loads(self) -> bool:
        """It runs since its first start and is not ready yet."""
        return self.state == "running" and self.health == "starting" and self.restarts == 0

    @property
    def failed(self) -> bool:
        """Docker says that it failed; False where only a log is known."""
        ended = self.state in ("exited", "dead", "restarting", "paused") and not self.works
        return ended or self.health == "unhealthy" or bool(self.error)


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known. `compose_output` is what `docker compose up` printed, `checks` (check, message) pairs of
    failed checks, `secrets` values that no output may show. `gpus` are this machine's cards; None for a log alone,
    which may come from another machine.
    """

    services: tuple[ServiceEvidence, ...] = ()
    compose_output: str = ""
    spec: StackSpec | None = None
    plan: Plan | None = None
    checks: tuple[tuple[str, str], ...] = ()
    secrets: tuple[str, ...] = ()
    gpus: GpuState | None = None

    def planned(self, service: str) -> Service | None:
        """The service as it was planned; None without a plan."""
        return next((one for one in self.plan.services if one.name == service), None) if self.plan else None

    def cards(self, service: str) -> tuple[Card, ...]:
        """The cards that the service uses by its plan; all of the machine's where the plan names none."""
        planned = self.planned(service)
        # CDI names a card as nvidia.com/gpu=0
        ids = [id.rpartition("=")[2] for id in planned.gpus.ids] if planned and planned.gpus else []
        return self.gpus.used_by([] if "all" in ids else ids) if self.gpus else ()

    def uses_gpus(self, service: str) -> bool:
        """Whether the service was planned with NVIDIA's cards; without a plan: perhaps."""
        planned = self.planned(service)
        return planned is None or bool(planned.gpus and planned.gpus.driver != "amd")

    def model(self, service: str) -> tuple[int, ModelSpec] | None:
        """Which model of stack.yaml the service serves, and its index; None where that is not known."""
        if self.spec is None:
            return None
        planned = self.planned(service)
        models: list[tuple[int, ModelSpec]] = [
            (index, model)
            for index, model in enumerate(self.spec.models)
            if planned is None or not planned.engine or model.engine == planned.engine
        ]
        words = {part for word in (planned.command if planned else ()) for part in word.split(",")}
        named = [(i, one) for i, one in models if words & set(one.served_names or (one.model,))]
        return next(iter(named or models), None)


def guess_engine(text: str) -> str:
    """The engine that wrote the log `text`; "" where nothing tells it."""
    counted = [(sum(text.count(mark) for mark in marks), name) for name, marks in MARKS]
    count, name = max(counted)
    return name if count else ""
