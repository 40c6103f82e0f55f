"""All rules against complete logs of real failures: the right rule comes first, and none matches a healthy log."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from stackgen.diagnose import Evidence, ServiceEvidence, diagnose
from stackgen.diagnose.evidence import HEAD_LINES, LOG_LINES
from stackgen.diagnose.log_lines import find_key_lines, lines_since_ready, strip_prefix
from stackgen.diagnose.log_text import (
    OMITTED,
    excerpt,
    join_head_and_tail,
    keep_head_and_tail,
    split_services,
)
from stackgen.diagnose.rule import UNKNOWN
from stackgen.diagnose.rules import RULES, get_rule
from stackgen.diagnose.rules.slow import parse_metrics
from stackgen.runtimes.observation.evidence import collect_from_log
from stackgen.stack.load import parse_stack
from tests.diagnose.fixtures import LOGS, Fixture, load_fixtures
from tests.diagnose.reports import load_reports

ALL = load_fixtures()
BROKEN = [one for one in ALL if one.rule]
HEALTHY = [one for one in ALL if not one.rule]


def first_id(evidence: Evidence) -> str:
    return next((one.id for one in diagnose(evidence)), "")


@pytest.mark.parametrize("fixture", BROKEN, ids=lambda one: one.name)
def test_the_right_rule_comes_first(fixture: Fixture) -> None:
    found = diagnose(fixture.evidence)
    assert found[0].id == fixture.rule, [(one.id, one.evidence) for one in found]
    assert found[0].evidence and "?" not in found[0].cause + found[0].title
    assert "See root cause above" not in " ".join(found[0].evidence)


@pytest.mark.parametrize("fixture", HEALTHY, ids=lambda one: one.name)
def test_healthy_logs_have_no_finding(fixture: Fixture) -> None:
    assert diagnose(fixture.evidence) == ()
    # nor has the log alone, as somebody would paste it
    assert diagnose(collect_from_log(fixture.text)) == ()


@pytest.mark.parametrize(
    "fixture",
    [one for one in BROKEN if one.head.get("kind", "log") == "log" and get_rule(one.rule).all_patterns],
    ids=lambda one: one.name,
)
def test_the_log_alone_is_enough_for_rules_with_patterns(fixture: Fixture) -> None:
    assert first_id(collect_from_log(fixture.text)) == fixture.rule


def test_most_fixtures_are_real() -> None:
    real = [one for one in BROKEN if one.real]
    assert len(real) >= 100, len(real)
    assert len({one.rule for one in real}) >= 65


@pytest.mark.parametrize("fixture", ALL, ids=lambda one: one.name)
def test_fixtures_contain_no_local_paths_or_secrets(fixture: Fixture) -> None:
    text = (LOGS / f"{fixture.name}.log").read_text("utf-8")
    # the checkout, temporary folders and names of test projects
    for mark in (str(Path(__file__).parents[2]), "/tmp/pytest-", "/srv/host", "sgdiag"):
        assert mark not in text, mark
    assert not re.search(r"\b(sk-[A-Za-z0-9_-]{12,}|hf_[A-Za-z0-9]{16,})", text)


def test_ids_are_unique_and_well_formed() -> None:
    ids = [one.id for one in RULES]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"SG-[A-Z]\d{3}", id) for id in ids)
    assert all(one.all_patterns or one.find for one in RULES)
    assert all(one.source and one.explain and one.fix for one in RULES)


@pytest.mark.parametrize("one", RULES, ids=lambda one: one.id)
def test_every_placeholder_is_a_group_of_every_pattern(one: object) -> None:
    """A placeholder without a value shows as a question mark in the terminal."""
    from stackgen.diagnose.rule import Rule

    assert isinstance(one, Rule)
    if one.find:
        return
    cases = [(each.patterns, each.title or one.title, each.cause or one.cause, each.fix or one.fix)
             for each in one.variants]  # fmt: skip
    for patterns, *texts in (*cases, (one.patterns, one.title, one.cause, one.fix)):
        if not patterns:
            continue
        always = set.intersection(*(set(pattern.groupindex) for pattern in patterns)) | {
            "service", "model", "repo", "index",
        }  # fmt: skip
        sure = re.sub(r"\[\[.*?\]\]", "", " ".join(texts))
        assert set(re.findall(r"\{([a-z_]+)\}", sure)) <= always


def test_causes_contain_the_numbers_of_the_log() -> None:
    by_name = {one.name: one for one in BROKEN}
    for name, numbers in {
        "SG-V012-kvsmall": ("10000000", "4.77", "2097024"),
        "SG-V001-len": ("1000000", "2048"),
        "SG-V002-heads": ("4", "3"),
        "SG-M009-shm": ("160 MiB", "64 MiB"),
        "SG-M011-kvnode": ("900.0",),
        "SG-A010-hugectx": ("4291.5 GiB",),
        "SG-A007-version": ("99", "3"),
        "SG-V017-prompt-llamacpp": ("512",),
        "SG-M002-free-memory": ("3.11", "23.69", "21.79"),
    }.items():
        cause = diagnose(by_name[name].evidence)[0].cause
        assert all(number in cause for number in numbers), cause


STACK = """
name: demo
models:
  - model: acme/one
    engine: vllm
    gpus: [0]
  - model: acme/two
    engine: vllm
    gpus: [1]
    served_names: [two]
    max_model_len: 8192
    enforce_eager: true
"""


def with_plan(service: ServiceEvidence, **more: object) -> Evidence:
    from stackgen.resolve.pipeline import resolve
    from stackgen.targets.compose import ComposeSite

    spec = parse_stack(STACK)
    plan = resolve(spec, ComposeSite(Path("x"), Path("x")), "stack.yaml")
    evidence = Evidence((service,), spec=spec, plan=plan)
    return replace(evidence, **more)  # type: ignore[arg-type]


def test_a_change_names_the_model_and_the_old_value() -> None:
    log = (
        "ValueError: To serve at least one request with the models's max seq len (8192), (1.0 GiB KV cache is needed, "
        "which is larger than the available KV cache memory (0.5 GiB). Based on the available memory, the estimated "
        "maximum model length is 4096. Try …"
    )
    edit = diagnose(with_plan(ServiceEvidence("vllm-two", engine="vllm", state="exited", exit_code=1, log=log)))[0].edit
    assert edit is not None
    assert (edit.path, edit.value, edit.was, edit.safe) == (("models", 1, "max_model_len"), "4096", "8192", True)


def test_an_unknown_failure_shows_the_root_cause_and_not_the_last_line() -> None:
    log = """\
(EngineCore pid=27) ERROR 11-23 04:27:04 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=27) ERROR 11-23 04:27:04 [core.py:1510] ValueError: the frobnicator is out of plums
Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
stackgen: the service ended with code 1 after 5s and was never healthy: the reason stands above
"""
    root = "ValueError: the frobnicator is out of plums"
    for evidence, shown in (
        (collect_from_log(log), (root,)),
        (Evidence((ServiceEvidence("a", engine="vllm", state="exited", exit_code=1, log=log),)),
         (root, "a is exited, exit code 1")),
    ):  # fmt: skip
        (found,) = diagnose(evidence)
        assert found.id == UNKNOWN and found.edit is None
        assert found.evidence == shown


@pytest.mark.parametrize(
    ("service", "id"),
    [
        (ServiceEvidence("a", state="absent"), "SG-C007"),
        (ServiceEvidence("a", state="running", health="starting"), "SG-C008"),
        (ServiceEvidence("a", state="exited", exit_code=143), "SG-C009"),
        (ServiceEvidence("a", state="paused"), "SG-C005"),
        (ServiceEvidence("a", state="exited", exit_code=137, oom_killed=True), "SG-M012"),
        (ServiceEvidence("a", state="restarting", restarts=5, log="mystery"), "SG-D012"),
        (ServiceEvidence("a", state="running", health="unhealthy", log="mystery"), UNKNOWN),
        (ServiceEvidence("a", state="exited", exit_code=1), UNKNOWN),
        (ServiceEvidence("a", state="running", health="healthy", oom_killed=True), ""),
        (ServiceEvidence("d", role="download", state="exited", exit_code=0), ""),
    ],
)
def test_container_states_are_diagnosed(service: ServiceEvidence, id: str) -> None:
    assert first_id(Evidence((service,))) == id


@pytest.mark.parametrize(
    ("service", "shown"),
    [
        (ServiceEvidence("a", state="exited", exit_code=137, oom_killed=True), "killed a (exit code 137)"),
        # the kernel killed a child process, and the main process reported an error
        (ServiceEvidence("a", state="exited", exit_code=1, oom_killed=True), "killed a (exit code 1)"),
        (ServiceEvidence("a", state="restarting", oom_killed=True, log="supervise: it ended with code 1"),
         "killed a (exit code 1)"),
        (ServiceEvidence("a", state="restarting", log="supervise: it ended with code 137"),
         "SIGKILL ended a (exit code 137)"),
        (ServiceEvidence("a", state="restarting", oom_killed=True), "killed a,"),
    ],
)  # fmt: skip
def test_the_cause_of_an_oom_kill_contains_the_real_exit_code(service: ServiceEvidence, shown: str) -> None:
    found = diagnose(Evidence((service,)))[0]
    assert found.id == "SG-M012"
    assert shown in found.cause
    # no other code is mentioned
    assert set(re.findall(r"code (\d+)", " ".join((found.cause, *found.evidence)))) == set(
        re.findall(r"code (\d+)", shown)
    )


def test_a_refused_connection_to_a_working_stack_is_the_wrong_address() -> None:
    works = ServiceEvidence("vllm-two", engine="vllm", state="running", health="healthy")
    found = diagnose(with_plan(works, checks=(("connect", "nothing listens on 127.0.0.1:9000"),)))
    assert found[0].id == "SG-C006" and "http://127.0.0.1:8000/v1" in found[0].fix


@pytest.mark.parametrize(("engine", "is_fastchat"), [("vllm", False), ("llamacpp", False), ("fastchat", True)])
def test_an_empty_list_of_models_is_a_missing_worker_only_in_fastchat(engine: str, is_fastchat: bool) -> None:
    services = (ServiceEvidence("gateway", "gateway", state="running"), ServiceEvidence(f"{engine}-m", engine=engine))
    found = diagnose(Evidence(services, checks=(("models", "the server lists no models"),)))
    assert any(one.id == "SG-F007" for one in found) == is_fastchat


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("Acme/One", "SG-N001"), ("/models/two", "SG-N002"), ("one", "SG-N003"), ("acme/Two", "SG-N004"),
        ("gpt-5", "SG-N005"),
    ],
)  # fmt: skip
def test_model_not_found_explains_how_the_name_differs(name: str, id: str) -> None:
    works = ServiceEvidence("vllm-two", engine="vllm", state="running", health="healthy")
    assert first_id(with_plan(works, checks=(("chat", f"The model `{name}` does not exist."),))) == id


METRICS = """\
vllm:num_requests_running{{engine="0",model_name="m"}} {running}
vllm:num_requests_waiting{{engine="0",model_name="m"}} {waiting}
vllm:num_preemptions_total{{engine="0",model_name="m"}} {preempted}
vllm:request_success_total{{engine="0",finished_reason="stop",model_name="m"}} {done}
vllm:request_success_total{{engine="0",finished_reason="length",model_name="m"}} 0.0
vllm:request_success_created{{engine="0",finished_reason="length",model_name="m"}} 1.79e+09
vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} 0.5
vllm:inter_token_latency_seconds_bucket{{engine="0",le="0.01",model_name="m"}} 7.0
vllm:inter_token_latency_seconds_sum{{engine="0",model_name="m"}} {between}
vllm:inter_token_latency_seconds_count{{engine="0",model_name="m"}} 1.0
vllm:time_to_first_token_seconds_sum{{engine="0",model_name="m"}} {first}
vllm:time_to_first_token_seconds_count{{engine="0",model_name="m"}} 1.0
vllm:request_prompt_tokens_sum{{engine="0",model_name="m"}} {prompt}
vllm:request_prompt_tokens_count{{engine="0",model_name="m"}} 1.0
vllm:request_prefill_time_seconds_sum{{engine="0",model_name="m"}} {prefill}
vllm:request_prefill_time_seconds_count{{engine="0",model_name="m"}} 1.0
vllm:request_queue_time_seconds_sum{{engine="0",model_name="m"}} 0.1
vllm:request_queue_time_seconds_count{{engine="0",model_name="m"}} 1.0
"""
QUIET = {"running": 1, "waiting": 0, "preempted": 0, "done": 100, "between": 0.01, "first": 0.1, "prompt": 100,
         "prefill": 0.1}  # fmt: skip


def metrics(**more: float) -> str:
    return METRICS.format(**{**QUIET, **more})


@pytest.mark.parametrize(
    ("values", "log", "id"),
    [
        ({}, "", ""),
        ({"waiting": 9, "running": 4}, "", "SG-S003"),
        ({"preempted": 30}, "", "SG-S002"),
        ({"preempted": 1, "done": 5000}, "", ""),
        ({"between": 0.2}, "Enforce eager set, disabling torch.compile", "SG-S005"),
        ({"between": 0.01}, "Enforce eager set, disabling torch.compile", ""),
        ({"between": 0.3}, "config: device_config=cpu, …", "SG-S004"),
        ({"prefill": 8, "prompt": 30000}, "", "SG-S006"),
        ({"first": 30, "done": 3}, "torch.compile took 95.20 s in total", "SG-S007"),
        # a GPU is planned for this service, so SG-S009 does not apply
        ({"between": 0.04}, "config: device_config=cpu, …", ""),
    ],
)
def test_slow_responses_are_diagnosed_from_metrics(values: dict[str, float], log: str, id: str) -> None:
    service = ServiceEvidence("vllm-two", engine="vllm", state="running", health="healthy", log=log,
                              metrics=metrics(**values))  # fmt: skip
    assert first_id(with_plan(service)) == id


def test_a_saturated_replica_next_to_an_idle_one_is_found() -> None:
    works = ServiceEvidence("vllm-two", engine="vllm", state="running", health="healthy", metrics=metrics(waiting=8))
    idle = replace(works, service="vllm-two-2", metrics=metrics())
    assert diagnose(Evidence((works, idle)))[0].id == "SG-S001"


def test_slow_tokens_on_a_cpu_without_planned_gpus() -> None:
    service = ServiceEvidence("vllm", engine="vllm", state="running", health="healthy",
                              log="config: device_config=cpu, …", metrics=metrics(between=0.2))  # fmt: skip
    (found,) = diagnose(Evidence((service,)))
    assert found.id == "SG-S009" and "200 ms" in found.cause and found.evidence[0] == "device_config=cpu"
    assert diagnose(Evidence((replace(service, metrics=metrics(between=0.02)),))) == ()
    # with a planned GPU it is a misconfiguration
    assert first_id(with_plan(replace(service, service="vllm-two"))) == "SG-S004"


def test_metrics_are_summed_over_labels() -> None:
    assert parse_metrics(metrics())["request_success_total"] == 100


def test_real_metrics_are_parsed() -> None:
    by_name = {one.name: parse_metrics(one.text) for one in ALL if one.head.get("kind") == "metrics"}
    busy = by_name["SG-S003-queue"]
    assert (busy["num_requests_waiting"], busy["num_requests_running"], busy["request_success_total"]) == (4, 1, 7)
    assert by_name["healthy-vllm-metrics"]["num_requests_waiting"] == 0
    # vLLM has every metric that a rule reads
    used = set(re.findall(r"vllm:(\w+)", METRICS)) - {"inter_token_latency_seconds_bucket", "request_success_created"}
    assert used <= set(busy) | {"request_success_created"}


def real(name: str) -> ServiceEvidence:
    """The service of a fixture with real metrics."""
    return next(one for one in ALL if one.name == name).evidence.services[0]


def test_preemption_and_long_prompts_from_real_metrics() -> None:
    assert "11 preemptions in 14 requests" in diagnose(Evidence((real("SG-S002-preempt"),)))[0].cause
    found = diagnose(Evidence((real("SG-S006-prompts"),)))
    # the queue that long prompts cause, and the CPU, come after them
    assert [one.id for one in found] == ["SG-S006", "SG-S003", "SG-S009"] and "3229 tokens" in found[0].cause


def test_a_saturated_replica_from_real_metrics() -> None:
    busy, idle = real("SG-S003-queue"), real("healthy-vllm-eager-metrics")
    found = diagnose(Evidence((busy, replace(idle, service="vllm-2"))))
    assert found[0].id == "SG-S001" and "vllm-2 is idle" in found[0].cause


def test_eager_mode_is_found_in_the_first_lines_of_a_long_real_log() -> None:
    """The log of a CPU server with a planned GPU, because no development machine has a GPU."""
    log = real("SG-S006-prompts").log
    requests = "\n".join(
        f'(APIServer pid=10) INFO: 10.0.0.1:{n} - "POST /v1/completions HTTP/1.1" 200' for n in range(9000)
    )
    slow = replace(
        real("SG-S009-cpu"), service="vllm-two", log=keep_head_and_tail(f"{log}\n{requests}", HEAD_LINES, LOG_LINES)
    )
    assert [one.id for one in diagnose(with_plan(slow))] == ["SG-S004", "SG-S005"]
    assert len(slow.log.splitlines()) == HEAD_LINES + 1 + LOG_LINES


@pytest.mark.parametrize("message", ["the name 'vllm-two' can't be resolved", "Could not resolve host: vllm-two"])
def test_a_service_name_that_only_the_stack_resolves(message: str) -> None:
    works = ServiceEvidence("vllm-two", engine="vllm", state="running", health="healthy")
    assert first_id(with_plan(works, checks=(("resolve", message),))) == "SG-C003"


HEARTBEAT = (
    "2026-11-23 05:{}:{:02} | INFO | model_worker | Send heart beat. Models: ['a']. Semaphore: Semaphore(value=0, "
)
FAILED_HEARTBEAT = (
    "2026-11-23 05:22:08 | ERROR | model_worker | heart beat error: HTTPConnectionPool(host='c', port=21001): Max …"
)


@pytest.mark.parametrize(("seconds", "is_stuck"), [(5, False), (45, True)])
def test_a_worker_with_long_answers_is_not_stuck(seconds: int, is_stuck: bool) -> None:
    """stackgen's workers send a heartbeat every 5 s, and an answer may take longer than several heartbeats."""
    times = [divmod(number * seconds, 60) for number in range(4)]
    log = "\n".join(HEARTBEAT.format(f"{minute:02}", second) + "locked=True). call_ct: 9." for minute, second in times)
    service = ServiceEvidence("a", role="worker", engine="fastchat", state="running", health="healthy", log=log)
    assert (first_id(Evidence((service,))) == "SG-F006") is is_stuck


def test_a_controller_that_came_back_has_no_finding() -> None:
    service = ServiceEvidence(
        "a", role="worker", engine="fastchat", state="running", health="healthy", log=FAILED_HEARTBEAT
    )
    assert first_id(Evidence((service,))) == "SG-F005"
    again = HEARTBEAT.format("22", 13) + "locked=False). call_ct: 1."
    assert diagnose(Evidence((replace(service, log=f"{FAILED_HEARTBEAT}\n{again}"),))) == ()


def test_localhost_is_accepted_without_containers() -> None:
    log = (
        "args: Namespace(worker_address='http://localhost:21002', controller_address='http://{}:21001', model_path='a')"
    )
    for controller, id in (("fastchat-controller", "SG-F003"), ("localhost", "SG-0000")):
        service = ServiceEvidence("a", role="worker", engine="fastchat", state="exited", exit_code=1,
                                  log=log.format(controller))  # fmt: skip
        assert first_id(Evidence((service,))) == id


def test_every_rule_has_a_test() -> None:
    """A log, or an example state in these files. The states of local processes are tested with real processes."""
    tests = Path(__file__).parents[1]
    files = [*tests.glob("diagnose/*.py"), tests / "runtimes" / "test_evidence.py"]
    here = "".join(file.read_text("utf-8") for file in files)
    in_logs = {log.rule for log in ALL} | {report.rule for report in load_reports()}
    assert [one.id for one in RULES if one.id not in here and one.id not in in_logs] == []


def test_errors_before_the_last_ready_line_are_ignored() -> None:
    log = "ValueError: No available memory for the cache blocks\nINFO: Application startup complete.\nGET /health 200"
    assert diagnose(collect_from_log(log)) == ()
    assert lines_since_ready("a\nApplication startup complete\nb") == ["b"]


def test_a_log_with_an_omitted_middle() -> None:
    failed = "ValueError: No available memory for the cache blocks"
    # it may have been ready in between, so a failure in the first lines is not a finding
    log = "\n".join([failed, *["x"] * 600, "INFO: Application startup complete.", *(f"GET {n}" for n in range(3000))])
    cut = keep_head_and_tail(log, HEAD_LINES, LOG_LINES)
    assert OMITTED in cut and failed in cut and diagnose(collect_from_log(log)) == ()
    assert lines_since_ready(cut)[0] == "GET 1000" and keep_head_and_tail("a\nb", 1, 1) == "a\nb"
    assert diagnose(collect_from_log(f"{log}\n{failed}"))[0].id == "SG-M001"
    # the same with Compose's prefixes, in a file of several megabytes
    text = "\n".join(f"vllm-a-1  | {line} {'y' * 1500}" for line in log.splitlines())
    (service,) = collect_from_log(text).services
    assert (
        service.log.startswith(failed)
        and OMITTED in service.log
        and service.log.splitlines()[-1].startswith("GET 2999")
    )


def test_first_and_last_lines_are_joined_without_repetition() -> None:
    lines = [str(number) for number in range(9)]
    assert join_head_and_tail(lines[:5], lines[4:]) == join_head_and_tail(lines[:5], lines[2:]) == "\n".join(lines)
    assert join_head_and_tail(lines[:3], lines[6:]).splitlines() == ["0", "1", "2", OMITTED, "6", "7", "8"]


@pytest.mark.parametrize("place", [0, 350, 5000, 9000])
def test_the_matching_part_of_a_very_long_line_is_shown(place: int) -> None:
    said = "ValueError: No available memory for the cache blocks"
    line = f"{'a b ' * (place // 4)}{said} {'c d ' * ((9000 - place) // 4)}".strip()
    shown = diagnose(collect_from_log(line + "\n"))[0].evidence[0]
    assert "No available memory for the cache blocks" in shown and len(shown) <= 420
    assert excerpt("short", "", 400) == "short"


def test_a_secret_at_the_cut_of_a_line_is_not_shown() -> None:
    line = (
        f"{'word ' * 100}--api-key hunter2hunter2 {'word ' * 20}No available memory for the cache blocks {'x ' * 300}"
    )
    assert "hunter2" not in str(diagnose(collect_from_log(line))[0].to_json())


def test_llamacpp_prefixes_are_stripped() -> None:
    assert strip_prefix("0.36.047.111 E llama_init_from_model: failed") == "llama_init_from_model: failed"
    log = next(one for one in BROKEN if one.name == "SG-A014-vcache").text.replace("quantized V cache", "mystery")
    (found,) = diagnose(collect_from_log(log))
    assert found.id == UNKNOWN and "mystery requires flash_attn" in found.evidence[0]


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("SG-A001-flag", "did you mean --ctx-size?"),
        ("SG-A001-vllmflag", "remove the flag: llama.cpp uses only the memory that it needs"),
    ],
)
def test_unknown_flags_of_llamacpp_get_a_suggestion(name: str, fix: str) -> None:
    assert fix in diagnose(next(one for one in BROKEN if one.name == name).evidence)[0].fix


def test_prefixes_are_stripped_and_services_split() -> None:
    assert strip_prefix("(EngineCore pid=27) ERROR 11-23 04:27:04 [core.py:1510] ValueError: x") == "ValueError: x"
    assert strip_prefix("2026-11-23 04:25:43 | ERROR | stderr | KeyError: 'x'") == "KeyError: 'x'"
    parts = split_services("vllm-a-1  | one\nfastchat-api-1  | two\nvllm-a-1  | three")
    assert parts == {"vllm-a": "one\nthree", "fastchat-api": "two"}
    assert find_key_lines("") == ()


def test_a_log_of_compose_names_the_service() -> None:
    found = diagnose(
        collect_from_log("vllm-a-1  | Bla\nvllm-a-1  | vllm: error: unrecognized arguments: --max-modell-len 512\n")
    )
    assert (found[0].id, found[0].service) == ("SG-V004", "vllm-a")
    assert "did you mean --max-model-len?" in found[0].fix
