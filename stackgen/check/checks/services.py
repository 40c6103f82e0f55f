"""The two checks of what stands behind an endpoint; `topology.py` says what a runtime gives them."""

from __future__ import annotations

from stackgen.check.checks.verdict import Context, Verdict, failed, passed, skipped, warned
from stackgen.check.topology import Exercise, ServiceView

__all__ = ["containers", "topology"]

UNKNOWN = "the stack is not known here, only the URL"
HINTS = {
    "absent": "`stackgen up` starts it",
    "created": "it waits for another service, or could not be started: `stackgen status`, `stackgen logs`",
    "paused": "`docker unpause` lets it go on",
    "restarting": "it fails again and again: `stackgen logs {name}` says of what",
    "exited": "`stackgen logs {name}` says why; `stackgen up` starts it again",
    "dead": "`stackgen down`, then `stackgen up`",
}


def containers(context: Context, _model: str) -> Verdict:
    """Every service that the endpoint depends on runs. Only one without which nothing answers blocks what follows."""
    observer = context.session.target.observer
    if observer is None:
        return skipped(UNKNOWN)
    services = observer.services()
    bad = [service for service in services if service.state != "running"]
    if not bad:
        restarted = [f"{one.name} was restarted {one.restarts} times" for one in services if one.restarts]
        return passed(f"{len(services)} running: {', '.join(one.name for one in services)}", notes=tuple(restarted))
    bad.sort(key=lambda one: not one.front)
    first = bad[0]
    more = f"; {', '.join(_state(one) for one in bad[1:])}" if bad[1:] else ""
    context.blocked = first.front
    return failed(
        f"{_state(first)}{more}", HINTS.get(first.state, "`stackgen status`").format(name=first.name), first.log
    )


def topology(context: Context, _model: str) -> Verdict:
    """Every worker and replica generates, registered under its own name, with the GPUs and image that were planned."""
    observer = context.session.target.observer
    if observer is None:
        return skipped(UNKNOWN)
    services = observer.services()
    wrong: list[tuple[str, str]] = []
    notes: list[str] = []
    exercises = observer.exercise(context.options.timeout)
    works = {one.service for one in exercises if one.ok}
    for service in services:
        wrong += _faults(service)
        notes += _oddities(service)
        if service.health == "unhealthy":
            # Docker looks each 30 s, so its word may be older than what was just seen
            if service.name in works or (service.front and context.answer is not None):
                notes.append(f"Docker still calls {service.name} unhealthy, though it answers")
            else:
                wrong.append((f"{service.name} is unhealthy", f"`stackgen logs {service.name}`"))
    exercises = _forgotten(services, exercises)
    wrong += [(f"{one.service} does not generate: {one.said.splitlines()[-1] if one.said else 'no answer in time'}",
               f"`stackgen logs {one.service}`") for one in exercises if not one.ok]  # fmt: skip
    # it runs, and nobody behind it is to blame: its engine has died, or it is being started again
    if not wrong and context.broken and (front := next((one for one in services if one.front), None)):
        wrong.append((f"{front.name} runs, and gives no completion: {context.broken}", f"`stackgen logs {front.name}`"))
    figures = {f"{one.service}_seconds": one.seconds for one in exercises}
    evidence = "; ".join(_line(one, exercises) for one in services)
    if wrong:
        return failed("; ".join(dict.fromkeys(message for message, _ in wrong)), wrong[0][1], evidence, figures=figures)
    if notes:
        return warned(notes[0], "`stackgen up` brings the stack in line with its file", evidence,
                      notes=tuple(notes[1:]), figures=figures)  # fmt: skip
    probes = f", {len(exercises)} own probes passed" if exercises else ""
    return passed(f"{len(services)} service{'s' * (len(services) > 1)} as planned{probes}", evidence,
                  figures=figures)  # fmt: skip


def _forgotten(services: tuple[ServiceView, ...], exercises: tuple[Exercise, ...]) -> tuple[Exercise, ...]:
    """The exercises, with the controller to blame where all workers say that it does not know them."""
    workers = {one.name for one in services if one.role == "worker"}
    strangers = {one.service for one in exercises if not one.ok and "controller does not know" in one.said}
    controller = next((one.name for one in services if one.role == "controller"), None)
    if controller is None or not workers or strangers != workers:
        return exercises
    told = "it knows none of its workers, and was started again, it seems"
    left = [one for one in exercises if one.service not in {*workers, controller}]
    seconds = max(one.seconds for one in exercises if one.service in workers)
    return (*left, Exercise(controller, False, seconds, told))


def _state(service: ServiceView) -> str:
    if service.oom_killed:
        return f"{service.name} was killed for want of memory"
    code = f" with code {service.exit_code}" if service.exit_code is not None else ""
    return f"{service.name} is {service.state}{code}"


def _faults(service: ServiceView) -> list[tuple[str, str]]:
    found = []
    logs = f"`stackgen logs {service.name}`"
    if service.state != "running":
        found.append((_state(service), HINTS.get(service.state, logs).format(name=service.name)))
    for network in service.missing_networks:
        found.append((f"{service.name} is cut off from the network {network}", "`stackgen up` connects it again"))
    if service.role in ("controller", "worker") and service.published:
        found.append((f"{service.name} has no authentication, and is reached at {', '.join(service.published)}",
                      "take its `ports:` out of compose.yaml"))  # fmt: skip
    if service.gpus_seen is not None and service.gpus_planned and service.gpus_seen < _count(service.gpus_planned):
        found.append((f"{service.name} sees {service.gpus_seen} of {_count(service.gpus_planned)} GPUs",
                      "is the driver well? a daemon reload takes GPUs from running containers"))  # fmt: skip
    return found


def _oddities(service: ServiceView) -> list[str]:
    found = []
    if service.image_changed:
        found.append(f"{service.name} runs an older image than {service.image} is now")
    if service.state == "running" and service.gpus_reserved != service.gpus_planned:
        found.append(
            f"{service.name} has GPUs {_ids(service.gpus_reserved)}, and {_ids(service.gpus_planned)} are planned"
        )
    if service.restarts:
        found.append(f"{service.name} was restarted {service.restarts} times")
    if service.oom_killed and service.state == "running":
        found.append(f"a process of {service.name} was killed for want of memory")
    return found


def _line(service: ServiceView, exercises: tuple[Exercise, ...]) -> str:
    took = next(
        (f", its own probe took {one.seconds:.2f} s" for one in exercises if one.service == service.name and one.ok), ""
    )
    health = f", {service.health}" if service.health else ""
    seen = "" if service.gpus_seen is None else f" ({service.gpus_seen} seen)"
    gpus = f", GPUs {_ids(service.gpus_reserved)}{seen}" if service.gpus_reserved else ""
    digest = f", {service.digest.removeprefix('sha256:')[:12]}" if service.digest else ""
    return f"{service.name}: {service.state}{health}{digest}{gpus}{took}"


def _count(gpus: tuple[str, ...]) -> int:
    """How many GPUs are meant; `count=-1` is all of them, which at least one is."""
    if len(gpus) == 1 and gpus[0].startswith("count="):
        return max(1, int(gpus[0][6:]))
    return len(gpus)


def _ids(gpus: tuple[str, ...]) -> str:
    return ", ".join(gpus) or "none"
