"""Starts a real model worker of FastChat on the CPU, and compares its weights, cache and memory with `fit`.

    .venv/bin/python benchmarks/fit_fastchat.py IMAGE TOKENIZER_FOLDER [MODEL …]

IMAGE: `scripts/build-image fastchat` prints it. TOKENIZER_FOLDER: `scripts/small-model tiny` makes one. The weights are
random, and made in the container. The worker answers one long prompt; a hook on the model's `forward` measures the
tensors of the cache after it. Weights and cache must be equal to the byte; the memory of the process must be inside the
bounds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.fit_starts import COMMON, HEADS, MODELS
from stackgen.fit import Gpu, Settings, estimate, read_model
from stackgen.fit.gpus import GIB

MIB = 2**20
# large enough that the process itself is the smaller part
LARGE = {**MODELS["gqa-untied"], **COMMON, **HEADS, "num_hidden_layers": 12, "hidden_size": 1024, "head_dim": 64,
         "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 2816,
         "vocab_size": 32000}  # fmt: skip
# without `hybrid`: for recurrent states, Transformers takes a cache from its caller, and FastChat passes none
CONFIGS = {**{name: MODELS[name] for name in ("gqa-untied", "tied", "mqa", "mla", "sliding")}, "large": LARGE}
MEASURE = r"""
import gc, json, sys, shutil, torch
from transformers import AutoConfig, AutoModelForCausalLM
name = sys.argv[1]
config = AutoConfig.from_pretrained(f"/configs/{name}")
AutoModelForCausalLM.from_config(config, torch_dtype=torch.bfloat16).save_pretrained(f"/models/{name}")
for file in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(f"/tokenizer/{file}", f"/models/{name}/{file}")
gc.collect()
def memory(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field + ":"))
def tensors(one, seen, depth=0):
    if id(one) in seen or depth > 6:
        return
    seen.add(id(one))
    if isinstance(one, torch.Tensor):
        yield one
        return
    inner = one.values() if isinstance(one, dict) else one if isinstance(one, (list, tuple)) else vars(one).values() \
        if type(one).__module__.startswith("transformers") and "Config" not in type(one).__name__ else ()
    for each in list(inner):
        yield from tensors(each, seen, depth + 1)
def size(found):
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in found}.values())
from fastchat.serve.model_worker import ModelWorker
before = memory("RssAnon")
worker = ModelWorker("http://127.0.0.1:1", "http://127.0.0.1:2", "w", f"/models/{name}", [name], 1, True, "cpu", 1,
                     None)
gc.collect()
loaded = memory("RssAnon")
seen = []
forward = worker.model.forward
def measured(*args, **kwargs):
    out = forward(*args, **kwargs)
    seen.append((kwargs["input_ids"].shape[1], sum(one.nbytes for one in tensors(out.past_key_values, set())),
                 out.logits.nbytes))
    return out
worker.model.forward = measured
open("/proc/self/clear_refs", "w").write("5")
last = list(worker.generate_stream_gate({"prompt": "hello " * int(sys.argv[2]), "max_new_tokens": 2, "temperature": 0}))
worker.model.forward = forward
print("RESULT" + json.dumps({
    "weights": size(worker.model.parameters()), "prompt": seen[0][0] if seen else 0,
    "cache": seen[0][1] if seen else 0, "logits": seen[0][2] if seen else 0, "dtype": str(worker.model.dtype),
    "before": before, "loaded": loaded, "peak": memory("VmHWM"), "file": memory("RssFile"),
    "error": "" if seen else last[-1].decode(errors="replace")[:300],
}))
"""
WORDS = 1500


def measure(image: str, tokenizer: Path, name: str, folder: Path) -> dict[str, Any]:
    """What a worker measures. The model is in `folder`/models/`name` afterwards."""
    for part in ("configs", "models"):
        (folder / part / name).mkdir(parents=True)
    (folder / "configs" / name / "config.json").write_text(json.dumps(CONFIGS[name]))
    # the image's user is not the one who runs this script
    for place in (folder, folder / "models", folder / "models" / name):
        place.chmod(0o777)
    mounts = (f"{folder}/configs:/configs:ro", f"{folder}/models:/models", f"{tokenizer.resolve()}:/tokenizer:ro")
    volumes = [word for mount in mounts for word in ("-v", mount)]
    # the worker writes its log into the current folder
    done = subprocess.run(["docker", "run", "--rm", "-w", "/tmp", "-e", "HOME=/tmp", "-e", "HF_HUB_OFFLINE=1", *volumes,
                           "--entrypoint", "python3", image, "-c", MEASURE, name, str(WORDS)],
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    line = next((one for one in (done.stdout + done.stderr).splitlines() if "RESULT{" in one), "")
    if not line:
        raise RuntimeError(f"{name}: the worker did not start\n{(done.stdout + done.stderr)[-2500:]}")
    found: dict[str, Any] = json.loads(line.partition("RESULT")[2])
    return found


def predict(seen: dict[str, Any], model: Path) -> dict[str, tuple[int, int, bool]]:
    """By part: what `fit` computes for `model`, what a worker has measured, and whether both agree."""
    settings = Settings(engine="fastchat", is_cpu=True, max_model_len=seen["prompt"] or None, max_num_seqs=1)
    found = estimate(read_model(model), settings, Gpu("CPU", 24 * GIB))
    terms = {term.name: term for term in found.terms}
    low, _, high = found.needed
    # without the room for one token more
    cache = int(found.plan.token_bytes * seen["prompt"]) + found.plan.fixed
    return {
        "weights": (terms["weights"].bytes, seen["weights"], terms["weights"].bytes == seen["weights"]),
        "cache": (cache, seen["cache"], cache == seen["cache"]),
        # with the code of the programs, which is mapped from files
        "peak of the process": (found.needed[1], seen["peak"], low <= seen["peak"] <= high),
    }


def compare(name: str, seen: dict[str, Any], model: Path) -> bool:
    """Prints predicted and measured sizes. Returns whether they agree."""
    rows = predict(seen, model)
    print(f"{name} ({seen['dtype']}, prompt of {seen['prompt']} tokens) {seen['error']}")
    for what, (predicted, measured, agrees) in rows.items():
        print(f"  {what:20} fit {predicted / MIB:9.3f} MiB, measured {measured / MIB:9.3f} MiB: "
              f"{'agrees' if agrees else 'DIFFERENT'}")  # fmt: skip
    print(f"  before the model {seen['before'] / MIB:.0f} MiB, with it {seen['loaded'] / MIB:.0f} MiB, logits "
          f"{seen['logits'] / MIB:.1f} MiB, files {seen['file'] / MIB:.0f} MiB", flush=True)  # fmt: skip
    return all(agrees for _, _, agrees in rows.values())


def main(image: str, tokenizer: str, *names: str) -> int:
    agree = []
    for name in names or tuple(CONFIGS):
        with tempfile.TemporaryDirectory(prefix="fit-fastchat-") as folder:
            seen = measure(image, Path(tokenizer), name, Path(folder))
            agree.append(compare(name, seen, Path(folder) / "models" / name))
    return 0 if all(agree) else 1


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
