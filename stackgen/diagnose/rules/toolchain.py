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
        title="no CUDA compiler is found",
        cause="a library (FlashInfer) compiles a kernel at startup, but finds no nvcc: the image contains none, or "
        "nvcc is installed in a folder that the library does not search",
        fix="run `ls -d /usr/local/cuda*` and `which nvcc` in the image: if there is a CUDA toolkit, set CUDA_HOME in "
        "extra_env to its folder; otherwise, use an image that contains compiled FlashInfer kernels "
        '(vllm/vllm-openai), or set VLLM_USE_FLASHINFER_SAMPLER to "0" in extra_env',
        source="The messages come from FlashInfer 0.6.18 (jit/cpp_ext.py) and torch 2.13 (utils/cpp_extension.py), and "
        "are quoted in vllm-project/vllm issues 49497 (2026-07) and 21960 (2025-07), and in odysseus-dev/odysseus pull "
        "request 228 (2026-06); vllm-project/vllm issue 36077 (2026-03) reports a list in CUDA_HOME. "
        "pytorch/pytorch issue 185733 (2026-05), odysseus-dev/odysseus issue 4010 (2026-06) and vllm-project/vllm "
        "issues 50705 and 50751 (2026-08) quote the messages about nvcc's permissions, Python.h and sm75, and "
        "flashinfer-ai/flashinfer issues 2577 (2026-06) and 2045 (2025-11) those about architectures, and 1919 "
        "(2025-10) the one with an installed nvcc. The failure "
        "was not reproduced.",
        explain="FlashInfer compiles kernels for which the image has no compiled version, for example on new GPUs.",
        patterns=compile_patterns(r"Could not find nvcc\b", r"nvcc: (?:command )?not found|No such file.*: '\S*nvcc'"),
        variants=(
            Variant(
                compile_patterns(
                    r"(?:^|[\s'\"\]])(?P<home>(?:/[^\s:'\"]*cuda[^\s:'\"]*)?:/[^\s'\"]{1,200}?)/bin/nvcc\b"
                ),
                title="CUDA_HOME is a list instead of one folder",
                cause="a library starts the compiler as {home}/bin/nvcc, and {home} is not a folder: it contains a "
                "colon. CUDA_HOME is a single path, but a line such as `export CUDA_HOME=$CUDA_HOME:/usr/local/cuda` "
                "makes a list of it",
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
                cause="a library compiles a kernel at startup, but the nvcc that it found belongs to a different CUDA "
                "version from the header files",
                fix="use an official image of the engine; in your own installation, install the same version of "
                f"nvidia-cuda-nvcc and nvidia-cuda-runtime, or set CUDA_HOME to one complete CUDA toolkit; {SAMPLER}",
            ),
            Variant(
                # torch breaks the line before its own version
                compile_patterns(
                    r"detected CUDA version \((?P<found>[\d.]+)\) mismatches the version that was used to compile"
                    r"(?: PyTorch \((?P<built>[\d.]+)\))?"
                ),
                title="the CUDA toolkit and torch have different CUDA versions",
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
                compile_patterns(r"FlashInfer requires GPUs with sm75 or higher"),
                title="FlashInfer can't compile kernels for this GPU",
                cause="FlashInfer found no GPU for which it can compile kernels. On a GPU of the RTX 50 or RTX PRO "
                "series, this means that the CUDA toolkit (nvcc, nvrtc) is older than the GPU: compute capability 12 "
                "needs CUDA 12.9. On a GPU before Turing, the message is correct: FlashInfer does not support this GPU",
                fix="run `nvidia-smi --query-gpu=name,compute_cap --format=csv`; if it prints 7.5 or more, use an "
                "official image for CUDA 12.9 or newer, or set CUDA_HOME to such a toolkit; until then, set "
                'VLLM_USE_FLASHINFER_SAMPLER to "0" in extra_env, which avoids most of these kernels; if it prints '
                "less than 7.5, set the same variable, or use an older image",
            ),
            Variant(
                compile_patterns(r"No supported CUDA architectures found for major versions \[(?P<wanted>12)\]"),
                title="FlashInfer found a CUDA toolkit that is too old for the GPU",
                cause="FlashInfer compiles a kernel for compute capability {wanted}.x at startup, and the nvcc that it "
                "found does not know this GPU. Without CUDA_HOME, it takes the first nvcc in PATH, which is often an "
                "old one of the distribution (/usr/bin/nvcc). If the GPU has another compute capability, the chosen "
                "backend is not for it",
                fix="run `nvidia-smi --query-gpu=name,compute_cap --format=csv`, `which -a nvcc` and `ls -d "
                "/usr/local/cuda*`: set CUDA_HOME in extra_env to a toolkit for this GPU (12.x needs CUDA "
                "12.9 or newer), for example /usr/local/cuda; or use an official image for CUDA 13, which has one; if "
                "the GPU has another compute capability, choose another backend (`--moe-backend`, "
                "`--attention-backend`)",
            ),
            Variant(
                compile_patterns(r"No supported CUDA architectures found for major versions \[(?P<wanted>[\d, ]+)\]"),
                title="the chosen kernels of FlashInfer are for other GPUs",
                cause="FlashInfer has these kernels only for compute capability {wanted}.x, and found no such GPU "
                "(10.x are B200 and B300, 12.x are RTX 50, RTX PRO and GB10)",
                fix="choose another backend instead of TensorRT-LLM's: in vLLM, set `--moe-backend` to marlin or "
                "flashinfer_cutlass (older versions: VLLM_FLASHINFER_MOE_BACKEND to throughput), in SGLang "
                "`--moe-runner-backend` and `--fp4-gemm-backend`; if `nvidia-smi --query-gpu=compute_cap --format=csv` "
                "does show such a GPU, set CUDA_HOME in extra_env to a newer CUDA toolkit",
            ),
            Variant(
                compile_patterns(r"Permission denied: '(?P<nvcc>\S*nvcc)'"),
                title="the CUDA compiler can't be started",
                cause="a library starts the compiler {nvcc}, and the system does not permit it. Either the file is not "
                "executable, or PATH contains a folder that the container's user can't enter (on WSL, often a folder "
                "of Windows)",
                fix="run `which -a nvcc` and `echo $PATH` as the user that runs the engine: remove folders from PATH "
                "that this user can't enter (`ls -ld`), or set CUDA_HOME and PATH to a readable CUDA toolkit; caches "
                "and their folders are not the cause",
            ),
            Variant(
                compile_patterns(r"fatal error: (?P<header>Python\.h): No such file or directory"),
                title="the header files of Python are missing",
                cause="Triton compiles a small C program at startup, but Python's header files ({header}) are not "
                "installed",
                fix="use an official image of the engine, which contains them; in your own image or installation, "
                "install the package for your version of Python (Debian: `apt-get install -y python3-dev`, or "
                "python3.12-dev for Python 3.12), or use a Python of uv or conda, which contains them",
            ),
            Variant(
                compile_patterns(r"ld: cannot find -l(?P<library>cuda|cudart|nvrtc|cublas\w*|nvidia-ml)\b"),
                title="the linker does not find a library of CUDA",
                cause="a library compiles a program at startup, but the linker does not find lib{library}.so",
                fix="use an official image of the engine; in your own installation, add the folder of lib{library}.so "
                "to LIBRARY_PATH (`ldconfig -p | grep lib{library}`; for libcuda.so, the folder `stubs` of the CUDA "
                "toolkit also works)",
            ),
            Variant(
                compile_patterns(
                    r"No such file or directory: '(?:/usr/bin/)?(?P<compiler>g\+\+|gcc|cc|c\+\+|clang\+?\+?)'"
                ),
                title="the image has no C++ compiler",
                cause="torch.compile, Triton or another library compiles a kernel at startup, but the image does not "
                "contain the compiler {compiler}",
                fix="use an official image of the engine, which contains gcc and g++; or install them when you build "
                "the image (Debian: `apt-get install -y g++`); until then, set enforce_eager to true, which turns "
                "torch.compile off",
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
    Rule(
        "SG-V067",
        title="the CuTe DSL can't compile a kernel",
        cause="the CuTe DSL (package nvidia-cutlass-dsl) failed inside its own library while it compiled a kernel. "
        "Either its packages nvidia-cutlass-dsl-libs-base and -libs-cu13 are not compatible, because they write the "
        "same files, or this version of the package has a bug. Neither memory nor CUDA graphs are the cause",
        fix="use the official image of the engine for this model, or a newer one; in your own installation with CUDA "
        "13, run `uv pip install --force-reinstall --no-deps nvidia-cutlass-dsl-libs-cu13` with the version that `uv "
        "pip show nvidia-cutlass-dsl` prints; if the traceback or the log names FlashInfer's norm (rmsnorm), set "
        'FLASHINFER_USE_CUDA_NORM to "1" in extra_env, which avoids the kernel',
        source="The message comes from MLIR's Python bindings (NanobindAdaptors.h), and is quoted in "
        "sgl-project/sglang issue 28232 (2026-06) and vllm-project/vllm issue 45392 (2026). NVIDIA/cutlass issue 3170 "
        "(2026-04) describes the packages with the same files. The failure was not reproduced.",
        explain="SGLang, FlashInfer and FlashAttention 4 compile kernels with the CuTe DSL while the engine starts.",
        patterns=compile_patterns(r"Expected an MLIR object \(got .{0,300}?\bcutlass\._mlir"),
    ),
)
