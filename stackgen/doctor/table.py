"""All checks, in the order in which a person would look: the machine first, then the stack."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stackgen.doctor import (
    capacity as room,
)
from stackgen.doctor import (
    context_length as context,
)
from stackgen.doctor import (
    features,
    files,
    flags,
    gpus,
    machine,
    model,
    parallel,
    ports,
    quantization,
    secrets,
)
from stackgen.doctor import (
    huggingface as hub,
)
from stackgen.doctor.finding import Case, Check, Finding

__all__ = ["CHECKS", "counts", "examine", "exit_code"]

CHECKS: tuple[Check, ...] = (
    Check("SG-P001", "docker", "the `docker` command, the engine, and whether this user may use its socket",
          machine.engine, True),
    Check("SG-P002", "engine-version", "the engine has each feature that compose.yaml uses (`start_interval`, CDI: 25)",
          features.engine_version, True),
    Check("SG-P003", "compose", "the compose plugin has each feature that compose.yaml uses (`start_interval`: 2.20.2) "
          "and is 2.24 or newer", features.compose, True),
    Check("SG-P004", "buildx", "buildx is 0.17 or newer, where an image is built here", machine.buildx, True),
    Check("SG-P005", "cgroup", "control groups of version 2", machine.cgroup, True),
    Check("SG-P006", "disk", "room for images and weights that are still to come, by the Hub's file list when online",
          room.disk, True),
    Check("SG-P007", "memory", "host memory for models on the CPU: weights and KV cache", room.memory, True),
    Check("SG-P008", "shm", "/dev/shm of vLLM's containers is 256 MiB at least", machine.shm),
    Check("SG-P009", "cpu", "architecture and instruction sets for the CPU images (AVX2; AVX-512 advised)",
          machine.cpu, True),
    Check("SG-P010", "cores", "`cpuset` names cores that exist", machine.cores),
    Check("SG-P020", "port", "published ports are free, or who holds them", ports.free),
    Check("SG-P021", "bind", "the address of `bind` is one of this machine's", ports.address),
    Check("SG-P022", "exposure", "who reaches the ports, and what answers without a key", ports.exposure),
    Check("SG-P030", "gpu", "there are cards, and their driver answers", gpus.present, True),
    Check("SG-P031", "driver", "the driver is new enough for the image's CUDA (CUDA 13: 580)", gpus.driver, True),
    Check("SG-P032", "toolkit", "Docker can hand out GPUs: NVIDIA container toolkit, or CDI files", gpus.toolkit, True),
    Check("SG-P033", "gpu-ids", "indices, UUIDs and counts of `gpus` exist", gpus.ids),
    Check("SG-P034", "gpu-memory", "free memory of each card: utilization × total for vLLM, the weights and 1 GiB for "
          "others; or who holds it",
          gpus.memory, True),
    Check("SG-P035", "mig", "cards that MIG splits are named by their parts", gpus.mig),
    Check("SG-P036", "ecc", "no uncorrected memory errors on the cards", gpus.ecc, True),
    Check("SG-P037", "persistence", "persistence mode of the cards", gpus.persistence, True),
    Check("SG-P038", "mixed-gpus", "the cards of one replica are of one kind", gpus.mixed),
    Check("SG-P039", "gpu-age", "the cards are new enough for the engine (compute capability 7.5)", gpus.card, True),
    Check("SG-P040", "tensor-parallel", "attention heads are a multiple of the tensor parallel size", parallel.heads),
    Check("SG-P041", "kv-heads", "KV heads are a multiple of the tensor parallel size, or divide it",
          parallel.kv_heads),
    Check("SG-P042", "pipeline-parallel", "there are as many layers as pipeline stages", parallel.layers),
    Check("SG-P050", "model", "the model's folder and config.json", model.config),
    Check("SG-P051", "tokenizer", "the tokenizer's files", model.tokenizer),
    Check("SG-P052", "chat-template", "a chat template", model.chat_template),
    Check("SG-P053", "weights", "every shard of the index is there and whole, by its header", model.weights),
    Check("SG-P054", "readable", "the container's user may read the model", model.readable),
    Check("SG-P055", "context", "`max_model_len` against the model's files, by vLLM's own arithmetic", context.context),
    Check("SG-P056", "dtype", "the cards compute in the type (bfloat16: compute capability 8.0)", model.dtype),
    Check("SG-P057", "quantization", "vLLM knows the quantization, the model has it, the cards compute with it",
          quantization.quantization),
    Check("SG-P058", "named-files", "chat templates and adapters that stack.yaml names", model.extras),
    Check("SG-P059", "fit", "the weights alone fit the cards", model.fit),
    Check("SG-P060", "hub", "the Hub answers, where something is to be fetched", hub.reachable),
    Check("SG-P061", "token", "the Hub's token is valid, and the licence is accepted", hub.token),
    Check("SG-P062", "repository", "repository, revision and file exist on the Hub", hub.repository),
    Check("SG-P063", "cached", "with `storage.offline` the models lie in the storage", hub.cached),
    Check("SG-P064", "revision", "models of the Hub name a revision", files.weights_pinned),
    Check("SG-P070", "env", "`.env` is there", secrets.present),
    Check("SG-P071", "env-mode", "only its owner may read `.env`", secrets.mode),
    Check("SG-P072", "env-complete", "every variable has a value, and no placeholder is left", secrets.complete),
    Check("SG-P073", "key", "the API key can't be guessed", secrets.strength),
    Check("SG-P074", "token-file", "HF_TOKEN_FILE names a file that can be read", secrets.token_file),
    Check("SG-P080", "stack", "stack.yaml holds no mistake", files.stack_file),
    Check("SG-P081", "rendered", "the rendered files are in step with stack.yaml", files.rendered),
    Check("SG-P082", "image-pinned", "every image names a version", files.pinned),
    Check("SG-P083", "image", "every image is there, or is built here", files.pulled),
    Check("SG-P090", "extra-args", "the pinned version knows the flags of `extra_args`, and takes their values",
          flags.of_stack),
)  # fmt: skip
ORDER = {"fail": 0, "warn": 1, "unknown": 2, "ok": 3}
_MACHINE = frozenset(check.id for check in CHECKS if check.machine)


def examine(case: Case, checks: Sequence[Check] = CHECKS) -> tuple[Finding, ...]:
    """All findings, the worst first, each kind in the order of the table."""
    found = [
        Finding(check.id, check.name, one.status, one.message, one.evidence, one.fix, one.place)
        for check in checks
        for one in dict.fromkeys(check.run(case))
    ]
    return tuple(sorted(found, key=lambda finding: ORDER[finding.status]))


def exit_code(findings: Iterable[Finding]) -> int:
    """0 without a failure, 3 where the machine is not ready, 1 where only the stack is wrong."""
    failed = {finding.id for finding in findings if finding.status == "fail"}
    if not failed:
        return 0
    return 3 if failed & _MACHINE else 1


def counts(findings: Iterable[Finding]) -> dict[str, int]:
    """How many findings there are of each status."""
    found = list(findings)
    return {status: sum(finding.status == status for finding in found) for status in ORDER}
