"""The two checks of the services behind an endpoint; `topology.py` defines the data that a runtime gives them."""

from __future__ import annotations

from stackgen.check.checks.verdict import Context, Verdict, fail, skip, succeed, warn
from stackgen.check.topology import ProbeResult, ServiceView

__all__ = ["containers", "describe_state", "topology"]

UNKNOWN = "only the URL is known, not the stack behind it"
# Docker's names of states, as a sentence about the service
STATES = {
    "absent": "does not exist",
    "created": "is created but not started",
    "exited": "has exited",
}
HINTS = {
    "absent": "start it with `stackgen up`",
    "created": "it is waiting for another service, or failed to start: see `stackgen status` and `stackgen logs`",
    "paused": "resume it with `docker unpause`",
    "restarting": "it keeps crashing: `stackgen logs {name}` shows why",
    "exited": "`stackgen logs {name}` shows why; start it again with `stackgen up`",
    "dead": "run `stackgen down`, then `stackgen up`",
}


def containers(context: Context, _model: str) -> Verdict:
    """Every service that the endpoint depends on is running. Other checks are skipped if the front service is not."""
    observer = context.session.target.observer
    if observer is None:
        return skip(UNKNOWN)
    services = observer.services()
    down = [service for service in services if service.state != "running"]
    if not down:
        restarted = [f"{one.name} has restarted {one.restarts} times" for one in services if one.restarts]
        return succeed(f"{len(services)} running: {', '.join(one.name for one in services)}", notes=tuple(restarted))
    # the front service first: without it nothing answers; without a worker, other models may still do
    down.sort(key=lambda one: not one.front)
    first = down[0]
    more = f"; {', '.join(describe_state(one) for one in down[1:])}" if down[1:] else ""
    context.front_is_down = first.front
    hint = HINTS.get(first.state, "see `stackgen status`").format(name=first.name)
    return fail(f"{describe_state(first)}{more}", hint=hint, evidence=first.log)


def topology(context: Context, _model: str) -> Verdict:
    """Every worker and replica generates, is registered under its own name, and has the planned GPUs and image."""
    observer = context.session.target.observer
    if observer is None:
        return skip(UNKNOWN)
    services = observer.services()
    failures: list[tuple[str, str]] = []
    warnings: list[str] = []
    probes = observer.run_probes(context.options.timeout)
    working = {one.service for one in probes if one.ok}
    for service in services:
        failures += _find_failures(service)
        warnings += _find_warnings(service)
        if service.health == "unhealthy":
            # Docker runs health checks every 30 s, so its state may be older than the probe's result
            if service.name in working or (service.front and context.answer is not None):
                warnings.append(f"Docker still reports {service.name} as unhealthy, although it answers")
            else:
                failures.append((f"{service.name} is unhealthy", f"see `stackgen logs {service.name}`"))
    probes = _blame_controller(services, probes)
    for one in probes:
        if not one.ok:
            reason = one.output.splitlines()[-1] if one.output else "no answer in time"
            failures.append((f"{one.service} does not generate: {reason}", f"see `stackgen logs {one.service}`"))
    # the front runs and nothing behind it is to blame: its own engine has died or is restarting
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
            hint="run `stackgen up` to bring the stack in line with its file",
            evidence=evidence,
            notes=tuple(warnings[1:]),
            figures=figures,
        )
    count = f"{len(services)} service{'s' * (len(services) > 1)}"
    probed = f", {len(probes)} service probes passed" if probes else ""
    return succeed(f"{count} as planned{probed}", evidence=evidence, figures=figures)


def _blame_controller(services: tuple[ServiceView, ...], probes: tuple[ProbeResult, ...]) -> tuple[ProbeResult, ...]:
    """The probes; if the controller knows none of its workers, one failure of the controller replaces theirs."""
    workers = {one.name for one in services if one.role == "worker"}
    unregistered = {one.service for one in probes if not one.ok and "controller does not know" in one.output}
    controller = next((one.name for one in services if one.role == "controller"), None)
    if controller is None or not workers or unregistered != workers:
        return probes
    # a controller keeps its workers in memory only, so a restart loses them all
    output = "it knows none of its workers; it has probably restarted"
    others = [one for one in probes if one.service not in {*workers, controller}]
    seconds = max(one.seconds for one in probes if one.service in workers)
    return (*others, ProbeResult(service=controller, ok=False, seconds=seconds, output=output))


def describe_state(service: ServiceView) -> str:
    """The state of a service as a sentence: `vllm-tiny has exited (exit code 1)`."""
    # named first, because exit code 137 alone does not say who killed it
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
        failures.append((message, "reconnect it with `stackgen up`"))
    # FastChat's controller and workers accept commands from anyone who can reach them
    if service.role in ("controller", "worker") and service.published:
        message = f"{service.name} has no authentication but is reachable at {', '.join(service.published)}"
        failures.append((message, "remove its `ports:` from compose.yaml"))
    planned = _gpu_count(service.gpus_planned)
    if service.gpus_seen is not None and service.gpus_planned and service.gpus_seen < planned:
        message = f"{service.name} sees {service.gpus_seen} of {planned} GPUs"
        failures.append((message, "check the driver; a daemon reload takes the GPUs away from running containers"))
    return failures


def _find_warnings(service: ServiceView) -> list[str]:
    """Differences from the plan that keep no client from working."""
    warnings = []
    if service.image_changed:
        warnings.append(f"{service.name} runs an older image: {service.image} now points to another one")
    if service.state == "running" and service.gpus_reserved != service.gpus_planned:
        reserved, planned = _format_gpus(service.gpus_reserved), _format_gpus(service.gpus_planned)
        warnings.append(f"{service.name} has GPUs {reserved}, but the plan has {planned}")
    if service.restarts:
        warnings.append(f"{service.name} has restarted {service.restarts} times")
    # the OOM killer may hit a child process, and then the container goes on
    if service.oom_killed and service.state == "running":
        warnings.append(f"a process in {service.name} was killed: out of memory (OOM)")
    return warnings


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
