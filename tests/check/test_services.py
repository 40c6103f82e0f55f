"""What stands behind an endpoint: judged from what a runtime shows (live tests show it on real containers)."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import pytest

from stackgen.check import check
from stackgen.check.options import Options
from stackgen.check.topology import Exercise, ServiceView, Unobservable

from .conftest import DIALECTS, FASTCHAT, look, result, target
from .fake import Fake, json_answer

API = ServiceView("fastchat-api", "api", True, "running", "healthy", digest="sha256:abcdef1234567890")
CONTROLLER = ServiceView("fastchat-controller", "controller", False, "running", "healthy")
WORKER = ServiceView("fastchat-tiny", "worker", False, "running", "healthy")


@dataclass
class Shown:
    """An observer that shows what the test says."""

    views: tuple[ServiceView, ...]
    exercises: tuple[Exercise, ...] = ()
    looks: int = 0

    def services(self) -> tuple[ServiceView, ...]:
        self.looks += 1
        return self.views

    def exercise(self, timeout: float) -> tuple[Exercise, ...]:
        return self.exercises


def seen(fake: Fake, *views: ServiceView, exercises: tuple[Exercise, ...] = (), **options: Any) -> Any:
    return look(replace(target(fake, FASTCHAT), observer=Shown(views, exercises)), **options)


def test_a_stack_in_order(fastchat: Fake) -> None:
    report = seen(fastchat, API, CONTROLLER, WORKER, exercises=(Exercise("fastchat-tiny", True, 0.2, ""),))
    assert report.results[0].name == "containers"
    assert result(report, "containers").message == "3 running: fastchat-api, fastchat-controller, fastchat-tiny"
    found = result(report, "topology")
    assert (found.status, found.message) == ("pass", "3 services as planned, 1 own probes passed")
    assert "fastchat-api: running, healthy, abcdef123456" in found.evidence
    assert found.figures == {"fastchat-tiny_seconds": 0.2}


@pytest.mark.parametrize(
    ("state", "code", "message", "hint"),
    [
        ("paused", None, "fastchat-api is paused", "docker unpause"),
        ("exited", 1, "fastchat-api is exited with code 1", "stackgen logs fastchat-api"),
        ("restarting", None, "fastchat-api is restarting", "stackgen logs fastchat-api"),
        ("absent", None, "fastchat-api is absent", "stackgen up"),
        ("created", None, "fastchat-api is created", "waits"),
        ("dead", 137, "fastchat-api is dead with code 137", "stackgen down"),
    ],
)
def test_a_front_that_is_down_is_named_at_once(
    fastchat: Fake, state: str, code: int | None, message: str, hint: str
) -> None:
    report = seen(fastchat, replace(API, state=state, exit_code=code, log="KeyError: boom"), WORKER)
    found = result(report, "containers")
    assert (found.status, found.message, found.evidence) == ("fail", message, "KeyError: boom")
    assert hint in found.hint
    # nothing else can be had, and nothing was asked
    assert {one.status for one in report.results[1:]} == {"skip"}
    assert fastchat.seen == []


def test_a_worker_that_is_down_is_named_and_the_others_are_still_asked(fastchat: Fake) -> None:
    dead = replace(WORKER, state="exited", exit_code=137, oom_killed=True)
    report = seen(fastchat, API, CONTROLLER, dead)
    assert result(report, "containers").message == "fastchat-tiny was killed for want of memory"
    assert result(report, "chat").status == "pass"
    assert result(report, "topology").status == "fail"
    assert not report.ok


@pytest.mark.parametrize(
    ("worker", "status", "message"),
    [
        ({"health": "unhealthy"}, "fail", "fastchat-tiny is unhealthy"),
        ({"missing_networks": ("fastchat",)}, "fail", "fastchat-tiny is cut off from the network fastchat"),
        ({"published": ("0.0.0.0:21002",)}, "fail",
         "fastchat-tiny has no authentication, and is reached at 0.0.0.0:21002"),
        ({"gpus_planned": ("0", "1"), "gpus_reserved": ("0", "1"), "gpus_seen": 1}, "fail",
         "fastchat-tiny sees 1 of 2 GPUs"),
        ({"gpus_planned": ("count=-1",), "gpus_reserved": ("count=-1",), "gpus_seen": 0}, "fail",
         "fastchat-tiny sees 0 of 1 GPUs"),
        ({"gpus_planned": ("1",), "gpus_reserved": ("0",), "gpus_seen": 1}, "warn",
         "fastchat-tiny has GPUs 0, and 1 are planned"),
        ({"gpus_planned": ("0",), "gpus_reserved": ("0",), "gpus_seen": None}, "pass", "2 services as planned"),
        ({"image": "x:1", "image_changed": True}, "warn", "fastchat-tiny runs an older image than x:1 is now"),
        ({"restarts": 3}, "warn", "fastchat-tiny was restarted 3 times"),
        ({"oom_killed": True}, "warn", "a process of fastchat-tiny was killed for want of memory"),
    ],
)  # fmt: skip
def test_what_differs_from_the_plan(fastchat: Fake, worker: dict[str, Any], status: str, message: str) -> None:
    found = result(seen(fastchat, API, replace(WORKER, **worker)), "topology")
    assert (found.status, found.message) == (status, message)


def test_what_was_just_seen_counts_more_than_dockers_last_look(fastchat: Fake) -> None:
    tired = replace(WORKER, health="unhealthy")
    found = result(seen(fastchat, API, tired, exercises=(Exercise("fastchat-tiny", True, 0.1, ""),)), "topology")
    assert (found.status, found.message) == ("warn", "Docker still calls fastchat-tiny unhealthy, though it answers")
    found = result(seen(fastchat, replace(API, health="unhealthy"), WORKER), "topology")
    assert found.status == "warn"
    mute = Exercise("fastchat-tiny", False, 0.1, "no")
    assert result(seen(fastchat, API, tired, exercises=(mute,)), "topology").status == "fail"


def test_a_worker_that_does_not_generate_is_named_with_its_words(fastchat: Fake) -> None:
    mute = Exercise("fastchat-tiny", False, 5.0, "Traceback\nthe controller does not know http://fastchat-tiny:21002")
    found = result(seen(fastchat, API, WORKER, exercises=(mute,)), "topology")
    assert found.message == "fastchat-tiny does not generate: the controller does not know http://fastchat-tiny:21002"
    silent = Exercise("fastchat-tiny", False, 5.0, "")
    assert "no answer in time" in result(seen(fastchat, API, WORKER, exercises=(silent,)), "topology").message


def test_without_a_stack_the_two_are_left_out(fastchat: Fake) -> None:
    names = [one.name for one in look(target(fastchat, FASTCHAT)).results]
    assert "containers" not in names
    assert "topology" not in names
    selected = look(target(fastchat, FASTCHAT), select=("topology",))
    assert result(selected, "topology").status == "skip"


def test_waiting_ends_at_once_when_a_container_has_exited(fastchat: Fake) -> None:
    fastchat.routes["GET /v1/models"] = lambda _: (_ for _ in ()).throw(AssertionError("asked"))
    told: list[str] = []
    started = time.monotonic()
    one = replace(target(fastchat, FASTCHAT), observer=Shown((API, replace(WORKER, state="exited", exit_code=2))))
    check([one], Options(timeout=1, select=("containers",)), wait=60, dialects=DIALECTS,
          on_progress=lambda *words: told.append(words[2]))  # fmt: skip
    assert time.monotonic() - started < 5
    assert told[0] == "not waiting: fastchat-tiny is exited with code 2"


def test_an_engine_that_does_not_answer_is_a_failure_and_no_traceback(fastchat: Fake) -> None:
    class Away(Shown):
        def services(self) -> tuple[ServiceView, ...]:
            raise OSError("no engine")

    report = look(replace(target(fastchat, FASTCHAT), observer=Away(())))
    assert result(report, "containers").message == "can't be looked at: no engine"
    assert result(report, "chat").status == "pass"


def test_without_a_docker_engine_the_checks_of_services_say_so(fastchat: Fake) -> None:
    class Blind(Shown):
        def services(self) -> tuple[ServiceView, ...]:
            raise Unobservable("the Docker engine does not answer: no such file")

    report = look(replace(target(fastchat, FASTCHAT), observer=Blind(())))
    for name in ("containers", "topology"):
        found = result(report, name)
        assert (found.status, found.message) == ("skip", "the Docker engine does not answer: no such file")
    assert report.ok


def test_a_service_that_runs_and_answers_nothing_is_named(fastchat: Fake) -> None:
    fastchat.routes["POST /v1/chat/completions"] = json_answer({"message": "EngineDeadError"}, 500)
    found = result(seen(fastchat, API, CONTROLLER), "topology")
    assert (found.status, found.message.partition(":")[0]) == ("fail", "fastchat-api runs, and gives no completion")
    # where somebody behind it is to blame, that one alone is
    mute = Exercise("fastchat-controller", False, 0.1, "no")
    assert "fastchat-api" not in result(seen(fastchat, API, CONTROLLER, exercises=(mute,)), "topology").message
    gone = replace(target(fastchat, FASTCHAT), base_url="http://127.0.0.1:9/v1", observer=Shown((API,)))
    assert "fastchat-api runs, and gives no completion: nothing listens" in result(look(gone), "topology").message


def test_a_controller_that_forgot_all_workers_is_named_and_not_they(fastchat: Fake) -> None:
    other = replace(WORKER, name="fastchat-tiny-2")
    strange = [Exercise(one.name, False, 0.1, f"the controller does not know http://{one.name}:21002")
               for one in (WORKER, other)]  # fmt: skip
    well = Exercise("fastchat-controller", True, 0.1, "")
    found = result(seen(fastchat, API, CONTROLLER, WORKER, other, exercises=(well, *strange)), "topology")
    assert found.message.startswith("fastchat-controller does not generate: it knows none of its workers")
    assert "fastchat-tiny" not in found.message
    # one of two is that one's own fault
    one = result(seen(fastchat, API, CONTROLLER, WORKER, other, exercises=(well, strange[0])), "topology")
    assert one.message.startswith("fastchat-tiny does not generate")
