"""`stackgen fit --observe`: what the engines printed at their start, next to the estimate; and `--pin`."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from stackgen.cli.commands.locking import lock_folder
from stackgen.cli.commands.output import note, print_data
from stackgen.cli.commands.runtime import find_runtime
from stackgen.diagnose.rule import Edit
from stackgen.diagnose.stack_edit import apply_edit
from stackgen.errors import StackgenError
from stackgen.fit.estimate import Estimate
from stackgen.fit.gpus import GIB
from stackgen.fit.observe import Observation, compare, read_start
from stackgen.render.write import write_atomically
from stackgen.runtimes.compose import command as compose
from stackgen.runtimes.process.logs import process_logs
from stackgen.stack.edit import write_stack_file
from stackgen.stack.folder import Stack
from stackgen.stack.load import parse_stack, read_text

if TYPE_CHECKING:
    from stackgen.cli.commands.fit import Deployment

__all__ = ["observe"]

PIN_FLAG = "--kv-cache-memory-bytes"
FILE = Path(".stackgen") / "fit.json"


def observe(args: Namespace, stack: Stack, deployments: list[Deployment]) -> int:
    """Prints and stores predicted and measured sizes. Returns 0 if every measured size is inside the bounds, else 1."""
    data: list[dict[str, Any]] = []
    lines: list[str] = []
    pins: list[tuple[Deployment, Observation]] = []
    runtime = find_runtime(args, stack.folder)
    for one in deployments:
        seen = read_start(_read_log(stack.folder, one.service, runtime))
        if seen is None:
            raise StackgenError(f"the log of {one.service} contains no lines from the start of an engine",
                                "start the stack with `stackgen up`, and wait until it is ready")  # fmt: skip
        found = one.estimate()
        rows = compare(found, seen)
        data.append({"model": one.name, "service": one.service, "rows": rows, "observation": seen.to_json()})
        lines += _describe(one, found, seen, rows)
        pins.append((one, seen))
    stack.folder.joinpath(FILE.parent).mkdir(exist_ok=True)
    write_atomically(stack.folder / FILE, json.dumps({"models": data}, indent=2) + "\n")
    inside = all(row["inside"] for one in data for row in one["rows"])
    print_data(args, {"inside": inside, "stored": str(FILE), "models": data}, lines)
    note(f"stored in {stack.folder / FILE}")
    if args.pin:
        with lock_folder(args, stack.folder):
            _pin(stack, pins)
    return 0 if inside else 1


def _read_log(folder: Path, service: str, runtime: str) -> str:
    texts: list[str] = []

    def keep(_name: str, line: str) -> None:
        texts.append(line)

    if runtime == "process":
        process_logs(folder, (service,), on_line=keep)
    else:
        compose.logs(folder, (service,), False, "all", keep)
    return "\n".join(texts)


def _describe(one: Deployment, found: Estimate, seen: Observation, rows: list[dict[str, Any]]) -> list[str]:
    version = f" {seen.version}" if seen.version else ""
    lines = [f"{one.name} ({one.service}, {found.settings.engine}{version}), predicted and measured:"]
    for row in rows:
        mark = " " if row["inside"] else "!"
        if row["term"].startswith("tokens"):
            lines.append(f"  {mark} {row['term']:30} {row['predicted']:>14,} {row['measured']:>14,} tokens")
        else:
            lines.append(f"  {mark} {row['term']:30} {row['predicted'] / GIB:14.2f} {row['measured'] / GIB:14.2f} GiB")
    if seen.cold:
        lines.append(
            "  vLLM compiled code during this start, and counts the memory for compiling as activations. The next "
            "start has more room for the KV cache"
        )
    return lines


def _pin(stack: Stack, pins: list[tuple[Deployment, Observation]]) -> None:
    """Writes `--kv-cache-memory-bytes` of each model of vLLM into stack.yaml."""
    path = stack.folder / stack.source
    before = text = read_text(path)
    for one, seen in pins:
        if one.settings.engine != "vllm" or one.settings.is_cpu or not seen.pin:
            note(f"{one.name}: there is no size to pin, because only vLLM on a GPU measures its KV cache at each start")
            continue
        if seen.cold:
            raise StackgenError(
                f"{one.name}: this start compiled code, so the measured room for the KV cache is too small",
                "restart the stack, which then uses its compile cache, and run the command again",
            )
        arguments = list(stack.spec.models[one.index].extra_args)
        kept, skip = [], False
        for argument in arguments:
            # an older pin, as one word or two
            if skip or argument.startswith(PIN_FLAG):
                skip = argument == PIN_FLAG
                continue
            kept.append(argument)
        text = _set_arguments(text, one.index, json.dumps([*kept, f"{PIN_FLAG}={seen.pin}"]), bool(arguments))
        note(f"{one.name}: {PIN_FLAG}={seen.pin} is valid for this model, these flags and this GPU. Remove the flag "
             "if one of these changes")  # fmt: skip
    parse_stack(text, str(path))
    if text != before:
        write_stack_file(path, before, text)
        note(f"changed {path}; `stackgen update` restarts the engines with it")


def _set_arguments(text: str, index: int, value: str, exists: bool) -> str:
    """The text of stack.yaml with `extra_args: value` in the model at `index`. Raises StackgenError."""
    if not exists:
        return apply_edit(text, Edit(("models", index, "extra_args"), value))
    # the Python loader, because its marks are character offsets
    root: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    models = next(node for key, node in root.value if key.value == "models")
    node = next(node for key, node in models.value[index].value if key.value == "extra_args")
    old = text[node.start_mark.index : node.end_mark.index]
    # other styles have places for comments, which would be lost
    if not old.startswith("[") or "#" in old:
        raise StackgenError(
            f"models[{index}].extra_args can't be edited safely", f"write `extra_args: {value}` by hand"
        )
    return text[: node.start_mark.index] + value + text[node.end_mark.index :]
