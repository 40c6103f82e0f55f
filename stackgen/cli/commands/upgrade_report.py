"""What another version of an engine means for one model: as data for `upgrade --json`, and as lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stackgen.cli.commands.fit_models import Hub, find_model
from stackgen.doctor.finding import format_bytes
from stackgen.errors import StackgenError
from stackgen.fit.gguf import read_gguf_header
from stackgen.flags import known_versions, load_flags, normalize_flag
from stackgen.flags.arguments import FIELD_OF_FLAG, Argument, parse_arguments
from stackgen.flags.changes import EngineChanges, compare_versions
from stackgen.flags.releases import cuda_of_image, min_driver
from stackgen.plan import Service
from stackgen.runtimes.compose.image_archive import inspect_image

__all__ = ["make_report", "report_lines"]


def make_report(
    place: str, model: Any, versions: tuple[str, str], services: tuple[Service | None, Service | None], hub: Hub,
    folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """What going from the first to the second of `versions` means for a model.

    `services` are those of the model before and after; None if the stack can't be planned.
    """
    old, new = versions
    changes = compare_versions(model.engine, old, new)
    report: dict[str, Any] = {
        "path": place, "engine": model.engine, "from": old, "to": new, "known": changes is not None, "breaks": [],
        "defaults": [], "open_paths": [], "metrics_removed": [], "log_removed": [],
        "driver": _driver(*services), "image": _image(services[1]), "weights": None,
    }  # fmt: skip
    if changes is None:
        report["known_versions"] = list(known_versions(model.engine))
        return report
    given = list(_find_given(model, old, services[0]))
    gone, report["weights"] = _weights(model, changes, new, hub, folder)
    report["breaks"] = [*_find_broken(changes, given, model), *gone]
    names = {name for _, argument in given if argument.entry for name in argument.entry["names"]}
    report["defaults"] = [f"{flag}: {_show(was)} becomes {_show(now)}" for flag, was, now in changes.defaults
                          if flag not in names]  # fmt: skip
    report["open_paths"] = list(changes.open_paths)
    report["metrics_removed"] = list(changes.metrics_removed)
    report["log_removed"] = list(changes.log_removed)
    return report


def _show(default: Any) -> str:
    return "unset, so that the engine chooses" if default is None else str(default)


def _find_given(model: Any, version: str, service: Service | None) -> Iterator[tuple[str, Argument]]:
    """The flags that the model gets in the old version, each with its place: a field, `extra_args` or the command."""
    known = load_flags(model.engine, version)
    if known is None:
        return
    own = list(parse_arguments(model.engine, model.extra_args, known))
    yield from (("extra_args", argument) for argument in own)
    entries = [argument.entry for argument in own]
    for argument in parse_arguments(model.engine, service.command if service else (), known):
        if argument.entry and argument.entry not in entries:
            field = FIELD_OF_FLAG[model.engine].get(argument.find_name(FIELD_OF_FLAG[model.engine]), "")
            yield field if field in type(model).model_fields else "the command", argument


def _find_broken(changes: EngineChanges, given: list[tuple[str, Argument]], model: Any) -> Iterator[str]:
    """Flags and values of this model that the new version refuses."""
    renamed = dict(changes.renamed)
    values = {flag: gone for flag, gone, _ in changes.values}
    for place, argument in given:
        names = argument.entry["names"] if argument.entry else []
        written = normalize_flag(argument.flag)
        flag = written if written in names else next(iter(names), "")
        if flag in changes.removed:
            yield f"{place}: {flag} no longer exists"
        elif flag in renamed:
            yield f"{place}: {flag} is now {renamed[flag]}"
        for name in names:
            if argument.value in values.get(name, ()):
                yield f"{place}: {name} no longer accepts {argument.value}"
    speculative = getattr(model, "speculative", None)
    if speculative and speculative.method in values.get("--spec-method", ()):
        yield f"speculative.method: the value {speculative.method} no longer exists"


def _driver(before: Service | None, after: Service | None) -> dict[str, Any] | None:
    """CUDA in the old and the new image, and the oldest NVIDIA driver; None without NVIDIA GPUs."""
    if after is None or not after.gpus or after.gpus.driver == "amd":
        return None
    cuda = cuda_of_image(after.image)
    return {"cuda": cuda, "cuda_before": cuda_of_image(before.image) if before else None,
            "oldest": min_driver(cuda) if cuda else None}  # fmt: skip


def _image(service: Service | None) -> dict[str, Any] | None:
    """The new image, whether stackgen builds it, and its size in bytes; None if it is not on this machine."""
    if service is None:
        return None
    try:
        found = inspect_image(service.image)
    # without Docker, nothing is known
    except StackgenError:
        found = None
    return {"name": service.image, "built": not service.pull, "bytes": found.size if found else None}


def _weights(model: Any, changes: EngineChanges, new: str, hub: Hub, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """What the new version does not load of this model, and what was looked at."""
    gone = [*changes.architectures_removed, *changes.types_removed]
    about: dict[str, Any] = {"architecture": None, "formats": [], "gone": gone}
    try:
        architecture, formats = _read_format(model, hub, folder)
    except StackgenError:
        return [], about
    about |= {"architecture": architecture, "formats": formats}
    broken = []
    if architecture in changes.architectures_removed:
        broken.append(f"model: {model.engine} {new} has no architecture {architecture}")
    methods = [one for flag, was, _ in changes.values if flag == "--quantization" for one in was]
    lost = {*changes.types_removed, *methods}
    broken += [f"model: {model.engine} {new} does not load the format {one}" for one in formats if one in lost]
    return broken, about


def _read_format(model: Any, hub: Hub, folder: Path) -> tuple[str, list[str]]:
    """The architecture, and the types of the tensors or the quantization. Raises StackgenError."""
    file = getattr(model, "file", None) or ""
    found = find_model(model.model, folder, hub, model.revision, file)
    path = Path(found.name)
    if model.engine == "llamacpp" and path.is_file():
        return found.architecture.name, sorted(one.lower() for one in read_gguf_header(path).types)
    return found.architecture.name, [found.architecture.quantization] if found.architecture.quantization else []


def report_lines(report: dict[str, Any]) -> Iterator[str]:
    """The report of one model as text."""
    yield f"{report['path']}: {report['engine']} {report['from']} -> {report['to']}"
    if not report["known"]:
        known = ", ".join(report["known_versions"])
        yield f"  unknown: stackgen has no table of one of the versions (known: {known}), so it can't say what changes,"
        yield "  and checks no flags of that version"
    else:
        yield from _change_lines(report)
    yield from _driver_lines(report["driver"])
    if image := report["image"]:
        size = format_bytes(image["bytes"]) if image["bytes"] else "not on this machine"
        how = ", and is built here" if image["built"] else ", and its size is unknown"
        yield f"  image: {image['name']} {'has ' + size if image['bytes'] else 'is ' + size + how}"
    else:
        yield "  image: unknown, because the stack can't be planned with this version"
    yield "  not compared: the behavior of the program. Run `stackgen doctor` before `stackgen update`"


def _change_lines(report: dict[str, Any]) -> Iterator[str]:
    yield from (f"  breaks: {line}" for line in report["breaks"])
    if not report["breaks"]:
        yield "  flags: every flag and value of this model exists in the new version"
    yield from (f"  new default: {line}" for line in report["defaults"])
    yield from (
        f"  new path without a key: {path} (not reachable through the gateway)" for path in report["open_paths"]
    )
    yield from (f"  metric no longer exists: {name}" for name in report["metrics_removed"])
    yield from (f"  log text no longer exists: {name!r}, so `up` shows less progress" for name in report["log_removed"])
    weights = report["weights"]
    if weights["architecture"]:
        formats = f" and {', '.join(weights['formats'])}" if weights["formats"] else ""
        yield f"  weights: checked {weights['architecture']}{formats} against the new version"
    else:
        gone = " or ".join(weights["gone"])
        yield "  weights: not compared, because the model could not be read on this machine"
        if gone:
            yield f"  weights: if the model's architecture or format is {gone}, the new version does not load it"


def _driver_lines(driver: dict[str, Any] | None) -> Iterator[str]:
    if driver is None:
        return
    if driver["oldest"] is None:
        yield "  driver: unknown, because stackgen does not know the CUDA version of the new image"
        return
    was = driver["cuda_before"]
    before = "as before" if was == driver["cuda"] else f"before: {'CUDA ' + was if was else 'unknown'}"
    yield f"  driver: CUDA {driver['cuda']} ({before}) needs NVIDIA driver {driver['oldest']} or newer"
