"""Reads one service of a Compose file into a container: every value becomes an option, or gets the reason why not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from stackgen.errors import Mistake, SpecError
from stackgen.importing.compose_build import read_build
from stackgen.importing.compose_deploy import leaves, read_deploy
from stackgen.importing.container import Container, MountMap, Value, parse_port
from stackgen.importing.env_files import read_variables
from stackgen.importing.ledger import Word
from stackgen.importing.options import apply_option
from stackgen.importing.variables import expand

if TYPE_CHECKING:
    from stackgen.importing.compose_file import ComposeReader

__all__ = ["read_service"]

# key of Compose -> option of `docker run`, where they differ
NAMES = {
    "mem_limit": "memory", "mem_reservation": "memory-reservation", "memswap_limit": "memory-swap",
    "cpuset": "cpuset-cpus",
    "ulimits": "ulimit", "stdin_open": "interactive", "working_dir": "workdir", "devices": "device", "links": "link",
    "stop_grace_period": "stop-timeout", "cap_add": "cap-add", "cap_drop": "cap-drop", "group_add": "group-add",
    "extra_hosts": "extra_hosts", "dns_search": "dns", "dns_opt": "dns", "sysctls": "sysctl",
    "pids_limit": "pids-limit",
    "userns_mode": "userns", "network_mode": "network_mode", "oom_kill_disable": "oom-kill-disable",
    "attach": "attach_logs",
    "container_name": "container_name", "depends_on": "depends_on", "pull_policy": "pull_policy",
}  # fmt: skip
# keys whose values are read by functions of their own
OWN = ("image", "command", "entrypoint", "environment", "env_file", "ports", "volumes", "deploy", "gpus", "networks",
       "labels", "logging", "scale", "build")  # fmt: skip


def read_service(
    reader: ComposeReader, name: str, path: str, service: dict[str, Any], sections: dict[str, Any]
) -> Container:
    """The container of `service`. `sections` is the whole file, for its volumes and networks."""
    container = Container(name, path, reader.folder)
    container.text = yaml.safe_dump(service, sort_keys=False, allow_unicode=True, width=1000)
    if service.get("image"):
        container.image = reader.word(f"{path}.image", service["image"])
    for key in ("entrypoint", "command"):
        getattr(container, key).extend(_read_command(reader, f"{path}.{key}", service.get(key)))
    _read_env_files(reader, path, service.get("env_file"), container)
    for one, value, word in _pairs(reader, f"{path}.environment", service.get("environment")):
        # without a value, Compose passes the variable of the shell
        if value is None:
            text, unknown = expand(f"${{{one}}}", reader.variables, compose=True)
            container.environment[one] = Value(text, word.item, unknown)
        else:
            container.environment[one] = Value(word.text, word.item, word.unknown)
    for index, port in enumerate(service.get("ports") or ()):
        _read_port(reader, f"{path}.ports[{index}]", port, container)
    for index, volume in enumerate(service.get("volumes") or ()):
        _read_volume(reader, f"{path}.volumes[{index}]", volume, container, sections)
    read_deploy(reader, path, service, container)
    _read_networks(reader, path, service.get("networks"), container, sections)
    for one, value, word in _pairs(reader, f"{path}.labels", service.get("labels")):
        container.labels[one] = Value(word.text if value is not None else "", word.item)
    _read_logging(reader, path, service.get("logging"), container)
    if service.get("build"):
        # last, because what the service sets replaces what its image sets
        read_build(reader, path, service["build"], container)
    for key, value in service.items():
        if key not in OWN:
            _read_other(reader, path, str(key), value, container)
    return container


def _read_other(reader: ComposeReader, path: str, key: str, value: Any, container: Container) -> None:
    option = NAMES.get(key, key.replace("_", "-"))
    for place, inner in leaves(f"{path}.{key}", value):
        word = reader.word(place, inner)
        if key.startswith("x-"):
            word.item.build_in("Compose ignores it")
        else:
            apply_option(container, option, word, reader.ledger)


def _read_command(reader: ComposeReader, path: str, value: Any) -> list[Word]:
    if value is None:
        return []
    if isinstance(value, list):
        return [reader.word(f"{path}[{index}]", one) for index, one in enumerate(value)]
    # a continued line: YAML keeps the backslash in a block
    raw = re.sub(r"\\[ \t]*\n", " ", str(value))
    text, _ = expand(raw, reader.variables, compose=True)
    try:
        before, words = shlex.split(raw), shlex.split(text)
    except ValueError as error:
        raise SpecError(
            reader.source, [Mistake(path, f"can't be split into words: {error}", hint="close the quote")]
        ) from None
    if len(before) != len(words):
        # a variable with several words
        return [Word(*_expanded(reader, f"{path}[{index}]", one, one)) for index, one in enumerate(words)]
    return [
        Word(*_expanded(reader, f"{path}[{index}]", one, other))
        for index, (one, other) in enumerate(zip(before, words, strict=True))
    ]


def _expanded(reader: ComposeReader, path: str, raw: str, text: str) -> tuple[str, Any, tuple[str, ...]]:
    _, unknown = expand(raw, reader.variables, compose=True)
    return text, reader.ledger.add(path, raw), unknown


def _pairs(reader: ComposeReader, path: str, value: Any) -> Iterator[tuple[str, Any, Word]]:
    """(name, value or None, word) of a mapping, or of a list of `NAME=value`. The word's text is the value."""
    if isinstance(value, dict):
        for name, inner in value.items():
            text, unknown = expand("" if inner is None else str(inner), reader.variables, compose=True)
            item = reader.ledger.add(f"{path}.{name}", "" if inner is None else str(inner))
            yield str(name), inner, Word(text, item, unknown)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            raw, equals, _ = str(inner).partition("=")
            word = reader.word(f"{path}[{index}]", inner)
            yield raw, inner if equals else None, Word(word.text.partition("=")[2], word.item, word.unknown)


def _read_env_files(reader: ComposeReader, path: str, value: Any, container: Container) -> None:
    entries = value if isinstance(value, list) else [value] if value else []
    for index, entry in enumerate(entries):
        file = entry.get("path", "") if isinstance(entry, dict) else entry
        word = reader.word(f"{path}.env_file[{index}]", file)
        if isinstance(entry, dict):
            for key, inner in entry.items():
                if key != "path":
                    reader.word(f"{path}.env_file[{index}].{key}", inner).item.build_in(
                        "this setting is about the file, and not about the container"
                    )
        found = read_variables(reader.folder / Path(word.text).expanduser())
        if found is None:
            word.item.drop(
                f"the file {word.text} can't be read here: put the variables that the engine needs into `extra_env`"
            )
            continue
        word.item.build_in("its variables are listed one by one")
        for name, text in found.items():
            item = reader.ledger.add(f"{word.text}: {name}", f"{name}={text}")
            container.environment[name] = Value(text, item)


def _read_port(reader: ComposeReader, path: str, port: Any, container: Container) -> None:
    if not isinstance(port, dict):
        word = reader.word(path, port)
        apply_option(container, "publish", word, reader.ledger)
        return
    words = {key: reader.word(f"{path}.{key}", value) for key, value in port.items()}
    for word in words.values():
        word.item.build_in("part of the published port")
    host, target = (words[key].text if key in words else "" for key in ("published", "target"))
    address = words["host_ip"].text if "host_ip" in words else "0.0.0.0"
    main = words.get("published") or words.get("target")
    if main is not None:
        main.item.outcome = ""
        parsed = parse_port(f"{address}:{host}:{target}", main.item)
        if parsed:
            container.ports.append(parsed)
        else:
            main.item.drop("stackgen publishes single TCP ports: set `port`")


def _read_volume(reader: ComposeReader, path: str, volume: Any, container: Container, sections: dict[str, Any]) -> None:
    if not isinstance(volume, dict):
        word = reader.word(path, volume)
        apply_option(container, "volume", word, reader.ledger)
        if container.mounts and container.mounts[-1].item is word.item and container.mounts[-1].named:
            container.mounts[-1].source = _volume_name(reader, container.mounts[-1].source, sections)
        return
    words = {place: reader.word(place, value) for place, value in leaves(path, volume)}
    for word in words.values():
        word.item.build_in("part of the mount")
    source, target = words.get(f"{path}.source"), words.get(f"{path}.target")
    kind = str(volume.get("type", "volume"))
    if source is None or target is None or kind not in ("bind", "volume"):
        for word in words.values():
            word.item.drop("stackgen mounts folders; /tmp is writable in memory")
        return
    read_only = str(volume.get("read_only", "")).lower() in ("true", "yes")
    source.item.outcome = ""
    name = source.text if kind == "bind" else _volume_name(reader, source.text, sections)
    container.mounts.append(MountMap(name, target.text.rstrip("/"), read_only, kind == "volume", source.item))


def _volume_name(reader: ComposeReader, name: str, sections: dict[str, Any]) -> str:
    """The name of a volume; with `=` before it if it is the full name in Docker, without the project."""
    declared = (sections.get("volumes") or {}).get(name)
    if isinstance(declared, dict) and declared.get("name"):
        return "=" + expand(str(declared["name"]), reader.variables, compose=True)[0]
    external = isinstance(declared, dict) and declared.get("external")
    return f"={name}" if external and external != "false" else name


def _read_networks(
    reader: ComposeReader, path: str, value: Any, container: Container, sections: dict[str, Any]
) -> None:
    declared = sections.get("networks") or {}
    entries = (
        [(f"{path}.networks[{i}]", one, None) for i, one in enumerate(value)]
        if isinstance(value, list)
        else [(f"{path}.networks.{name}", name, inner) for name, inner in (value or {}).items()]
    )
    for place, name, inner in entries:
        word = reader.word(place, name)
        for inside, one in leaves(place, inner) if isinstance(inner, dict) else ():
            reader.word(inside, one).item.drop("stackgen gives services their names and addresses")
        network = declared.get(name)
        external = network.get("external") if isinstance(network, dict) else None
        if network and external and external != "false":
            full = network.get("name") or (external.get("name") if isinstance(external, dict) else "") or name
            networks = container.options.get("networks")
            container.options["networks"] = Value([*(networks.value if networks else []), str(full)], word.item)
        else:
            word.item.build_in("a stack has its own network")


def _read_logging(reader: ComposeReader, path: str, value: Any, container: Container) -> None:
    for place, inner in leaves(f"{path}.logging", value or {}):
        word = reader.word(place, inner)
        name = place.rpartition(".")[2]
        option, text = ("log-driver", word.text) if name == "driver" else ("log-opt", f"{name}={word.text}")
        apply_option(container, option, word, reader.ledger, text)
