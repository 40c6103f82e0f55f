"""Builds the stack from containers: one model for each engine, one stack, with its ports and shared GPUs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from stackgen import engines
from stackgen.importing.addresses import Address, choose_addresses, find_address
from stackgen.importing.container import Container
from stackgen.importing.extras import read_companion
from stackgen.importing.fastchat_flags import read_api_server, read_controller, read_worker
from stackgen.importing.flags import Flag
from stackgen.importing.gpu_choice import choose_gpus
from stackgen.importing.ledger import Draft, Ledger, Word
from stackgen.importing.llamacpp_flags import read_llamacpp
from stackgen.importing.programs import Program, find_program, name_unsupported
from stackgen.importing.rendered import is_rendered, settle_rendered
from stackgen.importing.replicas import merge_replicas, share_gpus
from stackgen.importing.settings import apply_environment, apply_image, apply_mounts, apply_options, mount_arguments
from stackgen.importing.sglang_flags import read_sglang
from stackgen.importing.vllm_flags import read_vllm
from stackgen.spec.sources import explain_ollama

__all__ = ["Assembled", "assemble"]

# the order of fields in the file
ORDER = (
    "model", "engine", "file", "revision", "served_names", "gpus", "share_gpus", "replicas", "tensor_parallel_size",
    "pipeline_parallel_size", "max_model_len", "max_num_seqs", "gpu_memory_utilization",
)  # fmt: skip


@dataclass(slots=True)
class Assembled:
    """The stack's data, its models in the order of the file, and the container of each model."""

    data: dict[str, Any] = field(default_factory=dict)
    drafts: list[Draft] = field(default_factory=list)
    containers: dict[str, Container] = field(default_factory=dict)
    # the models that FastChat's API server answers for
    workers: list[Draft] = field(default_factory=list)
    # servers of the source that stackgen has no engine for
    unsupported: list[str] = field(default_factory=list)


def assemble(containers: list[Container], project: str, ledger: Ledger, *, scheduled: bool = False) -> Assembled:
    """The stack that serves the same models as `containers`. `project` is the name of the Compose project, or "".

    `scheduled`: the source is for a cluster, which gives each model GPUs of its own.
    """
    result = Assembled()
    stack: dict[str, Any] = {}
    addresses: dict[int, Address] = {}
    for container in containers:
        if is_rendered(container):
            settle_rendered(container, stack, ledger)
    programs = [(one, find_program(one, ledger)) for one in containers]
    for container, program in programs:
        if program is None or program.engine not in engines.names():
            _refuse(container, program, result, stack, ledger)
            continue
        if program.engine == "fastchat":
            _settle_build(container, ledger)
        if program.role in ("controller", "api", "web"):
            continue
        draft = Draft(program.engine, container.name)
        _read_model(program, container, draft, stack, project, ledger)
        if "model" not in draft.fields:
            _give_up(container, draft, result, ledger)
            continue
        result.drafts.append(draft)
        result.containers[container.name] = container
        addresses[id(draft)] = find_address(container, draft, program.role)
        result.workers += [draft] if "worker" in program.role else []
    _read_fastchat(programs, result, addresses, ledger)
    merge_replicas(result.drafts, addresses, ledger)
    share_gpus(result.drafts, ledger, scheduled=scheduled)
    stack |= choose_addresses(result.drafts, addresses, stack, ledger)
    name = re.sub(r"[^a-z0-9]+", "-", (project or _guess_name(result.drafts)).lower()).strip("-")[:60] or "stack"
    result.data = {"name": name, **stack, "models": [_order(draft) for draft in result.drafts]}
    return result


def _read_model(
    program: Program, container: Container, draft: Draft, stack: dict[str, Any], project: str, ledger: Ledger
) -> None:
    if program.role == "vllm-worker":
        _read_vllm_worker(program, container, draft, ledger)
    elif program.engine == "vllm":
        read_vllm(program.words, container, draft, ledger)
    elif program.engine == "fastchat":
        read_worker(program.words, container, draft, ledger)
    elif program.engine == "sglang":
        read_sglang(program.words, container, draft, ledger)
    else:
        read_llamacpp(program.words, container, draft, ledger)
    apply_image(container, draft, ledger)
    driver = choose_gpus(container, draft, ledger)
    if driver in ("cdi", "amd"):
        stack["gpu_driver"] = driver
    apply_environment(container, draft, stack, ledger)
    apply_mounts(container, draft, stack, project, ledger)
    apply_options(container, draft, stack, ledger)
    mount_arguments(container, draft, ledger)
    if container.replicas_item is not None:
        container.replicas_item.carry("replicas", draft)
        draft.fields["replicas"] = container.replicas


def _read_vllm_worker(program: Program, container: Container, draft: Draft, ledger: Ledger) -> None:
    """FastChat's worker with vLLM inside: vLLM's own server does the same, and FastChat's does not start any more."""
    draft.engine = "vllm"
    flags = {"--model-path": "--model", "--model-names": "--served-model-name", "--num-gpus": "--tensor-parallel-size",
             "--conv-template": "--chat-template", "--limit-worker-concurrency": "--max-num-seqs"}  # fmt: skip
    words: list[Word] = []
    skip = False
    for index, word in enumerate(program.words):
        if skip:
            skip = False
            continue
        flag, equals, value = word.text.partition("=")
        if flag in ("--controller-address", "--worker-address", "--conv-template"):
            word.item.build_in("vLLM's own server needs no controller, and takes the template from the model")
            if not equals and index + 1 < len(program.words):
                program.words[index + 1].item.build_in("vLLM's own server needs no controller")
                skip = True
        elif flag == "--limit-worker-concurrency" and _is_unlimited(program.words, index):
            for one in program.words[index : index + 1 + (not equals)]:
                one.item.build_in("this limit is too high to have an effect, so vLLM chooses its own limit")
            skip = not equals
        elif flag in flags:
            words.append(Word(f"{flags[flag]}{equals}{value}", word.item, word.unknown))
        else:
            words.append(word)
    ledger.warn(
        container.place, "FastChat's vllm_worker does not work with current vLLM: the stack uses vLLM's own server"
    )
    read_vllm(words, container, draft, ledger)
    # FastChat separates names by commas
    if names := draft.fields.get("served_names"):
        draft.fields["served_names"] = [one for text in names for one in str(text).split(",")]


def _is_unlimited(words: list[Word], index: int) -> bool:
    value = words[index].text.partition("=")[2] or (words[index + 1].text if index + 1 < len(words) else "")
    return value.isdecimal() and int(value) >= 10_000


def _read_fastchat(
    programs: list[tuple[Container, Program | None]], result: Assembled, addresses: dict[int, Address], ledger: Ledger
) -> None:
    """The controller, API server and web page of FastChat, after its workers are known."""
    workers = [draft for draft in result.drafts if draft in result.workers]
    for container, program in programs:
        if program is None or program.role not in ("controller", "api", "web"):
            continue
        if program.role == "web":
            for word in program.words:
                word.item.drop("FastChat's web page is not part of a stack: set `ui: open-webui`")
        elif program.role == "controller":
            read_controller(program.words, [one for one in workers if one.engine == "fastchat"], ledger)
        else:
            flags = read_api_server(program.words, container, ledger)
            address = find_address(container, None, "api", flags)
            for draft in workers:
                addresses[id(draft)] = address
        _settle_companion(container, ledger, f"part of FastChat ({program.role}), which stackgen sets up itself")


def _settle_build(container: Container, ledger: Ledger) -> None:
    """There is no official image of FastChat, so everybody builds one, and so does stackgen."""
    for item in ledger.items:
        is_build = item.place.startswith(f"{container.place}.build") and item.outcome in ("", "dropped")
        if is_build or item.place == f"{container.place}.image":
            item.build_in("stackgen builds its own image of FastChat, with fixed versions")
    ledger.warnings = [one for one in ledger.warnings if not one[0].startswith(f"{container.place}.build")]


def _settle_companion(container: Container, ledger: Ledger, reason: str) -> None:
    for item in container.items():
        if not item.outcome:
            item.build_in(reason)


def _give_up(container: Container, draft: Draft, result: Assembled, ledger: Ledger) -> None:
    for item in ledger.items:
        if item.draft is draft:
            item.drop("the model of this service is unknown")
    if not any(item.outcome == "dropped" and "set `model`" in item.reason for item in ledger.items):
        ledger.warn(container.place, "no model is named: vLLM would start its default model. Set `model`")
    result.unsupported.append(f"{container.place}: the source does not say which model the engine serves")


def _hint_of_ollama(container: Container) -> str:
    """How to serve the models of Ollama, whose commands name no file."""
    # not an address such as 0.0.0.0:11434
    model = next((one.text for one in container.words if one.text[0].isalpha() and explain_ollama(one.text)), "")
    found = f". {model} {explain_ollama(model)}" if model else ""
    return f"{found}. To serve its models with llama.cpp, see `From Ollama` in docs/coming-from.md"


def _refuse(
    container: Container, program: Program | None, result: Assembled, stack: dict[str, Any], ledger: Ledger
) -> None:
    """A container without an engine of stackgen: each word says why it is not in the stack."""
    if program is None and read_companion(container, stack, ledger):
        return
    name = {"sglang": "SGLang"}.get(program.engine, program.engine) if program else name_unsupported(container)
    if name:
        result.unsupported.append(
            f"{container.place}: {name} is not an engine of stackgen ({', '.join(engines.names())})"
            f"{_hint_of_ollama(container) if name == 'Ollama' else ''}"
        )
        reason = f"{name} is not an engine of stackgen"
    else:
        what = container.image.text if container.image else " ".join(word.text for word in container.words[:2])
        reason = f"{container.name or what} serves no model: keep this service in its own Compose file"
    items = [*container.items(), *(word.item for word in (program.words if program else ()))]
    for item in items:
        # some words were already explained, such as `docker run`
        item.drop(reason)


def _guess_name(drafts: list[Draft]) -> str:
    if not drafts:
        return "stack"
    names = drafts[0].fields.get("served_names") or [drafts[0].fields["model"]]
    return str(drafts[0].source or str(names[0]).rstrip("/").rpartition("/")[2])


def _order(draft: Draft) -> dict[str, Any]:
    fields = {"engine": draft.engine, **draft.fields}
    # private fields hold flags that decide about other fields
    known = {name: value for name, value in fields.items() if not name.startswith("_")}
    assert not any(isinstance(value, Flag) for value in known.values())
    return {name: known[name] for name in (*ORDER, *sorted(set(known) - set(ORDER))) if name in known}
