"""`stackgen init`: writes a commented stack.yaml, its JSON Schema, and a .env with a new key."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from stackgen.catalog import find_access
from stackgen.cli.commands.output import note, print_data
from stackgen.errors import Mistake, SpecError
from stackgen.spec import is_local
from stackgen.stack.starter import write_starter

__all__ = ["init"]


def init(args: Namespace) -> int:
    """Runs `stackgen init`: writes a commented stack.yaml, its JSON Schema, and a .env with a new key."""
    # vLLM needs the number of GPUs as its tensor parallel size, which `all` in stack.yaml does not contain
    gpus = _count_gpus() if args.engine in ("vllm", "sglang") and args.gpus == "all" else args.gpus
    written = write_starter(Path(args.folder), args.engine, args.model, gpus, args.file)
    print_data(args, {"written": [str(path) for path in written]}, [f"wrote {path}" for path in written])
    # stderr: stdout lists the files
    if gpus != args.gpus:
        note(f"this machine has {gpus} GPUs, so stack.yaml contains `gpus: {gpus}`")
    for text in _notes(args.model) if not is_local(args.model) else ():
        note(text)
    note(f"next: edit {args.folder}/stack.yaml, then run `stackgen up {args.folder}`")
    return 0


def _notes(model: str) -> Iterator[str]:
    """What must be done before the model can be downloaded."""
    access = find_access(model)
    if access.gated:
        yield (f"{model} is gated: accept its license on https://huggingface.co/{model}, and set HF_TOKEN_FILE in .env "
               "before `stackgen up`")  # fmt: skip


def _count_gpus() -> str:
    """The number of GPUs of this machine. Raises SpecError if nvidia-smi lists none."""
    from stackgen.runtimes.observation.gpu_tools import read_nvidia_facts, run_tool

    found = read_nvidia_facts(run_tool).get("gpus")
    if not isinstance(found, tuple) or not found:
        raise SpecError("command line", [Mistake(
            "--gpus", "with vLLM, `all` needs the number of GPUs, but nvidia-smi lists no GPU on this machine",
            hint="pass the number of GPUs of the machine that will run the stack, for example --gpus 2",
        )])  # fmt: skip
    return str(len(found))
