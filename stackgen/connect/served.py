"""The models of a stack as clients reach them: names, URL, engine, and what the engine's flags say."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches

from stackgen.catalog import find_model
from stackgen.engines.base import served_names
from stackgen.errors import StackgenError
from stackgen.plan import Endpoint, Plan
from stackgen.spec import ModelSpec, parse_token_count

__all__ = ["ServedModel", "choose_model", "find_models"]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model and its endpoint.

    - `names`: the names that clients may use; the first one is the default.
    - `source`: repository or folder of the weights, "" if unknown.
    - `place`: path of the model in the stack file, `models[0]`.
    - `command`: arguments of the engine, also those from `extra_args`.
    - `catalog_length`: the context length that the catalog names for the model; None if it knows none.
    - `has_gateway`: whether requests pass the gateway.
    - `other_urls`: base URLs of the other replicas, if no gateway balances over them.
    """

    names: tuple[str, ...]
    endpoint: Endpoint
    source: str
    place: str
    command: tuple[str, ...]
    has_gateway: bool
    other_urls: tuple[str, ...] = ()
    catalog_length: int | None = None

    @property
    def engine(self) -> str:
        """Name of the engine."""
        return self.endpoint.dialect.name

    @property
    def context_length(self) -> int | None:
        """Context length in tokens: as the stack sets it, else as the catalog names it; None if neither is known."""
        return self.own_length or (self.catalog_length if self._takes_model_length else None)

    @property
    def own_length(self) -> int | None:
        """Context length in tokens as the stack sets it; None if the engine takes it from the model."""
        dialect = self.endpoint.dialect
        length = _read_count(self.command, dialect.context_flags)
        slots = _read_count(self.command, dialect.slots_flags) or 1
        return length // slots if length else None

    @property
    def _takes_model_length(self) -> bool:
        """Whether the engine allows the whole context of the model: it has a flag, which is not set, and no slots."""
        flags = self.endpoint.dialect.context_flags
        others = ("--hf-overrides", "--json-model-override-args", "--rope-scaling")
        return bool(flags) and not (self.endpoint.dialect.slots_flags or _read_flag(self.command, (*flags, *others)))

    @property
    def refuses_tools(self) -> bool:
        """Whether the engine lacks the flag that it needs for requests with the field `tools`."""
        flags = self.endpoint.dialect.tools_flags
        return bool(flags) and not _read_flag(self.command, flags)


def find_models(plan: Plan, models: Sequence[ModelSpec]) -> list[ServedModel]:
    """Returns the models of the plan in its order, once each; `models` are those of the stack file."""
    found: dict[tuple[str, tuple[str, ...]], ServedModel] = {}
    for endpoint in plan.endpoints:
        for names in endpoint.groups or (endpoint.models,):
            key = (endpoint.dialect.name, names)
            if key in found:
                urls = (*found[key].other_urls, endpoint.base_url)
                found[key] = replace(found[key], other_urls=urls)
                continue
            # behind the gateway, the endpoint's own service is the gateway
            service = plan.service(endpoint.replicas[0] if endpoint.replicas else endpoint.service)
            has_gateway = plan.service(endpoint.service).role == "gateway"
            index = _find_index(models, names, endpoint)
            source, place = (models[index].model, f"models[{index}]") if index is not None else ("", "models")
            known = find_model(source) if source else None
            found[key] = ServedModel(names, endpoint, source, place, service.command, has_gateway,
                                     catalog_length=known.entry.context if known else None)  # fmt: skip
    return list(found.values())


def choose_model(models: Sequence[ServedModel], name: str | None) -> tuple[ServedModel, str]:
    """Returns the model with the name that a client shall use. Raises StackgenError if the choice is not clear."""
    known = [one for model in models for one in model.names]
    if name is None:
        if len(models) > 1:
            first = ", ".join(model.names[0] for model in models)
            raise StackgenError(f"the stack serves {len(models)} models: {first}", "choose one with --model NAME")
        return models[0], models[0].names[0]
    for model in models:
        if name in model.names:
            return model, name
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"the stack serves {', '.join(known)}"
    raise StackgenError(f"the stack serves no model {name!r}", hint)


def _find_index(models: Sequence[ModelSpec], names: Sequence[str], endpoint: Endpoint) -> int | None:
    for index, model in enumerate(models):
        # with LoRA adapters, an endpoint has more names than its model
        if getattr(model, "engine", "") == endpoint.dialect.name and served_names(model)[0] in names:
            return index
    return None


def _read_count(command: Sequence[str], flags: Sequence[str]) -> int | None:
    # `auto` and other words leave the number to the engine
    with suppress(ValueError):
        count = parse_token_count(_read_flag(command, flags) or "0")
        return count if count > 0 else None
    return None


def _read_flag(command: Sequence[str], flags: Sequence[str]) -> str:
    """The value of the last of `flags` in `command`; "" if there is none."""
    value = ""
    for index, argument in enumerate(command):
        flag, equals, rest = argument.partition("=")
        # vLLM also accepts underscores
        if flag.replace("_", "-") in flags:
            value = rest if equals else "".join(command[index + 1 : index + 2])
    return value
