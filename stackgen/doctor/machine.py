"""Docker, memory and processor: is this machine able to start containers at all?

Compose refuses to build with a buildx below 0.17 since October 2025 (docker/compose pull requests 13280 and 13295; the
text is in Compose 2.40.3).
"""

from __future__ import annotations

import re

from stackgen.doctor.facts import GIB, at_least
from stackgen.doctor.finding import Case, Results, fail, good, size, unknown, warn

__all__ = ["buildx", "cgroup", "cores", "cpu", "engine", "shm"]

STATES = {
    "missing": ("the Docker engine does not run", "start it: sudo systemctl start docker"),
    "denied": ("this user may not use the Docker engine", "sudo usermod -aG docker $USER, then log in again"),
    "silent": ("the Docker engine does not answer", "restart it: sudo systemctl restart docker"),
}


def engine(case: Case) -> Results:
    """Docker's command and its engine."""
    host = case.host
    if host.docker_cli is False:
        yield fail("the `docker` command is missing", "nothing of that name is on the PATH",
                   "install Docker Engine: https://docs.docker.com/engine/install/")  # fmt: skip
    if host.engine_state in STATES:
        message, fix = STATES[host.engine_state]
        yield fail(message, host.engine_error, fix)
    elif host.engine_state == "ok":
        yield good("the Docker engine answers", f"version {host.engine or 'unknown'}")
    else:
        yield unknown("whether a Docker engine runs could not be found out", host.engine_error)


def buildx(case: Case) -> Results:
    """Buildx, where an image is built on this machine."""
    host, have = case.host, case.host.images
    if have is None and case.stack:
        have = ()
    built = [service.image for service in case.services() if service.build and service.image not in (have or ())]
    if host.buildx_missing and built:
        yield fail("an image must be built here, and docker buildx is missing", ", ".join(dict.fromkeys(built)),
                   "install docker-buildx-plugin, version 0.17 or newer")  # fmt: skip
    elif host.buildx_missing:
        yield warn(
            "docker buildx is missing: images of stackgen's own can't be built", "", "install docker-buildx-plugin"
        )
    elif (enough := at_least(host.buildx, 0, 17)) is None:
        yield unknown("buildx's version is unknown", host.buildx or "")
    elif enough:
        yield good("buildx is new enough", f"{host.buildx}, wanted 0.17 or newer")
    else:
        yield warn("newer versions of Compose refuse to build with this buildx", f"{host.buildx}, wanted 0.17 or newer",
                   "update docker-buildx-plugin")  # fmt: skip


def cgroup(case: Case) -> Results:
    """The version of control groups."""
    if case.host.cgroup == 1:
        yield warn("control groups are of version 1, which Docker drops", "docker info", "boot a system with cgroup v2")
    elif case.host.cgroup:
        yield good("control groups are of version 2")
    elif case.host.engine_state == "ok":
        yield unknown("the version of the control groups is unknown")


def shm(case: Case) -> Results:
    """Shared memory, through which vLLM's processes and NCCL talk."""
    for service in case.services():
        if service.engine != "vllm" or service.role != "engine":
            continue
        given = _bytes(service.shm_size) if service.shm_size else None
        if service.ipc == "host":
            given = case.host.shm
            if given is None:
                yield unknown(f"{service.name}: the size of this machine's /dev/shm is unknown", "ipc: host")
                continue
        if service.ipc and service.ipc != "host" and not service.shm_size:
            given = 64 * 2**20  # Docker's default
        # measured on 0.32.0: 64m fails with "Insufficient space in /dev/shm", 256m starts
        if given is not None and given < 256 * 2**20:
            yield fail(f"{service.name}: /dev/shm is too small for vLLM", f"{size(given)}, wanted 256 MiB at least",
                       "leave out shm_size and ipc: stackgen then sets what the engine needs",
                       _place_of(case, service.name, "shm_size"))  # fmt: skip
        else:
            yield good(f"{service.name}: shared memory suffices", size(given or 0))


def cpu(case: Case) -> Results:
    """Architecture and instruction sets, where a model runs on the processor."""
    host = case.host
    for place, model in case.specs():
        if model.gpus or model.image:
            continue
        wanted = case.stack.spec.cpu_arch if case.stack else "x86_64"
        if host.cpu_arch is None:
            yield unknown("the processor's architecture is unknown", place=place)
            continue
        if model.engine == "vllm" and host.cpu_arch != wanted:
            yield fail(f"the image is for {wanted}, and this processor is {host.cpu_arch}", "",
                       f"set cpu_arch: {host.cpu_arch}", "cpu_arch")  # fmt: skip
        elif host.cpu_arch != "x86_64":
            yield good(f"the processor is {host.cpu_arch}, as the image", place=place)
        elif host.cpu_flags is None:
            yield unknown("the processor's instruction sets are unknown", place=place)
        elif "avx2" not in host.cpu_flags:
            yield fail(
                "the processor lacks AVX2, which the engines' CPU builds need",
                "/proc/cpuinfo: no avx2",
                "use another machine or a GPU; in a virtual machine pass the host's CPU through",
                place,
            )
        elif model.engine == "vllm" and "avx512f" not in host.cpu_flags:
            yield warn("the processor has AVX2 but not AVX-512: vLLM runs, and slowly", "/proc/cpuinfo: no avx512f",
                       "for more speed: a processor with AVX-512 or AMX, or engine: llamacpp", place)  # fmt: skip
        else:
            told = sorted(host.cpu_flags & {"avx2", "avx512f", "amx_tile", "avx512_bf16"})
            yield good("the processor has the instruction sets", " ".join(told), place)


def cores(case: Case) -> Results:
    """`cpuset` names cores that this machine has."""
    for place, model in case.specs():
        numbers = [int(number) for number in re.findall(r"\d+", model.cpuset or "")]
        if not numbers:
            continue
        count = case.host.cpu_count
        if count is None:
            yield unknown("how many processor cores there are is unknown", place=f"{place}.cpuset")
        elif max(numbers) >= count:
            yield fail(f"cpuset names core {max(numbers)}, and this machine has {count}", f"cores are 0-{count - 1}",
                       f"cpuset: 0-{count - 1}", f"{place}.cpuset")  # fmt: skip
        else:
            yield good("the cores of cpuset are there", f"{model.cpuset} of {count}", f"{place}.cpuset")


def _place_of(case: Case, service: str, field: str) -> str:
    """The place in stack.yaml of a field of the model that `service` serves."""
    for place, model in case.specs():
        if getattr(model, field, None) or getattr(model, "ipc", None):
            return f"{place}.{field if getattr(model, field, None) else 'ipc'}"
    return ""


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)([kmg])b?", text)
    return int(match[1]) * {"k": 2**10, "m": 2**20, "g": GIB}[match[2]] if match else 0
