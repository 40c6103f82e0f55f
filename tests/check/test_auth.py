"""The key: what must be refused, what leads around it, and what is never touched."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace

import pytest

from stackgen import engines
from stackgen.check.checks.auth import BODIES, CHANGING, NO_PATH
from stackgen.check.dialects import OPENAI
from stackgen.check.report import Report
from stackgen.check.report.page import as_html
from stackgen.check.report.text import as_exchanges, as_text
from stackgen.plan.clouds import Cloud

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
    assert found.message == "the server answers to no key, a wrong key, a Basic login, an empty key"
    assert not report.ok


@pytest.mark.parametrize(
    ("accepts", "told"),
    [
        (lambda request: request.authorization == "Bearer", "an empty key"),
        (lambda request: (request.authorization or "").startswith("Basic"), "a Basic login"),
        (lambda request: (request.authorization or "").startswith("Bearer "), "a wrong key"),
        (lambda request: request.method == "POST" and not request.authorization, "a chat without a key"),
        # the header's mere presence opens it
        (
            lambda request: request.method == "POST" and request.authorization,
            "a chat with a wrong key, a chat with a Basic login, a chat with an empty key",
        ),
        (lambda request: request.method == "GET" and not request.authorization, "a list of models without a key"),
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
    seen = [request for request in vllm.seen if request.path in changing]
    # FastAPI tells by 405 to a GET that the path is there, and the guard is not
    assert {request.path for request in seen} == set(changing)
    assert {(request.method, request.body, request.authorization) for request in seen} == {("GET", b"", None)}
    assert result(report, "auth").message == "answers without the key: /version"
    assert not CHANGING & {part for path in BODIES for part in path.split("/")}


@pytest.mark.parametrize("open_too", [False, True])
def test_a_path_that_changes_the_server_is_open_where_only_its_method_is_wrong(vllm: Fake, open_too: bool) -> None:
    vllm.routes["GET /pause"] = Answer(405, b'{"detail":"Method Not Allowed"}')
    vllm.routes["GET /sleep"] = Answer(401, b'{"error":"Unauthorized"}')
    # a server that refuses GET on every path tells nothing by it
    if open_too:
        vllm.routes[f"GET {NO_PATH}"] = Answer(405)
    dialect = replace(VLLM, open_paths=("/pause", "/resume", "/sleep"))
    found = result(look(target(vllm, dialect, exposed=True)), "auth")
    told = ("pass", "no key, a wrong one, Basic and an empty one are refused")
    assert (found.status, found.message) == (told if open_too else ("fail", "answers without the key: /pause"))


def test_every_open_path_of_vllm_is_tried(vllm: Fake) -> None:
    """Those of `recordings/` that answer without a key are found, and none of the others is."""
    vllm.routes |= {"POST /detokenize": json_answer({"prompt": "erion"}), "GET /ping": Answer(200)}
    vllm.routes["POST /score"] = json_answer({"error": {"message": "no", "code": 400}}, 400)
    vllm.routes["GET /inference/v1/generate"] = Answer(401, b'{"error":"Unauthorized"}')
    found = result(look(target(vllm, engines.get("vllm").dialect, exposed=True)), "auth")
    assert found.message == (
        "answers without the key: /invocations, /tokenize, /detokenize, /score, /version, /ping (a way around the key)"
    )
    asked = {request.path for request in vllm.seen}
    assert {"/rerank", "/classify", "/pooling", "/abort_requests", "/pause", "/resume", "/sleep", "/collective_rpc",
            "/server_info", "/update_weights", "/v2/rerank", "/inference/v1/generate"} <= asked  # fmt: skip


def test_all_open_paths_together_take_one_time_out(vllm: Fake) -> None:
    paths = tuple(f"/p{number}" for number in range(20))
    vllm.routes |= {f"GET {path}": Answer(pieces=(b" ",) * 40, pause=0.2) for path in paths}
    report = look(target(vllm, replace(VLLM, open_paths=(*paths, "/invocations"))), timeout=1.0)
    found = result(report, "auth")
    assert found.message == "answers without the key: /invocations (a way around the key)"
    assert all(f"{path}: " in found.evidence for path in paths)
    # twenty that hang would take twenty of them one by one
    assert found.seconds is not None and found.seconds < 5


@pytest.mark.parametrize("path", ["/invocations", "/api/v1/chat/completions", "/completions", "/chat/completions"])
def test_a_way_around_the_key_is_found_whatever_the_server_is(vllm: Fake, path: str) -> None:
    vllm.routes["GET /v1/models"] = json_answer(model_list("tiny", owner="somebody"))
    del vllm.routes["GET /version"], vllm.routes["POST /invocations"]
    vllm.routes[f"POST {path}"] = recorded("vllm-0.32.0", "chat_ok")
    report = look(target(vllm, None, exposed=True))
    assert report.dialect == "openai"
    assert result(report, "auth").message == f"answers without the key: {path} (a way around the key)"
    # a page that is shown for every path is none
    vllm.routes[f"POST {path}"] = Answer(200, b"<html>hello</html>", "text/html")
    assert result(look(target(vllm, None, exposed=True)), "auth").status == "pass"


def test_a_cloud_is_not_asked_for_ways_around_its_keys(vllm: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    vllm.routes["POST /invocations"] = recorded("vllm-0.32.0", "chat_ok")
    monkeypatch.setattr(Cloud, "owns", lambda *_: True)
    assert result(look(target(vllm, OPENAI)), "auth").status == "pass"
    assert not [request for request in vllm.seen if request.path == "/invocations"]


def test_the_key_itself_as_a_basic_login_is_tried_and_told_nowhere(vllm: Fake) -> None:
    basic = "Basic " + b64encode(f":{KEY}".encode()).decode()
    answers = dict(vllm.routes)
    vllm.key = None

    def guard(request: Request) -> Answer:
        if request.authorization not in (f"Bearer {KEY}", basic):
            return json_answer({"error": {"message": f"not with {request.authorization}"}}, 401)
        answer = answers[request.route]
        return answer(request) if callable(answer) else answer

    vllm.routes |= {"GET /v1/models": guard, "POST /v1/chat/completions": guard}
    report = look(target(vllm, CLOSED))
    assert basic in [request.authorization for request in vllm.seen]
    found = result(report, "auth")
    assert (found.status, found.message) == ("warn", "the server takes the key as a Basic login as well")
    vllm.routes["GET /v1/models"] = lambda request: (
        json_answer({"error": {"message": f"not with {request.authorization}"}}, 401)
        if request.authorization == basic
        else guard(request)
    )
    whole = Report((look(target(vllm, CLOSED)),), "now")
    for text in (repr(whole), as_html(whole), "\n".join(as_exchanges(whole)), as_text(whole, verbose=True)):
        assert "not with Basic [key]" in text or "not with" not in text
        assert basic.removeprefix("Basic ") not in text


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


@pytest.mark.parametrize(
    ("listing", "chat", "status", "message"),
    [
        (recorded("vllm-0.32.0", "get_v1_models_key"), Answer(401, b"{}"), "fail",
         "the list of models is open, and a chat wants a key, which is not given"),
        (Answer(404, b"{}"), Answer(401, b"{}"), "fail",
         "/models gives 404, and a chat wants a key, which is not given"),
        (Answer(404, b"{}"), Answer(404, b"{}"), "warn",
         "whether the server has a key can't be told: /models gives 404, and a chat 404"),
    ],
)  # fmt: skip
def test_what_an_answer_without_a_key_shows(
    vllm: Fake, listing: Answer, chat: Answer, status: str, message: str
) -> None:
    vllm.key = None
    vllm.routes |= {"GET /v1/models": listing, "POST /v1/chat/completions": chat}
    found = result(look(target(vllm, key=None)), "auth")
    assert (found.status, found.message) == (status, message)


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
