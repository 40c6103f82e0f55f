"""Public failure reports: the right cause comes first, and the line that matters is shown, known cause or not."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from stackgen.diagnose import Evidence, Finding, ServiceEvidence, diagnose
from stackgen.diagnose import rule_engine as engine
from stackgen.diagnose.error_lines import find_error_lines
from stackgen.diagnose.log_text import excerpt
from stackgen.diagnose.rule import UNKNOWN
from stackgen.diagnose.rule_engine import find_logged_errors, find_survived_requests, find_undecided_services
from stackgen.diagnose.rules import RULES
from stackgen.runtimes.observation.evidence import collect_from_log
from tests.diagnose.reports import FOLDER, Report, load_reports
from tests.diagnose.test_pasted import HOSTILE

ALL_REPORTS = load_reports()
REPORTS = [one for one in ALL_REPORTS if one.rule]
# what deletes data or downloads it again
HARMFUL = re.compile(
    r"download (?:it|the (?:model|file)) again|down --volumes|volume rm|prune|trust_remote_code to true"
)

# a thread, as `owner/repository issue 123` or `pull request 123`; or the address of a page
THREAD = re.compile(
    r"[\w.-]+/[\w.-]+,? (?:issues?|pull(?: requests?)?|discussion|commit) [0-9a-f]+|https://[\w.-]+/\S+"
)


def shown(found: tuple[Finding, ...]) -> str:
    return " | ".join(line for one in found for line in one.evidence)


@pytest.mark.parametrize("report", REPORTS, ids=lambda one: one.name)
def test_a_public_report_is_diagnosed(report: Report) -> None:
    found = diagnose(report.evidence)
    assert found[0].id == report.rule, [(one.id, one.evidence) for one in found]
    assert " ".join(report.shown.split()) in shown(found), found[0].evidence
    assert "?" not in found[0].cause + found[0].title
    assert not HARMFUL.search(" ".join(one.fix for one in found))


@pytest.mark.parametrize("report", REPORTS, ids=lambda one: one.name)
def test_without_its_rule_the_line_that_matters_is_still_shown(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stackgen would print if no rule knew the cause: no other rule may claim it."""
    monkeypatch.setattr(engine, "RULES", tuple(one for one in RULES if one.id != report.rule and not one.refusal))
    found = diagnose(report.evidence)
    # a request that was refused, a hang and a server that runs are no failures without their rules
    silent = {"SG-G033", *(one.id for one in RULES if one.refusal)}
    if report.rule not in silent and found and found[0].id == UNKNOWN:
        assert " ".join(report.shown.split()) in shown(found), found[0].evidence
    assert not HARMFUL.search(" ".join(one.fix for one in found))


@pytest.mark.parametrize("report", [one for one in ALL_REPORTS if not one.rule], ids=lambda one: one.name)
def test_a_report_without_a_failure_in_its_log_gets_no_cause(report: Report) -> None:
    assert diagnose(report.evidence) == ()
    # either the command says that it is unknown whether the server works, or which request failed
    requests = (*find_survived_requests(report.evidence), *find_logged_errors(report.evidence))
    assert find_undecided_services(report.evidence) or report.shown in " ".join(requests)


def test_reports_name_their_source_and_contain_no_secrets() -> None:
    assert len(REPORTS) >= 70
    for path in FOLDER.glob("*.log"):
        text = path.read_text("utf-8")
        assert not re.search(r"\b(sk-[A-Za-z0-9_-]{12,}|hf_[A-Za-z0-9]{16,})", text), path
    assert all(re.search(r"(issues?|pull|commit) \w+", one.source) for one in REPORTS)
    # the common form, so that a search for a thread finds whether its report is here already
    unnamed = [one.name for one in ALL_REPORTS if not THREAD.search(one.source)]
    assert not unnamed, f"write OWNER/REPOSITORY issue NUMBER (YYYY-MM) as the source of {unnamed}"


PLUM = "ValueError: the frobnicator is out of plums"
CORE = "(EngineCore pid=86) ERROR 11-23 04:27:04 [core.py:1341] "
WORKER = "(VllmWorker rank=0 pid=99) ERROR 11-23 04:27:03 [multiproc_executor.py:852] "
API = "(APIServer pid=1) "
ENDED = f"{API}RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}\n"


def first(text: str) -> Finding:
    return diagnose(collect_from_log(text))[0]


@pytest.mark.parametrize(
    "later",
    [
        f"{API}OSError: We couldn't connect to 'https://huggingface.co' to load the files",
        f"{API}PermissionError: [Errno 13] Permission denied: '/tmp/x.json'",
        f"{API}OSError: [Errno 98] Address already in use",
    ],
)
def test_an_error_of_the_api_server_does_not_hide_an_unknown_error_of_the_engine(later: str) -> None:
    found = first(f"{WORKER}{PLUM}\n{CORE}EngineCore failed to start.\n{later}\n{ENDED}")
    assert (found.id, PLUM in found.evidence) == (UNKNOWN, True)
    # without the engine's error, the API server's error is the cause
    assert first(f"{later}\n").id != UNKNOWN


@pytest.mark.parametrize(
    "warning",
    [
        "(EngineCore pid=86) WARNING 11-23 04:27:01 [x.py:1] HTTP Error 429 thrown while requesting GET, retrying",
        "/opt/x.py:3: UserWarning: no kernel image is available for execution on the device",
        '{"timestamp":"2026-01-01T00:00:00Z","level":"WARN","fields":{"message":"InvalidCertificate(UnknownIssuer)"}}',
    ],
)
def test_a_warning_does_not_hide_an_unknown_error(warning: str) -> None:
    found = first(f"{warning}\n{CORE}EngineCore failed to start.\n{CORE}{PLUM}\n{ENDED}")
    assert (found.id, PLUM in found.evidence) == (UNKNOWN, True)


def test_an_error_that_the_process_survived_does_not_hide_an_unknown_error() -> None:
    survived = "(EngineCore pid=86) PermissionError: [Errno 13] Permission denied: '/.config'"
    found = first(f"{survived}\n{CORE}EngineCore failed to start.\n{CORE}{PLUM}\n{ENDED}")
    assert (found.id, PLUM in found.evidence) == (UNKNOWN, True)


def test_a_warning_is_not_reported_next_to_the_cause() -> None:
    warning = "(EngineCore pid=86) WARNING 11-23 04:27:01 [x.py:1] HTTP Error 429 thrown while requesting GET, retrying"
    error = "RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist"
    text = f"{warning}\n{CORE}EngineCore failed to start.\n{CORE}{error}\n{ENDED}"
    assert [one.id for one in diagnose(collect_from_log(text))] == ["SG-G023"]
    # unless the warning shows why
    warning = (
        "(EngineCore pid=86) WARNING 11-23 04:27:01 [x.py:1] Failed to import from vllm._C with "
        "ImportError('libcudart.so.12: cannot open shared object file: No such file or directory')"
    )
    text = f"{warning}\n{CORE}EngineCore failed to start.\n{CORE}RuntimeError: Failed to infer device type\n{ENDED}"
    assert [one.id for one in diagnose(collect_from_log(text))] == ["SG-G022"]


def test_a_general_last_line_does_not_hide_an_unknown_cause() -> None:
    last = "mtmd_init_from_file: error: Failed to load CLIP model from /models/mmproj.gguf"
    cause = "clip_init: failed to load model '/models/mmproj.gguf': load_hparams: the moon is full"
    assert first(f"{last}\nmain: exiting due to model loading error\n").id == "SG-A016"
    found = first(f"{cause}\n{last}\nmain: exiting due to model loading error\n")
    assert (found.id, cause in found.evidence) == (UNKNOWN, True)
    ignored = "warning: no usable GPU found, --gpu-layers option will be ignored"
    cause = "ggml_cuda_init: failed to initialize CUDA: the moon is full"
    found = first(f"{cause}\n{ignored}\n")
    assert (found.id, cause in found.evidence) == (UNKNOWN, True)


def test_a_cause_is_not_reported_next_to_its_consequence() -> None:
    nccl = "RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)"
    shm = (
        "node:221:221 [3] misc/shmutils.cc:72 NCCL WARN Error while creating shared memory segment /dev/shm/nccl-AbCdEf"
    )
    assert [one.id for one in diagnose(collect_from_log(f"{shm}\n{WORKER}{nccl}\n"))] == ["SG-M010"]
    assert [one.id for one in diagnose(collect_from_log(f"{WORKER}{nccl}\n"))] == ["SG-G011"]


def test_the_last_error_of_nccl_is_shown() -> None:
    error = "torch.distributed.DistBackendError: NCCL error in: x.cpp:268, unhandled system error, NCCL version 2.27.5"
    reason = "socketStartConnect: Connect to 10.0.0.1<34567> failed : out of plums"
    found = first(
        f"{WORKER}WorkerProc failed to start.\n{WORKER}{error}\n{WORKER}Last error:\n{WORKER}{reason}\n{ENDED}"
    )
    assert found.id == "SG-G011" and reason in found.evidence
    reason = "Error: failed to extend /dev/shm/nccl-AbCd to 33030532 bytes, error: No space left on device (28)"
    found = first(
        f"{WORKER}WorkerProc failed to start.\n{WORKER}{error}\n{WORKER}Last error:\n{WORKER}{reason}\n{ENDED}"
    )
    assert found.id == "SG-M010"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (f"{WORKER}{PLUM}", PLUM),
        (f"(RayWorkerWrapper pid=7106, ip=10.0.0.1) {PLUM}", PLUM),
        ("[rank0]:E0701 14:28:21.083000 91 torch/x.py:539] [0/0] ptxas fatal   : out of plums",
         "ptxas fatal : out of plums"),
        ('{"timestamp":"2026-01-01T00:00:00Z","level":"ERROR","fields":{"message":"out of plums"}}', "out of plums"),
        ('{"levelname": "ERROR", "message": "out of plums"}', "out of plums"),
        ("rocBLAS error: out of plums", "rocBLAS error: out of plums"),
        ("Error: crun: cannot stat `/plums`: No such file", "Error: crun: cannot stat `/plums`: No such file"),
        ("invalid spec: plums", "invalid spec: plums"),
        ("GGML_ASSERT(plums > 0) failed", "GGML_ASSERT(plums > 0) failed"),
    ],
)  # fmt: skip
def test_an_unknown_error_is_found_in_every_form(line: str, text: str) -> None:
    found = first(f"vllm-a-1  | (EngineCore pid=86) INFO 11-23 04:27:04 [x.py:1] loading\nvllm-a-1  | {line}\n"
                  f"vllm-a-1  | {ENDED}vllm-a-1 exited with code 1\n")  # fmt: skip
    assert found.id == UNKNOWN and text in found.evidence


@pytest.mark.parametrize("line", HOSTILE.values(), ids=HOSTILE)
def test_a_long_line_is_classified_in_linear_time(line: str) -> None:
    """A pattern that takes quadratic time would not finish here."""
    for prefix in ("", "Error: ", "(EngineCore pid=1) ERROR 11-23 04:27:04 [core.py:1] ", "{"):
        find_error_lines([f"{prefix}{line}"])


def test_the_end_of_a_long_line_is_shown() -> None:
    line = f"Error response from daemon: {'failed to create task: ' * 60}mkdirat etc/x: out of plums"
    assert first(f"{line}\n").evidence[0].endswith("mkdirat etc/x: out of plums")
    assert excerpt(f"{'a ' * 500}end", "", 100).startswith("a a") and excerpt("short", "", 100) == "short"


INFER = "RuntimeError: Failed to infer device type\n"


@pytest.mark.parametrize(
    ("stack", "log", "id"),
    [
        ("nvidia", INFER, "SG-G003"),
        ("amd", INFER, "SG-G025"),
        ("amd", "RuntimeError: Found no NVIDIA driver on your system\n", "SG-G025"),
        # without a stack, the log's own words decide
        ("", f"Device 0: AMD Radeon Graphics, gfx1151\n{INFER}", "SG-G025"),
        ("", INFER, "SG-G003"),
    ],
)
def test_nvidia_rules_do_not_apply_to_amd(stack: str, log: str, id: str) -> None:
    from stackgen.stack.load import parse_stack

    evidence = collect_from_log(log)
    if stack:
        text = f"name: a\ngpu_driver: {stack}\nmodels: [{{model: acme/one, engine: vllm, gpus: 1}}]\n"
        evidence = replace(evidence, spec=parse_stack(text))
    found = diagnose(evidence)
    assert found[0].id == id
    assert id != "SG-G025" or "nvidia" not in found[0].fix.lower()


REFUSED = (
    '(APIServer pid=1) INFO:     10.0.0.1:4 - "POST /v1/chat/completions HTTP/1.1" 400 Bad Request\n'
    "(APIServer pid=1) ERROR 08-01 10:12:09 [x.py:237] ValueError: This model's maximum context length is 8192 "
    "tokens.\n"
)


def test_a_refused_request_is_no_failure_of_the_stack() -> None:
    assert first(REFUSED).id == "SG-V017"
    running = ServiceEvidence("a", engine="vllm", state="running", health="healthy", log=REFUSED)
    assert [one.id for one in diagnose(Evidence((running,)))] == ["SG-V017"]
    # a server that has answered since is healthy, and a crash is more important
    assert diagnose(collect_from_log(REFUSED + REFUSED.splitlines()[0].replace("400 Bad Request", "200 OK"))) == ()
    assert first(f"{REFUSED}{CORE}EngineCore encountered a fatal error.\n{CORE}{PLUM}\n"
                 f"{API}vllm.v1.engine.exceptions.EngineDeadError: EngineCore\n").id == UNKNOWN  # fmt: skip


def test_an_unknown_error_of_a_request_is_shown() -> None:
    error = "(APIServer pid=1) ERROR 08-01 10:12:09 [x.py:237] ValueError: the frobnicator is out of plums\n"
    answer = REFUSED.splitlines()[0] + "\n"
    for status in ("400 Bad Request", "500 Internal Server Error"):
        found = first(error + answer.replace("400 Bad Request", status))
        assert found.id == UNKNOWN and PLUM in found.evidence and "the server is running" in found.cause
    # a wrong key, and a request that was answered later, are no failures
    for status in ("401 Unauthorized", "200 OK"):
        assert diagnose(collect_from_log(error + answer.replace("400 Bad Request", status))) == ()


def test_waiting_processes_are_a_hang_only_if_nothing_follows() -> None:
    wait = (
        "(EngineCore_DP0 pid=132) INFO 01-25 14:11:20 [shm_broadcast.py:542] No available shared memory broadcast "
        "block "
        "found in 60 seconds. This typically happens when some processes are hanging or doing some time-consuming "
        "work\n"
    )
    assert first(wait * 3).id == "SG-G033"
    assert diagnose(collect_from_log(wait * 2)) == ()
    done = "(EngineCore_DP0 pid=132) INFO 01-25 14:15:20 [backends.py:1] torch.compile took 210 s in total\n"
    assert diagnose(collect_from_log(wait * 3 + done)) == ()
    assert first(f"{wait * 3}{CORE}{PLUM}\n{ENDED}").id == UNKNOWN
