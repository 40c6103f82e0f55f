"""Cards: there, reachable from containers, new enough, and with enough free memory.

CUDA 13 wants driver 580 or newer and CUDA 12 525 or newer (NVIDIA, "CUDA Compatibility", minor version
compatibility, table 1, read in November 2026). That CUDA 13 leaves out cards older than compute capability 7.5 is
from its release notes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stackgen.doctor.capacity import weight_bytes
from stackgen.doctor.facts import GIB, Gpu, at_least
from stackgen.doctor.finding import Case, Results, fail, good, size, unknown, warn
from stackgen.plan import GpuRequest

__all__ = ["card", "driver", "ecc", "ids", "memory", "mig", "mixed", "persistence", "present", "toolkit", "wanted"]

CDI = "nvidia.com/gpu="
# what vLLM takes of each card when nobody says (0.32.0, `gpu_memory_utilization`)
UTILIZATION = 0.92
# an allowance of ours for engines that take what they need: CUDA's context, the KV cache of a short chat, activations
CONTEXT = GIB


def wanted(case: Case) -> Iterator[tuple[str, Any, GpuRequest, tuple[Gpu, ...] | None]]:
    """Each replica that wants NVIDIA cards, with the cards that it would get; None where they can't be told."""
    for place, model, request in case.gpu_requests():
        if request.driver != "amd":
            yield place, model, request, _cards(case.host.gpus, request)


def _cards(gpus: tuple[Gpu, ...] | None, request: GpuRequest) -> tuple[Gpu, ...] | None:
    if gpus is None:
        return None
    if "all" in (names := [id.removeprefix(CDI) for id in request.ids]) or request.count == -1:
        return gpus
    if names:
        found = [gpu for name in names for gpu in gpus if name == str(gpu.index) or _is(gpu, name)]
        return tuple(found)
    return gpus[: request.count]


def _is(gpu: Gpu, name: str) -> bool:
    # the driver takes any beginning of a UUID that is unique
    return name.startswith("GPU-") and len(name) > 8 and gpu.uuid.startswith(name)


def _all(case: Case) -> tuple[Gpu, ...]:
    """The cards that the stack uses, each once; without a stack all of them."""
    if case.stack is None:
        return case.host.gpus or ()
    return tuple(dict.fromkeys(gpu for _, _, _, cards in wanted(case) for gpu in cards or ()))


def present(case: Case) -> Results:
    """There are cards where the stack wants some."""
    host = case.host
    asked = list(case.gpu_requests())
    if case.stack is not None and not asked:
        return
    if any(request.driver == "amd" for _, _, request in asked):
        if host.amd is False:
            yield fail("there is no AMD card, or its driver isn't loaded", "/dev/kfd is missing",
                       "install the amdgpu driver with ROCm, or use gpus: none", "gpu_driver")  # fmt: skip
        elif host.amd:
            yield good("the AMD driver is there", "/dev/kfd")
        else:
            yield unknown("whether there are AMD cards is unknown")
        return
    if host.gpus:
        told = ", ".join(f"{gpu.index}: {gpu.name}" for gpu in host.gpus)
        yield good(f"there {'is 1 card' if len(host.gpus) == 1 else f'are {len(host.gpus)} cards'}", told)
    elif host.gpus is not None and asked:
        yield fail("this machine has no NVIDIA card", "nvidia-smi lists none",
                   "use gpus: none for the CPU, or gpu_driver: amd", asked[0][0] + ".gpus")  # fmt: skip
    elif host.gpu_tool and host.gpus is None:
        yield fail("the NVIDIA driver does not answer", host.gpu_error,
                   "restart the machine after a driver update; `nvidia-smi` must list the cards")  # fmt: skip
    elif asked or host.gpus is None:
        yield unknown("whether there are GPUs is unknown", host.gpu_error or "there is no nvidia-smi",
                      "install the NVIDIA driver, or use gpus: none" if asked else "")  # fmt: skip


def driver(case: Case) -> Results:
    """The driver is new enough for the CUDA of each image."""
    for image in dict.fromkeys(s.image for s in case.services() if s.gpus and s.gpus.driver != "amd"):
        name, needs = image.rpartition("/")[2], _cuda_of(image)
        have = case.host.driver
        if have is None or needs is None:
            why = "the driver's version is unknown" if have is None else "which CUDA the image holds is unknown"
            yield unknown(f"whether the driver suits {name} is unknown", why)
        elif at_least(have, needs[1]):
            yield good(f"the driver suits {name}", f"{have}, and {needs[0]} wants {needs[1]} or newer")
        else:
            older = image.startswith("vllm/vllm-openai:") and at_least(have, 525)
            fix = f"update the driver to {needs[1]} or newer"
            fix += f", or set image: {image}-cu129 (CUDA 12.9)" if older else ""
            yield fail(f"the driver is too old for {name}", f"{have}, and {needs[0]} wants {needs[1]} or newer", fix)


def _cuda_of(image: str) -> tuple[str, int] | None:
    if "cu12" in image or "cuda12" in image or "cuda-12" in image:
        return "CUDA 12", 525
    if image.startswith(("vllm/vllm-openai:v0.32", "vllm/vllm-openai:latest")) or "cu13" in image or "cuda13" in image:
        return "CUDA 13", 580
    # torch 2.13 of PyPI
    return ("CUDA 13", 580) if image.startswith("stackgen/fastchat") else None


def toolkit(case: Case) -> Results:
    """Docker can hand cards to containers: NVIDIA's toolkit, or CDI files."""
    kinds = {request.driver for _, _, request in case.gpu_requests()}
    host = case.host
    if "cdi" in kinds:
        asked = sorted({id.partition("=")[0] for _, _, request in case.gpu_requests() for id in request.ids})
        if host.cdi is None:
            yield unknown("whether CDI devices are configured is unknown")
        elif lacking := [kind for kind in asked if kind not in host.cdi]:
            yield fail(
                f"no CDI file names {', '.join(lacking)}",
                f"/etc/cdi and /var/run/cdi name: {', '.join(host.cdi) or 'nothing'}",
                "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
                "gpu_driver",
            )
        else:
            yield good("CDI devices are configured", ", ".join(asked))
    if "nvidia" in kinds:
        # the engine offers the driver when it finds the toolkit's hook; a runtime in its configuration does it too
        if "nvidia" in (host.runtimes or ()) or host.toolkit:
            yield good("the NVIDIA container toolkit is there")
        elif host.runtimes is None or host.toolkit is None:
            yield unknown("whether the NVIDIA container toolkit is installed is unknown")
        else:
            yield fail(
                "Docker can't hand out GPUs: the NVIDIA container toolkit is missing",
                f"runtimes of the engine: {', '.join(host.runtimes)}; no nvidia-container-runtime-hook on the PATH",
                "install nvidia-container-toolkit, sudo nvidia-ctk runtime configure, restart docker",
            )


def ids(case: Case) -> Results:
    """Indices, UUIDs and counts name cards that exist."""
    for place, _model, request, cards in wanted(case):
        if cards is None:
            yield unknown("whether the wanted GPUs exist is unknown", ", ".join(request.ids), place=f"{place}.gpus")
            continue
        names = [id.removeprefix(CDI) for id in request.ids]
        known = case.host.gpus or ()
        lost = [
            name
            for name in names
            if name != "all" and not name.startswith("MIG-") and "=" not in name
            and not any(name == str(gpu.index) or _is(gpu, name) for gpu in known)
        ]  # fmt: skip
        there = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in known) or "none"
        unseen = [name for name in names if name.startswith("MIG-") or "=" in name]
        if unseen and not lost:
            yield unknown(f"whether {', '.join(unseen)} exists is unknown", "parts of cards and other vendors' devices "
                          "are not looked at", "`nvidia-smi -L` lists parts", f"{place}.gpus")  # fmt: skip
            continue
        if lost:
            yield fail(f"GPU {', '.join(lost)} does not exist", f"this machine has {there}",
                       "list GPUs that `nvidia-smi -L` names", f"{place}.gpus")  # fmt: skip
        elif request.count > len(known):
            yield fail(f"{request.count} GPUs are wanted, and there are {len(known)}", f"this machine has {there}",
                       f"gpus: {len(known) or 'none'}", f"{place}.gpus")  # fmt: skip
        else:
            yield good("the wanted GPUs exist", ", ".join(gpu.name for gpu in cards), f"{place}.gpus")


def memory(case: Case) -> Results:
    """Free memory on each card is enough: utilization x total for vLLM, the weights and `CONTEXT` for others."""
    taken: dict[int, float] = {}
    if any(request.driver == "amd" for _, _, request in case.gpu_requests()):
        yield unknown("the free memory of AMD cards is not looked at", "", "rocm-smi --showmeminfo vram shows it")
    for place, model, _request, cards in wanted(case):
        for gpu in cards or ():
            least, how = _need(case, model, gpu, len(cards or ()))
            if gpu.memory_total is None or gpu.memory_free is None or least is None:
                why = how if least is None else ""
                yield unknown(f"whether GPU {gpu.index} has the memory free is unknown", why, place=place)
                continue
            least, before = least + taken.get(gpu.index, 0.0), taken.get(gpu.index, 0.0)
            need = least if model.engine == "vllm" else least + CONTEXT
            taken[gpu.index] = need
            users = ", ".join(
                f"{one.name} (pid {one.pid}{f', {size(one.memory)}' if one.memory else ''})" for one in gpu.processes
            )
            others = f", beside {size(before)} of other models" if before else ""
            told = f"{size(gpu.memory_free)} of {size(gpu.memory_total)} free; {how}{others}"
            if gpu.memory_free >= need:
                yield good(f"GPU {gpu.index} has the memory free", told, place)
                continue
            told += f"; held by {users}" if users else "; no process is shown for it"
            if any(one.project == case.stack.plan.name for one in case.host.containers or () if case.stack):
                yield unknown(f"GPU {gpu.index}: this stack runs already, and holds memory itself", told, place=place)
                continue
            fix, field = "stop what holds it, or take a smaller or a quantized model", f"{place}.gpus"
            if model.engine == "vllm":
                # rounded down, and a little left over for the CUDA context
                fits = int((gpu.memory_free / gpu.memory_total - 0.02) * 100) / 100
                fix = "stop what holds it" + (f", or set gpu_memory_utilization: {fits:g}" if fits >= 0.1 else "")
                field = f"{place}.gpu_memory_utilization"
            # the weights are certain where files tell them; what the engine adds is an estimate
            say = warn if gpu.memory_free >= least or "guessed" in how else fail
            yield say(f"GPU {gpu.index} has too little free memory: {size(need)} are wanted", told, fix, field)


def _need(case: Case, model: Any, gpu: Gpu, cards: int) -> tuple[float | None, str]:
    """The bytes that a model takes of a card, without `CONTEXT`, and how that is known; None where it is not."""
    if model.engine == "vllm":
        utilization = model.gpu_memory_utilization or UTILIZATION
        return utilization * (gpu.memory_total or 0), f"vLLM takes {utilization:g} of it"
    weight, how = weight_bytes(case, model.model)
    if weight is None:
        return None, f"the size of {model.model} is unknown"
    for field in ("gpu_layers", "cpu_offloading", "max_gpu_memory"):
        if getattr(model, field, None) not in (None, False):
            return None, f"{field} decides how much of the weights goes there"
    if getattr(model, "load_8bit", False):
        weight, how = weight // 2, f"{how}, halved by load_8bit"
    told = f"{size(weight)} of weights ({how})" + (f" over {cards} cards" if cards > 1 else "")
    return weight / cards, f"{told}, and about {size(CONTEXT)} for CUDA and the KV cache"


def mig(case: Case) -> Results:
    """A card that is split by MIG is named by the UUID of one of its parts."""
    for gpu in _all(case):
        if gpu.mig and case.stack:
            yield fail(
                f"GPU {gpu.index} is split by MIG, and the stack names it as a whole",
                gpu.name,
                "name parts of it: gpus: [MIG-…] (`nvidia-smi -L` lists them), or turn MIG off",
                "models",
            )
        elif gpu.mig:
            yield warn(f"GPU {gpu.index} is split by MIG", gpu.name, "name its parts in gpus: [MIG-…]")
        elif gpu.mig is False:
            yield good(f"GPU {gpu.index} is not split by MIG")


def ecc(case: Case) -> Results:
    """No uncorrected memory errors."""
    for gpu in _all(case):
        if gpu.ecc_errors:
            yield warn(f"GPU {gpu.index} had {gpu.ecc_errors} memory errors that were not corrected", gpu.name,
                       "reset or replace the card; `nvidia-smi -q -d ECC,ROW_REMAPPER` tells more")  # fmt: skip
        elif gpu.ecc_errors == 0:
            yield good(f"GPU {gpu.index} had no uncorrected memory errors")


def persistence(case: Case) -> Results:
    """Persistence mode keeps the driver loaded between starts."""
    for gpu in _all(case):
        if gpu.persistence is False:
            yield warn(f"persistence mode of GPU {gpu.index} is off: each start loads the driver anew", gpu.name,
                       "sudo systemctl enable --now nvidia-persistenced")  # fmt: skip
        elif gpu.persistence:
            yield good(f"persistence mode of GPU {gpu.index} is on")


def mixed(case: Case) -> Results:
    """The cards of one replica are of one kind: the smallest decides for all."""
    for place, _model, _request, cards in wanted(case):
        kinds = {gpu.name: gpu.memory_total for gpu in cards or ()}
        if len(kinds) > 1:
            told = ", ".join(f"{name} {size(total)}" if total else name for name, total in kinds.items())
            yield warn("one replica is spread over different cards: the smallest and slowest decides", told,
                       "give each kind of card a model of its own", f"{place}.gpus")  # fmt: skip
        elif cards and len(cards) > 1:
            yield good("the cards of a replica are of one kind", next(iter(kinds)), f"{place}.gpus")


def card(case: Case) -> Results:
    """The cards are new enough for the engine's build."""
    for place, model, _request, cards in wanted(case):
        for gpu in cards or ():
            if model.image or model.engine != "vllm":
                continue
            told = f"compute capability {gpu.compute[0]}.{gpu.compute[1]}" if gpu.compute else ""
            if gpu.compute is None:
                yield unknown(f"the compute capability of GPU {gpu.index} is unknown", gpu.name, place=place)
            elif gpu.compute < (7, 5):
                yield fail(f"{gpu.name} is too old for vLLM's CUDA 13 image", f"{told}, wanted 7.5 or newer",
                           "use a newer card, or engine: llamacpp", f"{place}.gpus")  # fmt: skip
            else:
                yield good(f"{gpu.name} is new enough for vLLM", told, place)
