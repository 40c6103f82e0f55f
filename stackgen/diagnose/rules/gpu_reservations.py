"""Rules for containers that should have a GPU and got none: reservations under Podman, and Ollama's own messages.

None of these failures was reproduced. `source` names the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant

__all__ = ["RULES"]

OLLAMA = re.compile(r'msg="no compatible GPUs were discovered"|msg="inference compute" id=(?:0|cpu) library=cpu\b')
OLLAMA_GPU = re.compile(r'msg="inference compute" id=\S+ library=(?:cuda|rocm|vulkan|CUDA|ROCm|Vulkan)')
# what an engine prints in a container without a GPU
NO_GPU = re.compile(
    r"Failed to infer device type|libcuda\.so(?:\.1)?: cannot open shared object file|"
    r"Found no NVIDIA driver on your system|no usable GPU found, --|No platform detected, vLLM is running"
)
PODMAN = re.compile(r"podman[- ]compose\b|executing external compose provider|\bpodman logs\b", re.I)
RESERVED = re.compile(r"^\s*(?:reservations|gpus):|capabilities: ?\[ ?['\"]?gpu|driver: ?['\"]?nvidia", re.M)


def _find_reservation(evidence: Evidence) -> Iterator[Hit]:
    """A container of `podman compose` has no GPU, or Ollama reports that it found none."""
    for service in evidence.services:
        # Ollama's lines have the words in key=value pairs, which strip_prefix takes for a prefix
        lines = [one.strip() if OLLAMA.search(one) else strip_prefix(one).strip() for one in service.log.splitlines()]
        is_podman = bool(PODMAN.search(service.log)) and not service.is_working
        # for other engines, their own rules have the other causes
        wanted = NO_GPU if is_podman and RESERVED.search(service.log) else None
        line = next((one for one in lines if OLLAMA.search(one) or (wanted and wanted.search(one))), "")
        if line and not OLLAMA_GPU.search(service.log):
            yield Hit(service.service, (line,), {}, variant=PODMAN_COMPOSE if is_podman else None)


PODMAN_COMPOSE = Variant(
    (),
    title="Podman did not give the container the GPU of its reservation",
    cause="the container runs under Podman and has no GPU. Podman gets GPUs from CDI, and some versions of Podman and "
    "of podman-compose silently ignore GPU reservations of the Compose file (`deploy.resources.reservations.devices`); "
    "podman-compose 1.6.0 ignores `gpus:`, and reservations without `driver: nvidia`",
    fix="in the Compose file, replace the reservation with `devices: [nvidia.com/gpu=all]`; check that `nvidia-ctk cdi "
    "list` prints this name (otherwise run `sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`), and that "
    "`podman run --rm --device nvidia.com/gpu=all ubuntu nvidia-smi -L` works; if only the container of the Compose "
    "file lacks the GPU, update Compose (2.30 or newer) and Podman, or use podman-compose in place of docker-compose",
    condition="the text shows `podman compose`",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-G060",
        title="Ollama finds no GPU",
        cause="Ollama found no GPU that it can use, so it runs models on the CPU. Either the container got no GPU, or "
        "the driver does not work in it, or Ollama does not support this GPU",
        fix="with an NVIDIA GPU, run `nvidia-smi` in the container; if it fails, give the container a GPU (`--gpus "
        "all`, or a reservation in Compose), and check the NVIDIA container toolkit; with an AMD GPU, use the image "
        "ollama/ollama:rocm with the devices /dev/kfd and /dev/dri; if the GPU is there, start Ollama once with "
        "OLLAMA_DEBUG=1, whose log names the reason",
        source="The messages come from Ollama (discover/gpu.go and types.go). podman-container-tools/podman issues "
        "25196 (2025-03), 28309 (2026-03) and 28436 (2026-04), containers/podman-compose issue 919 (2024-04) and "
        "xencon/aixcl issue 1118 (2026-05) show reservations that Podman ignored. The failure was not reproduced.",
        explain="stackgen itself does not run Ollama. A container on the CPU is slow, but it works.",
        find=_find_reservation,
        # an engine whose driver fails prints the same lines
        consequence_of=("SG-G001", "SG-G002", "SG-G005", "SG-G016", "SG-G027", "SG-G028"),
        variants=(PODMAN_COMPOSE,),
    ),
)
