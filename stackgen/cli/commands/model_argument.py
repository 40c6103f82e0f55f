"""`render MODEL` without --engine: whether the argument is a model, and which engine and GPUs serve it by default."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from stackgen.cli.commands.output import note
from stackgen.errors import StackgenError
from stackgen.spec import is_local
from stackgen.spec.sources import explain_source, is_gguf_repository
from stackgen.spec.types import HUB_ID

__all__ = ["complete_model_flags"]


def complete_model_flags(args: Namespace) -> None:
    """Sets the engine and the GPUs that `render MODEL` was called without, and prints them.

    Raises StackgenError if `args.stack` is rather the folder of a stack that does not exist, or a repository of GGUF
    files without the name of one.
    """
    engine = _choose_engine(args.stack, args.file)
    if engine == "vllm" and not Path(args.stack).is_dir() and is_gguf_repository(args.stack):
        raise StackgenError(
            f"{args.stack} looks like a repository of GGUF files, but llama.cpp needs one of these files",
            "add `--file FILE.gguf`. For vLLM, use the repository of the original model",
        )
    if engine is None:
        raise StackgenError(f"{args.stack} is not a stack: there is no {Path(args.stack) / 'stack.yaml'}",
                            _explain(args.stack))  # fmt: skip
    args.engine = engine
    gpus = "" if args.gpus is not None else " and 1 GPU" if engine == "vllm" else " on the CPU"
    if args.gpus is None and engine == "vllm":
        args.gpus = "1"
    note(f"{args.stack} is served with {engine}{gpus}. To change this, use `--engine` and `--gpus`")


def _choose_engine(model: str, file: str | None) -> str | None:
    path = Path(model).expanduser()
    if file or (path.suffix.lower() == ".gguf" and path.is_file()):
        return "llamacpp"
    # a folder with weights, or the name of a model on the Hub
    if (path / "config.json").is_file():
        return "vllm"
    # one word may be any misspelled folder, and so may a path below a folder that exists
    is_id = "/" in model and not is_local(model) and HUB_ID.fullmatch(model)
    return "vllm" if is_id and not Path(path.parts[0]).exists() else None


def _explain(argument: str) -> str:
    if explanation := explain_source(argument):
        return f"as a model, it {explanation}" if explanation.startswith("has") else f"it {explanation}"
    return (
        f"`stackgen init` writes a stack.yaml. If {argument} is a model, add the engine: `--engine vllm --gpus 1`, or "
        "`--engine llamacpp --file FILE.gguf`"
    )
