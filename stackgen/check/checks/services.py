"""The checks `containers` (are all services running?) and `topology` (does every replica and worker generate text?).

`topology.py` defines the data that these checks read.
"""

from __future__ import annotations

from stackgen.check.checks.verdict import Context, Verdict, fail, skip, succeed, warn
from stackgen.check.topology import ProbeResult, ServiceView

__all__ = ["containers", "describe_state", "topology"]

UNKNOWN = "only the URL of this endpoint is known, not the stack behind the URL"
# Docker's states as the predicate of a sentence about the service
STATES = {
    "absent": "does not exist",
    "created": "is created but not started",
    "exited": "has exited",
}
HINTS = {
    "absent": "start the service with `stackgen up`",
    "created": "the service waits for another service, or failed to start: see `stackgen status` and `stackgen logs`",
    "paused": "resume the service with `docker unpause`",
    "restarting": "the service keeps crashing: `stackgen logs {name}` shows why",
    "exited": "`stackgen logs {name}` shows why the service exited; start it again with `stackgen up`",
    "dead": "run `stackgen down`, then `stackgen up`",
}
PORT_HINT = (
    "the process that forwards the port (docker-proxy) has probably ended. `docker compose restart {name}` starts it "
    "again, but also ends all requests in flight"
)


def containers(context: Context, _model: str) -> Verdict:
    """Every service that the endpoint depends on is running. If the front service is down, other checks are skipped."""
    observer = context.session.target.observer
    if observer is None:
        return skip(UNKNOWN)
    services = observer.services()
    down = [service for service in services if service.state != "running"]
    if not down and (silent := [one for one in services if one.unreachable_ports]):
        message = "; ".join(
            f"{one.name} is healthy, but its published port {', '.join(one.unreachable_ports)} accepts no connections"
            for one in silent
        )
        return fail(message, hint=PORT_HINT.format(name=silent[0].name))
    if not down:
        restarted = [f"{one.name} has restarted {_times(one.restarts)}" for one in services if one.restarts]
        are = "service is" if len(services) == 1 else "services are"
        return succeed(
            f"{len(services)} {are} running: {', '.join(one.name for one in services)}", notes=tuple(restarted)
        )
    # the front service first: nothing answers without it, while other models may still answer without one worker
    down.sort(key=lambda one: not one.front)
    first = down[0]
    more = f"; {', '.join(describe_state(one) for one in down[1:])}" if down[1:] else ""
    context.front_is_down = first.front
    hint = HINTS.get(first.state, "see `stackgen status`").format(name=first.name)
    return fail(f"{describe_state(first)}{more}", hint=hint, evidence=first.log)


def topology(context: Context, _model: str) -> Verdict:
    """Every worker and replica generates text, is registered under its own name, and has the planned GPUs and image."""
    observer = context.session.target.observer
    if observer is None:
        return skip(UNKNOWN)
    services = observer.services()
    failures: list[tuple[str, str]] = []
    warnings: list[str] = []
    probes = observer.run_probes(context.session.timeout)
    working = {one.service for one in probes if one.ok}
    for service in services:
        failures += _find_failures(service)
        warnings += _find_warnings(service)
        if service.health == "unhealthy":
            # Docker runs health checks every 30 s, so its state may be older than the probe's result
            if service.name in working or (service.front and context.answer is not None):
                warnings.append(f"Docker still reports {service.name} as unhealthy, although {service.name} answers")
            else:
                failures.append((f"{service.name} is unhealthy", f"see `stackgen logs {service.name}`"))
    probes = _blame_controller(services, probes)
    for one in probes:
        if not one.ok:
            reason = one.output.splitlines()[-1] if one.output else "a test request got no answer in time"
            failures.append((f"{one.service} does not generate text: {reason}", f"see `stackgen logs {one.service}`"))
    # the front service runs and no service behind it failed: its own engine has died or is restarting
    if not failures and context.completion_failure and (front := next((one for one in services if one.front), None)):
        message = f"{front.name} is running but returns no completion: {context.completion_failure}"
        failures.append((message, f"see `stackgen logs {front.name}`"))
    figures = {f"{one.service}_seconds": one.seconds for one in probes}
    evidence = "; ".join(_evidence_line(one, probes) for one in services)
    if failures:
        # several services may fail for one reason, which is reported once
        message = "; ".join(dict.fromkeys(message for message, _ in failures))
        return fail(message, hint=failures[0][1], evidence=evidence, figures=figures)
    if warnings:
        return warn(
            warnings[0],
            hint="run `stackgen up` to apply the stack file to the running stack",
            evidence=evidence,
            notes=tuple(warnings[1:]),
            figures=figures,
        )
    count = "1 service runs" if len(services) == 1 else f"{len(services)} services run"
    probed = f", and {len(probes)} service probe{'s' * (len(probes) != 1)} passed" if probes else ""
    return succeed(f"{count} as planned{probed}", evidence=evidence, figures=figures)


def _blame_controller(services: tuple[ServiceView, ...], probes: tuple[ProbeResult, ...]) -> tuple[ProbeResult, ...]:
    """Returns the probes. If the controller knows no worker, its failure replaces the failures of all workers."""
    workers = {one.name for one in services if one.role == "worker"}
    unregistered = {one.service for one in probes if not one.ok and "controller does not know" in one.output}
    controller = next((one.name for one in services if one.role == "controller"), None)
    if controller is None or not workers or unregistered != workers:
        return probes
    # a controller keeps its workers in memory only, so a restart loses them all
    output = "the controller knows none of its workers, probably because the controller has restarted"
    others = [one for one in probes if one.service not in {*workers, controller}]
    seconds = max(one.seconds for one in probes if one.service in workers)
    return (*others, ProbeResult(service=controller, ok=False, seconds=seconds, output=output))


def describe_state(service: ServiceView) -> str:
    """Returns the state of a service as a sentence: `vllm-tiny has exited (exit code 1)`."""
    # reported first, because exit code 137 alone does not show who killed the service
    if service.oom_killed:
        return f"{service.name} was killed: out of memory (OOM)"
    code = f" (exit code {service.exit_code})" if service.exit_code is not None else ""
    return f"{service.name} {STATES.get(service.state, f'is {service.state}')}{code}"


def _find_failures(service: ServiceView) -> list[tuple[str, str]]:
    """The failures of a service, as pairs of message and hint."""
    failures = []
    logs = f"see `stackgen logs {service.name}`"
    if service.state != "running":
        failures.append((describe_state(service), HINTS.get(service.state, logs).format(name=service.name)))
    for network in service.missing_networks:
        message = f"{service.name} is not connected to the network {network}"
        failures.append((message, "reconnect the service with `stackgen up`"))
    # FastChat's controller and workers accept commands from anyone who can reach them
    if service.role in ("controller", "worker") and service.published:
        message = f"{service.name} has no authentication but is reachable at {', '.join(service.published)}"
        failures.append((message, "remove the `ports:` of this service from compose.yaml"))
    planned = _gpu_count(service.gpus_planned)
    if service.gpus_seen is not None and service.gpus_planned and service.gpus_seen < planned:
        message = f"{service.name} sees {service.gpus_seen} of {planned} planned GPUs"
        hint = (
            "check the GPU driver. Another possible cause: `systemctl daemon-reload` takes the GPUs away from running"
            " containers"
        )
        failures.append((message, hint))
    return failures


def _find_warnings(service: ServiceView) -> list[str]:
    """Returns differences from the plan that don't affect clients."""
    warnings = []
    if service.image_changed:
        warnings.append(f"{service.name} runs an older image: {service.image} now points to another image")
    if service.state == "running" and service.gpus_reserved != service.gpus_planned:
        reserved, planned = _format_gpus(service.gpus_reserved), _format_gpus(service.gpus_planned)
        warnings.append(f"{service.name} has other GPUs than planned (reserved: {reserved}; planned: {planned})")
    if service.drained:
        warnings.append(f"{service.name} gets no requests from the gateway: {service.drained}")
    if service.restarts:
        warnings.append(f"{service.name} has restarted {_times(service.restarts)}")
    # the OOM killer may kill only a child process; then the container keeps running
    if service.oom_killed and service.state == "running":
        warnings.append(f"a process in {service.name} was killed: out of memory (OOM)")
    return warnings


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _evidence_line(service: ServiceView, probes: tuple[ProbeResult, ...]) -> str:
    took = next(
        (f", its probe took {one.seconds:.2f} s" for one in probes if one.service == service.name and one.ok), ""
    )
    health = f", {service.health}" if service.health else ""
    seen = "" if service.gpus_seen is None else f" ({service.gpus_seen} seen)"
    gpus = f", GPUs {_format_gpus(service.gpus_reserved)}{seen}" if service.gpus_reserved else ""
    digest = f", {service.digest.removeprefix('sha256:')[:12]}" if service.digest else ""
    return f"{service.name}: {service.state}{health}{digest}{gpus}{took}"


def _gpu_count(gpus: tuple[str, ...]) -> int:
    """The number of GPUs; `count=-1` means all of them, which is at least one."""
    if len(gpus) == 1 and gpus[0].startswith("count="):
        return max(1, int(gpus[0][6:]))
    return len(gpus)


def _format_gpus(gpus: tuple[str, ...]) -> str:
    return ", ".join(gpus) or "none"
