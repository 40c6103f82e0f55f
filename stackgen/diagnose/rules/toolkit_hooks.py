"""Rules for containers that the NVIDIA container toolkit can't prepare, by the message of its helper.

None of these failures was reproduced. `source` names the files and the reports that quote the messages.
"""

from __future__ import annotations

from stackgen.diagnose.rule import Input, Rule, Variant, compile_patterns

__all__ = ["RULES"]

EVERYWHERE: tuple[Input, ...] = ("log", "compose", "docker")

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-G069",
        title="the NVIDIA container toolkit can't mount a file of the driver",
        cause="the toolkit could not put {path} into the container, because the host does not have it",
        fix="check that `nvidia-smi` works on the host; load the module that creates the device file (for "
        "/dev/nvidia-modeset: `sudo modprobe nvidia-modeset`; for /dev/nvidia-uvm: `sudo nvidia-modprobe -u -c 0`); "
        "after an update of the driver, reboot when you can; or use CDI (set gpu_driver to cdi)",
        source="The messages come from libnvidia-container (src/nvc_mount.c, src/utils.c, src/dsl.c, src/cgroup.c) and "
        "containerd. mudler/LocalAGI issue 49 (2025-04), duixcom/Duix-Avatar issue 462 (2025-05), 1Panel-dev/1Panel "
        "issue 12321 (2026-03) and NVIDIA/nvidia-docker issue 1447 quote some. The failure was not reproduced.",
        explain="In its legacy mode, the toolkit prepares each container with the helper nvidia-container-cli, before "
        "a program of the image runs. The model is not the cause.",
        patterns=compile_patterns(
            r"nvidia-container-cli(?:\.real)?: mount error: stat failed: (?P<path>/\S+): no such file or directory",
        ),
        inputs=EVERYWHERE,
        variants=(
            Variant(
                compile_patterns(
                    r"mount error: file creation failed: \S*/merged(?P<path>/\S+?\.so[\w.]*): file exists",
                    r"mount error: file creation failed: \S*?(?P<path>/usr/\S+?\.so[\w.]*): file exists",
                ),
                title="the image contains files of the driver",
                cause="the image already contains {path}, a library of the driver, where the toolkit mounts the "
                "host's own. Such images were saved from a running container (`docker commit`), often under WSL, or "
                "the driver's packages were installed into them",
                fix="remove the libraries in an image of your own (`RUN rm -f "
                "/usr/lib/x86_64-linux-gnu/libcuda.so* /usr/lib/x86_64-linux-gnu/libnvidia-*.so*`, built from this "
                "image), because the toolkit mounts those of the host; or use a newer image of the project; or use "
                "CDI; leave the driver of the host as it is, because it is not the cause",
            ),
            Variant(
                compile_patterns(r"nvidia-container-cli(?:\.real)?: requirement error: invalid expression"),
                title="the toolkit can't read the image's requirements on the driver",
                cause="a variable of the image or the service whose name begins with NVIDIA_REQUIRE_ (most often "
                "NVIDIA_REQUIRE_CUDA) has a value that this version of the toolkit can't read",
                fix="print the values (`docker image inspect IMAGE --format '{{.Config.Env}}'`, and `environment` of "
                "the service), and correct what you set yourself; otherwise compare the image's CUDA version with the "
                "one that `nvidia-smi` prints: if the driver is new enough, set NVIDIA_DISABLE_REQUIRE=1 in the "
                "service's environment, which skips the check; update the toolkit",
            ),
            Variant(
                compile_patterns(r"container error: cgroup subsystem devices not found"),
                title="the NVIDIA container toolkit is too old for this machine's cgroups",
                cause="the machine uses cgroups of version 2, and this version of the toolkit knows only version 1",
                fix="update nvidia-container-toolkit and libnvidia-container1 (1.8 or newer) from NVIDIA's repository, "
                "and restart Docker when you can",
            ),
            Variant(
                compile_patterns(r"exec: \\?\"nvidia-container-runtime\\?\": executable file not found"),
                title="the program of Docker's runtime nvidia is missing",
                cause="Docker is configured to use nvidia-container-runtime, but does not find this program on the "
                "host: the NVIDIA container toolkit is not installed, or was removed",
                fix="install the package nvidia-container-toolkit on the host, and run `sudo nvidia-ctk runtime "
                "configure --runtime=docker`; on a machine without an NVIDIA GPU, remove the runtime from "
                "/etc/docker/daemon.json, also as `default-runtime`; then restart Docker when you can",
            ),
        ),
    ),
)
