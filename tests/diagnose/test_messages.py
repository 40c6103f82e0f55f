"""Rules that read the grammar of a message: they name its own objects, and say nothing about a running server."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stackgen.diagnose import Finding, diagnose
from stackgen.diagnose.error_lines import is_error
from stackgen.diagnose.log_text import split_services
from stackgen.diagnose.prefixes import is_below_error, strip_prefix
from stackgen.diagnose.rule import UNKNOWN
from stackgen.diagnose.rule_engine import find_logged_errors
from stackgen.runtimes.observation.evidence import collect_from_log
from stackgen.stack.load import parse_stack

CORE = "(EngineCore pid=86) ERROR 11-23 04:27:04 [core.py:1341] "
ENDED = "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.\n"
FRAME = f'{CORE}  File "/usr/lib/python3/dist-packages/vllm/v1/x.py", line 3, in f\n'
STACK = "name: one\nmodels:\n  - {model: acme/a, engine: vllm, gpus: 2, extra_args: [--enable-lora]}\n"
AMD = "name: one\ngpu_driver: amd\nmodels:\n  - {model: acme/a, engine: vllm, gpus: 1}\n"


def find(error: str, stack: str = "", start: str = "") -> Finding:
    evidence = collect_from_log(f"{start}{CORE}EngineCore failed to start.\n{FRAME}{CORE}{error}\n{ENDED}")
    return diagnose(replace(evidence, spec=parse_stack(stack)) if stack else evidence)[0]


@pytest.mark.parametrize(
    ("error", "id", "cause", "fix"),
    [
        ("AssertionError: num_plums=96 must be divisible by tp_size=5.", "SG-V035", "num_plums=96", "1, 2, 3, 4, 6, 8"),
        ("ValueError: 151936 is not divisible by 3", "SG-V035", "151936", "1, 2, 4, 8"),
        ("ValueError: max_num_batched_tokens (2048) is smaller than max_model_len (4096).", "SG-V037", "2048",
         "`max_model_len` to at most 2048"),
        ("ValueError: plum_size (99) is larger than max_num_batched_tokens (64).", "SG-V037", "plum_size is 99",
         "set --max-num-batched-tokens in extra_args to at least 99"),
        ("ValueError: Model AcmeForCausalLM does not support LoRA yet.", "SG-V038", "LoRA", "--enable-lora"),
        ("NotImplementedError: Pipeline parallelism is not supported with plums", "SG-V038", "plums",
         "pipeline_parallel_size"),
        ("RuntimeError: plums failed. Try setting VLLM_USE_PLUMS to 0.", "SG-V039", "plums failed", "extra_env"),
        ("RuntimeError: plum_kernel requires sm_90a, got sm_80", "SG-G040", "requires sm_90a", "image"),
        ("ValueError: FP8 KV cache requires compute capability 8.9 or higher", "SG-G040", "8.9", "kv_cache_dtype"),
        ("ImportError: cannot import name 'Plum' from 'plums.tree' (/x/plums/tree.py)", "SG-V040",
         "vllm uses `Plum`, which plums in the image does not have", "tested together"),
        ("TypeError: Tree.__init__() got an unexpected keyword argument 'plum'", "SG-V040", "Tree", "container"),
    ],
)  # fmt: skip
def test_a_message_that_explains_itself_is_read(error: str, id: str, cause: str, fix: str) -> None:
    found = find(error)
    assert (found.id, error in found.evidence) == (id, True)
    assert cause in found.cause and fix in found.fix and "?" not in found.cause


@pytest.mark.parametrize(
    "error",
    [
        "ValueError: the prompt is not supported with this chat template",
        "RuntimeError: plums failed. Please pip install plums",
        "RuntimeError: plums failed. Please delete the cache and set --max-model-len",
        "RuntimeError: plums failed. Please set trust_remote_code=True",
        "RuntimeError: Plums requires a tree",
        "ValueError: plum_size (99) is larger than tree_size (64).",
        "AssertionError",
        "AttributeError: 'NoneType' object has no attribute 'plum'",
        "AttributeError: 'PlumForCausalLM' object has no attribute 'plum'",
        "TypeError: PlumForCausalLM.__init__() got an unexpected keyword argument 'plum'",
    ],
)
def test_other_messages_stay_unknown(error: str) -> None:
    found = find(error)
    assert (found.id, error in found.evidence) == (UNKNOWN, True)


def test_the_same_words_about_a_request_of_a_running_server_are_no_finding() -> None:
    ready = "(APIServer pid=1) INFO:     Application startup complete.\n"
    error = "(APIServer pid=1) ERROR 11-23 04:28:00 [x.py:1] ValueError: tools is not supported with plums\n"
    answer = '(APIServer pid=1) INFO:     10.0.0.1:4 - "POST /v1/chat/completions HTTP/1.1" 200 OK\n'
    evidence = collect_from_log(ready + error + answer)
    assert diagnose(evidence) == ()
    # but the command does not call such a log free of problems
    assert "tools is not supported with plums" in find_logged_errors(evidence)[0]
    assert find_logged_errors(collect_from_log(ready + answer)) == ()


def test_only_settings_of_the_stack_are_named() -> None:
    error = "ValueError: LoRA is not supported with speculative decoding"
    assert "--enable-lora" in find(error, STACK).fix and "speculative" not in find(error, STACK).fix
    assert "--speculative-config" in find(error).fix


def test_advice_about_a_library_fits_the_maker_of_the_gpu() -> None:
    error = "RuntimeError: aiter plum_kernel requires gfx950, got gfx942"
    assert 'VLLM_ROCM_USE_AITER to "0"' in find(error, AMD).fix
    assert "AITER" not in find("RuntimeError: aiter plum_kernel requires sm_90, got sm_80", STACK).fix


NCCL = "RuntimeError: NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)"


def test_advice_that_is_already_applied_is_not_given_again() -> None:
    applied = STACK.replace("extra_args: [--enable-lora]", "extra_env: {NCCL_DEBUG: INFO}")
    assert "set NCCL_DEBUG" in find(NCCL, STACK).fix and "set NCCL_DEBUG" not in find(NCCL, applied).fix
    assert "nvidia" not in find(NCCL, AMD).fix and "CUDA" not in find(NCCL, AMD).fix


def test_the_warning_with_the_reason_wins_over_its_consequence() -> None:
    warning = "[2026-04-13 19:52:24] node:508:508 [0] init.cc:426 NCCL WARN Cuda failure 'out of plums'\n"
    found = find(NCCL, start=warning)
    assert found.id == "SG-G042" and "out of plums" in found.cause
    broken = "WARNING 05-22 08:51:53 [x.py:44] Failed to import from vllm._P with ImportError('plums are out')\n"
    found = find("AttributeError: '_OpNamespace' '_P' object has no attribute 'plum'", start=broken)
    assert found.id == UNKNOWN and any("plums are out" in line for line in found.evidence)


@pytest.mark.parametrize(
    ("line", "text", "is_failure"),
    [
        ("(Worker pid=1) ERROR 08-15 08:18:38 multiproc_executor.py:912] plums", "plums", True),
        ("ERROR [multiproc_executor.py:912] plums", "plums", True),
        ("(Worker pid=1) INFO 08-15 08:18:38 x/y.py:912] plums", "plums", False),
        ("2026/06/18 09:41:07 [error] 29#29: *412 plums timed out", "plums timed out", True),
        ("2026/06/18 09:41:07 [warn] 29#29: plums", "plums", False),
        ("WARN[0000] plums", "plums", False),
        ("ERRO[0003] plums", "plums", True),
        ('time="2026-06-18T09:41:07Z" level=error msg="plums"', "plums", True),
    ],
)
def test_prefixes_of_other_programs_are_read(line: str, text: str, is_failure: bool) -> None:
    assert strip_prefix(line) == text
    assert (is_error(line), is_below_error(line)) == (is_failure, not is_failure)


def test_messages_of_compose_between_the_services_are_kept() -> None:
    lines = [f"vllm-1  | INFO line {index}" for index in range(20)]
    parts = split_services("\n".join([*lines, "dependency failed to start: container one-vllm-1 is unhealthy"]))
    assert set(parts) == {"vllm", ""} and "unhealthy" in parts[""]
    found = diagnose(
        collect_from_log("\n".join([*lines, "dependency failed to start: container one-vllm-1 is unhealthy"]))
    )
    assert (found[0].id, found[0].service) == (UNKNOWN, "vllm")
    assert "line 19" in " ".join(found[0].evidence) and "unhealthy" in found[0].evidence[-1]


def test_the_end_of_the_last_run_is_shown_and_not_the_next_start() -> None:
    start = "".join(f"a-1  | INFO start {index}\n" for index in range(20))
    found = diagnose(
        collect_from_log(f"{start}a-1  | INFO the last plum\na-1 exited with code 1 (restarting)\n{start}")
    )
    assert any("exited with code 1" in line for line in found[0].evidence)
    assert any("the last plum" in line for line in found[0].evidence)


@pytest.mark.parametrize(("code", "id"), [(139, "SG-D024"), (134, "SG-D024"), (1, UNKNOWN)])
def test_a_crash_in_native_code_is_named_by_its_signal(code: int, id: str) -> None:
    log = f"a-1  | INFO:     Application startup complete.\na-1  | INFO plum\na-1 exited with code {code}\n"
    assert diagnose(collect_from_log(log))[0].id == id
    # an error in the log is more important
    error = "a-1  | ValueError: out of plums\n"
    assert diagnose(collect_from_log(log.replace("a-1 exited", f"{error}a-1 exited")))[0].id == UNKNOWN
    # a start that crashes has many more reasons
    assert diagnose(collect_from_log(log.replace("Application startup complete", "start")))[0].id == UNKNOWN


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("RuntimeError: hipPlum is out of plums", "`rocm-smi`"),
        ("Error response from daemon: out of plums", "journalctl"),
        ("ValueError: out of plums for --max-num-seqs", "`max_num_seqs`"),
        ("OSError: /x/tokenizer.json has no plums", "model's page"),
        ("AssertionError: plums", "newer versions"),
    ],
)
def test_an_unknown_failure_names_a_place_and_a_harmless_next_step(line: str, words: str) -> None:
    found = find(line, AMD)
    assert found.id == UNKNOWN and words in found.fix and "nvidia" not in found.fix
    assert not any(word in found.fix for word in ("prune", "reinstall", "rm -", "restart", "pip "))


@pytest.mark.parametrize(("status", "words"), [(404, "check the spelling"), (401, "token"), (403, "token")])
def test_statuses_of_the_hub_are_told_apart(status: int, words: str) -> None:
    log = f"E get_repo_commit: error: GET failed ({status}): no\nsrv llama_server: exiting due to model loading error\n"
    found = diagnose(collect_from_log(log))[0]
    assert found.id == "SG-H015" and words in found.fix and ("token" in found.fix) == (status != 404)


def test_a_missing_image_follows_from_the_failed_pull() -> None:
    missing = "Error response from daemon: No such image: acme/one:1\n"
    full = "failed to register layer: write /x: no space left on device\n"
    for log in (full + missing, missing + full):
        assert [one.id for one in diagnose(collect_from_log(log))] == ["SG-H008"]
    assert diagnose(collect_from_log(missing))[0].id == "SG-D002"


def test_a_proxy_that_answered_since_is_no_failure() -> None:
    error = "2026/06/18 09:41:07 [error] 9#9: *1 upstream timed out (110: Operation timed out) while reading upstream\n"
    answer = '10.0.0.7 - - [x] "POST /v1/chat/completions HTTP/1.1" 504 1\n'
    assert diagnose(collect_from_log(error + answer))[0].id == "SG-C012"
    assert diagnose(collect_from_log(error + answer + answer.replace("504", "200"))) == ()
    # other errors of the proxy have other fixes, and follow from an engine that failed
    refused = error.replace("upstream timed out (110: Operation timed out) while reading",
                            "connect() failed (111: Connection refused) while connecting to")  # fmt: skip
    assert "curl" in diagnose(collect_from_log(refused + answer))[0].fix
    large = error.replace("upstream timed out", "client intended to send too large body: 9 bytes, upstream")
    assert "client_max_body_size" in diagnose(collect_from_log(large + answer.replace("504", "413")))[0].fix
    log = "".join(f"nginx-1  | {line}\n" for line in (refused + answer).splitlines())
    assert diagnose(collect_from_log(f"{log}vllm-1  | ValueError: plums\nvllm-1 exited with code 1\n"))[0].id == UNKNOWN
    # an error status alone is a failure as well
    assert diagnose(collect_from_log(answer))[0].id == UNKNOWN


def test_an_unset_variable_without_an_error_is_no_cause() -> None:
    warning = 'WARN[0000] The "PLUM" variable is not set. Defaulting to a blank string.\n'
    rejected = "a-1  | a: error: argument --plum: expected one argument\na-1 exited with code 2\n"
    assert diagnose(collect_from_log(warning + rejected))[0].id == "SG-D021"
    # a flag that does not exist, and a variable for a secret, have nothing to do with each other
    other = "a-1  | vllm: error: unrecognized arguments: --plum\na-1 exited with code 2\n"
    assert diagnose(collect_from_log(warning + other))[0].id == "SG-V004"
    assert diagnose(collect_from_log(warning.replace("PLUM", "HF_TOKEN") + rejected))[0].id != "SG-D021"
    served = "a-1  | INFO:     Application startup complete.\n"
    assert diagnose(collect_from_log(warning + served)) == ()


@pytest.mark.parametrize(
    "advice",
    [
        "Please set share=True",
        "Please set --host to 0.0.0.0",
        "You can disable SSL verification",
        "You can use --network host",
        "Try setting HF_HUB_DISABLE_SSL_VERIFY=1",
        "Please use --security-opt seccomp=unconfined",
        "Please use --no-auth",
        "Consider using a public tunnel",
    ],
)
def test_advice_that_opens_a_server_or_switches_protection_off_is_not_repeated(advice: str) -> None:
    found = find(f"ValueError: out of plums. {advice}.")
    assert found.id == UNKNOWN and "advises" not in found.fix
    # in general, a program's own advice is repeated
    assert "Please set the plums" in find("ValueError: out of plums. Please set the plums.").fix


@pytest.mark.parametrize(
    ("log", "text"),
    [
        ("ValueError: plums:\n    '/orchard'", "ValueError: plums: '/orchard'"),
        ("ValueError: plums (ripe,\ngreen, blue) are out", "ValueError: plums (ripe, green, blue) are out"),
        # wrapped at a space
        ("ValueError: the plums are \nout", "ValueError: the plums are out"),
        # wrapped at the width of a terminal, and what Python prints in the same line
        (
            "ValueError: the orchard in the north has run out of ripe plums\n  but has pears. See\n  others.",
            "ValueError: the orchard in the north has run out of ripe plums but has pears. See others.",
        ),
        (
            "AttributeError: 'Plum' object has no attribute 'x'.\nDid you mean: 'y'?",
            "AttributeError: 'Plum' object has no attribute 'x'. Did you mean: 'y'?",
        ),
        (
            "RuntimeError: the orchard in the north has run out of ripe plums\nterminate called after throwing",
            "RuntimeError: the orchard in the north has run out of ripe plums",
        ),
        # the next line is not a part of the message
        ("ValueError: plums:\nINFO: start", "ValueError: plums:"),
        ("ValueError: plums,\nTypeError: pears", "ValueError: plums,"),
        ("ValueError: plums are out\nof season", "ValueError: plums are out"),
        (f"{CORE}ValueError: plums:\n(APIServer pid=1) pears", "ValueError: plums:"),
    ],
)
def test_a_message_over_several_lines_is_read_as_one(log: str, text: str) -> None:
    assert text in diagnose(collect_from_log(log))[0].evidence


@pytest.mark.parametrize(("address", "is_named"), [("127.0.0.1", False), ("[::1]", False), ("10.0.0.7", True)])
def test_no_call_to_a_loopback_address_is_advised(address: str, is_named: bool) -> None:
    fix = diagnose(collect_from_log(f"RuntimeError: plum: Connection refused by {address}:14215\n"))[0].fix
    assert ("curl -v" in fix) is is_named


def test_an_argument_that_the_server_adds_is_no_mistake_of_the_client() -> None:
    frame = f'{CORE}  File "/x/site-packages/{{}}", line 1, in render_chat\n'
    error = f"{CORE}ValueError: Kwargs ['plum'] are not supported by `PlumTokenizer.apply_chat_template`.\n"
    frames = "".join(map(frame.format, ("vllm/renderers/plum.py", "transformers/tokenization_plum.py")))
    found = diagnose(collect_from_log(frames + error))[0]
    assert (
        found.id == "SG-V040"
        and "uses `plum` when it answers a request" in found.cause
        and "transformers" in found.cause
    )
    assert "even if the client does not send it" in found.cause


@pytest.mark.parametrize(
    ("caller", "is_worker"), [("fastchat/serve/vllm_worker.py", True), ("transformers/x.py", False)]
)
def test_an_old_worker_of_fastchat_is_replaced_by_the_engine_vllm(caller: str, is_worker: bool) -> None:
    error = "ImportError: cannot import name 'Plum' from 'vllm.tree' (/x/site-packages/vllm/tree.py)\n"
    log = f'Traceback (most recent call last):\n  File "/x/site-packages/{caller}", line 1, in <module>\n{error}'
    found = diagnose(collect_from_log(log))[0]
    assert found.id == "SG-V040" and found.fix.startswith("serve the model with `engine: vllm`") == is_worker
    assert "set `image:` to a version in which both packages were tested" in found.fix
