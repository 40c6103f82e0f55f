"""The table of doctor's checks: id, name, description and order, and which of them `up` and `plan` run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple

from stackgen.doctor import (
    adapters,
    capacity,
    catalog,
    context_length,
    features,
    files,
    flags,
    gpu_memory,
    gpu_reservations,
    gpus,
    host_memory,
    huggingface,
    kv_cache,
    machine,
    model,
    parallel,
    ports,
    proxy,
    quantization,
    readable,
    secrets,
)
from stackgen.doctor.cluster_table import CLUSTER_ONLY
from stackgen.doctor.finding import Check, DoctorInputs, Finding
from stackgen.doctor.places import with_places

__all__ = [
    "CHECKS", "CLUSTER_CHECKS", "START_CHECKS", "UNANSWERED_CHECKS", "count_by_status", "exit_code", "find_conflicts",
    "find_start_failures", "list_unchecked", "run_checks",
]  # fmt: skip


CHECKS: tuple[Check, ...] = (
    Check("SG-P001", name="docker", description="the `docker` command exists, Docker Engine answers, and this user "
          "has permission to use Docker's socket",
          run=machine.check_docker, machine=True),
    Check("SG-P002", name="engine-version", description="Docker Engine supports every feature that compose.yaml uses "
          "(`start_interval` and CDI need version 25)",
          run=features.check_engine_version, machine=True),
    Check("SG-P003", name="compose", description="the Compose plugin supports every feature that compose.yaml uses "
          "(`start_interval` needs version 2.20.2), and is a version that stackgen is tested with (2.24 or newer)",
          run=features.check_compose_version, machine=True),
    Check("SG-P004", name="buildx", description="buildx is 0.17 or newer, if an image is built on this machine",
          run=machine.check_buildx, machine=True),
    Check("SG-P005", name="cgroup", description="the machine uses cgroup v2",
          run=machine.check_cgroup_version, machine=True),
    Check("SG-P006", name="disk", description="the disk has space for the images and weights that are not "
          "downloaded yet (if this machine can reach the Hub, doctor reads the size of the weights from the Hub)",
          run=capacity.check_disk_space, machine=True),
    Check("SG-P007", name="memory", description="this machine has enough memory for the weights and KV cache of "
          "models on the CPU",
          run=host_memory.check_host_memory, machine=True),
    Check("SG-P008", name="shm", description="/dev/shm of vLLM's containers is at least 256 MiB",
          run=machine.check_shared_memory),
    Check("SG-P009", name="cpu", description="the CPU has the architecture and instruction sets that the CPU images "
          "need (AVX2 is required, AVX-512 is recommended)",
          run=machine.check_cpu, machine=True),
    Check("SG-P010", name="cores", description="the cores in `cpuset` exist",
          run=machine.check_cpuset),
    Check("SG-P020", name="port", description="the published ports are free (if a port is not free, doctor names the "
          "process that uses the port)",
          run=ports.check_ports_free),
    Check("SG-P021", name="bind", description="`bind` is an address of this machine",
          run=ports.check_bind_address),
    Check("SG-P022", name="exposure", description="doctor reports which machines can reach the ports, and which paths "
          "answer without a key",
          run=ports.check_exposure),
    Check("SG-P030", name="gpu", description="this machine has GPUs, and the GPU driver answers",
          run=gpus.check_gpus_present, machine=True),
    Check("SG-P031", name="driver", description="the driver is new enough for the CUDA version of the image (CUDA 13 "
          "needs driver 580)",
          run=gpus.check_driver, machine=True),
    Check("SG-P032", name="toolkit", description="Docker can give GPUs to containers, with the NVIDIA Container "
          "Toolkit or with CDI files",
          run=gpus.check_toolkit, machine=True),
    Check("SG-P033", name="gpu-ids", description="this machine has the GPUs that `gpus` requests (by index, UUID or "
          "count)",
          run=gpu_reservations.check_gpu_ids),
    Check("SG-P034", name="gpu-memory", description="each GPU has enough free memory, and the model fits, as "
          "`stackgen fit` estimates. vLLM needs `gpu_memory_utilization` × total memory, and other engines need "
          "weights, buffers and cache. If the free memory is too small, doctor names the processes that use it",
          run=gpu_memory.check_gpu_memory, machine=True),
    Check("SG-P035", name="mig", description="GPUs in MIG mode are requested by the UUIDs of their MIG instances",
          run=gpus.check_mig),
    Check("SG-P043", name="gpu-root", description="containers with NVIDIA GPUs have a writable root file system, "
          "which hooks of the NVIDIA Container Toolkit need",
          run=gpus.check_root),
    Check("SG-P036", name="ecc", description="the GPUs have no uncorrected ECC memory errors",
          run=gpus.check_ecc, machine=True),
    Check("SG-P037", name="persistence", description="persistence mode of the GPUs is enabled",
          run=gpus.check_persistence, machine=True),
    Check("SG-P038", name="mixed-gpus", description="all GPUs of a replica are of the same type",
          run=gpus.check_mixed_gpus),
    Check("SG-P039", name="gpu-age", description="the GPUs are new enough for the engine (at least compute "
          "capability 7.5)",
          run=gpus.check_compute_capability, machine=True),
    Check("SG-P040", name="tensor-parallel", description="the number of attention heads is a multiple of the tensor "
          "parallel size",
          run=parallel.check_attention_heads),
    Check("SG-P041", name="kv-heads", description="the number of KV heads is a multiple or a divisor of the tensor "
          "parallel size",
          run=parallel.check_kv_heads),
    Check("SG-P042", name="pipeline-parallel", description="the model has at least as many layers as pipeline stages",
          run=parallel.check_layers),
    Check("SG-P044", name="idle-gpus", description="with `gpus: all`, the product of a vLLM model's "
          "parallel sizes is the number of GPUs of this machine",
          run=gpu_reservations.check_all_gpus_used),
    Check("SG-P046", name="experts", description="with `expert_parallel`, the model has experts",
          run=parallel.check_experts),
    Check("SG-P047", name="kv-cache-dtype", description="the GPUs, or the CPU, support `kv_cache_dtype: fp8` in vLLM",
          run=kv_cache.check_kv_cache_dtype),
    Check("SG-P045", name="gpu-taken", description="no container of another stack uses the same GPUs (Docker gives a "
                                                   "GPU to any number of containers)",
          run=gpu_reservations.check_gpus_reserved, machine=True),
    Check("SG-P050", name="model", description="the model's folder and its config.json exist",
          run=model.check_model_config),
    Check("SG-P051", name="tokenizer", description="the model's folder contains a tokenizer",
          run=model.check_tokenizer),
    Check("SG-P052", name="chat-template", description="the model has a chat template",
          run=model.check_chat_template),
    Check("SG-P053", name="weights", description="the model's folder contains every weight file that the index "
          "lists, and each file has the size that the file's header requires",
          run=model.check_weights),
    Check("SG-P054", name="readable", description="the containers' users can read models, chat "
          "templates, adapters and other files in stack.yaml",
          run=readable.check_readable),
    Check("SG-P055", name="context", description="the model supports contexts of `max_model_len` tokens (doctor "
          "calculates the model's longest context from its files, as vLLM and SGLang do)",
          run=context_length.check_context_length),
    Check("SG-P056", name="dtype", description="the GPUs support the dtype (bfloat16 needs compute capability 8.0)",
          run=model.check_dtype),
    Check("SG-P057", name="quantization", description="vLLM knows the quantization method, the model is quantized with "
          "this method, and the GPUs support this method",
          run=quantization.check_quantization),
    Check("SG-P058", name="named-files", description="all chat templates, adapters, certificates and keys that "
          "stack.yaml names by a path exist",
          run=model.check_named_files),
    Check("SG-P059", name="fit", description="the weights alone fit into the GPUs' memory",
          run=model.check_weights_fit),
    Check("SG-P060", name="hub", description="if anything must be downloaded, the Hub answers",
          run=huggingface.check_hub_reachable),
    Check("SG-P061", name="token", description="the Hub token is valid, and the license is accepted",
          run=huggingface.check_hub_token),
    Check("SG-P062", name="repository", description="the repository, revision and file exist on the Hub",
          run=huggingface.check_repository),
    Check("SG-P063", name="cached", description="if `storage.offline` is set, the models and the "
          "vocabulary of gpt-oss are in the storage, where the engines look",
          run=huggingface.check_cached),
    Check("SG-P064", name="revision", description="models from the Hub are pinned to a revision",
          run=files.check_model_revisions),
    Check("SG-P065", name="proxy", description="if this machine uses an HTTP proxy, `proxy` is set in the stack",
          run=proxy.check_proxy),
    Check("SG-P066", name="adapters", description="LoRA adapters have their files, vLLM supports the adapters, and the "
          "adapters were trained for the base model",
          run=adapters.check_adapters),
    Check("SG-P067", name="tool-parser", description="if the catalog of models names a parser for the tool "
          "calls of a vLLM or SGLang model, the model has the right parser",
          run=catalog.check_tool_parser),
    Check("SG-P076", name="reasoning-parser", description="the reasoning parser of a vLLM or SGLang model fits it",
          run=catalog.check_reasoning_parser),
    Check("SG-P068", name="first-version", description="vLLM is not older than the version that the model's recipe "
          "names",
          run=catalog.check_first_version),
    Check("SG-P069", name="gated", description="a token is set for each model that is known to be gated (checked only "
                                               "if the Hub was not asked)",
          run=catalog.check_gated),
    Check("SG-P070", name="env", description="`.env` exists",
          run=secrets.check_env_present),
    Check("SG-P071", name="env-mode", description="only the owner can read `.env`",
          run=secrets.check_env_mode),
    Check("SG-P072", name="env-complete", description="every required variable has a value that is not a placeholder",
          run=secrets.check_env_complete),
    Check("SG-P073", name="key", description="the API key is hard to guess",
          run=secrets.check_key_strength),
    Check("SG-P074", name="token-file", description="HF_TOKEN_FILE contains the path of a readable file",
          run=secrets.check_token_file),
    Check("SG-P075", name="key-accepted", description="the gateway accepts the key in `.env`",
          run=secrets.check_key_accepted),
    Check("SG-P080", name="stack", description="stack.yaml has no errors",
          run=files.check_stack_file),
    Check("SG-P081", name="rendered", description="the rendered files match stack.yaml",
          run=files.check_rendered_files),
    Check("SG-P082", name="image-pinned", description="every image is pinned to a version",
          run=files.check_image_pins),
    Check("SG-P083", name="image", description="every image is present, or is built on this machine",
          run=files.check_images_present),
    Check("SG-P084", name="project", description="the containers with the name of this stack belong to its folder",
          run=files.check_project_folder),
    Check("SG-P090", name="extra-args", description="the pinned version of the engine knows the flags in `extra_args`, "
          "and accepts their values",
          run=flags.check_extra_args),
)  # fmt: skip
# of the other checks, these look at stack.yaml, .env, the Hub and the rendered files, and not at this machine
CLUSTER_CHECKS = (*CLUSTER_ONLY, *(one for one in CHECKS if one.name in (
    "tensor-parallel", "kv-heads", "pipeline-parallel", "experts", "context", "named-files", "hub", "token",
    "repository", "revision", "adapters", "tool-parser", "reasoning-parser", "first-version", "gated", "env",
    "env-mode", "env-complete", "key", "token-file", "key-accepted", "stack", "rendered", "image-pinned", "extra-args",
)))  # fmt: skip
# without an answer, only the first check of the cluster has something to report
UNANSWERED_CHECKS = tuple(one for one in CLUSTER_CHECKS if one not in CLUSTER_ONLY[1:])
# the order of the statuses in every output, worst first
ORDER = {"fail": 0, "warn": 1, "unknown": 2, "ok": 3}
_MACHINE = frozenset(check.id for check in (*CHECKS, *CLUSTER_ONLY) if check.machine)
# what certainly ends a start, and is known within a second: `up` runs these before it pulls an image
START_CHECKS = tuple(one for one in CHECKS if one.name in ("disk", "cores", "port", "gpu", "toolkit", "gpu-ids",
                                                           "gpu-taken", "named-files"))  # fmt: skip

# what the containers of other stacks show, for `render`, which starts nothing
NEIGHBOUR_CHECKS = tuple(one for one in CHECKS if one.name in ("port", "gpu-taken", "project"))


def find_conflicts(inputs: DoctorInputs) -> tuple[Finding, ...]:
    """Ports, GPUs and the name of this stack that other stacks on this machine already have."""
    return tuple(one for one in run_checks(inputs, NEIGHBOUR_CHECKS) if one.status in ("fail", "warn"))


def find_start_failures(inputs: DoctorInputs) -> tuple[Finding, ...]:
    """What certainly ends the start of a stack. A full disk counts only if something must still be downloaded."""
    images = inputs.host.images or ()
    complete = all(one.image in images for one in inputs.services()) and all(inputs.cached.values())
    checks = [one for one in START_CHECKS if not (complete and one.name == "disk")]
    return tuple(finding for finding in run_checks(inputs, checks) if finding.status == "fail")


def run_checks(inputs: DoctorInputs, checks: Sequence[Check] = CHECKS) -> tuple[Finding, ...]:
    """All findings, worst first. Findings with the same status have the order of the table."""
    found = [
        Finding(check.id, check.name, *astuple(one))
        for check in checks
        # replicas of one model give equal results
        for one in dict.fromkeys(check.run(inputs))
    ]
    return tuple(sorted(with_places(inputs, found), key=lambda finding: ORDER[finding.status]))


# what some checks look at; without it, they have no finding
_LOCAL = "applies only to models in a folder or file on this machine"
_HUB = "applies only to models on the Hub, and only if the Hub answered"
_NVIDIA = "applies only to NVIDIA GPUs that nvidia-smi lists"
_SCOPES = {
    **dict.fromkeys(("model", "tokenizer", "chat-template", "weights", "readable"), _LOCAL),
    **dict.fromkeys(("hub", "token", "repository", "cached", "revision"), _HUB),
    **dict.fromkeys(("gpu", "driver", "toolkit", "gpu-ids", "gpu-memory", "mig", "gpu-root", "ecc", "persistence",
                     "mixed-gpus", "gpu-age", "dtype", "fit"), _NVIDIA),
    "reasoning-parser": "applies only to models whose reasoning parser the catalog of models knows",
    **dict.fromkeys(("tool-parser", "first-version"), "applies only to vLLM models in the catalog"),
    "gated": "applies only if there is no token, the model is not downloaded, and the Hub was not asked",
    "idle-gpus": "applies only to vLLM models with `gpus: all`",
    "adapters": "applies only to `lora_adapters`",
    "gpu-taken": "applies only to models with NVIDIA GPUs",
    **dict.fromkeys(("tensor-parallel", "kv-heads", "pipeline-parallel"),
                    "applies only to models of vLLM and SGLang that are split across several GPUs"),
    "context": "applies only to models of vLLM and SGLang with `max_model_len`",
    "quantization": "applies only to quantized models in vLLM",
    "kv-cache-dtype": "applies only to vLLM models with `kv_cache_dtype: fp8`",
    "cached": "applies only to Hub models and gpt-oss, if `storage.offline` is set or the storage has another layout",
    "cpu": "applies only to models on the CPU without `image`",
    "cores": "applies only to `cpuset`",
    "extra-args": "applies only to `extra_args`",
    **dict.fromkeys(("env-mode", "env-complete", "key"), "applies only if .env exists"),
    "key-accepted": "applies only to stacks with a gateway",
    "token-file": "applies only to HF_TOKEN_FILE in .env",
    "shm": "applies only to vLLM's containers",
    "cluster-gpus": "applies only to pods that request a count of GPUs",
    "cluster-quota": "applies only if the namespace exists",
}  # fmt: skip


def list_unchecked(findings: Iterable[Finding], has_stack: bool, checks: Sequence[Check] = CHECKS) -> dict[str, str]:
    """The checks without a finding, by id, and the reason. They are neither ok nor failed."""
    found = {finding.id for finding in findings}
    default = "nothing in the stack needs this check" if has_stack else "there is no stack to check"
    return {
        check.id: _SCOPES.get(check.name, default) if has_stack or check.machine else default
        for check in checks
        if check.id not in found
    }


def exit_code(findings: Iterable[Finding]) -> int:
    """0 without a failure, 3 if the machine is not ready, 1 if only the stack is wrong."""
    failed = {finding.id for finding in findings if finding.status == "fail"}
    if not failed:
        return 0
    return 3 if failed & _MACHINE else 1


def count_by_status(findings: Iterable[Finding]) -> dict[str, int]:
    """The number of findings of each status."""
    # every status, also with 0 findings, because --json has all statuses
    found = list(findings)
    return {status: sum(finding.status == status for finding in found) for status in ORDER}
