"""`stackgen fit`: estimates the GPU memory of a stack or a model, and compares the estimate with running engines."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stackgen.cli.commands.fit_machine import find_absent_gpus, find_ignored_options, read_uses, use_lines
from stackgen.cli.commands.fit_models import find_model, make_hub
from stackgen.cli.commands.fit_observe import observe
from stackgen.cli.commands.fit_placement import Placed, open_placed
from stackgen.cli.commands.fit_shared import drop_shares, find_groups, group_json, group_lines
from stackgen.cli.commands.output import note, print_data
from stackgen.engines.base import served_names
from stackgen.errors import StackgenError
from stackgen.fit import Gpu, Model, Settings, estimate, find_gpu
from stackgen.fit.changes import find_changes
from stackgen.fit.deployment import engine_version, read_settings
from stackgen.fit.estimate import FITS, Estimate
from stackgen.fit.gpus import observed_gpu, parse_memory
from stackgen.fit.text import as_json, as_lines, gpu_json, gpu_lines
from stackgen.plan import Service
from stackgen.render.read import stack_file_in
from stackgen.resolve.addons.backends import DEFAULT_CONCURRENCY
from stackgen.resolve.placement import place
from stackgen.runtimes.observation.gpu_tools import read_nvidia_facts, run_tool
from stackgen.spec import parse_token_count
from stackgen.stack.folder import Stack, find_stack_file
from stackgen.targets.adapter import served_rank

__all__ = ["Deployment", "fit"]


@dataclass(frozen=True)
class Deployment:
    """A model and how it runs: `name` for people, `service`: the first replica's service, "" without a stack.

    `index`: its place in `models` of stack.yaml. `ids`: the GPUs of all replicas, which other models may share.
    """

    name: str
    model: Model
    settings: Settings
    gpu: Gpu
    gpus: int
    service: str = ""
    index: int = 0
    ids: tuple[str, ...] = ()

    def estimate(self) -> Estimate:
        try:
            return estimate(self.model, self.settings, self.gpu)
        except StackgenError as error:
            # a stack may have many models
            place = f"models[{self.index}] ({self.name}): " if self.service else ""
            raise StackgenError(place + error.message, error.hint) from None


def fit(args: Namespace) -> int:
    """Prints one verdict for each model. Returns 0 if all of them fit, and 1 if one does not.

    If some models can't be read and the others fit, it returns the exit code of that error.
    """
    if args.list_gpus:
        print_data(args, gpu_json(), gpu_lines())
        return 0
    placed = _open(args)
    if args.observe or args.pin:
        if placed is None:
            raise StackgenError("--observe needs a stack whose engines are running", "pass the stack's folder")
        placed.stack.for_one_machine("the logs of `stackgen logs` contain the sizes that vLLM has measured")
        return observe(args, placed.stack, list(_of_stack(args, placed)))
    for text in find_ignored_options(args, placed.stack.spec) if placed else ():
        note(text)
    unread: dict[str, StackgenError] = {}
    found = list(_of_stack(args, placed, unread)) if placed else [_of_model(args)]
    if placed and not found and len(unread) == 1:
        raise next(iter(unread.values()))
    results = [(one, estimated, find_changes(estimated, one.model)) for one in found for estimated in (one.estimate(),)]
    groups = find_groups([(one.name, one.model, estimated, one.ids) for one, estimated, _ in results])
    results = [(one, estimated, drop_shares(changes, one.name, groups)) for one, estimated, changes in results]
    lines = [line for one, estimated, changes in results
             for line in as_lines(one.name, estimated, changes, one.gpus, sys.stdout.isatty())]  # fmt: skip
    lines += [line for one in groups for line in group_lines(one, sys.stdout.isatty())]
    data: dict[str, Any] = {
        "models": [as_json(one.name, estimated, changes, one.gpus) for one, estimated, changes in results],
        "shared": [group_json(one) for one in groups],
    }
    for name, error in unread.items():
        lines += [f"? {name} was not estimated: {error.message}", *([f"  hint: {error.hint}"] if error.hint else [])]
    data["unread"] = [{"model": name, "error": error.message, "hint": error.hint} for name, error in unread.items()]
    missing = placed.missing if placed else ()
    if missing and placed:
        lines += [f"✗ there is no room for {', '.join(missing)} next to the other models of the stack", *placed.offers]
        data["without_room"] = list(missing)
    uses, absent, more = _uses(args, placed) if placed else ({}, (), ())
    lines += more
    data |= {"gpus": uses, "absent": list(absent)} if placed else {}
    if placed and args.gpu and (text := _driver_warning(placed.stack, find_gpu(args.gpu))):
        note(text)
    for one, estimated, _ in results if placed else ():
        if placed and (text := _gateway_note(placed.stack, one.name, estimated)):
            note(text)
    fits = all(one.verdict == FITS for _, one, _ in results) and all(one.shared.verdict == FITS for one in groups)
    fits = fits and not missing and not absent
    print_data(args, {"fits": fits and not unread, **data}, lines)
    if not fits:
        return 1
    return max((error.exit_code for error in unread.values()), default=0)


def _uses(args: Namespace, placed: Placed) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...], tuple[str, ...]]:
    """The GPUs of each model, those that this machine lacks, and lines about them."""
    # a cluster and `stackgen plan` choose GPUs that exist, and `--gpus` asks about another stack
    if placed.stack.spec.target == "kubernetes" or placed.kinds or args.gpus:
        return {}, (), ()
    uses = read_uses(placed.stack.spec)
    known = [] if args.gpu or args.gpu_memory or not uses else _read_gpus()
    absent = find_absent_gpus(uses, known) if known else ()
    return uses, absent, tuple(use_lines(uses, absent, len(known)))


def _driver_warning(stack: Stack, gpu: Gpu) -> str:
    """Says that the stack is for GPUs of another vendor than `--gpu`; empty if it is not."""
    driver = stack.spec.gpu_driver
    if gpu.is_amd == (driver == "amd") or not gpu.compute:
        return ""
    vendor, wanted = ("AMD", "amd") if gpu.is_amd else ("NVIDIA", "nvidia")
    hint = f"Set `gpu_driver: {wanted}`"
    return f"warning: {gpu.name} is an {vendor} GPU, but the stack has `gpu_driver: {driver}`. {hint}"


def _gateway_note(stack: Stack, name: str, found: Estimate) -> str:
    """Says that the gateway sends fewer requests at a time than vLLM runs by default on the GPU; "" if it does not."""
    most, limit = found.settings.max_num_seqs or 0, DEFAULT_CONCURRENCY["vllm"]
    has_gateway = any(one.role == "gateway" for one in stack.plan.services)
    if not has_gateway or found.settings.engine != "vllm" or found.given.max_num_seqs or most <= limit:
        return ""
    return (f"{name}: vLLM runs up to {most:,} requests at a time on {found.gpu.name}, but the gateway sends at most "
            f"{limit} to each replica, and queues the others. To use more, set `max_num_seqs: {most}`")  # fmt: skip


def _open(args: Namespace) -> Placed | None:
    """The stack that the argument names; None if it names a model."""
    path = Path(args.stack)
    if find_stack_file(args.stack) or path.suffix in (".yaml", ".yml") or stack_file_in(path).exists():
        return open_placed(args, (lambda: _gpu(args)[0]) if args.gpu or args.gpu_memory else None)
    if args.stack == ".":
        raise StackgenError("there is no stack.yaml here", "pass a stack or a model, for example `stackgen fit "
                                                           "Qwen/Qwen3-8B --gpu RTX-4090`")  # fmt: skip
    return None


def _of_stack(args: Namespace, placed: Placed, unread: dict[str, StackgenError] | None = None) -> Iterator[Deployment]:
    """The models of the stack. Errors of models that can't be read go into `unread`, if it is given."""
    stack = placed.stack
    hub = make_hub(stack.spec, stack.folder, args.offline)
    known: list[Any] | None = None
    requests, _ = place(stack.spec)
    services = [one for one in stack.plan.services if one.role in ("engine", "worker")]
    for index, spec in enumerate(stack.spec.models):
        request = requests.get((index, 0))
        ids = tuple(id for (number, _), one in requests.items() if number == index and one for id in one.ids)
        count = args.gpus or (0 if request is None else len(request.ids) or request.count)
        chosen = [placed.kinds[id] for id in ids if id in placed.kinds]
        gpu = min(chosen, key=lambda one: one.memory) if chosen else _host()
        if count and not chosen:
            known = _read_gpus() if known is None and not (args.gpu or args.gpu_memory) else known
            gpu, number = _gpu(args, ids, known)
            # `gpus: all`
            count = number if count < 0 else count
        own = _services(stack, services, served_names(spec))
        image = own[0].image if own else ""
        nodes = -(-count // stack.spec.cluster.gpus_per_node) if stack.spec.target == "kubernetes" else 1
        settings = read_settings(spec, count, engine_version(image) if spec.engine == "vllm" else (),
                                 served_rank(own[0].command) if own else None, nodes)  # fmt: skip
        name = served_names(spec)[0]
        try:
            model = find_model(spec.model, stack.folder, hub, spec.revision, getattr(spec, "file", None) or "")
        except StackgenError as error:
            if unread is None:
                raise
            unread[name] = error
            continue
        yield Deployment(name, model, _with_version(settings), gpu, max(1, count), own[0].name if own else "", index,
                         ids if count else ())  # fmt: skip


def _services(stack: Stack, services: list[Service], names: tuple[str, ...]) -> list[Service]:
    """The services of the model that is served as `names`, the first replica first."""
    endpoints = {one.service for one in stack.plan.endpoints if names[0] in one.models}
    if found := [one for one in services if one.name in endpoints]:
        return found
    # FastChat's workers have one endpoint, and their model's names as an argument
    return [one for one in services if any(names[0] in word.split(",") for word in one.command)]


def _with_version(settings: Settings) -> Settings:
    # an image without a version in its tag: the pinned version is the best guess, and no more than that
    if settings.engine == "vllm" and not settings.version:
        version = Settings().version
        doubt = f"the image's tag contains no version, so the estimate assumes vLLM {'.'.join(map(str, version))}"
        return replace(settings, version=version, doubts=(*settings.doubts, doubt))
    return settings


def _host() -> Gpu:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Gpu("this machine's CPU", pages, source="/proc")


def _of_model(args: Namespace) -> Deployment:
    gpu, _ = _gpu(args)
    is_gguf = bool(args.file) or args.stack.lower().endswith(".gguf")
    version = engine_version(f":{args.engine_version}") if args.engine_version else Settings().version
    if not version:
        raise StackgenError(f"--engine-version: {args.engine_version!r} is not a version", "for example 0.32.0")
    if args.gpus is not None and not 1 <= args.gpus <= 64:
        raise StackgenError(f"--gpus: {args.gpus} is not a number of GPUs", "use 1 to 64")
    if args.gpu_memory_utilization is not None and not 0 < args.gpu_memory_utilization <= 1:
        raise StackgenError("--gpu-memory-utilization must be above 0 and at most 1", "vLLM's default is 0.92")
    settings = Settings(
        engine=args.engine or ("llamacpp" if is_gguf else "vllm"), version=version, tensor_parallel=args.gpus or 1,
        utilization=args.gpu_memory_utilization, max_model_len=_tokens(args.max_model_len),
        max_num_seqs=args.max_num_seqs, kv_cache_dtype=args.kv_cache_dtype or "auto",
        quantization=args.quantization or "",
    )  # fmt: skip
    model = find_model(args.stack, Path(), make_hub(None, Path(), args.offline), args.revision, args.file or "")
    return Deployment(args.stack, model, settings, gpu, args.gpus or 1)


def _tokens(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        tokens = -1 if text in ("auto", "-1") else parse_token_count(text)
    except (ValueError, IndexError):
        tokens = 0
    if not tokens:
        raise StackgenError(f"--max-model-len: {text!r} is not a number of tokens", "for example 8192, 32k or auto")
    return tokens


def _gpu(args: Namespace, ids: Sequence[str] = (), known: Sequence[Any] | None = None) -> tuple[Gpu, int]:
    """The GPU, and how many of them there are: named, or those of this machine. `ids`: those that the model lists."""
    if args.gpu and args.gpu_memory:
        raise StackgenError("--gpu and --gpu-memory can't be combined", "remove one of the two options")
    if args.gpu:
        return find_gpu(args.gpu), 1
    if args.gpu_memory:
        return Gpu("the GPU", parse_memory(args.gpu_memory)), 1
    known = _read_gpus() if known is None else known
    if not known:
        raise StackgenError(
            "this machine has no GPU that nvidia-smi lists",
            "pass the name of a GPU: `--gpu H100` (`--list-gpus` lists all), or `--gpu-memory 24GiB`",
        )
    names = {id.rpartition("=")[2] for id in ids}
    own = [one for one in known if str(one.index) in names or one.uuid in names]
    # the smallest GPU limits all
    least = min(own or known, key=lambda one: one.memory_total)
    return observed_gpu(least.name, least.memory_total, least.compute), len(known)


def _read_gpus() -> list[Any]:
    gpus: Any = read_nvidia_facts(run_tool).get("gpus") or ()
    return [one for one in gpus if one.memory_total]
