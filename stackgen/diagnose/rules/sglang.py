"""What SGLang rejects, and how it ends when it gets no memory or no answer of its scheduler.

The texts are those of the source of SGLang 0.5.23 (`python/sglang/srt`). `source` says which failures were reproduced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import has_crashed
from stackgen.diagnose.rule import Change, Rule, Variant, compile_patterns
from stackgen.spec import ModelSpec

__all__ = ["RULES"]

ENGINES = ("sglang",)
NOT_REPRODUCED = "The failure was not reproduced, because it needs a GPU."
BUDGET = (
    "mem_fraction_static is the share of a GPU's memory for weights and KV cache. CUDA graphs, activations and NCCL "
    "need the rest. If the KV cache does not fit, raise the share. If memory runs out later, for example during the "
    "capture of CUDA graphs, lower the share."
)


ALARM = compile_patterns(r"couldn't get a response from detokenizer for last (?P<seconds>\d+) seconds")
ANSWER = re.compile(r'"POST /\S* HTTP/1\.[01]" 200')


def _answers_after_alarm(evidence: Evidence, service: str) -> bool:
    """Whether a request was answered after the health check got no answer, and the scheduler has not ended."""
    log = evidence.read_log(service)
    alarm = ALARM[0].search(log)
    return bool(alarm and ANSWER.search(log, alarm.end())) and "watchdog timeout" not in log and not has_crashed(log)


def _smaller_fraction(model: ModelSpec | None, _: Mapping[str, str]) -> str | None:
    """mem_fraction_static minus 0.05; None without the field, whose default depends on the GPU, and below 0.3."""
    was = getattr(model, "mem_fraction_static", None)
    return f"{was - 0.05:.3g}" if was and was >= 0.3 else None


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-X001",
        title="no memory is left for SGLang's KV cache",
        cause="the weights use up the share of the GPU's memory that mem_fraction_static reserves for weights and KV "
        "cache",
        fix="raise mem_fraction_static, use more `gpus`, or use a quantized variant of the model",
        source="The message comes from SGLang 0.5.23 (model_executor/pool_configurator.py, "
        f"mem_cache/kv_cache_configurator.py). {NOT_REPRODUCED}",
        explain=BUDGET,
        patterns=compile_patterns(r"Not enough memory\. Please try to increase --mem-fraction-static"),
        engines=ENGINES,
        shows_gpus=True,
        variants=(
            Variant(
                compile_patterns(
                    r"Loaded weights leave no GPU memory for the KV cache under "
                    r"--mem-fraction-static=(?P<was>[\d.]+)\. "
                    r"Raise --mem-fraction-static above (?P<least>[\d.]+)"
                ),
                cause="the weights alone need a mem_fraction_static of {least}, but it is {was}",
                fix="set mem_fraction_static above {least}; if {least} is 0.9 or more, use more `gpus`, or use a "
                "quantized variant of the model",
            ),
        ),
    ),
    Rule(
        "SG-X002",
        title="SGLang can't capture CUDA graphs",
        cause="the capture of CUDA graphs failed: {problem}",
        fix="if memory is short, lower mem_fraction_static or max_num_seqs; otherwise set enforce_eager to true",
        source="The message comes from SGLang 0.5.23 (model_executor/runner/decode_cuda_graph_runner.py). "
        f"{NOT_REPRODUCED}",
        explain=f"{BUDGET} Without CUDA graphs (enforce_eager), decoding is slower.",
        patterns=compile_patterns(r"Capture cuda graph failed: (?P<problem>.+)"),
        engines=ENGINES,
        change=Change("mem_fraction_static", compute=_smaller_fraction),
        shows_gpus=True,
    ),
    Rule(
        "SG-X003",
        title="max_model_len is longer than the model's context",
        cause="max_model_len is {length}, but SGLang reads a context of {limit} tokens from the model's config.json",
        fix="lower max_model_len to {limit}, or remove max_model_len from stack.yaml",
        source="The message comes from SGLang 0.5.23 (configs/model_config.py, _derive_context_length).",
        explain="A longer context needs a model that was trained for it, or RoPE scaling in its config.json (set "
        "--json-model-override-args in extra_args). SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1 turns off the check, "
        "but the output beyond the model's limit is garbage.",
        patterns=compile_patterns(
            r"User-specified context_length \((?P<length>\d+)\) is greater than the derived context_length "
            # not the warning of the same text, which SGLang logs if the user has allowed it
            r"\((?P<limit>\d+)\)(?=.*To allow overriding this maximum)"
        ),
        engines=ENGINES,
        change=Change("max_model_len", "{limit}"),
    ),
    Rule(
        "SG-X004",
        title="SGLang does not know the model's architecture",
        cause="config.json has the architecture {architecture}, which this version of SGLang can't run",
        fix="set `image:` to a newer version of SGLang, or use `engine: vllm` if vLLM supports the architecture",
        source="The message comes from SGLang 0.5.23 (models/registry.py).",
        explain="docs.sglang.io lists the supported models. For many others, SGLang falls back to Transformers.",
        patterns=compile_patterns(r"Model architectures \['?(?P<architecture>[^\]']+)'?\] are not supported for now"),
        engines=ENGINES,
    ),
    Rule(
        "SG-X005",
        title="SGLang's scheduler does not answer",
        cause="the process that runs the model has not answered for {seconds} seconds",
        fix="in the log above this line, look for the first error of a scheduler; if there is none, restart the "
        "service, and report the Python stacks that SGLang logs",
        source="The messages come from SGLang 0.5.23 (entrypoints/http_server.py, health_generate; utils/watchdog.py). "
        "sgl-project/sglang issue 10856 (2025-09) reports a server that answers between such lines.",
        explain="SGLang's health check asks the scheduler for one token. If one forward pass takes longer than "
        "watchdog_timeout (300 s by default), SGLang exits, and supervise.sh restarts it. A very long prompt on a slow "
        "GPU can take that long. In this case, raise --watchdog-timeout in extra_args.",
        patterns=(
            *ALARM,
            *compile_patterns(r"watchdog timeout \(self\.watchdog_timeout=(?P<seconds>\d+)"),
        ),
        engines=ENGINES,
        consequence_of=("*",),
        variants=(
            Variant(
                ALARM,
                title="SGLang's health check times out while the engine is busy",
                cause="the health check got no answer for {seconds} seconds, but the engine answered a request "
                "afterwards. So the engine was most likely busy: a long prompt, or the compilation of kernels for "
                "the first requests, took longer than the check waits",
                fix="don't restart the service, because the next start compiles again; set "
                "SGLANG_HEALTH_CHECK_TIMEOUT in extra_env to more seconds than the longest prompt takes (20 by "
                "default), and raise the time limit of your own probes as well; if it happens under load, lower "
                "max_num_seqs or the length of prompts",
                applies=_answers_after_alarm,
                condition="the log has an answered request after this line",
                consequence_of=(),
            ),
        ),
    ),
    Rule(
        "SG-X006",
        title="SGLang finds no GPU",
        cause="no accelerator is visible in the container",
        fix="set `gpus`; if it is set, run `stackgen doctor`, which checks the driver and the container toolkit",
        source="The message comes from SGLang 0.5.23 (utils/common.py, get_device).",
        explain="Without `gpus`, stackgen starts SGLang for the CPU, which needs an image with SGLang's CPU build.",
        patterns=compile_patterns(r"No accelerator \(CUDA, XPU, .{0,60}\) or platform plugin is available"),
        engines=ENGINES,
    ),
    Rule(
        "SG-X007",
        title="SGLang has no kernels for the CPU in this image",
        cause="the image lacks the package {package}, which contains SGLang's kernels for the CPU",
        fix="build an image with docker/xeon.Dockerfile of SGLang, and set `image:` to it; or use `engine: llamacpp` "
        "or `engine: vllm`, which run on any x86-64 CPU",
        source="SGLang 0.5.23 imports its kernels at the start. The failure was reproduced.",
        explain="SGLang's CPU engine needs the CPU build of its kernels, and is fast only with Intel AMX.",
        patterns=compile_patterns(r"ModuleNotFoundError: No module named '(?P<package>sgl_kernel)'"),
        engines=ENGINES,
    ),
    Rule(
        "SG-X008",
        title="SGLang does not support this GPU",
        cause="SGLang needs a GPU with compute capability 7.5 or higher",
        fix="use a newer GPU, or `engine: llamacpp`",
        source="The message comes from SGLang 0.5.23 (load_model_utils.py).",
        explain="Compute capability 7.5 is the Turing generation (T4, RTX 20).",
        patterns=compile_patterns(r"SGLang only supports sm75 and above"),
        engines=ENGINES,
    ),
    Rule(
        "SG-X013",
        title="the system killed SGLang's scheduler",
        cause="a scheduler of SGLang was killed with SIGKILL during the start. Most often, the memory of the machine "
        "or of "
        "the container (not of the GPU) was full",
        fix="run `sudo dmesg -T | grep -iE 'oom|killed process'` to confirm it, and watch `free -g` during the next "
        "start; raise the memory limit of the container, stop other programs, or remove settings that use host memory "
        "(`--enable-hierarchical-cache`, `--cpu-offload-gb`); if CPU and GPU share memory, lower mem_fraction_static; "
        "with many GPUs, remove flags that load the weights with several threads, because they need the most memory",
        source="The message comes from SGLang 0.5.23 (entrypoints/engine.py, _wait_for_scheduler_ready), and the lines "
        "of older versions come from SGLang 0.5.9. The failure was not reproduced.",
        explain="A killed program can't log anything. For other exit codes, the scheduler's own error is above.",
        patterns=compile_patterns(
            r"scheduler died during initialization \(exit code: (?:-9|137)\)",
            r"^Exit code: -9$",
        ),
        engines=ENGINES,
        variants=(
            Variant(
                compile_patterns(r"scheduler died during initialization \(exit code: -(?P<signal>4|6|7|8|11)\)"),
                title="SGLang's scheduler crashed in native code",
                cause="a scheduler of SGLang ended with signal {signal} during the start, so a native library (a "
                "kernel, "
                "NCCL, the driver) crashed",
                fix="read the earlier lines of the same rank: a failed assertion or the first frames name the library; "
                "as a test, start with `--disable-cuda-graph` and another `--attention-backend`, and with another "
                "version of the image",
                consequence_of=("*",),
            ),
        ),
    ),
    Rule(
        "SG-X012",
        title="the GPUs of the model have different amounts of free memory",
        cause="SGLang splits a model evenly, and one of its GPUs has less than 90 % of the free memory of another "
        "GPU[[: {least} GiB instead of {own} GiB]]",
        fix="run `nvidia-smi`, which lists the processes on each GPU; end the process that uses the GPU's memory (it "
        "may be left over from an earlier start), or set `gpus` to other GPUs; for GPUs of different size, set "
        'SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK to "0" in extra_env, and mem_fraction_static for the smallest GPU',
        source="The message comes from SGLang 0.5.23 (model_executor/model_runner.py and "
        "srt/distributed/bootstrap.py). "
        "The failure was not reproduced.",
        explain="A container that was removed may keep its memory on the GPU for some seconds.",
        patterns=compile_patterns(
            r"Error: The memory capacity is unbalanced\. Some GPUs may be occupied by other processes\.?"
            r"(?: \w+=(?P<least>[\d.]{1,6})[\d.]*, local_gpu_memory=(?P<own>[\d.]{1,6}))?"
        ),
        engines=ENGINES,
        shows_gpus=True,
    ),
    Rule(
        "SG-V058",
        title="a package is older than SGLang needs",
        cause="SGLang needs {package} in version {wanted} or newer, but {found} is installed",
        fix="use an official image of SGLang without other packages; in your own image, install the required version "
        "together with SGLang (`pip install` both in one command), so that their versions match; don't install "
        "packages into a running container",
        source="The message comes from SGLang 0.5.9 to 0.5.23 (utils/common.py, assert_pkg_version). The failure was "
        "not "
        "reproduced.",
        explain="SGLang compares the versions at startup. The model, the GPU and the driver are not the cause.",
        patterns=compile_patterns(
            r"Exception: (?P<package>[\w.-]+) is installed with version (?P<found>[\w.+-]+), which is less than the "
            r"minimum required version (?P<wanted>[\w+-]+(?:\.[\w+-]+)*)"
        ),
        variants=(
            Variant(
                compile_patterns(
                    r"Exception: (?P<package>[\w.-]+) with minimum required version "
                    r"(?P<wanted>[\w+-]+(?:\.[\w+-]+)*) is not "
                    r"installed"
                ),
                cause="SGLang needs {package} in version {wanted} or newer, and it is not installed",
            ),
        ),
    ),
    Rule(
        "SG-X011",
        title="SGLang can't use this --moe-runner-backend with the model's quantization",
        cause="the class {method}, which computes the experts of the model, has no code for the chosen "
        "--moe-runner-backend",
        fix="remove --moe-runner-backend from extra_args, so that SGLang chooses a backend itself; for FP8 weights, "
        "you can also try the backend `cutlass`",
        source="The message comes from Python. sgl-project/sglang pull request 27968 (2026-06) quotes it, and names "
        "the flag. The failure was not reproduced.",
        explain="SGLang creates the object `runner` only for the backends that the quantization supports. The first "
        "request fails, because the start does not use it.",
        patterns=compile_patterns(r"AttributeError: '(?P<method>\w*MoEMethod)' object has no attribute 'runner'"),
    ),
    Rule(
        "SG-X009",
        title="the prompt is longer than the context",
        cause="a prompt has {tokens} tokens, but the context has only {limit} tokens",
        fix="shorten the prompt; if the model and the memory allow it, raise max_model_len",
        source="The message comes from SGLang 0.5.23 (managers/tokenizer_manager.py).",
        explain="The context holds the prompt and the answer of one request. The server keeps running.",
        patterns=compile_patterns(
            r"The input \((?P<tokens>\d+) tokens\) is longer than the model's context length \((?P<limit>\d+) tokens\)"
        ),
        engines=ENGINES,
        refusal=True,
        inputs=("log", "check"),
    ),
)
