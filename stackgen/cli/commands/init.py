"""`stackgen init`: writes a commented stack.yaml, its JSON Schema, and a .env with a new key."""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from stackgen.catalog import find_access
from stackgen.cli.commands.output import note, print_data
from stackgen.errors import Mistake, SpecError
from stackgen.spec import is_local
from stackgen.stack.starter import write_starter

__all__ = ["init"]

# also on a machine without a GPU: a stack is often written on another machine than the one that runs it
DEFAULT_GPUS = "1"
# of the driver of AMD's GPUs, which nvidia-smi does not list
AMD_DEVICE = Path("/dev/kfd")


def init(args: Namespace) -> int:
    """Runs `stackgen init`: writes a commented stack.yaml, its JSON Schema, and a .env with a new key."""
    # vLLM needs the number of GPUs as its tensor parallel size, which `all` in stack.yaml does not contain
    given = DEFAULT_GPUS if args.gpus is None else args.gpus
    gpus = _count_gpus() if args.engine in ("vllm", "sglang") and given == "all" else given
    written = write_starter(Path(args.folder), args.engine, args.model, gpus, args.file)
    print_data(args, {"written": [str(path) for path in written]}, [f"wrote {path}" for path in written])
    # stderr: stdout lists the files
    if gpus != given:
        note(f"stack.yaml contains `gpus: {gpus}`, the number of GPUs of this machine")
    if args.gpus is None and not _has_gpu():
        # SGLang publishes no image for the CPU
        cpu = "" if args.engine == "sglang" else ". To run the model on this machine's CPU, set `gpus: none`"
        note(f"stackgen finds no GPU on this machine. stack.yaml contains `gpus: {gpus}`, so the stack needs a machine "
             f"with a GPU{cpu}")  # fmt: skip
    for text in _notes(args.model) if not is_local(args.model) else ():
        note(text)
    note(f"next: edit {args.folder}/stack.yaml, then run `stackgen up {shlex.quote(args.folder)}`")
    return 0


def _notes(model: str) -> Iterator[str]:
    """What must be done before the model can be downloaded."""
    access = find_access(model)
    if access.gated:
        yield (f"{model} is gated: accept its license on https://huggingface.co/{model}, and set HF_TOKEN_FILE in .env "
               "before `stackgen up`")  # fmt: skip


def _has_gpu() -> bool:
    return AMD_DEVICE.exists() or bool(_read_gpus())


def _read_gpus() -> tuple[object, ...]:
    from stackgen.runtimes.observation.gpu_tools import read_nvidia_facts, run_tool

    found = read_nvidia_facts(run_tool).get("gpus")
    return found if isinstance(found, tuple) else ()


def _count_gpus() -> str:
    """The number of GPUs of this machine. Raises SpecError if nvidia-smi lists none."""
    found = _read_gpus()
    if not found:
        raise SpecError("command line", [Mistake(
            "--gpus", "stack.yaml needs the number of GPUs, not `all`, but nvidia-smi lists no GPU on this machine",
            hint="pass the number of GPUs of the machine that will run the stack, for example --gpus 2",
        )])  # fmt: skip
    return str(len(found))
