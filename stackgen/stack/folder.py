"""Opens a stack: finds its file, validates it, resolves its plan, and finds the folder of its rendered files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from stackgen.errors import SpecError, StackgenError
from stackgen.plan import Plan, Site
from stackgen.render.read import STACK_FILES, stack_file_in
from stackgen.render.templating import RenderedFile, render
from stackgen.resolve.hosts import resolve, stack_of_host
from stackgen.spec import KubernetesModelSpec, StackSpec, is_local
from stackgen.stack.assignments import apply_assignment, parse_gpus
from stackgen.stack.copies import move_text, name_host, sign
from stackgen.stack.enclosing import find_enclosing, refuse_enclosing
from stackgen.stack.load import (
    apply_placement,
    build_spec,
    copy_placement,
    locate,
    locate_warnings,
    parse_stack,
    read_text,
)
from stackgen.stack.names import find_name_warnings
from stackgen.stack.schema import MODELINE
from stackgen.targets import kubernetes
from stackgen.targets.compose import ComposeSite

__all__ = [
    "Stack", "build_from_flags", "cluster_error", "find_hosts", "find_stack_file", "given_model_flags", "make_site",
    "model_settings", "open_stack",
]  # fmt: skip

# flags of `stackgen render MODEL` that have the name of a field
STACK_FLAGS = ("name", "port", "bind")
MODEL_FLAGS = (
    "engine", "replicas", "served_names", "revision", "max_model_len", "tensor_parallel_size", "gpu_memory_utilization",
    "file",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stack:
    """A validated stack: its spec, its plan for containers, and the folder of its rendered files.

    `source` is the stack file's name, for the header of rendered files. `generated_file` is the text of stack.yaml if
    the stack was built from flags or goes into another folder, and otherwise "". `text` is what the user's file
    contained. `placement` is the text of placement.yaml for the folder of one of several machines.
    """

    spec: StackSpec
    plan: Plan
    folder: Path
    source: str
    generated_file: str = ""
    text: str = ""
    site: Site = field(default_factory=ComposeSite)
    placement: str = ""

    @property
    def target(self) -> str:
        """`compose` or `kubernetes`."""
        return "kubernetes" if self.site.is_cluster else "compose"

    @property
    def output(self) -> Path:
        """The folder of the rendered files: manifests are in a folder of their own."""
        return self.folder / kubernetes.FOLDER if self.site.is_cluster else self.folder

    def for_one_machine(self, hint: str = "") -> Stack:
        """Returns the stack itself. Raises StackgenError if it is rendered for a cluster; `hint`: what to do there."""
        if self.site.is_cluster:
            raise cluster_error(self.folder, hint)
        return self

    def files(self) -> tuple[RenderedFile, ...]:
        """Renders all files. The first one is the Compose file or the kustomization."""
        if not self.site.is_cluster:
            return render(self.plan, self.source)
        # most stacks run on one machine
        from stackgen.kubernetes.manifests import render_manifests

        return render_manifests(
            self.plan, self.spec.cluster, model_settings(self.spec, self.plan), namespace=self.spec.namespace,
            port=self.spec.port, source=self.source,
        )  # fmt: skip


def given_model_flags(flags: dict[str, Any]) -> list[str]:
    """Returns the flags that only `render MODEL` uses, and that the user has given."""
    names = [
        name for name in ("engine", "gpus", "set", *STACK_FLAGS, *MODEL_FLAGS) if flags.get(name) not in (None, [])
    ]
    # --served-name is repeatable, so its field has a plural
    flag = {"served_names": "--served-name"}
    return [flag.get(name) or f"--{name.replace('_', '-')}" for name in dict.fromkeys(names)]


def find_stack_file(path_or_model: str) -> Path | None:
    """Returns the stack file at a path (a YAML file, or a folder with stack.yaml). None if it is a model instead.

    Raises StackgenError if the folder contains both stack.yaml and stack.yml.
    """
    path = Path(path_or_model)
    if path.suffix in (".yaml", ".yml"):
        return path
    # a folder may have the name of a model (`meta-llama/Llama`): only a folder with a stack.yaml is a stack
    if path.is_dir() and (stack_file_in(path).exists() or path == Path()):
        _refuse_two_files(path)
        return stack_file_in(path)
    return None


def find_hosts(path: Path) -> tuple[str, ...]:
    """The machines of the stack file at `path`; empty for a stack of one machine, or the folder of one of several.

    Raises SpecError.
    """
    text = read_text(path)
    # most stacks have one machine, and parsing takes time
    if "hosts" not in text:
        return ()
    spec = parse_stack(text, str(path))
    return () if spec.host else tuple(spec.hosts)


def _refuse_two_files(folder: Path) -> None:
    if all((folder / name).exists() for name in STACK_FILES):
        raise StackgenError(
            f"{folder} contains both {' and '.join(STACK_FILES)}, and only one of them can be the stack",
            f"move one of the two files away, or pass the file instead of the folder: {folder / STACK_FILES[1]}",
        )


def open_stack(
    where: str, output: str | None = None, target: str | None = None, host: str = "",
    place: Callable[[StackSpec], StackSpec] | None = None,
) -> Stack:  # fmt: skip
    """Returns the stack in the file or folder `where`. Raises SpecError.

    `output` is the folder of the rendered files. Default: the folder of the stack file. `target` is `compose` or
    `kubernetes`. Default: the stack file's. `host` is the one of `hosts` that the folder belongs to.
    `place` replaces `gpus: auto` instead of placement.yaml.
    """
    path = find_stack_file(where) or Path(where) / "stack.yaml"
    folder = Path(output) if output else path.parent
    text = read_text(path)
    spec = parse_stack(text, str(path))
    source, copy, placement = path.name, "", ""
    if folder.resolve() != path.parent.resolve():
        # the other commands need a stack.yaml in that folder, and its local paths are relative to the folder
        source, copy = STACK_FILES[0], move_text(text, path.parent, folder)
        copy = name_host(copy, host) if host else copy
        spec = parse_stack(copy, str(path))
    if spec.hosts and not spec.host:
        raise _hosts_error(spec, folder)
    site = make_site(spec, folder, target)
    if not site.is_cluster:
        if place:
            spec = place(spec)
        elif copy and any(model.gpus == "auto" for model in spec.models):
            spec, placement = copy_placement(spec, path, text, host)
        else:
            spec = apply_placement(spec, path, text)
    try:
        plan = resolve(spec, site, str(path))
    except SpecError as error:
        raise locate(error, text, str(path)) from None
    # from here on, only what this machine runs
    spec = stack_of_host(spec, spec.host) if spec.host else spec
    plan = _with_warnings(spec, plan, site, folder, output, path.parent)
    # with hosts, the indices in a warning are those of the machine's part
    if plan.warnings and not spec.hosts:
        plan = replace(plan, warnings=locate_warnings(plan.warnings, text, str(path)))
    return Stack(spec, plan, folder, source, sign(copy) if copy else "", text, site, placement)


def _hosts_error(spec: StackSpec, folder: Path) -> StackgenError:
    """The error of a command that works on one machine, for the file of all of them."""
    folders = ", ".join(str(folder / name) for name in spec.hosts)
    return StackgenError(
        f"the stack in {folder} runs on several machines, and each machine has its own folder: {folders}",
        f"run `stackgen render {folder}`, which writes these folders. Copy each folder to its machine, and run the "
        "command there",
    )


def cluster_error(folder: Path, hint: str = "") -> StackgenError:
    """The error of a command that works on one machine only, for the stack in `folder`."""
    return StackgenError(
        f"the stack in {folder} has the target kubernetes, and this command works on one machine only",
        hint
        or "in a cluster, use `stackgen up`, `check`, `ask`, `status`, `logs`, `keys`, `doctor`, `diagnose` and "
        "`down`, and kubectl for everything else",
    )


def make_site(spec: StackSpec, folder: Path, target: str | None = None) -> Site:
    """Returns where the services of `spec` run: as `target` says, else as the stack file says."""
    if (target or spec.target) == "kubernetes":
        return kubernetes.KubernetesSite(folder, spec.namespace, spec.cluster.cluster_domain)
    return ComposeSite(folder, folder)


def build_from_flags(
    model: str, flags: dict[str, Any], sets: list[str], output: str | None = None, target: str | None = None
) -> Stack:
    """Returns a stack with one model from the flags of `stackgen render MODEL`. Raises SpecError.

    `flags` are values by field name, `sets` the `FIELD=VALUE` of `--set`. The default folder is `compose/NAME`.
    """
    entry: dict[str, Any] = {"model": model} | {
        name: flags[name] for name in MODEL_FLAGS if flags.get(name) is not None
    }
    if flags.get("gpus") is not None:
        entry["gpus"] = parse_gpus(flags["gpus"])
    data: dict[str, Any] = {name: flags[name] for name in STACK_FLAGS if flags.get(name) is not None}
    # a stack name has at most 63 characters
    data.setdefault(
        "name", re.sub(r"[^a-z0-9]+", "-", model.rstrip("/").rpartition("/")[2].lower()).strip("-")[:60] or "stack"
    )
    data["models"] = [entry]
    for assignment in sets:
        apply_assignment(data, entry, assignment)
    spec = build_spec(data, "command line")
    folder = Path(output) if output else Path("compose") / spec.name
    if is_local(model) and not os.path.isabs(os.path.expanduser(model)):
        # absolute, because stack.yaml is written to another folder than the current one
        entry["model"] = str(Path(model).resolve())
        spec = build_spec(data, "command line")
    site = make_site(spec, folder, target)
    plan = _with_warnings(spec, resolve(spec, site, "command line"), site, folder, output, Path())
    text = f"{MODELINE}\n" + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)
    return Stack(spec, plan, folder, "stack.yaml", sign(text), site=site)


def model_settings(spec: StackSpec, plan: Plan) -> dict[str, KubernetesModelSpec]:
    """The settings of models for Kubernetes, by the name of the model's service."""
    found: dict[str, KubernetesModelSpec] = {}
    loading = iter([one.name for one in plan.services if one.role in ("engine", "worker")])
    # services are in the order of engines, and each engine's models are in the order of the file
    for engine in dict.fromkeys(model.engine for model in spec.models):
        for model in (one for one in spec.models if one.engine == engine):
            name = next(loading)
            if model.kubernetes:
                found[name] = model.kubernetes
    return found


def _with_warnings(spec: StackSpec, plan: Plan, site: Site, folder: Path, output: str | None, base: Path) -> Plan:
    """`plan` with warnings about names of models, and about secrets that others can read.

    `base` is the folder of the user's stack file. Raises StackgenError if the user chose an `output` folder that a
    container can read.
    """
    if names := find_name_warnings(spec, base, any(one.role == "gateway" for one in plan.services)):
        plan = replace(plan, warnings=(*plan.warnings, *names))
    own = {mount.target for model in spec.models for mount in model.mounts}
    # a cluster mounts no folder of this machine
    if output and not site.is_cluster:
        refuse_enclosing(plan, folder, own)
    if not site.is_cluster and (enclosing := find_enclosing(plan, folder)):
        plan = replace(plan, warnings=(*plan.warnings, *enclosing))
    if not any(model.extra_env or model.extra_args for model in spec.models):
        return plan
    # most stacks have neither, and the patterns of secrets take time to compile
    from stackgen.stack.clear_text import find_clear_text

    return replace(plan, warnings=(*plan.warnings, *find_clear_text(spec)))
