#!/usr/bin/env python3
"""Prints the variables that give vLLM's compiled code a folder for this image and this kind of GPU.

VLLM_CACHE_ROOT names a folder for the model, the reference of the image, and the flags. Only the container knows what
the image contains and which GPU it got, so supervise.sh runs this script before the service. vLLM's own key contains
neither the image nor, before PyTorch 2.12, the GPU (docs.vllm.ai, "torch.compile integration").
"""

import csv
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

NAMES = {"VLLM_CACHE_ROOT": "", "TORCHINDUCTOR_CACHE_DIR": "/inductor", "TRITON_CACHE_DIR": "/triton"}
QUERY = ("nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader")
TOPOLOGY = Path("/sys/class/kfd/kfd/topology/nodes")


def image(paths, packages="/var/lib/dpkg/status"):
    """A hash of what is installed: each RECORD of a Python package contains the checksums of its files."""
    total = hashlib.sha256()
    records = sorted({str(one) for path in paths for one in Path(path or ".").glob("*.dist-info/RECORD")})
    for path in (*records, packages):
        try:
            total.update(path.encode() + b"\0" + Path(path).read_bytes())
        except OSError:
            continue
    return total.hexdigest()[:8]


def devices(topology=TOPOLOGY, cpu="/proc/cpuinfo"):
    """The kinds of GPUs that this container sees, in a stable order; the processor and its features without a GPU."""
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=60)
        rows = [" ".join(part.strip() for part in row) for row in csv.reader(done.stdout.splitlines())]
        if done.returncode == 0 and rows:
            return sorted(set(rows))
    except (OSError, subprocess.TimeoutExpired):
        pass
    found = set()
    for path in topology.glob("*/properties"):
        try:
            values = dict(line.split(maxsplit=1) for line in path.read_text().splitlines() if " " in line)
        except OSError:
            # a GPU that this container did not get
            continue
        # 0 is a CPU
        if values.get("gfx_target_version", "0") != "0":
            found.add("gfx " + values["gfx_target_version"])
    if found:
        return sorted(found)
    # vLLM on the CPU compiles for the features of this processor
    lines = Path(cpu).read_text(errors="replace").splitlines()
    return sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})


def share_model_infos(root, shared):
    """Links `modelinfos` below `root` to the folder `shared`, which all folders of this image use.

    vLLM stores there what it knows about each model class, with a hash of the class's file. To find out, it starts a
    process that imports vLLM once more (`_LazyRegisteredModel` in vllm/model_executor/models/registry.py of 0.32.0).
    """
    link = root / "modelinfos"
    try:
        shared.mkdir(parents=True, exist_ok=True)
        root.mkdir(parents=True, exist_ok=True)
        # a container of another user may have created the folder
        if not os.access(shared, os.W_OK):
            if link.is_symlink():
                link.unlink()
        # files that an earlier version has stored are kept
        elif not link.exists():
            link.symlink_to(os.path.relpath(shared, root))
    except OSError:
        # without the link, vLLM stores this information in a separate folder
        return


def is_writable(folder):
    """Whether this container's user can create `folder` and write into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def main():
    base = Path(os.environ["VLLM_CACHE_ROOT"])
    kind = hashlib.sha256("\n".join(devices()).encode()).hexdigest()[:8]
    packages = image(sys.path)
    root = base / f"{packages}-{kind}"
    if is_writable(root):
        # next to the folder of all models' compiled code, which `stackgen storage` may remove
        share_model_infos(root, base.parent.parent / "modelinfos" / packages)
        kept = f"is kept in {root}"
    else:
        # an image with another user has created the folders in the volume, and vLLM would not start without its own
        kept = f"is not kept: uid {os.getuid()} can't write {base}. `stackgen storage list` shows the volume"
        root = Path(tempfile.gettempdir(), "stackgen-cache", root.name)
    for name, folder in NAMES.items():
        print(f"{name}={root}{folder}")
    print(f"stackgen: compiled code {kept}", file=sys.stderr)


if __name__ == "__main__":
    main()
