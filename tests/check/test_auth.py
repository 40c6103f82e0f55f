"""The key: what must be refused, what leads around it, and what is never touched."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stackgen.check.auth import BODIES, CHANGING

from .conftest import FASTCHAT, VLLM, look, result, target
from .fake import KEY, Answer, Fake, Request, json_answer, model_list, recorded

GUARDED = ("models", "chat", "stream", "auth")
CLOSED = replace(VLLM, open_paths=())


def test_a_guarded_server_passes(vllm: Fake) -> None:
    found = result(look(target(vllm, CLOSED, exposed=True)), "auth")
    assert (found.status, found.message) == ("pass", "no key, a wrong one, Basic and an empty one are refused")
    sent = [request.authorization for request in vllm.seen]
    assert {None, "Bearer", f"Bearer {KEY}"} <= set(sent)
    assert any(header and header.startswith("Basic ") for header in sent)


def test_an_open_server_with_a_key_configured_fails_even_on_loopback(vllm: Fake) -> None:
    vllm.key = None
    report = look(target(vllm, CLOSED))
    found = result(report, "auth")
    assert found.status == "fail"
    assert found.message == (
        "the server answers to no key, a wrong key, a Basic login, an empty key, a chat without a key"
    )
    assert not report.ok


@pytest.mark.parametrize(
    ("accepts", "told"),
    [
        (lambda request: request.authorization == "Bearer", "an empty key"),
        (lambda request: (request.authorization or "").startswith("Basic"), "a Basic login"),
        (lambda request: (request.authorization or "").startswith("Bearer "), "a wrong key"),
        (lambda request: request.method == "POST", "a chat without a key"),
    ],
)
def test_each_hole_in_the_guard_is_named(vllm: Fake, accepts: object, told: str) -> None:
    answers = dict(vllm.routes)
    vllm.key = None

    def guard(request: Request) -> Answer:
        if request.authorization == f"Bearer {KEY}" or accepts(request):  # type: ignore[operator]
            answer = answers[request.route]
            return answer(request) if callable(answer) else answer
        return recorded("vllm-0.32.0", "chat_nokey")

    vllm.routes |= {"GET /v1/models": guard, "POST /v1/chat/completions": guard}
    found = result(look(target(vllm, CLOSED)), "auth")
    assert (found.status, found.message) == ("fail", f"the server answers to {told}")


@pytest.mark.parametrize(("status", "expected"), [(401, "pass"), (403, "warn"), (404, "fail"), (500, "fail")])
def test_refusals_must_have_the_dialects_status(vllm: Fake, status: int, expected: str) -> None:
    vllm.refusal = Answer(status, b"{}")
    found = result(look(target(vllm, CLOSED)), "auth")
    assert found.status == expected
    assert ("no key gives" in found.evidence) is (expected != "pass")


def test_a_dialect_may_refuse_with_another_status(vllm: Fake) -> None:
    vllm.refusal = Answer(403, b"{}")
    assert result(look(target(vllm, replace(CLOSED, auth_statuses=(401, 403)))), "auth").status == "pass"


@pytest.mark.parametrize(("exposed", "status"), [(False, "warn"), (True, "fail")])
def test_open_paths_weigh_more_where_others_reach_them(vllm: Fake, exposed: bool, status: str) -> None:
    report = look(target(vllm, exposed=exposed))
    found = result(report, "auth")
    assert found.status == status
    assert found.message == "answers without the key: /invocations, /tokenize, /version (a way around the key)"
    assert report.ok is not exposed


def test_paths_that_a_gateway_closed_do_not_count(vllm: Fake) -> None:
    del vllm.routes["POST /invocations"], vllm.routes["GET /version"]
    vllm.routes["POST /tokenize"] = Answer(405)
    assert result(look(target(vllm, exposed=True)), "auth").status == "pass"


@pytest.mark.parametrize(("status", "opened"), [(400, True), (422, True), (401, False), (403, False), (404, False)])
def test_a_path_that_judges_the_body_has_let_the_request_in(vllm: Fake, status: int, opened: bool) -> None:
    dialect = replace(VLLM, open_paths=("/invocations",))
    vllm.routes["POST /invocations"] = Answer(status, b"{}")
    assert (result(look(target(vllm, dialect)), "auth").status == "warn") is opened


def test_a_path_that_gives_500_or_nothing_is_noted(vllm: Fake) -> None:
    vllm.routes["POST /invocations"] = Answer(500)
    vllm.routes["POST /tokenize"] = Answer(pieces=(), cut=True)
    del vllm.routes["GET /version"]
    found = result(look(target(vllm)), "auth")
    assert (found.status, found.message) == ("warn", "refused on /v1, but some paths can't be judged")
    assert "/invocations gives 500" in found.evidence
    assert "/tokenize: " in found.evidence


def test_fastchats_unguarded_api_is_a_way_around(fastchat: Fake) -> None:
    found = result(look(target(fastchat, FASTCHAT, exposed=True)), "auth")
    assert found.status == "fail"
    assert (
        found.message == "answers without the key: /api/v1/chat/completions, /api/v1/token_check (a way around the key)"
    )
    bodies = [request.json() for request in fastchat.seen if request.path == "/api/v1/chat/completions"]
    assert [(body["model"], body["max_tokens"]) for body in bodies] == [("tiny", 1)]


def test_nothing_that_changes_a_server_is_asked_even_if_a_dialect_names_it(vllm: Fake) -> None:
    changing = (*(f"/{name}" for name in sorted(CHANGING)), "/v1/load_lora_adapter", "/sleep?level=1")
    report = look(target(vllm, replace(VLLM, open_paths=(*changing, "/version"))))
    asked = {request.path for request in vllm.seen}
    assert asked == {"/v1/models", "/v1/chat/completions", "/health", "/version"}
    assert "/pause not tried" in result(report, "auth").evidence
    assert not CHANGING & {part for path in BODIES for part in path.split("/")}


def test_requests_without_a_key_carry_none_and_cost_one_token(vllm: Fake) -> None:
    look(target(vllm))
    for request in vllm.seen:
        if request.path in ("/invocations", "/tokenize", "/version"):
            assert request.authorization is None
    tiny = [request.json()["max_tokens"] for request in vllm.seen if request.path == "/invocations"]
    assert tiny == [1]


@pytest.mark.parametrize(("exposed", "status"), [(False, "warn"), (True, "fail")])
def test_no_key_at_all(vllm: Fake, exposed: bool, status: str) -> None:
    vllm.key = None
    report = look(target(vllm, key=None, exposed=exposed))
    assert (result(report, "auth").status, report.ok) == (status, not exposed)
    assert result(report, "chat").status == "pass"
    assert all(request.authorization is None for request in vllm.seen)


def test_a_key_that_is_wanted_and_not_given(vllm: Fake) -> None:
    report = look(target(vllm, key=None))
    assert result(report, "auth").message == "the server wants a key, and none is given"
    assert result(report, "models").message == "the server wants a key, and none is given"
    assert not report.ok


def test_a_key_that_the_server_refuses(vllm: Fake) -> None:
    report = look(target(vllm, key="another-key"))
    assert [(one.name, one.status) for one in report.results if one.name in GUARDED] == [
        ("models", "fail"), ("chat", "skip"), ("stream", "skip"), ("auth", "fail"),
    ]  # fmt: skip
    assert result(report, "auth").message == "the server refuses the key"
    assert "restart" in result(report, "auth").hint
    assert {one.message for one in report.results if one.name in ("chat", "stream")} == {"the key is refused"}


def test_a_name_from_the_list_is_used_where_none_is_expected(fastchat: Fake) -> None:
    fastchat.routes["GET /v1/models"] = json_answer(model_list("tiny", owner="fastchat"))
    look(target(fastchat, FASTCHAT, models=()))
    bodies = [request.json() for request in fastchat.seen if request.path == "/api/v1/chat/completions"]
    assert [body["model"] for body in bodies] == ["tiny"]
