"""Rules for the compilers with which libraries compile kernels while an engine starts.

None of these failures was reproduced. `source` names the programs and the reports that quote the messages.
"""

from __future__ import annotations

from stackgen.diagnose.rule import Rule, Variant, compile_patterns

__all__ = ["RULES"]

SAMPLER = 'until then, set VLLM_USE_FLASHINFER_SAMPLER to "0" in extra_env if the traceback names the sampler'

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-G023",
        title="the image has no CUDA compiler",
        cause="a library (FlashInfer) compiles a kernel at startup, but the image contains no nvcc",
        fix="use an image that contains compiled FlashInfer kernels (vllm/vllm-openai), or set "
        'VLLM_USE_FLASHINFER_SAMPLER to "0" in extra_env; if the image has a CUDA toolkit in another folder (`ls -d '
        "/usr/local/cuda*`), set CUDA_HOME in extra_env to this folder",
        source="The messages come from FlashInfer 0.6.18 (jit/cpp_ext.py) and torch 2.13 (utils/cpp_extension.py), and "
        "are quoted in vllm-project/vllm issues 49497 (2026-07) and 21960 (2025-07), and in odysseus-dev/odysseus pull "
        "request 228 (2026-06); vllm-project/vllm issue 36077 (2026-03) has the list in CUDA_HOME. The failure "
        "was not reproduced.",
        explain="FlashInfer compiles kernels for which the image has no compiled version, for example on new GPUs.",
        patterns=compile_patterns(
            r"Could not find nvcc and default cuda_home", r"nvcc: (?:command )?not found|No such file.*: '\S*nvcc'"
        ),
        variants=(
            Variant(
                compile_patterns(
                    r"(?:^|[\s'\"\]])(?P<home>(?:/[^\s:'\"]*cuda[^\s:'\"]*)?:/[^\s'\"]{1,200}?)/bin/nvcc\b"
                ),
                title="CUDA_HOME is a list instead of one folder",
                cause="a library starts the compiler as {home}/bin/nvcc, and {home} is no folder: it contains a colon. "
                "CUDA_HOME is a single path, but a line such as `export CUDA_HOME=$CUDA_HOME:/usr/local/cuda` makes a "
                "list of it",
                fix="set CUDA_HOME to one folder, without a colon (in extra_env, or in the shell that starts the "
                "engine), for example /usr/local/cuda; only PATH and LD_LIBRARY_PATH are lists",
            ),
            Variant(
                compile_patterns(r"CUDA_HOME environment variable is not set"),
                title="no CUDA toolkit is found",
                cause="a library compiles a kernel at startup, and CUDA_HOME is not set, so it finds no CUDA toolkit",
                fix="use an official image, which needs no compiler; if the image has a CUDA toolkit (`ls -d "
                "/usr/local/cuda*`), set CUDA_HOME in extra_env to its folder",
            ),
            Variant(
                compile_patterns(r"CUDA compiler and CUDA toolkit headers are incompatible"),
                title="the CUDA compiler and its header files have different versions",
                cause="a library compiles a kernel at startup, and the nvcc that it found is of another CUDA version "
                "than the header files",
                fix="use an official image of the engine; in your own installation, install the same version of "
                f"nvidia-cuda-nvcc and nvidia-cuda-runtime, or set CUDA_HOME to one complete CUDA toolkit; {SAMPLER}",
            ),
            Variant(
                # torch breaks the line before its own version
                compile_patterns(
                    r"detected CUDA version \((?P<found>[\d.]+)\) mismatches the version that was used to compile"
                    r"(?: PyTorch \((?P<built>[\d.]+)\))?"
                ),
                title="the CUDA toolkit has another version than torch",
                cause="a library compiles a kernel at startup with CUDA {found}, but torch in this image was built for "
                "another version[[, CUDA {built}]]",
                fix="use an official image of the engine; in your own installation, set CUDA_HOME to a toolkit of the "
                "version that torch has (`python3 -c 'import torch; print(torch.version.cuda)'`), or install torch for "
                "CUDA {found}",
            ),
            Variant(
                compile_patterns(
                    r"Ninja is required to load C\+\+ extensions",
                    r"No such file or directory: 'ninja'|ninja: not found",
                ),
                title="the image has no ninja",
                cause="a library compiles a kernel at startup, but the image does not contain the program ninja",
                fix=f"use an official image of the engine, which contains ninja; or install the package `ninja` when "
                f"you build the image; {SAMPLER}",
            ),
            Variant(
                compile_patterns(r"Failed to find C compiler\. Please specify via CC environment variable"),
                title="the image has no C compiler",
                cause="Triton compiles a small C program at startup, but the image contains no C compiler",
                fix="use an official image of the engine, which contains gcc; or install gcc when you build the image "
                "(Debian: `apt-get install -y gcc libc6-dev`)",
            ),
        ),
    ),
)
