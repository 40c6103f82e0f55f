"""The sizes that doctor adds up for the disk: only known ones, and quantized weights by their name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stackgen.catalog.sizes import guess_weight_bytes
from stackgen.doctor.capacity import weight_bytes
from stackgen.doctor.collect import collect_inputs
from stackgen.doctor.facts import GIB, Disk
from tests.doctor.hosts import EIGHT_80, findings, write_stack


@pytest.mark.parametrize(
    ("model", "bits"),
    [
        ("org/Llama-3.1-8B-Instruct", 16),
        ("org/Llama-3.1-8B-Instruct-FP8", 8),
        ("org/Llama-3.1-8B-Instruct-FP8-dynamic", 8),
        ("org/Llama-3.1-8B-quantized.w8a8", 8),
        ("org/Llama-3.1-8B-quantized.w4a16", 4),
        ("org/Llama-3.1-8B-AWQ", 4),
        ("org/Llama-3.1-8B-GPTQ-Int4", 4),
        ("org/Llama-3.1-8B-GPTQ-Int8", 8),
        ("org/Llama-3.1-8B-NVFP4", 4),
        ("org/Llama-3.1-8B-bnb-4bit", 4),
        ("org/Hawq-8B", 16),
    ],
)
def test_a_quantized_model_is_sized_by_its_name(model: str, bits: int) -> None:
    size, source = weight_bytes(collect_inputs(EIGHT_80), model)
    # embeddings and output layer keep 16 bits
    share = {16: 1, 8: 1.14, 4: 1.46}[bits]
    assert size == pytest.approx(8e9 * bits / 8 * share, rel=0.02)
    assert source == f"guessed from the model's name, at {bits} bits per weight"


@pytest.mark.parametrize(
    ("model", "gib"),
    [
        # the catalog knows sizes that the names do not contain
        ("deepseek-ai/DeepSeek-V3.1", 634.6),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 203),
        ("Qwen/Qwen3-8B", 15.3),
        ("acme/unknown", None),
        # a repository with one file for each quantization
        ("acme/Qwen3-8B-GGUF", None),
    ],
)
def test_sizes_are_estimated_without_the_hub(model: str, gib: float | None) -> None:
    size, _ = guess_weight_bytes(model)
    assert size is None if gib is None else size == pytest.approx(gib * GIB, rel=0.02)


@pytest.mark.parametrize(
    ("model", "gib"),
    [
        # sizes of checkpoints in published logs, see benchmarks/fit_data/rows.tsv
        ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", 67.72),
        ("Qwen/Qwen3-8B-FP8", 8.8),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507-FP8", 220.3),
        ("openai/gpt-oss-20b", 12.82),
        ("openai/gpt-oss-120b", 60.77),
    ],
)
def test_the_estimate_of_a_quantized_model_is_near_its_real_size(model: str, gib: float) -> None:
    size, _ = guess_weight_bytes(model)
    assert size == pytest.approx(gib * GIB, rel=0.06)


def test_an_image_of_unknown_size_is_not_listed_as_0_mib(tmp_path: Path) -> None:
    host = replace(EIGHT_80, docker_disk=Disk("/var/lib/docker", 500 * GIB, 1), images=())
    path = write_stack(tmp_path, gpus=[0, 1], model="org/Llama-3.1-8B", replicas=2)
    found = [one for one in findings(host, path) if one.id == "SG-P006"]
    shown = " ".join(f"{one.message} {one.evidence}" for one in found)
    assert "image vllm/vllm-openai" in shown
    assert "can't tell whether the disk has space for the image haproxy" in shown
    assert "0 MiB" not in shown
