"""Checks that the GPUs are present, available to containers, healthy and new enough.

CUDA 13 supports no GPU below compute capability 7.5 (its release notes).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stackgen.doctor.facts import Gpu, is_version_at_least
from stackgen.doctor.finding import DoctorInputs, Results, fail, format_bytes, ok, unknown, warn
from stackgen.flags.releases import cuda_of_image, min_driver
from stackgen.plan import GpuRequest

__all__ = [
    "CDI", "VLLM_UTILIZATION", "check_compute_capability", "check_driver", "check_ecc", "check_gpus_present",
    "check_mig", "check_mixed_gpus", "check_persistence", "check_root", "check_toolkit", "matches_uuid",
    "report_unknown_gpus", "requested_gpus",
]  # fmt: skip

CDI = "nvidia.com/gpu="
# other tags than those of known versions. SGLang: docs.sglang.io, Installation: "SGLang images ship a CUDA 13
# environment"; the last tag with CUDA 12 has cu129
CUDA_13_IMAGES = ("vllm/vllm-openai:latest", "lmsysorg/sglang:v0.5.2", "lmsysorg/sglang:latest")
# the share of each GPU's memory that vLLM takes by default (0.32.0, `gpu_memory_utilization`)
VLLM_UTILIZATION = 0.92


def requested_gpus(inputs: DoctorInputs) -> Iterator[tuple[str, Any, GpuRequest, tuple[Gpu, ...] | None]]:
    """Each replica that requests NVIDIA GPUs, with the GPUs that it would get; None if they are unknown."""
    for place, model, request in inputs.gpu_requests():
        # the facts about GPUs come from nvidia-smi, which lists no AMD GPUs
        if request.driver != "amd":
            yield place, model, request, _select_gpus(inputs.host.gpus, request)


def _select_gpus(gpus: tuple[Gpu, ...] | None, request: GpuRequest) -> tuple[Gpu, ...] | None:
    if gpus is None:
        return None
    if "all" in (names := [id.removeprefix(CDI) for id in request.ids]) or request.count == -1:
        return gpus
    if names:
        found = [gpu for name in names for gpu in gpus if name == str(gpu.index) or matches_uuid(gpu, name)]
        return tuple(found)
    # a count does not say which GPUs: the first GPUs are checked instead of those that the engine will choose
    return gpus[: request.count]


def matches_uuid(gpu: Gpu, name: str) -> bool:
    """Whether `name` is the UUID of `gpu`, or the beginning of it: the driver accepts any unique one."""
    return name.startswith("GPU-") and len(name) > 8 and gpu.uuid.startswith(name)


def _used_gpus(inputs: DoctorInputs) -> tuple[Gpu, ...]:
    """The GPUs that the stack uses, each once; all GPUs if there is no stack."""
    if inputs.stack is None:
        return inputs.host.gpus or ()
    return tuple(dict.fromkeys(gpu for _, _, _, gpus in requested_gpus(inputs) for gpu in gpus or ()))


def report_unknown_gpus(inputs: DoctorInputs, question: str) -> Results:
    """One result for a check of GPUs that the stack requests, but that doctor can't see."""
    if any(gpus is None for _, _, _, gpus in requested_gpus(inputs)):
        yield unknown(f"can't tell {question}", evidence="this machine's GPUs are unknown")


def check_gpus_present(inputs: DoctorInputs) -> Results:
    """The machine has GPUs if the stack requests any."""
    host, requests = inputs.host, list(inputs.gpu_requests())
    if inputs.stack is not None and not requests:
        return
    # gpu_driver applies to the whole stack, so one request decides
    if any(request.driver == "amd" for _, _, request in requests):
        # /dev/kfd is the interface of the amdgpu driver that ROCm opens
        if host.amd is False:
            yield fail("this machine has no AMD GPU, or the AMD driver is not loaded", evidence="/dev/kfd is missing",
                       fix="install the amdgpu driver with ROCm, or set `gpus: none`", place="gpu_driver")  # fmt: skip
        elif host.amd:
            yield ok("the AMD driver is loaded", evidence="/dev/kfd")
        else:
            yield unknown("can't tell whether this machine has AMD GPUs")
        return
    if host.gpus:
        count = len(host.gpus)
        yield ok(f"this machine has {count} GPU{'s' if count > 1 else ''}",
                 evidence=", ".join(f"{gpu.index}: {gpu.name}" for gpu in host.gpus))  # fmt: skip
    # without a stack, a machine without GPUs is fine
    elif host.gpus is not None and requests:
        yield fail("this machine has no NVIDIA GPU", evidence="nvidia-smi lists no GPU",
                   fix="set `gpus: none` to use the CPU, or `gpu_driver: amd` for AMD GPUs",
                   place=requests[0][0] + ".gpus")  # fmt: skip
    # after an update without a restart, the loaded kernel module and the library have different versions
    elif host.gpu_tool and host.gpus is None:
        yield fail("the NVIDIA driver does not answer", evidence=host.gpu_error,
                   fix="if the driver was updated, restart the machine. Afterwards, `nvidia-smi` must list the "
                   "GPUs")  # fmt: skip
    elif requests or host.gpus is None:
        yield unknown("can't tell whether this machine has GPUs", evidence=host.gpu_error or "nvidia-smi was not found",
                      fix="install the NVIDIA driver, or set `gpus: none`" if requests else "")  # fmt: skip


def check_driver(inputs: DoctorInputs) -> Results:
    """The driver is new enough for the CUDA version of each image."""
    # replicas share one image
    for image in dict.fromkeys(s.image for s in inputs.services() if s.gpus and s.gpus.driver != "amd"):
        name, cuda, driver = image.rpartition("/")[2], _required_driver(image), inputs.host.driver
        if driver is None or cuda is None:
            why = "the driver's version is unknown" if driver is None else "the image's CUDA version is unknown"
            yield unknown(f"can't tell whether the driver is new enough for {name}", evidence=why)
            continue
        evidence = f"this machine has driver {driver}, and {cuda[0]} needs driver {cuda[1]} or newer"
        if is_version_at_least(driver, cuda[1]):
            yield ok(f"the driver is new enough for {name}", evidence=evidence)
        else:
            # vLLM publishes this image for CUDA 12.9 too
            has_cu129 = image.startswith("vllm/vllm-openai:") and is_version_at_least(driver, 525)
            fix = f"update the driver to {cuda[1]} or newer"
            fix += f", or set `image: {image}-cu129` (CUDA 12.9)" if has_cu129 else ""
            yield fail(f"the driver is too old for {name}", evidence=evidence, fix=fix)


def _required_driver(image: str) -> tuple[str, int] | None:
    """The CUDA version of an image and the oldest driver that it needs; None if the image's name does not show it."""
    if "cu12" in image or "cuda12" in image or "cuda-12" in image:
        cuda = "12"
    # stackgen's FastChat image installs torch 2.13 from PyPI
    elif image.startswith((*CUDA_13_IMAGES, "stackgen/fastchat")) or "cu13" in image or "cuda13" in image:
        cuda = "13"
    else:
        cuda = cuda_of_image(image) or ""
    driver = min_driver(cuda)
    return (f"CUDA {cuda}", driver) if driver else None


def check_toolkit(inputs: DoctorInputs) -> Results:
    """Docker can give GPUs to containers, with NVIDIA's toolkit or with CDI files."""
    host, requests = inputs.host, [request for _, _, request in inputs.gpu_requests()]
    drivers = {request.driver for request in requests}
    if "cdi" in drivers:
        kinds = sorted({id.partition("=")[0] for request in requests for id in request.ids})
        if host.cdi is None:
            yield unknown("can't tell whether CDI devices are configured")
        elif missing := [kind for kind in kinds if kind not in host.cdi]:
            yield fail(f"no CDI file defines {', '.join(missing)}",
                       evidence=f"the files in /etc/cdi and /var/run/cdi define {', '.join(host.cdi) or 'nothing'}",
                       fix="run `sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`",
                       place="gpu_driver")  # fmt: skip
        else:
            yield ok("CDI devices are configured", evidence=", ".join(kinds))
    if "nvidia" in drivers:
        # the engine offers the driver if it finds the toolkit's hook, or if its configuration has the runtime
        if "nvidia" in (host.runtimes or ()) or host.toolkit:
            has_runtime = "nvidia" in (host.runtimes or ())
            seen = "Docker has the runtime nvidia" if has_runtime else "nvidia-container-runtime-hook is on the PATH"
            yield ok("the NVIDIA Container Toolkit is installed", evidence=seen)
        # since version 29, the engine can also use CDI for this driver (moby/moby pull 50228)
        elif CDI[:-1] in (host.cdi or ()) and is_version_at_least(host.engine, 29) is not False:
            yield unknown("can't tell whether Docker gives GPUs to containers without the NVIDIA Container Toolkit",
                          evidence=f"the CDI files define {CDI[:-1]}", fix="set `gpu_driver: cdi`",
                          place="gpu_driver")  # fmt: skip
        elif host.runtimes is None or host.toolkit is None:
            yield unknown("can't tell whether the NVIDIA Container Toolkit is installed")
        else:
            runtimes = ", ".join(host.runtimes)
            yield fail("Docker can't give GPUs to containers: the NVIDIA Container Toolkit is missing",
                       evidence=f"Docker has only the runtimes {runtimes}, and nvidia-container-runtime-hook was "
                       "not found",
                       fix="install nvidia-container-toolkit, run `sudo nvidia-ctk runtime configure`, and restart "
                       "Docker")  # fmt: skip


def check_mig(inputs: DoctorInputs) -> Results:
    """A GPU in MIG mode is requested by the UUID of a MIG instance."""
    yield from report_unknown_gpus(inputs, "whether the GPUs are in MIG mode")
    for gpu in _used_gpus(inputs):
        if gpu.mig and inputs.stack:
            yield fail(f"GPU {gpu.index} is in MIG mode, but the stack requests the whole GPU", evidence=gpu.name,
                       fix="request MIG instances with `gpus: [MIG-…]`, or disable MIG mode. `nvidia-smi -L` lists the "
                       "MIG instances",
                       place="models")  # fmt: skip
        # without a stack, nothing requests the whole GPU yet
        elif gpu.mig:
            yield warn(f"GPU {gpu.index} is in MIG mode", evidence=gpu.name,
                       fix="request the MIG instances of this GPU with `gpus: [MIG-…]`")  # fmt: skip
        elif gpu.mig is False:
            yield ok(f"GPU {gpu.index} is not in MIG mode", evidence=gpu.name)
        else:
            yield unknown(f"can't tell whether GPU {gpu.index} is in MIG mode", evidence=gpu.name)


def check_root(inputs: DoctorInputs) -> Results:
    """The root file system of containers with NVIDIA GPUs is writable."""
    for place, model, _, _ in requested_gpus(inputs):
        if model.read_only:
            yield warn("the root file system is read-only, and hooks of the NVIDIA Container Toolkit may fail to write",
                       evidence="nvidia-cdi-hook exits with code 1 on a read-only root file system (pull request 5711 "
                       "of kserve)",
                       fix="remove `read_only: true`, or test a start of this stack on this machine first",
                       place=f"{place}.read_only")  # fmt: skip
        else:
            yield ok("the container's root file system is writable for the hooks of the NVIDIA Container Toolkit")


def check_ecc(inputs: DoctorInputs) -> Results:
    """The GPUs have no uncorrected ECC errors."""
    yield from report_unknown_gpus(inputs, "whether the GPUs have ECC memory errors")
    for gpu in _used_gpus(inputs):
        if gpu.ecc_errors:
            yield warn(f"GPU {gpu.index} has {gpu.ecc_errors} uncorrected ECC memory errors", evidence=gpu.name,
                       fix="reset or replace the GPU; `nvidia-smi -q -d ECC,ROW_REMAPPER` shows details")  # fmt: skip
        elif gpu.ecc_errors == 0:
            yield ok(f"GPU {gpu.index} has no uncorrected ECC memory errors", evidence="errors since boot")
        else:
            yield unknown(f"GPU {gpu.index} has no ECC memory, or the driver does not report its errors",
                          evidence=gpu.name)  # fmt: skip


def check_persistence(inputs: DoctorInputs) -> Results:
    """Persistence mode keeps the driver loaded between starts."""
    yield from report_unknown_gpus(inputs, "whether persistence mode is enabled")
    for gpu in _used_gpus(inputs):
        if gpu.persistence is False:
            yield warn(f"persistence mode of GPU {gpu.index} is disabled: the driver is loaded again each time an "
                       "engine starts",
                       evidence=gpu.name, fix="run `sudo systemctl enable --now nvidia-persistenced`")  # fmt: skip
        elif gpu.persistence:
            yield ok(f"persistence mode of GPU {gpu.index} is enabled", evidence=gpu.name)
        else:
            yield unknown(f"can't tell whether persistence mode of GPU {gpu.index} is enabled", evidence=gpu.name)


def check_mixed_gpus(inputs: DoctorInputs) -> Results:
    """All GPUs of a replica are the same model, because the smallest GPU limits all."""
    yield from report_unknown_gpus(inputs, "whether the GPUs of each replica are of the same type")
    for place, _model, _request, gpus in requested_gpus(inputs):
        kinds = {gpu.name: gpu.memory_total for gpu in gpus or ()}
        if len(kinds) > 1:
            sizes = (f"{name} {format_bytes(total)}" if total else name for name, total in kinds.items())
            yield warn("a replica uses GPUs of different types: the smallest and slowest GPU limits all GPUs",
                       evidence=", ".join(sizes), fix="give each GPU type its own entry in `models`",
                       place=f"{place}.gpus")  # fmt: skip
        elif gpus and len(gpus) > 1:
            yield ok("all GPUs of the replica are of the same type", evidence=next(iter(kinds)), place=f"{place}.gpus")


def check_compute_capability(inputs: DoctorInputs) -> Results:
    """The GPUs are new enough for the CUDA 13 images of vLLM and SGLang (0.5.23: "only supports sm75 and above")."""
    yield from report_unknown_gpus(inputs, "whether the GPUs are new enough")
    for place, model, _request, gpus in requested_gpus(inputs):
        for gpu in gpus or ():
            # an image of the user's own may have another CUDA
            if model.image or model.engine not in ("vllm", "sglang"):
                continue
            engine = "SGLang" if model.engine == "sglang" else "vLLM"
            evidence = f"compute capability {gpu.compute[0]}.{gpu.compute[1]}" if gpu.compute else ""
            if gpu.compute is None:
                yield unknown(f"the compute capability of GPU {gpu.index} is unknown", evidence=gpu.name, place=place)
            elif gpu.compute < (7, 5):
                yield fail(f"{gpu.name} is too old for {engine}'s CUDA 13 image",
                           evidence=f"{evidence}, but the image needs compute capability 7.5 or higher",
                           fix="use a newer GPU, or set `engine: llamacpp`",
                           place=f"{place}.gpus")  # fmt: skip
            else:
                yield ok(f"{gpu.name} is new enough for {engine}", evidence=evidence, place=place)
