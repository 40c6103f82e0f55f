"""Authentication: wrong credentials, bypasses of the key, and paths that are never called."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace

import pytest

from stackgen import engines
from stackgen.check.checks.auth import BODIES, NO_PATH, STATE_CHANGING
from stackgen.check.dialects import OPENAI
from stackgen.check.report import Report
from stackgen.check.report.page import as_html
from stackgen.check.report.text import as_text, exchange_lines
from stackgen.plan.clouds import Cloud

from .conftest import FASTCHAT, VLLM, result, run_check, target
from .fake import KEY, Answer, Fake, Request, json_answer, model_list, recorded

GUARDED = ("models", "chat", "stream", "auth")
REFUSED = (
    "requests without a key, with a wrong key, with wrong Basic auth, with the key as Basic auth and with an empty key "
    "are refused"
)
CLOSED = replace(VLLM, open_paths=())


def test_a_server_that_requires_the_key_passes(vllm: Fake) -> None:
    found = result(run_check(target(vllm, CLOSED, exposed=True)), "auth")
    assert (found.status, found.message) == ("pass", REFUSED)
    sent = [request.authorization for request in vllm.seen]
    assert {None, "Bearer", f"Bearer {KEY}"} <= set(sent)
    assert any(header and header.startswith("Basic ") for header in sent)


def test_a_quick_check_names_only_the_credentials_that_it_sent(vllm: Fake) -> None:
    found = result(run_check(target(vllm, CLOSED), profile="quick"), "auth")
    assert (found.status, found.message) == ("pass", "requests without a key and with a wrong key are refused")
    sent = {request.authorization for request in vllm.seen}
    assert sent == {None, f"Bearer {KEY}", "Bearer stackgen-check-wrong-key"}


def test_an_open_server_with_a_key_configured_fails_even_on_loopback(vllm: Fake) -> None:
    vllm.key = None
    report = run_check(target(vllm, CLOSED))
    found = result(report, "auth")
    assert found.status == "fail"
    assert found.message == (
        "the server accepts requests without a key, requests with a wrong key, requests with wrong Basic auth, "
        "requests with an empty key"
    )
    assert not report.ok


@pytest.mark.parametrize(
    ("accepts", "expected"),
    [
        (lambda request: request.authorization == "Bearer", "requests with an empty key"),
        (lambda request: (request.authorization or "").startswith("Basic"), "requests with wrong Basic auth"),
        (lambda request: (request.authorization or "").startswith("Bearer "), "requests with a wrong key"),
        (lambda request: request.method == "POST" and not request.authorization, "chat requests without a key"),
        # any header opens it
        (
            lambda request: request.method == "POST" and request.authorization,
            "chat requests with a wrong key, chat requests with wrong Basic auth, chat requests with an empty key",
        ),
        (lambda request: request.method == "GET" and not request.authorization, "model list requests without a key"),
    ],
)
def test_each_accepted_wrong_credential_is_named(vllm: Fake, accepts: object, expected: str) -> None:
    answers = dict(vllm.routes)
    vllm.key = None

    def guard(request: Request) -> Answer:
        if request.authorization == f"Bearer {KEY}" or accepts(request):  # type: ignore[operator]
            answer = answers[request.route]
            return answer(request) if callable(answer) else answer
        return recorded("vllm-0.32.0", "chat_nokey")

    vllm.routes |= {"GET /v1/models": guard, "POST /v1/chat/completions": guard}
    found = result(run_check(target(vllm, CLOSED)), "auth")
    assert (found.status, found.message) == ("fail", f"the server accepts {expected}")


@pytest.mark.parametrize(("status", "expected"), [(401, "pass"), (403, "warn"), (404, "fail"), (500, "fail")])
def test_refusals_must_have_the_dialects_status(vllm: Fake, status: int, expected: str) -> None:
    vllm.refusal = Answer(status, b"{}")
    found = result(run_check(target(vllm, CLOSED)), "auth")
    assert found.status == expected
    assert ("a chat request without a key returns" in found.evidence) is (expected != "pass")


def test_a_dialect_may_refuse_with_another_status(vllm: Fake) -> None:
    vllm.refusal = Answer(403, b"{}")
    assert result(run_check(target(vllm, replace(CLOSED, auth_statuses=(401, 403)))), "auth").status == "pass"


@pytest.mark.parametrize(("exposed", "status"), [(False, "warn"), (True, "fail")])
def test_open_paths_fail_only_if_the_endpoint_is_exposed(vllm: Fake, exposed: bool, status: str) -> None:
    report = run_check(target(vllm, exposed=exposed))
    found = result(report, "auth")
    assert found.status == status
    assert (
        found.message == "the server answers without the key: /invocations, /tokenize, /version (authentication bypass)"
    )
    assert report.ok is not exposed


def test_paths_closed_by_a_gateway_are_not_reported(vllm: Fake) -> None:
    del vllm.routes["POST /invocations"], vllm.routes["GET /version"]
    vllm.routes["POST /tokenize"] = Answer(405)
    assert result(run_check(target(vllm, exposed=True)), "auth").status == "pass"


@pytest.mark.parametrize(("status", "opened"), [(400, True), (422, True), (401, False), (403, False), (404, False)])
def test_a_path_that_validates_the_body_counts_as_open(vllm: Fake, status: int, opened: bool) -> None:
    dialect = replace(VLLM, open_paths=("/invocations",))
    vllm.routes["POST /invocations"] = Answer(status, b"{}")
    assert (result(run_check(target(vllm, dialect)), "auth").status == "warn") is opened


def test_a_path_that_returns_500_or_nothing_is_inconclusive(vllm: Fake) -> None:
    vllm.routes["POST /invocations"] = Answer(500)
    vllm.routes["POST /tokenize"] = Answer(pieces=(), cut=True)
    del vllm.routes["GET /version"]
    found = result(run_check(target(vllm)), "auth")
    assert (found.status, found.message) == (
        "warn",
        "/v1 refuses wrong keys, but some other paths could not be checked",
    )
    assert "/invocations returns 500" in found.evidence
    assert "/tokenize: " in found.evidence


def test_a_second_path_for_chats_is_an_authentication_bypass(fastchat: Fake) -> None:
    found = result(run_check(target(fastchat, FASTCHAT, exposed=True)), "auth")
    assert found.status == "fail"
    assert found.message == "the server answers without the key: /api/v1/chat/completions (authentication bypass)"
    bodies = [request.json() for request in fastchat.seen if request.path == "/api/v1/chat/completions"]
    assert [(body["model"], body["max_tokens"]) for body in bodies] == [("tiny", 1)]


def test_state_changing_paths_are_only_sent_a_get(vllm: Fake) -> None:
    changing = (*(f"/{name}" for name in sorted(STATE_CHANGING)), "/v1/load_lora_adapter", "/sleep?level=1")
    report = run_check(target(vllm, replace(VLLM, open_paths=(*changing, "/version"))))
    seen = [request for request in vllm.seen if request.path in changing]
    # for FastAPI, 405 to a GET shows that the path exists and has no authentication
    assert {request.path for request in seen} == set(changing)
    assert {(request.method, request.body, request.authorization) for request in seen} == {("GET", b"", None)}
    assert result(report, "auth").message == "the server answers without the key: /version"
    assert not STATE_CHANGING & {part for path in BODIES for part in path.split("/")}


@pytest.mark.parametrize("open_too", [False, True])
def test_a_state_changing_path_is_open_if_it_returns_405(vllm: Fake, open_too: bool) -> None:
    vllm.routes["GET /pause"] = Answer(405, b'{"detail":"Method Not Allowed"}')
    vllm.routes["GET /sleep"] = Answer(401, b'{"error":"Unauthorized"}')
    # a server that returns 405 on every path proves nothing with it
    if open_too:
        vllm.routes[f"GET {NO_PATH}"] = Answer(405)
    dialect = replace(VLLM, open_paths=("/pause", "/resume", "/sleep"))
    found = result(run_check(target(vllm, dialect, exposed=True)), "auth")
    refused = ("pass", REFUSED)
    assert (found.status, found.message) == (
        refused if open_too else ("fail", "the server answers without the key: /pause")
    )


def test_every_open_path_of_vllm_is_tried(vllm: Fake) -> None:
    """Those that answer without a key in `recordings/` are found, and no others."""
    vllm.routes |= {"POST /detokenize": json_answer({"prompt": "erion"}), "GET /ping": Answer(200)}
    vllm.routes["POST /score"] = json_answer({"error": {"message": "no", "code": 400}}, 400)
    vllm.routes["GET /inference/v1/generate"] = Answer(401, b'{"error":"Unauthorized"}')
    found = result(run_check(target(vllm, engines.get("vllm").dialect, exposed=True)), "auth")
    assert found.message == (
        "the server answers without the key: /invocations, /tokenize, /detokenize, /score, /version, /ping "
        "(authentication bypass)"
    )
    asked = {request.path for request in vllm.seen}
    assert {"/rerank", "/classify", "/pooling", "/abort_requests", "/pause", "/resume", "/sleep", "/collective_rpc",
            "/server_info", "/update_weights", "/v2/rerank", "/inference/v1/generate"} <= asked  # fmt: skip


def test_all_open_paths_together_take_one_timeout(vllm: Fake) -> None:
    paths = tuple(f"/p{number}" for number in range(20))
    vllm.routes |= {f"GET {path}": Answer(pieces=(b" ",) * 40, pause=0.2) for path in paths}
    report = run_check(target(vllm, replace(VLLM, open_paths=(*paths, "/invocations"))), timeout=1.0)
    found = result(report, "auth")
    assert found.message == "the server answers without the key: /invocations (authentication bypass)"
    assert all(f"{path}: " in found.evidence for path in paths)
    # one by one, twenty paths that hang would take twenty timeouts
    assert found.seconds is not None and found.seconds < 5


@pytest.mark.parametrize("path", ["/invocations", "/api/v1/chat/completions", "/completions", "/chat/completions"])
def test_an_authentication_bypass_is_found_on_unknown_servers(vllm: Fake, path: str) -> None:
    vllm.routes["GET /v1/models"] = json_answer(model_list("tiny", owner="somebody"))
    del vllm.routes["GET /version"], vllm.routes["POST /invocations"]
    vllm.routes[f"POST {path}"] = recorded("vllm-0.32.0", "chat_ok")
    report = run_check(target(vllm, None, exposed=True))
    assert report.dialect == "openai"
    assert result(report, "auth").message == f"the server answers without the key: {path} (authentication bypass)"
    # a web page that is shown for every path is no bypass
    vllm.routes[f"POST {path}"] = Answer(200, b"<html>hello</html>", "text/html")
    assert result(run_check(target(vllm, None, exposed=True)), "auth").status == "pass"


def test_a_cloud_is_not_probed_for_authentication_bypasses(vllm: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    vllm.routes["POST /invocations"] = recorded("vllm-0.32.0", "chat_ok")
    monkeypatch.setattr(Cloud, "owns", lambda *_: True)
    assert result(run_check(target(vllm, OPENAI)), "auth").status == "pass"
    assert not [request for request in vllm.seen if request.path == "/invocations"]


def test_the_key_as_basic_auth_is_tried_and_never_shown(vllm: Fake) -> None:
    basic = "Basic " + b64encode(f":{KEY}".encode()).decode()
    answers = dict(vllm.routes)
    vllm.key = None

    def guard(request: Request) -> Answer:
        if request.authorization not in (f"Bearer {KEY}", basic):
            return json_answer({"error": {"message": f"not with {request.authorization}"}}, 401)
        answer = answers[request.route]
        return answer(request) if callable(answer) else answer

    vllm.routes |= {"GET /v1/models": guard, "POST /v1/chat/completions": guard}
    report = run_check(target(vllm, CLOSED))
    assert basic in [request.authorization for request in vllm.seen]
    found = result(report, "auth")
    assert (found.status, found.message) == ("warn", "the server also accepts the key as Basic auth")
    vllm.routes["GET /v1/models"] = lambda request: (
        json_answer({"error": {"message": f"not with {request.authorization}"}}, 401)
        if request.authorization == basic
        else guard(request)
    )
    whole = Report((run_check(target(vllm, CLOSED)),), "now")
    for text in (repr(whole), as_html(whole), "\n".join(exchange_lines(whole)), as_text(whole, verbose=True)):
        assert "not with Basic [key]" in text or "not with" not in text
        assert basic.removeprefix("Basic ") not in text


def test_requests_without_a_key_carry_none_and_cost_one_token(vllm: Fake) -> None:
    run_check(target(vllm))
    for request in vllm.seen:
        if request.path in ("/invocations", "/tokenize", "/version"):
            assert request.authorization is None
    tiny = [request.json()["max_tokens"] for request in vllm.seen if request.path == "/invocations"]
    assert tiny == [1]


@pytest.mark.parametrize(("exposed", "status"), [(False, "warn"), (True, "fail")])
def test_a_server_without_a_key(vllm: Fake, exposed: bool, status: str) -> None:
    vllm.key = None
    report = run_check(target(vllm, key=None, exposed=exposed))
    assert (result(report, "auth").status, report.ok) == (status, not exposed)
    assert result(report, "chat").status == "pass"
    assert all(request.authorization is None for request in vllm.seen)


@pytest.mark.parametrize(
    ("listing", "chat", "status", "message"),
    [
        (recorded("vllm-0.32.0", "get_v1_models_key"), Answer(401, b"{}"), "fail",
         "the model list is open, but chat requires a key and no key was given"),
        (Answer(404, b"{}"), Answer(401, b"{}"), "fail",
         "/models returns 404, but chat requires a key and no key was given"),
        (Answer(404, b"{}"), Answer(404, b"{}"), "warn",
         "can't tell whether the server requires a key: /models returns 404, chat returns 404"),
    ],
)  # fmt: skip
def test_responses_without_a_key_are_interpreted(
    vllm: Fake, listing: Answer, chat: Answer, status: str, message: str
) -> None:
    vllm.key = None
    vllm.routes |= {"GET /v1/models": listing, "POST /v1/chat/completions": chat}
    found = result(run_check(target(vllm, key=None)), "auth")
    assert (found.status, found.message) == (status, message)


def test_a_required_key_that_is_missing_fails(vllm: Fake) -> None:
    report = run_check(target(vllm, key=None))
    assert result(report, "auth").message == "the server requires a key, but none was given"
    assert result(report, "models").message == "the server requires a key, but none was given"
    assert not report.ok


def test_a_refused_key_fails_and_skips_the_models(vllm: Fake) -> None:
    report = run_check(target(vllm, key="another-key"))
    assert [(one.name, one.status) for one in report.results if one.name in GUARDED] == [
        ("models", "fail"), ("chat", "skip"), ("stream", "skip"), ("auth", "fail"),
    ]  # fmt: skip
    assert result(report, "auth").message == "the server refuses the key"
    assert "restart" in result(report, "auth").hint
    assert {one.message for one in report.results if one.name in ("chat", "stream")} == {"the key is refused"}


def test_without_an_expected_model_a_listed_one_is_used(fastchat: Fake) -> None:
    fastchat.routes["GET /v1/models"] = json_answer(model_list("tiny", owner="fastchat"))
    run_check(target(fastchat, FASTCHAT, models=()))
    bodies = [request.json() for request in fastchat.seen if request.path == "/api/v1/chat/completions"]
    assert [body["model"] for body in bodies] == ["tiny"]
