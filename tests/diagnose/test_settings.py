"""Next steps of unknown failures: settings that a traceback touches, places, system errors, crashes, requests."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stackgen.diagnose import Evidence, Finding, ServiceEvidence, diagnose
from stackgen.diagnose.next_steps import SYSTEM_ERRORS, explain_system_errors
from stackgen.diagnose.rule import UNKNOWN
from stackgen.diagnose.rule_engine import find_survived_requests
from stackgen.runtimes.observation.evidence import collect_from_log
from stackgen.stack.load import parse_stack

CORE = "(EngineCore pid=86) ERROR 11-23 04:27:04 [core.py:1341] "
ENDED = "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.\n"
ERROR = "RuntimeError: out of plums"
ALL = """\
name: one
models:
  - model: acme/a
    engine: vllm
    gpus: 2
    tensor_parallel_size: 2
    reasoning_parser: plum
    tool_call_parser: plum
    lora_adapters: [{name: plum, path: acme/plum}]
    extra_args: [--speculative-config, "{}", --tokenizer-mode, mistral]
    extra_env: {VLLM_ROCM_USE_AITER: "1", PYTORCH_CUDA_ALLOC_CONF: "expandable_segments:True", TZ: UTC}
"""
NONE = "name: one\nmodels: [{model: acme/a, engine: vllm, gpus: 1}]\n"


def first(log: str, stack: str = "") -> Finding:
    evidence = collect_from_log(log)
    return diagnose(replace(evidence, spec=parse_stack(stack)) if stack else evidence)[0]


def start(module: str, error: str = ERROR, arguments: str = "") -> str:
    shown = f"(APIServer pid=1) INFO 11-23 04:26:01 [x.py:1] non-default args: {arguments}\n" if arguments else ""
    frame = f'{CORE}  File "/usr/lib/python3/dist-packages/{module}", line 3, in f\n'
    return f"{shown}{CORE}EngineCore failed to start.\n{frame}{CORE}{error}\n{ENDED}"


@pytest.mark.parametrize(
    ("module", "error", "setting"),
    [
        ("vllm/reasoning/plum_reasoning_parser.py", ERROR, "`reasoning_parser`"),
        ("vllm/tool_parsers/plum.py", ERROR, "`tool_call_parser`"),
        ("vllm/lora/worker_manager.py", ERROR, "`lora_adapters`"),
        ("vllm/x.py", "ValueError: plum is unsupported LoRA weight", "`lora_adapters`"),
        ("vllm/v1/spec_decode/plum.py", ERROR, "--speculative-config"),
        ("vllm/models/plum_mtp.py", ERROR, "--speculative-config"),
        ("vllm/x.py", "RuntimeError: custom_all_reduce.cuh:1 'plums'", "`tensor_parallel_size`"),
        ("vllm/x.py", "RuntimeError: custom_all_reduce.cuh:1 'plums'", "PYTORCH_CUDA_ALLOC_CONF in extra_env"),
        ("vllm/x.py", "ValueError: only plum tokenizers are supported", "--tokenizer-mode"),
        ("aiter/ops/plum.py", ERROR, "VLLM_ROCM_USE_AITER in extra_env"),
    ],
)
def test_settings_that_a_failure_touches_are_named_with_the_stack(module: str, error: str, setting: str) -> None:
    found = first(start(module, error), ALL)
    # a message that explains itself has a finding of its own, with the value of the setting
    expected = {UNKNOWN: "start once without", "SG-V046": "change or remove"}[found.id]
    assert setting.strip("`").partition(" in ")[0] in found.fix and expected in found.fix
    # a setting that the stack does not have is no suspect
    assert setting not in first(start(module, error), NONE).fix
    assert "settings" not in first(start("vllm/plum.py"), ALL).fix


def test_without_a_stack_the_arguments_in_the_log_are_the_settings() -> None:
    module = "vllm/reasoning/plum_reasoning_parser.py"
    assert "`reasoning_parser`" in first(start(module, arguments="{'reasoning_parser': 'plum'}")).fix
    assert "`reasoning_parser`" not in first(start(module, arguments="{'seed': 7}")).fix


@pytest.mark.parametrize(
    "error",
    ["RuntimeError: the plums of this request have no prompt", "RuntimeError: gpu plums", "RuntimeError: no cuda plums",
     "RuntimeError: the tokenizer has no plums", "RuntimeError: weights of plums", "RuntimeError: the plums timed out"],
)  # fmt: skip
def test_single_words_name_no_place(error: str) -> None:
    assert "places to look" not in first(start("vllm/x.py", error)).fix


def test_a_request_is_a_place_only_if_the_server_served() -> None:
    error = "(APIServer pid=1) ERROR 11-23 04:28:00 [x.py:1] ValueError: the prompt has no plums\n"
    answer = '(APIServer pid=1) INFO:     10.0.0.1:4 - "POST /v1/chat/completions HTTP/1.1" 500 Internal Server Error\n'
    assert "a client's request" in first(error + answer).fix
    assert "a client's request" not in first(error).fix


@pytest.mark.parametrize(
    "banner",
    ["!!!!!!! Segfault encountered !!!!!!!", "Segmentation fault (core dumped)",
     "Fatal Python error: Segmentation fault",
     "/start.sh: line 3:    17 Segmentation fault      (core dumped) plum"],
)  # fmt: skip
def test_a_crash_at_the_start_is_evidence_and_not_a_silent_end(banner: str) -> None:
    found = first(f"(EngineCore pid=9) INFO 07-06 20:11:48 [x.py:4] loading\n{banner}\n{ENDED}")
    assert found.id == UNKNOWN and banner.split("    ")[0] in " ".join(found.evidence)
    assert "does not contain the cause" not in found.cause and "memory was full" not in found.cause
    assert "native code crashed" in found.fix


def test_an_illegal_instruction_at_the_start_is_a_cause() -> None:
    log = (
        "a-1  | main: loading model\na-1  | Illegal instruction (core dumped)\na-1 exited with code 132 (restarting)\n"
    )
    found = first(log)
    assert found.id == "SG-D024" and "compiled for a CPU" in found.cause
    # another crash has many reasons
    assert first(log.replace("Illegal instruction", "Segmentation fault").replace("132", "139")).id == UNKNOWN


@pytest.mark.parametrize("number", SYSTEM_ERRORS)
def test_errors_of_the_system_are_explained_inside_other_messages(number: int) -> None:
    for form in ("RuntimeError: plums: x (os error {})", "OSError: [Errno {}] plums", "plums failed, errno={}"):
        assert explain_system_errors(form.format(number)) == [SYSTEM_ERRORS[number][1]]
    assert explain_system_errors("plums (os error 7)") == []
    assert SYSTEM_ERRORS[24][1] in first("RuntimeError: plum error : Too many open files (os error 24)\n").fix


DAEMON = "Error response from daemon: OCI runtime create failed: runc create failed: error running hook: stderr: plums"


def test_a_message_of_the_daemon_with_line_breaks_is_read_whole() -> None:
    reason = "nvidia-container-cli: ldcache error: out of plums"
    for evidence in (collect_from_log(f"{DAEMON}\n{reason}\n\nafter: plums\n"),
                     Evidence((ServiceEvidence("a", state="created", error=f"{DAEMON}\n{reason}"),))):  # fmt: skip
        found = diagnose(evidence)[0]
        assert reason in found.cause and "after: plums" not in found.cause


NVML = "unresolvable CDI devices runtime.nvidia.com/gpu=all"


def test_a_kind_that_the_toolkit_generates_is_no_missing_file() -> None:
    found = first(f"Error response from daemon: failed to inject CDI devices: {NVML}\n")
    assert found.id == "SG-G016" and "No file is missing" in found.cause and "/etc/cdi" not in found.fix
    assert "nvidia-smi" in found.fix
    # the generation's own error is the cause
    found = first(f"Failed to initialize NVML: Driver/library version mismatch\nError response from daemon: {NVML}\n")
    assert found.id == "SG-G005"


def test_figures_of_the_log_decide_the_fix() -> None:
    said = "error: request (25837 tokens) exceeds the available context size (25088 tokens), try increasing it"
    refused = (
        f"srv    send_error: task id = 1, {said}\nsrv  log_server_r: request: POST /v1/chat/completions 10.0.0.1 400\n"
    )
    found = first(refused)
    assert found.id == "SG-V017" and "25837" in found.cause and "lower max_tokens" not in found.fix
    free = "llama_model_load_from_file_impl: using device CUDA0 (NVIDIA X) - {} MiB free\n"
    failed = "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 39979.48 MiB on device 0: "
    failed += "cudaMalloc failed: out of memory\n"
    found = first(free.format(23988) + failed)
    assert "23988" in found.cause and "more GPUs" in found.fix and "free GPU memory" not in found.fix
    # with less wanted than free, other buffers took the rest
    assert "free GPU memory" in first(free.format(50000) + failed).fix
    ignored = (
        "warning: no usable GPU found, --gpu-layers option will be ignored\nmain: server is listening on http://a:1\n"
    )
    loaded = "ggml_vulkan: No devices found.\nload_backend: loaded Vulkan backend from /app/libggml-vulkan.so\n"
    assert "built without GPU" not in first(loaded + ignored).cause and "No devices" in first(loaded + ignored).cause
    assert "built without GPU" in first(ignored).cause


def test_a_failed_request_is_named_although_a_later_one_was_answered() -> None:
    ready = "INFO:     Application startup complete.\n"
    answer = 'INFO:     10.0.0.1:4 - "POST /v1/chat/completions HTTP/1.1" {}\n'
    error = "ERROR:    Exception in ASGI application\nValueError: out of plums\n"
    failed = ready + answer.format("500 Internal Server Error") + error
    evidence = collect_from_log(failed + answer.format("200 OK"))
    assert diagnose(evidence) == ()
    said = " ".join(find_survived_requests(evidence))
    assert "the server runs, but a request failed" in said and "out of plums" in said and "500" in said
    # a client's own mistake is none
    assert find_survived_requests(collect_from_log(ready + answer.format("404 Not Found"))) == ()


def test_words_of_quoted_input_and_of_python_names_are_no_settings() -> None:
    names = "ImportError: cannot import name 'PLUM_ATTENTION_CLASSES' from 'transformers.plum' (/usr/lib/plum.py)"
    assert (
        "--attention-backend"
        not in first(f"$ python -m vllm.entrypoints.openai.api_server --model acme/a\n{names}\n").fix
    )
    quoted = (
        "Value error, dtype plum is not supported [type=value_error, input_value={'additional_config'}, input_type=X]"
    )
    assert "--additional-config" not in first(f"$ vllm serve acme/a\n{quoted}\n").fix
