"""Rules for Docker Model Runner, which starts llama.cpp or vLLM for `docker model run`.

None of these failures was reproduced. `source` names the files and the reports that quote the messages.
"""

from __future__ import annotations

from stackgen.diagnose.rule import Rule, compile_patterns

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-A043",
        title="Docker Model Runner has no backend for this model's files",
        cause="Docker Model Runner gave the model to llama.cpp, but the model has no GGUF file. Most often, it has "
        "safetensors files, for which the backend vLLM must be installed",
        fix="run `docker model status`, which shows the installed backends; on Linux with an NVIDIA GPU, run `docker "
        "model reinstall-runner --backend vllm --gpu cuda`, which keeps the models, but ends running requests "
        "(`install-runner` changes nothing while a runner exists); otherwise use a repository with GGUF files of this "
        "model",
        source="The message comes from Docker Model Runner (pkg/inference/backends/llamacpp, GetArgs), and is quoted "
        "in docker/model-runner issues 907 (2026-05) and 357 (2025-10). Docker's reference of `docker model "
        "reinstall-runner` (2026) says that models are kept. The failure was not reproduced.",
        explain="Docker Model Runner chooses the backend by the model's files. Without vLLM, llama.cpp gets every "
        "model.",
        patterns=compile_patterns(r"GGUF file required by llama\.cpp backend"),
        inputs=("log", "compose"),
    ),
)
