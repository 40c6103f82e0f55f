"""Finds the program that a container or a command runs: an engine, a part of FastChat, or something else."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stackgen.importing.container import Container, Value
from stackgen.importing.ledger import Ledger, Word
from stackgen.importing.shell import Command, read_script

__all__ = ["LLAMA_IMAGE", "SGLANG_IMAGE", "VLLM_IMAGE", "Program", "find_program", "name_unsupported"]

VLLM_MODULES = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.api_server", "vllm.entrypoints.cli.main")
FASTCHAT = {
    "controller": "controller", "model_worker": "worker", "vllm_worker": "vllm-worker", "openai_api_server": "api",
    "gradio_web_server": "web", "gradio_web_server_multi": "web", "multi_model_worker": "unsupported",
    "sglang_worker": "unsupported", "lightllm_worker": "unsupported", "mlx_worker": "unsupported",
    "cli": "unsupported", "register_worker": "unsupported", "test_message": "unsupported",
}  # fmt: skip
# programs and images that serve models, but that stackgen has no engine for
OTHERS = {
    "text-generation-inference": "TGI", "text-generation-launcher": "TGI", "ollama": "Ollama", "lmdeploy": "LMDeploy",
    "trtllm-serve": "TensorRT-LLM", "tensorrt-llm": "TensorRT-LLM", "tensorrtllm": "TensorRT-LLM",
    "tritonserver": "Triton", "aphrodite": "Aphrodite", "text-embeddings-inference": "TEI", "llama_cpp.server":
    "llama-cpp-python", "localai": "LocalAI", "local-ai": "LocalAI", "tabbyapi": "TabbyAPI", "infinity_emb": "Infinity",
    "koboldcpp": "KoboldCpp", "xinference": "Xinference", "exllama": "ExLlama", "ktransformers": "KTransformers",
    "vllm-omni": "vLLM-Omni", "llama-swap": "llama-swap", "ray": "Ray", "ramalama": "RamaLama",
}  # fmt: skip
VLLM_IMAGE = re.compile(r"(?:^|/)(?![\w.-]*(?:router|omni|exporter|studio|proxy|ui)\b)[\w.-]*vllm[\w.-]*(?:[:@]|$)")
LLAMA_IMAGE = re.compile(
    r"llama\.cpp(?:[:@]|$)|llamacpp(?:[:@/-]|$)|llama-cpp(?:[:@-]|$)|llama-server[\w.-]*(?:[:@]|$)"
)
SGLANG_IMAGE = re.compile(r"(?:^|/)sglang(?:[:@]|$)")
WRAPPER = "this only changes how the program is started"
START_SCRIPT = "a step of a start script: stackgen runs the image unchanged. Put the step into an image of your own"


@dataclass(slots=True)
class Program:
    """A program: its engine, its role (`server`, or FastChat's `controller`, `worker`, `api`), and its arguments."""

    engine: str
    role: str
    words: list[Word]


def find_program(container: Container, ledger: Ledger) -> Program | None:
    """The engine that `container` runs; None if it runs something else, whose words then have no outcome.

    Words before the program's arguments, such as `python3 -m`, get their outcome here.
    """
    image = container.image.text if container.image else ""
    words = _unwrap(container, container.words, ledger)
    if found := _by_command(words, container, image):
        return found
    # without an entrypoint, the words are arguments of the image's own program
    if not container.entrypoint and image:
        if VLLM_IMAGE.search(image):
            return Program("vllm", "server", words)
        if LLAMA_IMAGE.search(image):
            return _llama_image(words)
        if SGLANG_IMAGE.search(image):
            return Program("sglang", "server", words)
    return None


def _by_command(words: list[Word], container: Container, image: str) -> Program | None:
    if not words:
        return None
    name, rest = words[0].text.rpartition("/")[2], words[1:]
    if re.fullmatch(r"python[\d.]*", name):
        return _by_module(words)
    if name == "vllm" and rest and rest[0].text == "serve":
        return _begin("vllm", "server", words, 2)
    # `entrypoint: vllm` with the command in another place, or `command: serve MODEL`
    if name == "serve" and VLLM_IMAGE.search(image):
        return _begin("vllm", "server", words, 1)
    if name == "llama-server" or (name == "server" and LLAMA_IMAGE.search(image)):
        return _begin("llamacpp", "server", words, 1)
    if name == "sglang" and rest and rest[0].text == "serve":
        return _begin("sglang", "server", words, 2)
    if re.search(r"vllm/entrypoints/openai/api_server\.py$", words[0].text):
        return _begin("vllm", "server", words, 1)
    return None


def _by_module(words: list[Word]) -> Program | None:
    at = next((index for index, word in enumerate(words) if word.text == "-m"), 0)
    script = words[1].text if len(words) > 1 else ""
    if script.endswith("/launch.py") and len(words) > 2 and words[2].text in ("controller", "worker", "api"):
        return _begin("fastchat", words[2].text, words, 3)
    # the launcher that stackgen renders
    if script.endswith("/sglang_launch.py"):
        return _begin("sglang", "server", words, 2)
    # the line of a process list: python runs the script `vllm`
    if not at and script.rpartition("/")[2] == "vllm" and len(words) > 2 and words[2].text == "serve":
        return _begin("vllm", "server", words, 3)
    if not at or at + 1 >= len(words):
        return None
    module = words[at + 1].text
    if module in VLLM_MODULES:
        skip = at + 3 if module.endswith("cli.main") else at + 2
        words[at + 1].item.build_in(
            "the old start command of vLLM: stackgen runs `vllm serve`, which has the same flags"
        )
        return _begin("vllm", "server", words, skip)
    if module.startswith("fastchat.serve."):
        role = FASTCHAT.get(module.removeprefix("fastchat.serve."), "unsupported")
        return _begin("fastchat", role, words, at + 2) if role != "unsupported" else None
    if module in ("sglang.launch_server", "sglang.srt.entrypoints.http_server"):
        return _begin("sglang", "server", words, at + 2)
    return None


def _begin(engine: str, role: str, words: list[Word], count: int) -> Program:
    for word in words[:count]:
        if not word.item.outcome:
            word.item.build_in("stackgen starts the engine with its own command")
    return Program(engine, role, words[count:])


def _llama_image(words: list[Word]) -> Program | None:
    # the images `full` run tools.sh, whose first argument chooses the program
    if words and words[0].text in ("--server", "-s"):
        return _begin("llamacpp", "server", words, 1)
    if (
        words
        and words[0].text in ("--run", "-r", "--convert", "-c", "--quantize", "-q")
        and not words[0].text.startswith("-c")
    ):
        return None
    return Program("llamacpp", "server", words)


def _unwrap(container: Container, words: list[Word], ledger: Ledger) -> list[Word]:
    """`words` without programs that only start another one; a script of `bash -c` is read."""
    for _ in range(12):
        if not words:
            return words
        name = words[0].text.rpartition("/")[2]
        if name in ("sh", "bash", "ash", "zsh", "dash"):
            if len(words) > 1 and words[1].text.endswith("supervise.sh"):
                words = _skip(words, 2)
                continue
            at = next((i for i, word in enumerate(words[1:], 1) if re.fullmatch(r"-\w*c", word.text)), 0)
            if not at or at + 1 >= len(words):
                return words
            inner = _read_inner(container, words[at + 1], ledger)
            if inner is None:
                return words
            _skip(words, at + 2)
            return _unwrap(container, inner, ledger)
        if name in ("sudo", "exec", "nohup", "time", "tini", "dumb-init", "stdbuf", "setsid", "gosu"):
            words = _skip(words, 1)
            while words and words[0].text.startswith("-"):
                words = _skip(words, 1)
        elif name == "env" or re.match(r"[A-Za-z_]\w*=", words[0].text):
            words = _skip(words, 1) if name == "env" else words
            while words and (match := re.match(r"([A-Za-z_]\w*)=", words[0].text)):
                word = words.pop(0)
                container.environment[match[1]] = Value(word.text[match.end() :], word.item, word.unknown)
        elif name == "systemd-run":
            words = _skip_systemd_run(words)
        elif name in ("nice", "taskset", "numactl", "ionice", "chrt"):
            words = _skip_wrapper(words, name)
        elif name in ("uv", "uvx", "poetry", "pipenv", "conda", "micromamba", "pdm"):
            words = _skip_runner(words, name)
        else:
            return words
    return words


def _skip(words: list[Word], count: int) -> list[Word]:
    for word in words[:count]:
        if not word.item.outcome:
            word.item.build_in(WRAPPER)
    return words[count:]


def _skip_wrapper(words: list[Word], name: str) -> list[Word]:
    reason = "to pin CPU cores, set `cpuset`" if name != "nice" else "stack.yaml has no field for priorities"
    words[0].item.drop(reason)
    at = 1
    while at < len(words) and (words[at].text.startswith("-") or re.fullmatch(r"[\d,-]+", words[at].text)):
        words[at].item.drop(reason)
        at += 1
    return words[at:]


def _skip_systemd_run(words: list[Word]) -> list[Word]:
    at = 1
    while at < len(words) and words[at].text.startswith("-"):
        # -p NAME=VALUE is a property, such as a memory limit
        takes = words[at].text in ("-p", "--property", "--unit", "-u", "--slice", "-E", "--setenv")
        for word in words[at : at + 1 + takes]:
            if words[at].text.startswith(("-p", "--property")):
                word.item.drop("a property of systemd: stack.yaml has no limits of memory and CPU")
            else:
                word.item.build_in(WRAPPER)
        at += 1 + takes
    words[0].item.build_in(WRAPPER)
    return words[at:]


def _skip_runner(words: list[Word], name: str) -> list[Word]:
    at = 1
    with_value = {
        "-n",
        "--name",
        "-p",
        "--prefix",
        "--with",
        "--python",
        "--project",
        "--directory",
        "--extra",
        "--from",
    }
    while at < len(words) and (words[at].text in ("run", "tool") or words[at].text.startswith("-")):
        at += 2 if words[at].text in with_value else 1
    return _skip(words, min(at, len(words)))


def _read_inner(container: Container, word: Word, ledger: Ledger) -> list[Word] | None:
    """The words of the engine's command in a script of `bash -c`; None if there is none."""
    values = {name: one.value for name, one in container.environment.items() if not one.unknown}
    commands = read_script(word.text, ledger, values, f"{word.item.place}, ")
    chosen: Command | None = None
    for command in commands:
        for name, value in command.assignments.items():
            container.environment.setdefault(name, Value(value.text, value.item, value.unknown))
        texts = " ".join(one.text for one in command.words)
        if (
            chosen is None
            and re.search(r"vllm\b.*\bserve\b|api_server|llama-server|fastchat\.serve|sglang|\bserver\b", texts)
            and not re.match(r"(?:pip|apt|echo|cd|python\d* -c)\b", texts)
        ):
            chosen = command
            continue
        for item in command.items():
            item.drop(START_SCRIPT)
    if chosen is None:
        return None
    word.item.build_in("a script, whose commands are listed one by one")
    return chosen.words


def name_unsupported(container: Container) -> str:
    """The name of the server that `container` runs and stackgen has no engine for; "" for anything else."""
    image = container.image.text if container.image else ""
    texts = [re.sub(r"[:@].*", "", image), *(word.text for word in container.words[:6])]
    for text in texts:
        for part, name in OTHERS.items():
            if re.search(rf"(?:^|[/ .-]){re.escape(part)}(?:$|[/ .:-])", text.lower()):
                return name
    return ""
