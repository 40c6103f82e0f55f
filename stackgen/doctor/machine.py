"""Checks Docker, buildx, cgroup v2, /dev/shm, and the CPU's instructions and cores.

Compose refuses to build with buildx below 0.17 since October 2025 (docker/compose pull requests 13280 and 13295; the
message is in Compose 2.40.3).
"""

from __future__ import annotations

import re

from stackgen.doctor.facts import GIB, is_version_at_least
from stackgen.doctor.finding import DoctorInputs, Results, fail, format_bytes, ok, unknown, warn

__all__ = [
    "check_buildx", "check_cgroup_version", "check_cpu", "check_cpuset", "check_docker", "check_shared_memory",
]  # fmt: skip

# Host.engine_state -> (message, fix)
ENGINE_PROBLEMS = {
    "missing": ("the Docker engine is not running", "start the Docker engine: `sudo systemctl start docker`"),
    "denied": (
        "this user has no permission to use the Docker engine",
        "run `sudo usermod -aG docker $USER`, then log in again",
    ),
    "silent": ("the Docker engine does not answer", "restart the Docker engine: `sudo systemctl restart docker`"),
}


def check_docker(inputs: DoctorInputs) -> Results:
    """The `docker` command exists and Docker Engine answers."""
    host = inputs.host
    # the command and the engine are separate packages, so both may be missing
    if host.docker_cli is False:
        yield fail(
            "the `docker` command is missing",
            evidence="`docker` was not found on the PATH",
            fix="install Docker Engine: https://docs.docker.com/engine/install/",
        )
    if host.engine_state in ENGINE_PROBLEMS:
        message, fix = ENGINE_PROBLEMS[host.engine_state]
        yield fail(message, evidence=host.engine_error, fix=fix)
    elif host.engine_state == "ok":
        found = {True: "`docker` is on the PATH", None: "whether `docker` is on the PATH is unknown"}
        version = f"version {host.engine or 'unknown'}"
        evidence = f"{version}; {found[host.docker_cli]}" if host.docker_cli in found else version
        yield ok("the Docker engine answers", evidence=evidence)
    else:
        yield unknown("can't tell whether the Docker engine runs", evidence=host.engine_error)


def check_buildx(inputs: DoctorInputs) -> Results:
    """Buildx is recent enough, if an image is built on this machine."""
    host, present = inputs.host, inputs.host.images
    # with unknown images, assume that they must be built
    if present is None and inputs.stack:
        present = ()
    to_build = [
        service.image for service in inputs.services() if service.build and service.image not in (present or ())
    ]
    if host.buildx_missing and to_build:
        yield fail(
            "an image must be built on this machine, but docker buildx is missing",
            evidence=", ".join(dict.fromkeys(to_build)),
            fix="install docker-buildx-plugin 0.17 or newer",
        )
    elif host.buildx_missing:
        yield warn(
            "docker buildx is missing: stackgen's own images can't be built",
            fix="install docker-buildx-plugin",
        )
    elif (is_recent := is_version_at_least(host.buildx, 0, 17)) is None:
        yield unknown("buildx's version is unknown", evidence=host.buildx or "")
    elif is_recent:
        yield ok(
            "buildx is recent enough", evidence=f"this machine has buildx {host.buildx}, and 0.17 or newer is needed"
        )
    else:
        # a warning: older versions of Compose still build with it
        yield warn(
            "newer versions of Compose refuse to build with this version of buildx",
            evidence=f"this machine has buildx {host.buildx}, and 0.17 or newer is needed",
            fix="update docker-buildx-plugin",
        )


def check_cgroup_version(inputs: DoctorInputs) -> Results:
    """The machine uses cgroup v2."""
    if inputs.host.cgroup == 1:
        yield warn("this machine uses cgroup v1, and Docker is ending its support for cgroup v1",
                   evidence="docker info", fix="boot with cgroup v2")  # fmt: skip
    elif inputs.host.cgroup:
        yield ok("this machine uses cgroup v2")
    # without an engine, SG-P001 reports the problem
    elif inputs.host.engine_state == "ok":
        yield unknown("the cgroup version is unknown")


def check_shared_memory(inputs: DoctorInputs) -> Results:
    """/dev/shm, through which vLLM's processes and NCCL communicate, is large enough."""
    for service in inputs.services():
        # FastChat and llama.cpp run a model in one process
        if service.engine != "vllm" or service.role != "engine":
            continue
        # 64 MiB is Docker's default
        own = _parse_size(service.shm_size) if service.shm_size else 64 * 2**20
        # the container shares the host's /dev/shm, and shm_size has no effect
        available = inputs.host.shm if service.ipc == "host" else own
        if available is None:
            yield unknown(f"{service.name}: the size of this machine's /dev/shm is unknown", evidence="ipc: host")
            continue
        # measured on 0.32.0: 64m fails with "Insufficient space in /dev/shm", 256m starts
        if available < 256 * 2**20:
            yield fail(
                f"{service.name}: /dev/shm is too small for vLLM",
                evidence=f"/dev/shm has {format_bytes(available)}, but vLLM needs at least 256 MiB",
                fix="remove `shm_size` and `ipc`: stackgen then sets the size of /dev/shm that the engine needs",
                place=_place_of(inputs, "shm_size"),
            )
        else:
            yield ok(f"{service.name}: /dev/shm is large enough", evidence=format_bytes(available))


def check_cpu(inputs: DoctorInputs) -> Results:
    """The CPU has the needed architecture and instruction sets, if a model runs on the CPU."""
    host = inputs.host
    for place, model in inputs.model_specs():
        # an image of the user's own may be built for any CPU
        if model.gpus or model.image:
            continue
        image_arch = inputs.stack.spec.cpu_arch if inputs.stack else "x86_64"
        if host.cpu_arch is None:
            yield unknown("the CPU architecture is unknown", place=place)
            continue
        # the CPU images of the other engines are built on this machine, so they always match
        if model.engine == "vllm" and host.cpu_arch != image_arch:
            yield fail(
                f"the image is for {image_arch}, but this CPU is {host.cpu_arch}",
                fix=f"set `cpu_arch: {host.cpu_arch}`",
                place="cpu_arch",
            )
        # AVX exists only on x86-64
        elif host.cpu_arch != "x86_64":
            yield ok(f"the CPU and the image have the same architecture, {host.cpu_arch}", place=place)
        elif host.cpu_flags is None:
            yield unknown("the CPU's instruction sets are unknown", place=place)
        elif "avx2" not in host.cpu_flags:
            yield fail(
                "the CPU has no AVX2, but the engines' CPU images need AVX2",
                evidence="/proc/cpuinfo: no avx2",
                fix="use another machine or a GPU. In a virtual machine, enable CPU passthrough",
                place=place,
            )
        elif model.engine == "vllm" and "avx512f" not in host.cpu_flags:
            yield warn(
                "the CPU has AVX2 but no AVX-512: vLLM runs slowly",
                evidence="/proc/cpuinfo: no avx512f",
                fix="for more speed, use a CPU with AVX-512 or AMX, or set `engine: llamacpp`",
                place=place,
            )
        else:
            relevant = sorted(host.cpu_flags & {"avx2", "avx512f", "amx_tile", "avx512_bf16"})
            yield ok("the CPU has the needed instruction sets", evidence=" ".join(relevant), place=place)


def check_cpuset(inputs: DoctorInputs) -> Results:
    """The cores in `cpuset` exist on this machine."""
    for place, model in inputs.model_specs():
        numbers = [int(number) for number in re.findall(r"\d+", model.cpuset or "")]
        if not numbers:
            continue
        count, field = inputs.host.cpu_count, f"{place}.cpuset"
        if count is None:
            yield unknown("the number of CPU cores is unknown", place=field)
        # the highest number of a list of ranges decides for all
        elif max(numbers) >= count:
            yield fail(
                f"`cpuset` contains core {max(numbers)}, but this machine has {count} cores",
                evidence=f"the cores of this machine have the numbers 0-{count - 1}",
                fix=f"set `cpuset: 0-{count - 1}`",
                place=field,
            )
        else:
            yield ok("the cores in cpuset exist", evidence=f"{model.cpuset} of {count} cores", place=field)


def _place_of(inputs: DoctorInputs, field: str) -> str:
    """The path in stack.yaml of the first model that sets `field` or `ipc`; "" if none does."""
    for place, model in inputs.model_specs():
        if getattr(model, field, None) or getattr(model, "ipc", None):
            return f"{place}.{field if getattr(model, field, None) else 'ipc'}"
    return ""


def _parse_size(text: str) -> int:
    match = re.fullmatch(r"(\d+)([kmg])b?", text)
    return int(match[1]) * {"k": 2**10, "m": 2**20, "g": GIB}[match[2]] if match else 0
