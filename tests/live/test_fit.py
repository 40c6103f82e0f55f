"""`stackgen fit` against real engines: what they print when they start, and what llama.cpp projects itself."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.fit_fastchat import measure, predict
from stackgen.fit import Gpu, Settings, estimate, read_model
from stackgen.fit.gpus import GIB
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.xdist_group("engines"), pytest.mark.timeout(900)]

# flags of llama-server, and the same as settings; tests/fit/test_verdict.py has further ones, as recorded
FLAGS = ("-c", "4096", "-np", "2")
SETTINGS = Settings(engine="llamacpp", max_model_len=2048, max_num_seqs=2)


def test_real_vllm_prints_the_tokens_that_fit_computes(vllm_stack: LiveStack) -> None:
    done = vllm_stack.run_stackgen("fit", str(vllm_stack.folder), "--observe", "--json")
    data = json.loads(done.stdout)
    (found,) = data["models"]
    rows = {row["term"]: row for row in found["rows"]}
    assert rows["tokens in that room"]["predicted"] == rows["tokens in that room"]["measured"] > 10_000
    assert found["observation"]["version"] == "0.32.0"
    # the comparison is stored next to the stack
    assert json.loads((vllm_stack.folder / ".stackgen" / "fit.json").read_text()) == {"models": data["models"]}


def test_llamacpp_projects_what_fit_computes(llamacpp_image: str, smollm2: Path) -> None:
    """A process of its own, because the shared stack does not print its memory; it takes a few seconds."""
    gguf = next(smollm2.with_name("smollm2-GGUF").glob("*.gguf"))
    # the rest of the start is not needed
    script = 'llama-server "$@" 2>&1 | sed "/successfully fit/q"'
    done = subprocess.run(
        ["docker", "run", "--rm", "-v", f"{gguf.parent}:/m:ro", "--entrypoint", "timeout", llamacpp_image, "6",
         "sh", "-c", script, "sh", "-m", f"/m/{gguf.name}", *FLAGS, "--port", "9", "-v"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    breakdown = re.search(r"- Host\s+\|\s+(\d+) =\s+(\d+) \+\s+(\d+) \+\s+(\d+)", done.stdout)
    assert breakdown, done.stdout + done.stderr
    _, model, context, compute = (int(part) for part in breakdown.groups())
    found = estimate(read_model(gguf), SETTINGS, Gpu("x", 8 * GIB))
    terms = {term.name: term.bytes / 2**20 for term in found.terms}
    # llama.cpp prints whole MiB
    assert terms["weights"] == pytest.approx(model, abs=1)
    assert found.request / 2**20 == pytest.approx(context, abs=1)
    assert terms["compute buffer"] == pytest.approx(compute, abs=1)


@pytest.mark.parametrize("name", ["tied", "sliding"])
def test_a_fastchat_worker_takes_what_fit_computes(
    fastchat_image: str, tiny_model: Path, tmp_path: Path, name: str
) -> None:
    """A real worker that answers one prompt: its weights and cache to the byte, and the peak of its process."""
    seen = measure(fastchat_image, tiny_model, name, tmp_path)
    assert seen["prompt"] > 2000
    wrong = {part: row for part, row in predict(seen, tmp_path / "models" / name).items() if not row[2]}
    assert not wrong
