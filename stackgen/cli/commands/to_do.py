"""What a rendered stack still lacks before its start, for the end of `render`: values, files, keys, a token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from stackgen.catalog.sizes import guess_weight_bytes
from stackgen.doctor.catalog import check_gated
from stackgen.doctor.collect import collect_start_inputs, hub_models, lora_sources, read_env_facts
from stackgen.doctor.facts import Host
from stackgen.doctor.finding import format_bytes
from stackgen.errors import StackgenError
from stackgen.runtimes.compose.gateway import has_gateway
from stackgen.stack.envfile import GENERATED_SECRETS
from stackgen.stack.folder import Stack
from stackgen.stack.keys import DEFAULT, list_keys
from stackgen.stack.lost_keys import find_missing

__all__ = ["describe_download", "find_to_do"]

# names that a line lists
MAX_NAMES = 5
# keys that `keys new` may print on the terminal
MAX_PRINTED_KEYS = 3


def find_to_do(stack: Stack) -> list[str]:
    """One sentence for each step that only the user can do. Empty if the stack can start."""
    try:
        return list(_find(stack))
    # the start reports an .env or a list of keys that can't be read
    except StackgenError:
        return []


def _find(stack: Stack) -> Iterator[str]:
    file = stack.folder / ".env"
    # the manifests contain no secrets: `render` copies them from .env into files for kustomize
    again = ", and run `stackgen render` again" if stack.site.is_cluster else ""
    for name, reference in find_missing(stack).items():
        # a lost key has a warning of its own
        if name not in GENERATED_SECRETS:
            either = f"{name} or {reference.alternative}" if reference.alternative else name
            yield f"set {either} in {file} ({reference.required}){again}"
    if stack.site.is_cluster:
        # most stacks run on one machine
        from stackgen.cli.commands.to_do_cluster import find_cluster_needs

        yield from find_cluster_needs(stack)
    inputs = replace(collect_start_inputs(Host(), stack), env=read_env_facts(stack.folder))
    for place, path in inputs.missing:
        # the rank of an adapter is in compose.yaml, and a plain `docker compose up` does not render it again
        rank = ". Then run `stackgen render` again, which reads the adapter's rank" if "lora_adapters" in place else ""
        yield f"create {path}, or correct `{place}`: the path does not exist{rank}"
    for gated in check_gated(inputs):
        yield f"{gated.message}: {gated.fix}{again}"
    if not has_gateway(stack.plan):
        return
    infos = list_keys(stack.folder, stack.spec.gateway)
    without = [one.name for one in infos if one.declared and not one.hashes and one.name != DEFAULT]
    if without:
        names = ", ".join(without[:MAX_NAMES]) + (f" and {len(without) - MAX_NAMES} more" * (len(without) > MAX_NAMES))
        # so many keys on a terminal are hard to hand out, and stay in its scrollback
        files = " --write-to FOLDER" if len(without) > MAX_PRINTED_KEYS else ""
        yield f"create keys for {names}: `stackgen keys new --missing --stack {stack.folder}{files}`"


def describe_download(stack: Stack) -> str:
    """A sentence about the weights that the first start downloads; "" if it downloads none."""
    if not any(service.role == "download" for service in stack.plan.services):
        return ""
    adapters = lora_sources(stack)
    named = (
        f"{one.model} (a LoRA adapter)" if one.model in adapters else _sized(one.model) for one in hub_models(stack)
    )
    return f"The first start downloads the weights of {', '.join(named)}"


def _sized(model: str) -> str:
    """The model, with the size of its weights as far as it is known without the Hub."""
    size, source = guess_weight_bytes(model)
    # a quantized checkpoint keeps some layers in 16 bits, and has scales
    about = "at least" if "guessed" in source and "16 bits" not in source else "about"
    return f"{model} ({about} {format_bytes(size)}, estimated)" if size else model
