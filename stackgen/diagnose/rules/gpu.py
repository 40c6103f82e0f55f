"""Rules for the GPUs of a model: ids, counts, compute capability, data types, NCCL, parallel sizes.

`source` shows which failures were reproduced.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import lines_since_ready, strip_prefix
from stackgen.diagnose.prefixes import COLORS
from stackgen.diagnose.rule import Change, Hit, Rule, Variant, compile_patterns
from stackgen.diagnose.rules.cdi_files import OWN_VENDORS

__all__ = ["RULES"]

FAILED_NCCL = re.compile(r"NCCL error(?:: | in: .{0,300}?, )(?:unhandled (?:system|cuda) error|internal error)")
INVALID_USAGE = compile_patterns(r"NCCL error(?:: | in: .{0,300}?, )invalid usage", r"ncclInvalidUsage")
DUPLICATE = re.compile(
    r"Duplicate GPU detected ?: rank (?P<first>\d+) and rank (?P<second>\d+) both on (?:CUDA )?device (?P<device>\w+)"
)
NCCL_WARNING = re.compile(r"NCCL WARN (?P<warning>.{3,300})")

# torch prints CUDA for AMD GPUs too
NO_GPU = compile_patterns(r"No CUDA GPUs are available")
# what only a program for ROCm prints, and what may also be the name of a package
ROCM, ROCM_WORDS = re.compile(r"platforms/rocm\.py|\bgfx\d{3,4}\b"), re.compile(r"(?i)(?<![\w-])(?:rocm|hip)\b")
# vLLM's own words about its build
CUDA = re.compile(r"detected platform cuda|platforms/cuda\.py")
UNHANDLED = compile_patterns(r"NCCL error(?:: | in: .{0,300}?, )unhandled cuda error", r"ncclUnhandledCudaError")


def _is_amd(evidence: Evidence, service: str) -> bool:
    """Whether stack.yaml or the words of the log show an AMD GPU."""
    log, maker = evidence.read_log(service), evidence.gpu_maker(service)
    return maker == "amd" or bool(ROCM.search(log)) or (not maker and bool(ROCM_WORDS.search(log)))


def _is_of_unknown_maker(evidence: Evidence, service: str) -> bool:
    # a stack is for NVIDIA GPUs unless it says otherwise
    is_known = evidence.spec or evidence.gpu_maker(service) or CUDA.search(evidence.read_log(service))
    return not is_known and not _is_amd(evidence, service)


def _find_nccl_warning(evidence: Evidence) -> Iterator[Hit]:
    """NCCL failed, and logged a warning before, or two processes use one GPU."""
    for service in evidence.services:
        if not service.is_working and (found := DUPLICATE.search(service.log)):
            ends = [strip_prefix(one).strip() for one in service.log.splitlines() if INVALID_USAGE[0].search(one)]
            yield Hit(service.service, (found[0], *ends[-1:]), found.groupdict(), variant=SAME_GPU)
            continue
        lines = lines_since_ready(service.log) if "NCCL WARN" in service.log else []
        end = next((i for i, line in enumerate(lines) if FAILED_NCCL.search(line)), None)
        before = lines[:end] if end is not None else []
        warned = [found for line in before if (found := NCCL_WARNING.search(COLORS.sub("", line).strip()))]
        if end is not None and warned:
            shown = (warned[0][0], strip_prefix(lines[end]).strip())
            yield Hit(service.service, shown, {"warning": warned[0]["warning"]}, variant=WARNED)


WARNED = Variant(
    (),
    cause="NCCL failed, so the GPUs of one model can't communicate. NCCL's own warning is: {warning}",
    fix="search for this warning; if it is about shared memory, set `shm_size` to 8g, or `ipc` to `host`; if it is "
    "about a socket or an address, set NCCL_SOCKET_IFNAME in extra_env to the network interface; if it is about CUDA, "
    'look for an earlier error of CUDA in the whole log; as a test, set NCCL_P2P_DISABLE to "1" in extra_env',
    condition="the log has a line with NCCL WARN before the error",
)
SAME_GPU = Variant(
    (),
    title="two processes of a model use the same GPU",
    cause="the processes {first} and {second} of the model use the same GPU (PCI address {device}), which NCCL does "
    "not support",
    fix="give the model as many GPUs as tensor_parallel_size × pipeline_parallel_size × data-parallel size; check that "
    "CUDA_VISIBLE_DEVICES names each GPU once, and that no wrapper (a script, `uv run`, Ray) sets it for each process; "
    "on several machines, each machine needs its own name (`hostname`)",
    condition="NCCL names the two processes",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-G006",
        title="the requested GPU does not exist",
        cause="this machine does not have the GPU that stack.yaml requests[[: {device}]]",
        fix="set `gpus` to ids that `nvidia-smi -L` prints, for example to [0]",
        source="The messages of nvidia-container-cli and CDI are quoted in issues 29 and 434 of "
        "NVIDIA/nvidia-container-toolkit, and were not reproduced. CUDA error 101 (torch 2.11.0) and the NVML error "
        "(vLLM 0.26.0) were reproduced on an H100.",
        explain="GPU indices start at 0, in the order of `nvidia-smi -L`. The UUID of a GPU stays the same when the "
        "GPU moves to another PCIe slot.",
        patterns=compile_patterns(
            # the container toolkit and CDI fail before the container runs, so no log has these two lines
            r"nvidia-container-cli: device error: (?P<device>\S+): unknown device",
            rf"unresolvable CDI devices (?!runtime\.nvidia\.com/\w+=(?:all|0)\b)(?P<device>{OWN_VENDORS}[^\s,:]+)",
        ),
        inputs=("log", "compose", "docker"),
        shows_gpus=True,
        variants=(
            Variant(
                # CUDA_VISIBLE_DEVICES contains no existing GPU: vLLM queries NVML while it inspects the model's class
                compile_patterns(r"CUDA error: invalid device ordinal", r"NVMLError_InvalidArgument"),
                title="the engine asks for a GPU that is not in the container",
                cause="the engine asks for a GPU number that does not exist in the container. Either "
                "CUDA_VISIBLE_DEVICES names another GPU, or the model is split across more GPUs than the container "
                "has",
                fix="[[?extra_env.CUDA_VISIBLE_DEVICES|remove CUDA_VISIBLE_DEVICES from extra_env, or correct it; "
                "]]compare `gpus` with tensor_parallel_size; to see the GPUs of the machine, run `nvidia-smi -L`",
            ),
        ),
    ),
    Rule(
        "SG-G015",
        title="the model needs more GPUs than the container has",
        cause="the model is split across {wanted} GPUs, but only {count} are available",
        fix="give the model {wanted} GPUs (set `gpus` to {wanted}), or lower tensor_parallel_size and "
        "pipeline_parallel_size",
        source="The message comes from vLLM 0.32.0 (config/parallel.py, __post_init__). The failure was reproduced "
        "with vLLM 0.26.0 on an H100.",
        explain="The model needs tensor_parallel_size × pipeline_parallel_size GPUs. CUDA_VISIBLE_DEVICES in "
        "extra_env can hide some GPUs of the container from the engine.",
        patterns=compile_patterns(
            r"World size \((?P<wanted>\d+)\) is larger than the number of available GPUs \((?P<count>\d+)\)"
        ),
        engines=("vllm",),
        shows_gpus=True,
    ),
    Rule(
        "SG-G007",
        title="no GPU is visible in the container",
        cause="the engine was built for CUDA, but it finds no GPU",
        fix="[[!gpus|give the model a GPU (set `gpus` to 1); ]][[?extra_env.CUDA_VISIBLE_DEVICES|remove "
        "CUDA_VISIBLE_DEVICES from extra_env; ]]run `nvidia-smi -L` on the host; if it does not list the GPU either, "
        "look for Xid errors in the kernel log (`sudo dmesg | grep -i xid`)",
        source="The messages come from torch 2.x (torch/cuda/__init__.py) and vLLM 0.26.0 (v1/worker/gpu_worker.py, "
        "init_device). Both messages were reproduced on an H100. `no CUDA-capable device` is CUDA error 100. "
        "kyuz0/ai-toolbox-cockpit issue 7 (2026-09) quotes the message of a machine with an AMD GPU.",
        explain="The container has the driver's library but no GPU. There are three possible reasons: no GPU is "
        "reserved, CUDA_VISIBLE_DEVICES contains no existing GPU, or the GPU fell off the bus (`dmesg | grep -i xid`).",
        patterns=compile_patterns(
            r"No CUDA GPUs are available",
            r"CUDA error: no CUDA-capable device is detected|failed to initialize CUDA: no CUDA-capable device",
            # what vLLM prints if CUDA_VISIBLE_DEVICES hides the GPU
            r"local rank \d+ is out of bounds for 0 devices",
        ),
        consequence_of=("SG-G029", "*"),
        shows_gpus=True,
        variants=(
            Variant(
                NO_GPU,
                title="no AMD GPU is visible in the container",
                cause="torch finds no GPU. It prints `CUDA` for AMD GPUs too. Either the container has no access to "
                "/dev/kfd and /dev/dri, or its user is not in the groups of these devices",
                fix="[[!gpus|give the model a GPU (set `gpus` to 1) and set gpu_driver to amd; ]]run `ls -ln /dev/kfd "
                "/dev/dri` on the host; if the files are missing, load the driver amdgpu; if they exist, give the "
                "container both as `devices`, and their group numbers as `group_add` (Podman: `--device /dev/kfd "
                "--device /dev/dri --group-add keep-groups`)[[?extra_env.HIP_VISIBLE_DEVICES|; remove "
                "HIP_VISIBLE_DEVICES from extra_env]]",
                applies=_is_amd,
                condition="stack.yaml has an AMD GPU, or the log names ROCm, HIP or a GPU such as gfx1151",
            ),
            Variant(
                NO_GPU,
                cause="torch finds no GPU in the container. It prints `CUDA` for NVIDIA GPUs and for AMD GPUs, and the "
                "log does not show which of them the machine has",
                fix="[[!gpus|give the model a GPU (set `gpus` to 1); ]]with an NVIDIA GPU, run `nvidia-smi -L` on the "
                "host and in the container, and remove a wrong CUDA_VISIBLE_DEVICES; with an AMD GPU, run `ls -ln "
                "/dev/kfd /dev/dri` on the host, and give the container both devices and their group numbers "
                "(`devices` and `group_add`; with stackgen, set gpu_driver to amd)",
                applies=_is_of_unknown_maker,
                condition="neither a stack nor the log shows the maker of the GPU",
            ),
        ),
    ),
    Rule(
        "SG-G008",
        title="the image is built without CUDA",
        cause="the model is set to run on a GPU, but torch in this image is built for the CPU",
        fix="[[!gpus|to use a GPU, set `gpus:` and run `stackgen render`, so that the CUDA image is built; ]]"
        "[[?extra_args.--device|to use the CPU instead, remove `--device cuda` from extra_args; ]]"
        "[[?image|to use a GPU with your own image, set `image:` to an image with CUDA; ]]"
        "`docker compose images` shows which variant of the image was built",
        source="The message comes from torch 2.x (torch/cuda/__init__.py, _lazy_init). The failure was reproduced.",
        explain="FastChat's image has a CPU variant and a CUDA variant. The field `gpus` of the models decides which "
        "variant stackgen chooses.",
        patterns=compile_patterns(r"Torch not compiled with CUDA enabled"),
    ),
    Rule(
        "SG-G009",
        title="the GPU does not support bfloat16",
        cause="the model uses bfloat16, but the GPU does not support it[[: {card} has compute capability "
        "{capability}, and bfloat16 needs 8.0]]",
        fix="set dtype: float16",
        source="The message comes from vLLM 0.32.0 (platforms/cuda.py, check_if_supports_dtype).",
        explain="GPUs before Ampere (T4, V100, RTX 20) support float16 but not bfloat16. float16 has a smaller range "
        "than bfloat16. A few models (Gemma) give wrong output in float16 and need float32.",
        patterns=compile_patterns(
            r"Bfloat16 is only supported on GPUs with compute capability of at least 8\.0\. Your (?P<card>.+?) GPU "
            r".*?(?P<capability>\d\.\d)\.",
            r"Bfloat16 is only supported on GPUs with compute capability",
        ),
        engines=("vllm",),
        change=Change("dtype", "float16"),
        shows_gpus=True,
    ),
    Rule(
        "SG-G010",
        title="the GPU is too old for the quantization",
        cause="the quantization {method} needs compute capability {minimum}, but the GPU has {capability}",
        fix="use a version of the model with another quantization (AWQ or GPTQ run on compute capability 7.5 and "
        "higher), or use a newer GPU",
        source="The message comes from vLLM 0.32.0 (config/vllm.py, _get_quantization_config).",
        explain="vLLM prints the compute capability multiplied by ten, so 89 means 8.9 (Ada), 90 means 9.0 (Hopper), "
        "80 means 8.0 (A100), 75 means 7.5 (T4), and 70 means 7.0 (V100).",
        patterns=compile_patterns(
            r"The quantization method (?P<method>\S+) is not supported for the current GPU\. Minimum capability: "
            r"(?P<minimum>\d+)\. Current capability: (?P<capability>\d+)"
        ),
        engines=("vllm",),
        shows_gpus=True,
    ),
    Rule(
        "SG-G011",
        title="NCCL can't connect the GPUs",
        cause="NCCL failed, so the GPUs of one model can't communicate",
        fix="read the reason after `Last error:`; if there is none, set NCCL_DEBUG to INFO in extra_env, so that "
        "NCCL logs it; if the reason is shared memory, set `shm_size` to 8g, or `ipc` to `host`; if the reason is a "
        "socket, set NCCL_SOCKET_IFNAME in extra_env to the network interface; if the reason is peer-to-peer access, "
        'set NCCL_P2P_DISABLE to "1" in extra_env',
        source="The messages come from NCCL 2.30 (src/init.cc, ncclGetErrorString), torch 2.x "
        "(torch/csrc/distributed/c10d/NCCLUtils.cpp and ProcessGroupNCCL.cpp) and vLLM 0.32.0 (pynccl_wrapper.py). "
        "vllm-project/vllm issue 17176 (2025-04) and verl-project/verl issue 1096 (2025-04) report two processes on "
        "one GPU.",
        explain="With tensor parallelism, the GPUs of a replica communicate through NCCL. NCCL fails if /dev/shm is "
        "too small, or if an IOMMU or a virtual machine blocks peer-to-peer access. NCCL also fails if it selects the "
        "wrong network interface (NCCL_SOCKET_IFNAME sets the interface).",
        patterns=compile_patterns(
            r"NCCL error(?:: | in: .{0,300}?, )(?:unhandled system error|internal error)",
            r"ncclSystemError|ncclInternalError",
        ),
        find=_find_nccl_warning,
        # NCCL reports its failure after each of these
        consequence_of=(
            "SG-M005",
            "SG-M006",
            "SG-M007",
            "SG-M009",
            "SG-M010",
            "SG-M015",
            "SG-G002",
            "SG-G004",
            "SG-G012",
            "SG-G014",
            "SG-G019",
            "SG-G030",
            "SG-G042",
            "SG-C014",
        ),
        shows_gpus=True,
        variants=(
            WARNED,
            SAME_GPU,
            Variant(
                UNHANDLED,
                cause="a HIP call inside RCCL failed. The message does not contain the reason",
                fix="[[!extra_env.NCCL_DEBUG|set NCCL_DEBUG to INFO in extra_env; ]]read the NCCL WARN lines of the "
                "log, which name the failed call; set tensor_parallel_size to 1 to test whether one GPU works; run "
                "`sudo dmesg | grep -i amdgpu` to see whether the driver reports an error",
                applies=lambda evidence, service: evidence.gpu_maker(service) == "amd",
                condition="the GPUs are AMD's",
            ),
            Variant(
                UNHANDLED,
                cause="a CUDA call inside NCCL failed. The message does not contain the reason",
                fix="[[!extra_env.NCCL_DEBUG|set NCCL_DEBUG to INFO in extra_env, and start again; ]]read the NCCL "
                "WARN lines in the whole log, which name the CUDA error; run `nvidia-smi` to see whether another "
                "process uses the memory of these GPUs",
            ),
            Variant(
                INVALID_USAGE,
                cause="NCCL does not support this use. Most often, two processes use the same GPU",
                fix="give each process its own GPU: compare `gpus` with tensor_parallel_size; to log the reason, set "
                "NCCL_DEBUG to WARN in extra_env",
            ),
            Variant(
                compile_patterns(r"NCCL error(?:: | in: .{0,300}?, )remote process exited", r"ncclRemoteError"),
                cause="another process of the same model exited or lost its connection, so NCCL failed",
                fix="read the logs of the other processes: the process that ended first logged the cause",
            ),
            Variant(
                compile_patterns(r"Watchdog caught collective operation timeout"),
                cause="an operation across the GPUs did not finish in time. One of the processes hangs, has exited, "
                "or is much slower than the others",
                fix="read the log of every process for an earlier error; if there is none, a transfer between GPUs "
                'may hang: set NCCL_DEBUG to INFO and NCCL_P2P_DISABLE to "1" in extra_env, as a test',
            ),
        ),
    ),
)
