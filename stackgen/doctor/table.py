"""All checks, in the order in which a person would check: first the machine, then the stack."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stackgen.doctor import (
    capacity,
    context_length,
    features,
    files,
    flags,
    gpu_memory,
    gpus,
    huggingface,
    machine,
    model,
    parallel,
    ports,
    quantization,
    secrets,
)
from stackgen.doctor.finding import Check, DoctorInputs, Finding

__all__ = ["CHECKS", "count_by_status", "exit_code", "run_checks"]


CHECKS: tuple[Check, ...] = (
    Check("SG-P001", name="docker", description="the `docker` command exists, the engine answers, and this user may "
          "use its socket",
          run=machine.check_docker, machine=True),
    Check("SG-P002", name="engine-version", description="Docker Engine supports every feature that compose.yaml uses "
          "(`start_interval` and CDI need version 25)",
          run=features.check_engine_version, machine=True),
    Check("SG-P003", name="compose", description="the Compose plugin supports every feature that compose.yaml uses "
          "(`start_interval` needs 2.20.2) and is 2.24 or newer",
          run=features.check_compose_version, machine=True),
    Check("SG-P004", name="buildx", description="buildx is 0.17 or newer, if an image is built on this machine",
          run=machine.check_buildx, machine=True),
    Check("SG-P005", name="cgroup", description="the machine uses cgroup v2",
          run=machine.check_cgroup_version, machine=True),
    Check("SG-P006", name="disk", description="the disk has space for images and weights that are not downloaded "
          "yet (online: sizes from the Hub's file list)",
          run=capacity.check_disk_space, machine=True),
    Check("SG-P007", name="memory", description="the host has memory for the weights and KV cache of models on the "
          "CPU",
          run=capacity.check_host_memory, machine=True),
    Check("SG-P008", name="shm", description="/dev/shm of vLLM's containers is at least 256 MiB",
          run=machine.check_shared_memory),
    Check("SG-P009", name="cpu", description="the CPU has the architecture and instruction sets that the CPU images "
          "need (AVX2 is required, AVX-512 is recommended)",
          run=machine.check_cpu, machine=True),
    Check("SG-P010", name="cores", description="the cores in `cpuset` exist",
          run=machine.check_cpuset),
    Check("SG-P020", name="port", description="the published ports are free; if not, which process uses them",
          run=ports.check_ports_free),
    Check("SG-P021", name="bind", description="`bind` is an address of this machine",
          run=ports.check_bind_address),
    Check("SG-P022", name="exposure", description="which machines can reach the ports, and which paths answer without "
          "a key",
          run=ports.check_exposure),
    Check("SG-P030", name="gpu", description="there are GPUs, and their driver answers",
          run=gpus.check_gpus_present, machine=True),
    Check("SG-P031", name="driver", description="the driver is new enough for the image's CUDA (CUDA 13 needs 580)",
          run=gpus.check_driver, machine=True),
    Check("SG-P032", name="toolkit", description="Docker can give GPUs to containers: NVIDIA Container Toolkit, or "
          "CDI files",
          run=gpus.check_toolkit, machine=True),
    Check("SG-P033", name="gpu-ids", description="the indices, UUIDs and counts in `gpus` exist",
          run=gpus.check_gpu_ids),
    Check("SG-P034", name="gpu-memory", description="each GPU has enough free memory (vLLM: utilization × total; other "
          "engines: the weights and 1 GiB); if not, which process uses the memory",
          run=gpu_memory.check_gpu_memory, machine=True),
    Check("SG-P035", name="mig", description="GPUs in MIG mode are requested by the UUIDs of their MIG instances",
          run=gpus.check_mig),
    Check("SG-P036", name="ecc", description="the GPUs have no uncorrected ECC memory errors",
          run=gpus.check_ecc, machine=True),
    Check("SG-P037", name="persistence", description="persistence mode of the GPUs is on",
          run=gpus.check_persistence, machine=True),
    Check("SG-P038", name="mixed-gpus", description="all GPUs of a replica are the same model",
          run=gpus.check_mixed_gpus),
    Check("SG-P039", name="gpu-age", description="the GPUs are new enough for the engine (compute capability 7.5)",
          run=gpus.check_compute_capability, machine=True),
    Check("SG-P040", name="tensor-parallel", description="the number of attention heads is a multiple of the tensor "
          "parallel size",
          run=parallel.check_attention_heads),
    Check("SG-P041", name="kv-heads", description="the number of KV heads is a multiple of the tensor parallel size, "
          "or divides it",
          run=parallel.check_kv_heads),
    Check("SG-P042", name="pipeline-parallel", description="the model has at least as many layers as pipeline stages",
          run=parallel.check_layers),
    Check("SG-P050", name="model", description="the model's folder and its config.json exist",
          run=model.check_model_config),
    Check("SG-P051", name="tokenizer", description="the model's folder contains a tokenizer",
          run=model.check_tokenizer),
    Check("SG-P052", name="chat-template", description="the model has a chat template",
          run=model.check_chat_template),
    Check("SG-P053", name="weights", description="every shard in the index exists, and is as long as its header "
          "requires",
          run=model.check_weights),
    Check("SG-P054", name="readable", description="the container's user can read the model",
          run=model.check_readable),
    Check("SG-P055", name="context", description="the model supports `max_model_len`, calculated from its files as "
          "vLLM does",
          run=context_length.check_context_length),
    Check("SG-P056", name="dtype", description="the GPUs support the dtype (bfloat16 needs compute capability 8.0)",
          run=model.check_dtype),
    Check("SG-P057", name="quantization", description="vLLM knows the quantization, the model uses it, and the GPUs "
          "support it",
          run=quantization.check_quantization),
    Check("SG-P058", name="named-files", description="the chat templates and adapters in stack.yaml exist",
          run=model.check_named_files),
    Check("SG-P059", name="fit", description="the weights alone fit into the GPUs' memory",
          run=model.check_weights_fit),
    Check("SG-P060", name="hub", description="the Hub answers, if anything must be downloaded",
          run=huggingface.check_hub_reachable),
    Check("SG-P061", name="token", description="the Hub token is valid, and the licence is accepted",
          run=huggingface.check_hub_token),
    Check("SG-P062", name="repository", description="the repository, revision and file exist on the Hub",
          run=huggingface.check_repository),
    Check("SG-P063", name="cached", description="with `storage.offline`, the models are in the storage",
          run=huggingface.check_cached),
    Check("SG-P064", name="revision", description="models from the Hub are pinned to a revision",
          run=files.check_model_revisions),
    Check("SG-P070", name="env", description="`.env` exists",
          run=secrets.check_env_present),
    Check("SG-P071", name="env-mode", description="only the owner can read `.env`",
          run=secrets.check_env_mode),
    Check("SG-P072", name="env-complete", description="every required variable has a value that is not a placeholder",
          run=secrets.check_env_complete),
    Check("SG-P073", name="key", description="the API key is hard to guess",
          run=secrets.check_key_strength),
    Check("SG-P074", name="token-file", description="the file in HF_TOKEN_FILE is readable",
          run=secrets.check_token_file),
    Check("SG-P080", name="stack", description="stack.yaml has no errors",
          run=files.check_stack_file),
    Check("SG-P081", name="rendered", description="the rendered files match stack.yaml",
          run=files.check_rendered_files),
    Check("SG-P082", name="image-pinned", description="every image is pinned to a version",
          run=files.check_image_pins),
    Check("SG-P083", name="image", description="every image is present, or is built on this machine",
          run=files.check_images_present),
    Check("SG-P090", name="extra-args", description="the pinned version knows the flags in `extra_args` and accepts "
          "their values",
          run=flags.check_extra_args),
)  # fmt: skip
# the order of the statuses in every output, worst first
ORDER = {"fail": 0, "warn": 1, "unknown": 2, "ok": 3}
_MACHINE = frozenset(check.id for check in CHECKS if check.machine)


def run_checks(inputs: DoctorInputs, checks: Sequence[Check] = CHECKS) -> tuple[Finding, ...]:
    """All findings, worst first. Findings with the same status have the order of the table."""
    found = [
        Finding(
            check.id,
            check=check.name,
            status=one.status,
            message=one.message,
            evidence=one.evidence,
            fix=one.fix,
            place=one.place,
        )
        for check in checks
        # replicas of one model give equal results
        for one in dict.fromkeys(check.run(inputs))
    ]
    return tuple(sorted(found, key=lambda finding: ORDER[finding.status]))


def exit_code(findings: Iterable[Finding]) -> int:
    """0 without a failure, 3 if the machine is not ready, 1 if only the stack is wrong."""
    failed = {finding.id for finding in findings if finding.status == "fail"}
    if not failed:
        return 0
    return 3 if failed & _MACHINE else 1


def count_by_status(findings: Iterable[Finding]) -> dict[str, int]:
    """The number of findings of each status."""
    found = list(findings)
    return {status: sum(finding.status == status for finding in found) for status in ORDER}
