#!/usr/bin/env python3
"""Prints what a version of an engine has, as JSON: flags, paths, metrics, log texts. Runs in the engine's own Python.

    read_engine.py vllm|sglang

The flags come from the program's own argument parser, with the values of its registries. Paths, metrics and log texts
come from the source of the installed package: paths are the first arguments of the decorators of the web servers.
`scripts/generate_flags.py` runs this file. It needs nothing but the engine, and no GPU.
"""

import argparse
import ast
import importlib
import importlib.metadata
import json
import re
import sys
from pathlib import Path

METHODS = {"get", "post", "put", "delete", "head", "api_route", "websocket"}
# texts of which stackgen shows the progress of a start (Engine.phases)
LOG_TEXTS = {
    "vllm": ("Starting to load model", "Loading safetensors checkpoint", "Loading weights took", "KV cache size",
             "Capturing CUDA graphs"),
    "sglang": ("Load weight begin", "Load weight end", "The server is fired up and ready to roll"),
}  # fmt: skip


def vllm_parser():
    for place in ("common", "launchers", "openai"):
        try:
            module = importlib.import_module(f"vllm.entrypoints.{place}.cli_args")
        except ModuleNotFoundError:
            continue
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        return module.make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    raise SystemExit("vllm.entrypoints has no cli_args: find the module with make_arg_parser")


def vllm_values():
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    return {
        "--attention-backend": sorted(["auto", *AttentionBackendEnum.__members__]),
        "--load-format": sorted(_LOAD_FORMAT_TO_MODEL_LOADER),
        "--quantization": sorted(QUANTIZATION_METHODS),
        "--reasoning-parser": ReasoningParserManager.list_registered(),
        "--tool-call-parser": ToolParserManager.list_registered(),
    }


def sglang_parser():
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser(prog="sglang serve")
    ServerArgs.add_cli_args(parser)
    return parser


# engine -> its parser, and the values that the parser doesn't list
PROGRAMS = {"vllm": (vllm_parser, vllm_values), "sglang": (sglang_parser, dict)}


def read_default(action):
    """The default if it is plain data, the same on every machine, and not the absence of the flag."""
    default = action.default
    is_plain = isinstance(default, (bool, int, float, str)) and default not in (False, "", argparse.SUPPRESS)
    # paths and addresses depend on the machine and the user
    return None if not is_plain or (isinstance(default, str) and "/" in default) else default


def read_flags(parser, values):
    """One entry per flag, sorted by name: `names`, and where they exist `value`, `choices`, `values`, `default`."""
    found = []
    # the parser also accepts names that its help hides: vLLM 0.33 has --disable-x next to the older --no-enable-x
    accepted = {}
    for name, action in parser._option_string_actions.items():
        accepted.setdefault(id(action), []).append(name)
    for action in parser._actions:
        names = list(dict.fromkeys([*action.option_strings, *accepted.get(id(action), ())]))
        if not names:
            continue
        # long names first, and the negation of a switch after the switch
        entry = {"names": sorted(names, key=lambda name: (not name.startswith("--"), name.startswith("--no-")))}
        if action.nargs != 0 and not isinstance(action, argparse.BooleanOptionalAction):
            entry["value"] = True
        if action.choices:
            entry["choices"] = [str(one) for one in action.choices]
        for name in names:
            if name in values:
                entry.pop("choices", None)
                entry["values"] = values[name]
        if (default := read_default(action)) is not None:
            entry["default"] = default
        # marked in their help, and still accepted
        if re.match(r"\(?deprecated", action.help or "", re.IGNORECASE):
            entry["deprecated"] = True
        found.append(entry)
    return sorted(found, key=lambda entry: entry["names"])


def read_sources(package):
    """The paths, the metrics and all string constants of a package's source."""
    paths, metrics, texts = set(), set(), []
    for file in sorted(Path(importlib.util.find_spec(package).origin).parent.rglob("*.py")):
        # multimodal_gen is SGLang's server for pictures, a program of its own
        if {"test", "tests", "benchmark", "multimodal_gen"} & set(file.parts):
            continue
        text = file.read_text("utf-8", "replace")
        metrics |= set(re.findall(rf'"({package}:[a-z][a-z0-9_]+)"', text))
        texts.append(text)
        if "entrypoints" in file.parts and re.search(r"@\w", text):
            paths |= set(find_paths(ast.parse(text)))
    return sorted(paths), sorted(metrics), "\n".join(texts)


def find_paths(tree):
    for function in ast.walk(tree):
        for one in getattr(function, "decorator_list", ()):
            is_route = isinstance(one, ast.Call) and getattr(one.func, "attr", "") in METHODS and one.args
            if is_route and isinstance(one.args[0], ast.Constant) and str(one.args[0].value).startswith("/"):
                yield one.args[0].value


def read_version(engine):
    module = importlib.import_module(f"{engine}.version")
    return re.match(r"[0-9.]+(?:post\d+)?", module.__version__)[0]


def main(engine):
    parser, values = PROGRAMS[engine]
    paths, metrics, text = read_sources(engine)
    found = {"version": read_version(engine), "flags": read_flags(parser(), values()), "paths": paths,
             "metrics": metrics, "log": [one for one in LOG_TEXTS[engine] if one in text]}  # fmt: skip
    # the engines print to standard output while they are imported
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
