"""Each rendered command, health check and script uses only what its image has, and writes only where its user may."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pytest

from stackgen.plan import Bind, Plan, Service, Site, Volume
from stackgen.render.templating import render
from stackgen.resolve.pipeline import resolve
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite
from stackgen.targets.kubernetes import KubernetesSite
from tests.images.layouts import Layout, layout_of

LLAMA = {"model": "o/l", "engine": "llamacpp", "file": "x.gguf", "gpus": 1}
VLLM = {"model": "o/v", "engine": "vllm", "gpus": 1, "replicas": 2}
EVERYTHING: dict[str, Any] = {
    "models": [VLLM, LLAMA, {"model": "o/f", "engine": "fastchat", "gpus": 1},
               {"model": "o/s", "engine": "sglang", "gpus": 1}],
    "gateway": {"tls": "generate", "keys": [{"name": "a", "tokens_per_day": 9}]},
    "monitoring": True, "ui": "open-webui",
}  # fmt: skip
SERVER = "ghcr.io/ggml-org/llama.cpp:server"
STACKS: dict[str, dict[str, Any]] = {
    "everything": EVERYTHING,
    "open": {"models": [VLLM], "gateway": {"routing": "prefix"}, "monitoring": True},
    "router": {"models": [LLAMA | {"models_dir": "./models", "served_names": ["a"], "file": None, "model": None}]},
    "cpu": {"models": [{"model": "o/v", "engine": "vllm"}, {"model": "o/l", "engine": "llamacpp", "file": "x.gguf"}]},
    "amd": {"gpu_driver": "amd", "models": [VLLM, LLAMA | {"image": f"{SERVER}-rocm-b11434"}]},
}
# words before a command; `timeout` also is one
PREFIXES = frozenset(["if", "then", "do", "else", "elif", "while", "until", "!", "exec"])
BUILTINS = frozenset([
    "[", "[[", ":", ".", "break", "case", "cd", "command", "continue", "declare", "disown", "done", "echo", "esac",
    "eval", "exit", "export", "false", "fi", "for", "in", "jobs", "kill", "local", "printf", "read", "return", "set",
    "shift", "test", "trap", "true", "umask", "unset", "wait",
])  # fmt: skip
# a script may do without a program that it looks for itself
ALTERNATIVES = ({"curl", "python3"},)
# the NVIDIA Container Toolkit mounts it; scripts ask for it first
MOUNTED = frozenset(["nvidia-smi"])
# variables with commands that supervise.sh runs
COMMANDS = ("STACKGEN_WATCH", "STACKGEN_DRAIN", "STACKGEN_SETUP")


def plan(data: dict[str, Any], site: Site) -> Plan:
    models = [{key: value for key, value in model.items() if value is not None} for model in data["models"]]
    return resolve(build_spec({"name": "demo", **data, "models": models}, "test"), site, "test")


def find(program: str, layout: Layout) -> bool:
    """Whether the image has `program`: a path, or a name that is on its PATH."""
    places = [program] if "/" in program else [f"{folder}/{program}" for folder in layout.path.split(":")]
    return any(place in layout.programs for place in places)


def started(service: Service, layout: Layout) -> Iterator[tuple[str, ...]]:
    """The commands of a service: what it runs, its health check, and what supervise.sh runs next to it."""
    entrypoint = service.entrypoint or layout.entrypoint
    # an entrypoint of the stack file's removes the image's command
    yield (*entrypoint, *(service.command or (() if service.entrypoint else layout.command)))
    if service.health:
        yield service.health.command
    yield from (tuple(value.split()) for name, value in service.environment if name in COMMANDS and value)  # type: ignore[union-attr]


def scripts_of(service: Service, texts: dict[str, str]) -> dict[str, str]:
    """The rendered shell scripts that are mounted into a service, by their path there."""
    found = {}
    for mount in service.mounts:
        for path, text in texts.items():
            if isinstance(mount, Bind) and f"./{path}".startswith(f"{mount.source}/"):
                found[f"{mount.target}/{path[len(mount.source) - 1 :]}"] = text
    return found


def programs_in(script: str) -> set[str]:
    """The programs that a shell script starts: the first word of each simple command, except functions and builtins."""
    functions = set(re.findall(r"^\s*(\w+)\(\)", script, re.M))
    # comments first: they contain apostrophes
    text = re.sub(r"<<-?'?(\w+)'?.*?^\1$", "", re.sub(r"(?m)(^|\s)#.*$", "", script), flags=re.S | re.M)
    text = re.sub(r"'[^']*'", "Q", text).replace("\\\n", " ")
    found = set()
    for command in re.split(r"[;|&(){}\n]", _without_texts(re.sub(r"\$\(\(.*?\)\)", "Q", text))):
        words = command.split()
        while words and (words[0] in PREFIXES or words[0] == "timeout" or re.match(r"\w+=", words[0])):
            if words[0] == "timeout":
                found.add(words.pop(0))
            words.pop(0)
        if words and re.fullmatch(r"[a-z[:.][\w.\[-]*", words[0]):
            found.add(words[0])
    return found - BUILTINS - functions


def _without_texts(script: str) -> str:
    """`script` without what is in double quotes, except commands in `$( )`, which may contain quotes again."""
    kept, inside = "", list[str]()
    for before, character in zip(" " + script, script, strict=False):
        quoted = inside[-1:] == ['"']
        if character == '"' and before != "\\":
            inside = inside[:-1] if quoted else [*inside, '"']
            kept += "Q"
        elif character == "(" and (not quoted or before == "$"):
            inside, kept = [*inside, "("], kept + "("
        elif not quoted:
            inside, kept = inside[:-1] if character == ")" else inside, kept + character
    return kept


@pytest.mark.parametrize(
    ("text", "programs"),
    [
        ("a=$(date +%s) b=1\n", {"date"}),
        ("if grep -q x f; then cat f | tr a b; fi\n", {"grep", "cat", "tr"}),
        ("say() { echo hi; }\nsay x || sleep 1 # jq\n", {"sleep"}),
        ("x='curl a'\npython3 - <<'END'\nwget x\nEND\n", {"python3"}),
        ('[ "$(stat -c %a f)" = 1 ] && timeout 1 bash -c "nc x"\n', {"stat", "timeout", "bash"}),
    ],
)
def test_the_programs_of_a_script_are_found(text: str, programs: set[str]) -> None:
    assert programs_in(text) == programs


@pytest.mark.parametrize(
    ("name", "site"),
    [*((name, ComposeSite()) for name in STACKS), *((name, KubernetesSite()) for name in ("open", "cpu", "amd"))],
    ids=lambda one: one if isinstance(one, str) else type(one).__name__,
)
def test_rendered_services_fit_their_images(name: str, site: Site) -> None:
    made = plan(STACKS[name], site)
    texts = {file.path: file.text for file in render(made) if file.path.endswith(".sh")}
    seen = set()
    for service in made.services:
        layout = layout_of(service.image)
        if layout is None:
            # the tests of containers run these images themselves
            assert service.image.startswith("stackgen/"), f"{service.image} needs a layout in tests/images/layouts.py"
            continue
        seen.add(service.name)
        scripts = scripts_of(service, texts)
        for program, *arguments in started(service, layout):
            assert find(program, layout), f"{service.name}: {service.image} has no {program}"
            for path in [one for one in arguments if one in scripts]:
                for inner in programs_in(scripts[path]) - MOUNTED:
                    others = next((one for one in ALTERNATIVES if inner in one), {inner})
                    assert any(find(one, layout) for one in others), f"{path}: {service.image} has no {inner}"
        _check_writable(service, layout)
    assert seen or name == "cpu"


def _check_writable(service: Service, layout: Layout) -> None:
    """Volumes and folders that the service writes to belong to its user, or are in memory."""
    uid = int((service.user or layout.user).partition(":")[0])
    volumes = {mount.target for mount in service.mounts if isinstance(mount, Volume) and not mount.read_only}
    for target in volumes:
        owner = layout.folders.get(target, 0)
        # a stack's own storage has an owner of its own (docs/decisions/storage.md)
        assert uid in (0, owner) or target == "/models", f"{service.name}: uid {uid} can't write to {target} of {owner}"
    temporary = {mount.target for mount in service.mounts if not isinstance(mount, (Volume, Bind))}
    for folder in layout.written:
        places = volumes | temporary
        covered = any(PurePosixPath(folder).is_relative_to(place) for place in places)
        free = not service.read_only and layout.folders.get(folder) == uid
        assert covered or free, f"{service.name}: uid {uid} can't write to {folder}"
