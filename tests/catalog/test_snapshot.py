"""The snapshot that stackgen has: its schema and hash, and a stack that renders for each checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.catalog import Entry, Variant, find_access, load_packaged, lookup
from stackgen.catalog import store as store_module
from stackgen.catalog.entry import hash_models, parse_snapshot, snapshot_text
from stackgen.catalog.flags import USABLE, settle, why_not
from stackgen.catalog.recipes import read_recipe
from stackgen.doctor.flags import check_flags
from stackgen.errors import StackgenError
from stackgen.flags import PINNED, known_versions, load_flags
from stackgen.flags.arguments import BREAKING_FLAGS, OWN_FLAGS
from stackgen.importing.catalog_entry import build_stack

FILE = Path(store_module.__file__).with_name("snapshot.json")
PAIRS = [(entry, variant) for entry in load_packaged().models for variant in entry.variants]
ABLE = [(entry, variant) for entry, variant in PAIRS if not why_not(entry, variant)]


def test_the_file_is_what_the_program_writes() -> None:
    snapshot = load_packaged()
    assert snapshot_text(snapshot) == FILE.read_text("utf-8")
    assert len(snapshot.models) > 150 and snapshot.commit and snapshot.license == "Apache-2.0"
    # facts only: the recipes' texts are sentences, and no field has one
    assert not re.search(r'"[^"]*[a-z] [a-z]+ [a-z]+ [a-z]+ [a-z]+ ', FILE.read_text("utf-8"))


@pytest.mark.parametrize("version", known_versions("vllm"))
def test_every_checkpoint_has_a_stack_that_renders_with_flags_that_vllm_accepts(version: str) -> None:
    known, count = load_flags("vllm", version), 0
    assert known is not None
    for entry, variant in PAIRS:
        if why_not(entry, variant, version):
            continue
        # validated as `render` does
        stack = build_stack(entry, variant, variant.gpus or 8, version, "a test")
        (model,) = yaml.safe_load(stack.text)["models"]
        problems = list(check_flags("vllm", tuple(model.get("extra_args", ())), known, "extra_args"))
        assert not [one for one in problems if one.status in ("fail", "warn")], (variant.model, problems)
        # `import` carries over all flags that the catalog lets through
        assert stack.left_out == settle(entry, variant, version).left_out, variant.model
        assert model["model"] == variant.model and ("engine_version" in model) == (version != PINNED["vllm"])
        count += 1
    assert count > 300


def test_more_gpus_than_the_recipes_tensor_parallel_size_become_pipeline_stages() -> None:
    entry, variant = next(one for one in ABLE if one[1].model == "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8")
    (model,) = yaml.safe_load(build_stack(entry, variant, 8).text)["models"]
    assert (model["tensor_parallel_size"], model["pipeline_parallel_size"], model["gpus"]) == (4, 2, 8)
    with pytest.raises(StackgenError, match="needs 128 GPUs"):
        build_stack(entry, variant, 128)


def test_no_flag_that_a_recipe_may_set_loads_code_or_breaks_a_stack() -> None:
    known = load_flags("vllm")
    assert known is not None and not USABLE - known.by_name.keys()
    assert not USABLE & (OWN_FLAGS["vllm"] | BREAKING_FLAGS["vllm"].keys())
    assert not [
        one for one in USABLE if re.search("plugin|path|host|port|file|cls|middleware|key|model$|processors", one)
    ]


def entry(args: list[str], **fields: Any) -> Entry:
    variant = Variant(name="default", model="org/m", precision="bf16", vram_gb=1)
    data: dict[str, Any] = {"model": "org/m", "provider": "P", "tasks": ["text"], "architecture": "dense"}
    return Entry(**data | {"updated": "2026-01-01", "args": args, "variants": [variant]} | fields)


@pytest.mark.parametrize(
    ("args", "kept", "reason"),
    [
        (["--max-num-seqs", "4"], ("--max-num-seqs", "4"), ""),
        (["--max_num_seqs=4"], ("--max_num_seqs=4",), ""),
        (["--tool-parser-plugin", "/x.py"], (), "loads code"),
        (["--api-key", "k"], (), "a name"),
        (["--host", "0.0.0.0"], (), "a port"),
        (["--config", "/etc/x"], (), "a file"),
        (["--no-such-flag", "1"], (), "has no flag"),
        (["--task", "embed"], (), "use --runner"),
        (["--kv-cache-dtype", "fp9"], (), "does not accept"),
        (["--generation-config", "/tmp/x"], (), "not one of auto, vllm"),
        (["--tensor-parallel-size", "8"], (), ""),
    ],
)
def test_each_flag_is_checked_against_the_pinned_version(args: list[str], kept: tuple[str, ...], reason: str) -> None:
    one = entry(args)
    found = settle(one, one.variants[0])
    assert found.args == kept
    assert (not found.left_out) if not reason else reason in found.left_out[0][1]


def test_a_recipe_for_a_newer_or_another_server_has_no_stack() -> None:
    newer, omni = entry([], first_version="0.99.0"), entry([], omni=True)
    assert "needs vLLM 0.99.0 or newer" in why_not(newer, newer.variants[0])
    assert "vllm-omni" in why_not(omni, omni.variants[0])
    # as numbers, not as text
    old = entry([], first_version="0.9.0")
    assert not why_not(old, old.variants[0], "0.32.0")


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(data: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        place: Any = data
        for part in parents:
            place = place[int(part) if part.isdigit() else part]
        place[last] = value
        data["sha256"] = hash_models(data)

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change("schema", 2), "has the schema '2'"),
        (change("models.0.model", "../../etc/passwd"), "models.0.model"),
        (change("models.0.tool_call_parser", "x; rm -rf"), "tool_call_parser"),
        (change("models.0.provider", "a\x1b[2J"), "models.0.provider"),
        (change("models.0.args", ["--x"] * 100), "models.0.args"),
        (change("models.0.surprise", 1), "models.0.surprise"),
        (change("models.0.variants", []), "models.0.variants"),
        (change("models", []), "models"),
        (change("commit", "main"), "commit"),
        (lambda data: data["models"][0].update(context=1), "the hash of the models"),
    ],
)
def test_a_snapshot_with_another_content_is_refused(change: Callable[[dict[str, Any]], None], message: str) -> None:
    data = json.loads(FILE.read_bytes())
    change(data)
    with pytest.raises(StackgenError, match=re.escape(message)):
        parse_snapshot(json.dumps(data).encode(), "x.json")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"models": 1, "schema": 1}'])
def test_a_file_that_is_no_snapshot_is_refused(data: bytes) -> None:
    with pytest.raises(StackgenError, match=re.escape("x.json")):
        parse_snapshot(data, "x.json")


@pytest.mark.parametrize("data", [None, [], {}, {"meta": 1, "model": 2}, {"meta": {}, "model": {}, "variants": {}}])
def test_a_recipe_of_another_format_is_refused_by_name(data: Any) -> None:
    with pytest.raises(StackgenError, match=re.escape("models/a/b.yaml: stackgen does not know this format")):
        read_recipe(data, "models/a/b.yaml")


def test_licenses_and_gates_have_a_source_at_a_commit() -> None:
    for one in lookup.read_families()["access"]:
        assert re.search(r"commit [0-9a-f]{40}", one["source"]) and one.get("license", "x") and one["read"]
    assert find_access("meta-llama/Llama-3.2-1B-Instruct").gated is True
    assert find_access("Qwen/Qwen3-8B").license == "Apache-2.0" and find_access("Qwen/Qwen3-8B").gated is None
    assert find_access("deepseek-ai/DeepSeek-R1-Distill-Llama-8B").license == ""
