#!/usr/bin/env python3
"""Writes stackgen/flags/ENGINE-VERSION.json: the flags of each engine, from the --help of the real program.

    scripts/generate_flags.py [ENGINE …]

Runs the programs in the images that `scripts/build-image` builds. Run it after you change an engine's version.
With these files, `stackgen doctor` finds misspelled, removed and impossible flags in `extra_args`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from stackgen.images.tags import VERSIONS, cpu_image_tag  # noqa: E402

DATA = ROOT / "stackgen" / "flags"
# engine -> (image folder, command that prints the help); FastChat's `extra_args` go to its worker
PROGRAMS = {
    "vllm": ("vllm-cpu", ["vllm", "serve", "--help=all"]),
    "fastchat": ("fastchat", ["python3", "-m", "fastchat.serve.model_worker", "--help"]),
    "llamacpp": ("llamacpp", ["llama-server", "--help"]),
}
NAME = re.compile(r"(?<![\w.-])--?[A-Za-z][\w-]*")


def read_help(text: str) -> list[dict[str, object]]:
    """One entry per flag: its names, whether it needs a value, its choices, and its replacement if it was removed."""
    found: list[dict[str, object]] = []
    seen: set[str] = set()
    lines = [re.sub(r"^.*? \| (?:stdout|stderr) \| ", "", line) for line in text.splitlines()]
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        # argparse indents options by two spaces, llama.cpp does not indent options; prose is indented further
        match = re.match(r"(?: {2})?(-{1,2}[A-Za-z].*)", line)
        if not match or line.startswith("-----"):
            continue
        left, _, right = re.sub(r",\s+", ", ", match[1]).partition("  ")
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
        if braces:
            choices = re.split(r"[,|]", braces[1] or braces[2])
            entry["choices"] = [choice.strip(" '\"") for choice in choices]
        if right.strip().startswith("the argument has been removed"):
            notice = f"{right.strip()} {after.strip()}"
            entry["removed"] = notice.partition("use ")[2].split(" (env")[0]
        found.append(entry)
    return found


def write(engine: str) -> Path:
    """Runs one program, writes its file and returns the path."""
    folder, help_command = PROGRAMS[engine]
    image = cpu_image_tag(folder)
    command = ["docker", "run", "--rm", "--entrypoint", help_command[0], "-e", "HOME=/tmp", "-e", "LOGDIR=", "-e"]
    done = subprocess.run(
        [*command, "COLUMNS=400", image, *help_command[1:]], capture_output=True, text=True, check=True
    )
    # FastChat redirects its output to its log, which is on standard error
    flags = read_help(done.stdout + done.stderr)
    rows = ",\n  ".join(json.dumps(flag) for flag in sorted(flags, key=lambda flag: str(flag["names"])))
    head = json.dumps({"engine": engine, "version": VERSIONS[folder], "program": " ".join(help_command)})[:-1]
    path = DATA / f"{engine}-{VERSIONS[folder]}.json"
    path.write_text(f'{head}, "flags": [\n  {rows}\n]}}\n', "utf-8")
    print(f"{path.relative_to(ROOT)}: {len(flags)} flags")
    return path


if __name__ == "__main__":
    for chosen in sys.argv[1:] or PROGRAMS:
        write(chosen)
