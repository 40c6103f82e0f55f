"""The services behind an endpoint, from data of a stub observer; live tests use real containers."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import pytest

from stackgen.check import check
from stackgen.check.options import Options
from stackgen.check.topology import ProbeResult, ServiceView, Unobservable

from .conftest import DIALECTS, FASTCHAT, result, run_check, target
from .fake import Fake, json_answer

API = ServiceView("fastchat-api", "api", True, "running", "healthy", digest="sha256:abcdef1234567890")
CONTROLLER = ServiceView("fastchat-controller", "controller", False, "running", "healthy")
WORKER = ServiceView("fastchat-tiny", "worker", False, "running", "healthy")


@dataclass
class Shown:
    """An observer that returns what the test sets."""

    views: tuple[ServiceView, ...]
    probes: tuple[ProbeResult, ...] = ()
    looks: int = 0

    def services(self) -> tuple[ServiceView, ...]:
        self.looks += 1
        return self.views

    def run_probes(self, timeout: float) -> tuple[ProbeResult, ...]:
        return self.probes


def seen(fake: Fake, *views: ServiceView, probes: tuple[ProbeResult, ...] = (), **options: Any) -> Any:
    return run_check(replace(target(fake, FASTCHAT), observer=Shown(views, probes)), **options)


def test_a_stack_as_planned_passes(fastchat: Fake) -> None:
    report = seen(fastchat, API, CONTROLLER, WORKER, probes=(ProbeResult("fastchat-tiny", True, 0.2, ""),))
    assert report.results[0].name == "containers"
    assert (
        result(report, "containers").message
        == "3 services are running: fastchat-api, fastchat-controller, fastchat-tiny"
    )
    found = result(report, "topology")
    assert (found.status, found.message) == ("pass", "3 services run as planned, and 1 service probe passed")
    assert "fastchat-api: running, healthy, abcdef123456" in found.evidence
    assert found.figures == {"fastchat-tiny_seconds": 0.2}


@pytest.mark.parametrize(
    ("state", "code", "message", "hint"),
    [
        ("paused", None, "fastchat-api is paused", "docker unpause"),
        ("exited", 1, "fastchat-api has exited (exit code 1)", "stackgen logs fastchat-api"),
        ("restarting", None, "fastchat-api is restarting", "stackgen logs fastchat-api"),
        ("absent", None, "fastchat-api does not exist", "stackgen up"),
        ("created", None, "fastchat-api is created but not started", "waits for another service"),
        ("dead", 137, "fastchat-api is dead (exit code 137)", "stackgen down"),
    ],
)
def test_a_front_service_that_is_down_is_named_at_once(
    fastchat: Fake, state: str, code: int | None, message: str, hint: str
) -> None:
    report = seen(fastchat, replace(API, state=state, exit_code=code, log="KeyError: boom"), WORKER)
    found = result(report, "containers")
    assert (found.status, found.message, found.evidence) == ("fail", message, "KeyError: boom")
    assert hint in found.hint
    # no other check runs, and no request is sent
    assert {one.status for one in report.results[1:]} == {"skip"}
    assert fastchat.seen == []


def test_a_worker_that_is_down_does_not_stop_the_other_checks(fastchat: Fake) -> None:
    dead = replace(WORKER, state="exited", exit_code=137, oom_killed=True)
    report = seen(fastchat, API, CONTROLLER, dead)
    assert result(report, "containers").message == "fastchat-tiny was killed: out of memory (OOM)"
    assert result(report, "chat").status == "pass"
    assert result(report, "topology").status == "fail"
    assert not report.ok


@pytest.mark.parametrize(
    ("worker", "status", "message"),
    [
        ({"health": "unhealthy"}, "fail", "fastchat-tiny is unhealthy"),
        ({"missing_networks": ("fastchat",)}, "fail", "fastchat-tiny is not connected to the network fastchat"),
        ({"published": ("0.0.0.0:21002",)}, "fail",
         "fastchat-tiny has no authentication but is reachable at 0.0.0.0:21002"),
        ({"gpus_planned": ("0", "1"), "gpus_reserved": ("0", "1"), "gpus_seen": 1}, "fail",
         "fastchat-tiny sees 1 of 2 planned GPUs"),
        ({"gpus_planned": ("count=-1",), "gpus_reserved": ("count=-1",), "gpus_seen": 0}, "fail",
         "fastchat-tiny sees 0 of 1 planned GPUs"),
        ({"gpus_planned": ("1",), "gpus_reserved": ("0",), "gpus_seen": 1}, "warn",
         "fastchat-tiny has other GPUs than planned (reserved: 0; planned: 1)"),
        ({"gpus_planned": ("0",), "gpus_reserved": ("0",), "gpus_seen": None}, "pass", "2 services run as planned"),
        ({"image": "x:1", "image_changed": True}, "warn",
         "fastchat-tiny runs an older image: x:1 now points to another image"),
        ({"restarts": 3}, "warn", "fastchat-tiny has restarted 3 times"),
        ({"drained": "drained since 2026-11-28 17:05:21 by stackgen update (process 4711)"}, "warn",
         "fastchat-tiny gets no requests from the gateway: drained since 2026-11-28 17:05:21 by stackgen update "
         "(process 4711)"),
        ({"oom_killed": True}, "warn", "a process in fastchat-tiny was killed: out of memory (OOM)"),
    ],
)  # fmt: skip
def test_differences_from_the_plan_are_reported(
    fastchat: Fake, worker: dict[str, Any], status: str, message: str
) -> None:
    found = result(seen(fastchat, API, replace(WORKER, **worker)), "topology")
    assert (found.status, found.message) == (status, message)


def test_a_probe_counts_more_than_dockers_last_health_check(fastchat: Fake) -> None:
    tired = replace(WORKER, health="unhealthy")
    found = result(seen(fastchat, API, tired, probes=(ProbeResult("fastchat-tiny", True, 0.1, ""),)), "topology")
    assert (found.status, found.message) == (
        "warn",
        "Docker still reports fastchat-tiny as unhealthy, although fastchat-tiny answers",
    )
    found = result(seen(fastchat, replace(API, health="unhealthy"), WORKER), "topology")
    assert found.status == "warn"
    mute = ProbeResult("fastchat-tiny", False, 0.1, "no")
    assert result(seen(fastchat, API, tired, probes=(mute,)), "topology").status == "fail"


def test_a_worker_that_does_not_generate_is_named_with_its_output(fastchat: Fake) -> None:
    mute = ProbeResult(
        "fastchat-tiny", False, 5.0, "Traceback\nthe controller does not know http://fastchat-tiny:21002"
    )
    found = result(seen(fastchat, API, WORKER, probes=(mute,)), "topology")
    assert (
        found.message == "fastchat-tiny does not generate text: the controller does not know http://fastchat-tiny:21002"
    )
    silent = ProbeResult("fastchat-tiny", False, 5.0, "")
    assert "no answer in time" in result(seen(fastchat, API, WORKER, probes=(silent,)), "topology").message


def test_without_a_stack_the_service_checks_are_left_out(fastchat: Fake) -> None:
    names = [one.name for one in run_check(target(fastchat, FASTCHAT)).results]
    assert "containers" not in names
    assert "topology" not in names
    selected = run_check(target(fastchat, FASTCHAT), select=("topology",))
    assert result(selected, "topology").status == "skip"


def test_waiting_ends_at_once_when_a_container_has_exited(fastchat: Fake) -> None:
    fastchat.routes["GET /v1/models"] = lambda _: (_ for _ in ()).throw(AssertionError("asked"))
    updates: list[str] = []
    started = time.monotonic()
    one = replace(target(fastchat, FASTCHAT), observer=Shown((API, replace(WORKER, state="exited", exit_code=2))))
    check([one], Options(timeout=1, select=("containers",)), wait=60, dialects=DIALECTS,
          on_progress=lambda *update: updates.append(update[2]))  # fmt: skip
    assert time.monotonic() - started < 5
    assert updates[0] == "not waiting: fastchat-tiny has exited (exit code 2)"


def test_an_observer_error_is_a_failure_without_a_traceback(fastchat: Fake) -> None:
    class Away(Shown):
        def services(self) -> tuple[ServiceView, ...]:
            raise OSError("no engine")

    report = run_check(replace(target(fastchat, FASTCHAT), observer=Away(())))
    assert result(report, "containers").message == "can't inspect the services: no engine"
    assert result(report, "chat").status == "pass"


def test_without_a_docker_engine_the_service_checks_are_skipped(fastchat: Fake) -> None:
    class Blind(Shown):
        def services(self) -> tuple[ServiceView, ...]:
            raise Unobservable("the Docker engine does not answer: no such file")

    report = run_check(replace(target(fastchat, FASTCHAT), observer=Blind(())))
    for name in ("containers", "topology"):
        found = result(report, name)
        assert (found.status, found.message) == ("skip", "the Docker engine does not answer: no such file")
    assert report.ok


def test_a_running_service_without_completions_is_named(fastchat: Fake) -> None:
    fastchat.routes["POST /v1/chat/completions"] = json_answer({"message": "EngineDeadError"}, 500)
    found = result(seen(fastchat, API, CONTROLLER), "topology")
    assert (found.status, found.message.partition(":")[0]) == (
        "fail",
        "fastchat-api is running but returns no completion",
    )
    # if a service behind it is to blame, only that one is named
    mute = ProbeResult("fastchat-controller", False, 0.1, "no")
    assert "fastchat-api" not in result(seen(fastchat, API, CONTROLLER, probes=(mute,)), "topology").message
    gone = replace(target(fastchat, FASTCHAT), base_url="http://127.0.0.1:9/v1", observer=Shown((API,)))
    assert (
        "fastchat-api is running but returns no completion: nothing listens"
        in result(run_check(gone), "topology").message
    )


def test_a_controller_that_lost_all_workers_is_blamed_instead_of_them(fastchat: Fake) -> None:
    other = replace(WORKER, name="fastchat-tiny-2")
    strange = [ProbeResult(one.name, False, 0.1, f"the controller does not know http://{one.name}:21002")
               for one in (WORKER, other)]  # fmt: skip
    well = ProbeResult("fastchat-controller", True, 0.1, "")
    found = result(seen(fastchat, API, CONTROLLER, WORKER, other, probes=(well, *strange)), "topology")
    assert found.message.startswith(
        "fastchat-controller does not generate text: the controller knows none of its workers"
    )
    assert "fastchat-tiny" not in found.message
    # if only one of two is unknown, that one is to blame
    one = result(seen(fastchat, API, CONTROLLER, WORKER, other, probes=(well, strange[0])), "topology")
    assert one.message.startswith("fastchat-tiny does not generate")


def test_a_published_port_that_accepts_no_connection_is_named(fastchat: Fake) -> None:
    report = seen(fastchat, replace(API, unreachable_ports=("127.0.0.1:8000",)), WORKER)
    found = result(report, "containers")
    assert found.status == "fail" and not report.ok
    assert found.message == "fastchat-api is healthy, but its published port 127.0.0.1:8000 accepts no connections"
    assert "docker compose restart fastchat-api" in found.hint
