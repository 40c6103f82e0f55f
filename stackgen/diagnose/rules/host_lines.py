"""Rules for lines of the system around a program, which people paste next to its log: ldd, the kernel, useradd.

None of these failures was reproduced. `source` names the reports that quote the messages.
"""

from __future__ import annotations

from stackgen.diagnose.rule import Rule, Variant, compile_patterns

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-G048",
        title="the loader does not find a library of the program",
        cause="`ldd` shows that the program needs {library}, and that the loader finds it in no folder. A program that "
        "loads its GPU code only at run time then continues without the GPU",
        fix="look for the file (`find / -name '{library}*' 2>/dev/null`); if it is there, add its folder to "
        "LD_LIBRARY_PATH of the server (wheels of NVIDIA: site-packages/nvidia/*/lib), or to a file in "
        "/etc/ld.so.conf.d; if it is not there, use an image or a build for the installed version of CUDA or ROCm",
        source="The line is that of ldd (glibc); odysseus-dev/odysseus issue 831 (2026-06) and pull request 2242 "
        "(2026-06) quote it next to `no usable GPU found`. The failure was not reproduced.",
        explain="The libraries of the driver (libcuda, libnvidia-ml) are different: they come into a container from "
        "the host. Extensions of PyTorch show libtorch and libc10 as not found, which is normal.",
        patterns=compile_patterns(
            r"^\s*(?P<library>lib(?:cudart|cublas\w*|cudnn\w*|cufft|curand|cusolver|cusparse|nvrtc|nccl|ggml[\w-]*|llama|"
            r"amdhip64|hipblas\w*|rocblas|vulkan|gomp|omp|stdc\+\+)\.so[.\d]*) => not found"
        ),
    ),
    Rule(
        "SG-M020",
        title="WSL gives the GPU less memory than nvidia-smi shows as free",
        cause="the kernel of WSL could not provide memory of the GPU that a program asked for (make_resident: ENOMEM, "
        "-12). Programs in WSL can use "
        "less memory than nvidia-smi shows as free. CUDA reports the lack of memory as a different error, for example "
        "`device not ready`",
        fix="let the engine use less memory: lower gpu_memory_utilization in steps of 0.05 (vLLM, SGLang), "
        "max_model_len or the number of layers on the GPU (llama.cpp); close programs on Windows that use the GPU; "
        "then run `dmesg`, which shows no new line of this kind if the memory is enough",
        source="The line comes from the kernel module dxgkrnl of WSL, and is quoted in microsoft/WSL issue 41176 "
        "(2026-07), where the line disappeared when the engine used 0.80 instead of 0.88 of the memory. The failure "
        "was not reproduced.",
        explain="Lines about dxgkio_query_adapter_info with -22 or -2 are different: they also appear if everything "
        "works.",
        patterns=compile_patterns(r"dxgkio_make_resident: Ioctl failed: -12\b"),
    ),
    Rule(
        "SG-D035",
        title="a container can't add a user",
        cause="the start script of the image adds or changes a user, and can't write {file}. Either the container's "
        "file system is read-only (`read_only: true`, `readOnlyRootFilesystem: true`), or the container does not run "
        "as root, or another process has locked the file",
        fix="if the container is read-only, start it without this option, or with an image or settings that need no "
        "new user (see the image's page); if the container runs with `user:`, start it as root, so that the script "
        "can change to the user itself; don't add a tmpfs for /tmp, which does not help, because the file is in /etc",
        source="The messages come from shadow-utils (lib/commonio.c); xencon/aixcl pull request 836 (2026-04), "
        "dperson/samba issues 174 (2018-11) and 221 (2019-07) and nuxsmin/docker-syspass issue 60 (2022-02) quote "
        "them. The failure was not reproduced.",
        explain="The words `try again later` are misleading: on a read-only file system, every later try fails too.",
        patterns=compile_patterns(
            r"\b(?:user|group)(?:add|mod|del): cannot lock (?P<file>/etc/(?:passwd|group|shadow|gshadow))"
        ),
    ),
    Rule(
        "SG-D036",
        title="the container can't start more threads or processes",
        cause="the system refused a new thread or process ({problem}). Either a limit of the container or of the "
        "user is "
        "reached, or an old Docker forbids the system call clone3",
        fix="compare `cat /sys/fs/cgroup/pids.max` with `cat /sys/fs/cgroup/pids.current` in the container, and look "
        "at "
        "`ulimit -u`: raise the limit (Compose: `pids_limit`, Docker: `--pids-limit`, Kubernetes: podPidsLimit of the "
        "kubelet); let the engine start fewer threads with OMP_NUM_THREADS and OPENBLAS_NUM_THREADS in extra_env, for "
        "example 8; if the limits are high, update Docker to 20.10.10 or newer",
        source="The messages come from Python (_thread), glibc, libgomp and OpenBLAS (driver/others/blas_server.c). "
        "moby/moby issue 42680 (2021-07) describes clone3. The failure was not reproduced.",
        explain="Most libraries start one thread for each processor core, so machines with many cores reach a limit "
        "first. Neither the memory nor the GPU is full.",
        patterns=compile_patterns(
            r"RuntimeError: (?P<problem>can't start new thread)",
            r"(?P<problem>pthread_create failed.{0,60}(?:Resource temporarily unavailable|Operation not permitted))",
            r"libgomp: (?P<problem>Thread creation failed: Resource temporarily unavailable)",
            r"(?P<problem>fork: (?:retry: )?Resource temporarily unavailable)",
        ),
    ),
    Rule(
        "SG-G053",
        title="the GPU needs NVIDIA's open kernel modules",
        cause="the installed NVIDIA driver uses the proprietary kernel modules, and this GPU works only with the open "
        "ones",
        fix="install the open variant of the same driver (Ubuntu: nvidia-driver-580-open, Debian and Fedora: "
        "nvidia-open), and restart the machine; in NVIDIA's own installer, choose the kernel module type MIT/GPL",
        source="The lines come from NVIDIA's kernel module. NVIDIA/open-gpu-kernel-modules issues 872 (2025-06) and "
        "322 "
        "(2022-07) quote the two. The failure was not reproduced.",
        explain="GPUs of the Blackwell generation (RTX 50, RTX PRO, B200) and Grace Hopper have no support in the "
        "proprietary modules. `lspci` shows the GPU, but `nvidia-smi` prints `No devices were found`.",
        patterns=compile_patterns(r"requires use of the NVIDIA open kernel modules"),
        variants=(
            Variant(
                compile_patterns(r"NVRM:? +(?:.{0,80} )?installed in this system is not supported by open"),
                title="the GPU needs NVIDIA's proprietary kernel modules",
                cause="the installed NVIDIA driver uses the open kernel modules, and this GPU is too old for them",
                fix="install the proprietary variant of the same driver (Ubuntu: nvidia-driver-580 without `-open`), "
                "and "
                "restart the machine; the 580 series is the last one for GPUs before Turing (GTX 10, Titan V, V100)",
            ),
        ),
        inputs=("log", "compose"),
    ),
    Rule(
        "SG-G054",
        title="the driver can't start a GPU",
        cause="the kernel driver found the GPU, but could not start it ({problem})",
        fix="read the lines of NVRM next to this one (`sudo dmesg | grep -i nvrm`); switch the machine off and on "
        "again (a restart alone may not reset the GPU); check the power cables and the slot of the GPU; in the BIOS, "
        "turn Above 4G Decoding and Resizable BAR on; in a virtual machine, check that the host has released the "
        "GPU; if the GPU is newer than the driver, update the driver",
        source="The lines come from NVIDIA's kernel module and nvidia-smi, and are quoted in "
        "NVIDIA/open-gpu-kernel-modules issues 387 and 862 (2025-07, where settings of the BIOS were the cause). The "
        "failure was not reproduced.",
        explain="No container and no engine can use this GPU before the host can.",
        patterns=compile_patterns(
            r"NVRM: .{0,80}?(?P<problem>RmInitAdapter failed!?(?: \([\w:]+\))?)",
            r"(?P<problem>Unable to determine the device handle for (?:GPU|gpu) ?\S+ (?:Unknown Error|No such device))",
        ),
        inputs=("log", "compose"),
    ),
)
