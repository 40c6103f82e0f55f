"""`stackgen models` as users run it. The server of the recipes and the Hub are fakes: the real ones are never asked."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.catalog import load_packaged
from stackgen.catalog.entry import snapshot_text
from stackgen.catalog.store import cache_file, load_catalog
from stackgen.cli.main import main
from stackgen.stack.folder import open_stack
from tests.doctor.hosts import CONFIG, write_model
from tests.hub.standin import Hub

TAXONOMY = {
    "hardware_profiles": {"h100": {"brand": "NVIDIA", "display_name": "H100", "gpu_count": 8, "vram_gb": 640}},
}
RECIPE: dict[str, Any] = {
    "meta": {"title": "New", "provider": "Org", "description": "A text that is not taken.", "tasks": ["text"],
             "date_updated": "2026-10-01", "hardware": {"h100": "verified"}},
    "model": {"model_id": "org/New-7B", "min_vllm_version": "0.25.0", "architecture": "dense", "parameter_count": "7B",
              "context_length": 65536, "base_args": ["--trust-remote-code", "--no-such-flag", "--port", "1"]},
    "features": {"tool_calling": {"args": ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]}},
    "variants": {"default": {"precision": "bf16", "vram_minimum_gb": 17}},
}  # fmt: skip
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_catalog.cache_clear()
    yield
    load_catalog.cache_clear()


class Output:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *words: str, code: int = 0) -> str:
        found = main(["models", *words])
        self.out, self.err = self._capsys.readouterr()
        assert found == code, (found, self.out, self.err)
        return self.out

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self(*words, "--json", code=code))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Output:
    return Output(capsys)


def write_recipes(folder: Path, **changes: Any) -> Path:
    (folder / "models" / "org").mkdir(parents=True, exist_ok=True)
    (folder / "models" / "org" / "New-7B.yaml").write_text(yaml.safe_dump(RECIPE | changes))
    (folder / "taxonomy.yaml").write_text(yaml.safe_dump(TAXONOMY))
    return folder


def archive_of(folder: Path, comment: str = COMMIT) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": comment}) as archive:
        archive.add(folder, arcname="recipes-main")
    return gzip.compress(data.getvalue())


class Files(BaseHTTPRequestHandler):
    content: dict[str, bytes] = {}  # noqa: RUF012

    def do_GET(self) -> None:
        data = self.content.get(self.path)
        self.send_response(200 if data is not None else 404)
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
    Files.content.clear()


def test_search_by_words_size_context_and_tools(run: Output) -> None:
    found = run.json("search", "qwen", "--tools", "--min-size", "4B", "--max-size", "32B", "--context", "128k")
    assert found["source"]["models"] == len(load_packaged().models) and found["source"]["commit"]
    assert "Qwen/Qwen3.5-9B" in [one["model"] for one in found["models"]]
    for one in found["models"]:
        assert one["tool_call_parser"] and one["context"] >= 128_000 and "qwen" in json.dumps(one).lower()
    text = run("search", "qwen3.5-9b")
    assert text.startswith("MODEL ") and "qwen3_coder" in text and "2026-08-" in run.err and "days old" in run.err
    assert "no model matches" in run("search", "no-such-model", code=1)


def test_search_by_hardware_and_gpu(run: Output) -> None:
    verified = run.json("search", "--hardware", "dgx spark gb10")["models"]
    assert verified and all("dgx_spark_gb10" in one["verified"] for one in verified)
    small = {one["model"]: one for one in run.json("search", "--fits", "RTX-4090")["models"]}
    # 24 GB: the variant with 4 bits, and none of those that need Blackwell
    assert small["Qwen/Qwen3-32B"]["precision"] == "int4" and "Qwen/Qwen3-Coder-480B-A35B-Instruct" not in small
    assert not [one for one in small.values() if one["precision"] == "nvfp4"]
    amd = run.json("search", "--fits", "MI300X")["models"]
    # the recipe of this one lists its hardware
    fp4 = {one["model"] for one in amd if one["precision"] in ("nvfp4", "fp4")}
    assert amd and fp4 <= {"thinkingmachines/Inkling-Small-NVFP4"}
    more = {one["model"]: one for one in run.json("search", "--fits", "RTX-4090", "--gpus", "4")["models"]}
    assert small.keys() < more.keys() and more["Qwen/Qwen3-32B"]["precision"] == "bf16"
    run("search", "--fits", "RTX-4090")
    assert "`stackgen fit MODEL --gpu RTX-4090`" in run.err


def test_show_has_origin_and_age_of_each_value_and_a_stack_that_renders(run: Output, tmp_path: Path) -> None:
    found = run.json("show", "qwen/qwen3-8b", "--gpu", "H100")
    parser = found["facts"]["tool_call_parser"]
    assert parser["value"] == "hermes" and "recipe" in parser["origin"] and parser["date"] >= "2026-08-14"
    assert found["facts"]["license"]["value"] == "Apache-2.0" and found["facts"]["gated"]["value"] is None
    (tmp_path / "stack.yaml").write_text(found["stack"])
    assert open_stack(str(tmp_path)).spec.models[0].reasoning_parser == "qwen3"
    text = run("show", "qwen/qwen3-8b", "--gpu", "H100")
    assert "tool_call_parser  hermes   (vLLM's recipe for the model, " in text and text.rstrip().endswith("qwen3")
    assert "gated             unknown" in text


def test_a_stack_of_the_catalog_never_runs_code_of_the_repository(run: Output) -> None:
    for name in ("Qwen/Qwen3.6-27B", "Qwen/Qwen3-235B-A22B-FP8", "moonshotai/Kimi-K2-Instruct"):
        shown = run.json("show", name, "--gpu", "H200", "--gpus", "8")
        assert "trust_remote_code" not in yaml.safe_load(shown["stack"])["models"][0]
        (reason,) = [one["reason"] for one in shown["left_out"] if one["flag"] == "--trust-remote-code"]
        assert "runs Python code" in reason and "only if vLLM asks for it" in reason
        assert "#   --trust-remote-code: the flag runs Python code" in shown["stack"]


def test_a_checkpoint_has_no_facts_of_another_checkpoint_of_its_recipe(run: Output) -> None:
    # the recipe of -Instruct-2507 lists it as its variant in FP8
    shown = run.json("show", "Qwen/Qwen3-235B-A22B-FP8", "--gpu", "H200")
    facts = shown["facts"]
    assert facts["context"]["value"] is None
    assert (facts["tool_call_parser"]["value"], facts["reasoning_parser"]["value"]) == ("hermes", "qwen3")
    assert facts["first_vllm"]["origin"] == "vLLM's recipe for Qwen/Qwen3-235B-A22B-Instruct-2507"
    assert "  reasoning_parser: qwen3\n" in shown["stack"]
    own = run.json("show", "Qwen/Qwen3-235B-A22B-FP8", "--variant", "nvfp4", "--gpu", "B200")
    assert own["facts"]["context"]["value"] == 262144 and own["facts"]["reasoning_parser"]["value"] is None
    (row,) = run.json("search", "Qwen3-235B", "fp8", "--all")["models"]
    assert row["repository"] == "Qwen/Qwen3-235B-A22B-FP8"
    assert (row["context"], row["reasoning_parser"]) == (None, "qwen3")


def test_the_parser_that_vllm_sets_itself_is_named_and_needs_no_field(run: Output, tmp_path: Path) -> None:
    shown = run.json("show", "openai/gpt-oss-20b", "--gpu", "H100")
    parser = shown["facts"]["reasoning_parser"]
    assert parser["value"] == "openai_gptoss" and "no field is needed" in parser["origin"]
    assert "reasoning_parser" not in shown["stack"]
    assert "openai/gpt-oss-20b" in {one["model"] for one in run.json("search", "--reasoning")["models"]}
    assert main(["init", str(tmp_path / "a"), "--model", "openai/gpt-oss-20b"]) == 0
    assert "# reasoning_parser: vLLM sets openai_gptoss itself" in (tmp_path / "a" / "stack.yaml").read_text()
    model = open_stack(str(tmp_path / "a")).spec.models[0]
    assert (model.tool_call_parser, model.reasoning_parser) == ("openai", None)


def test_show_takes_variants_gpus_and_versions(run: Output) -> None:
    name = "Qwen/Qwen3-Coder-480B-A35B-Instruct"
    assert run.json("show", name, "--gpu", "H100")["gpus"] == 16
    assert run.json("show", name, "--variant", "NVFP4", "--gpu", "B200")["gpus"] == 2
    # an AMD GPU needs its driver and image
    amd = yaml.safe_load(run.json("show", "meta-llama/Llama-3.3-70B-Instruct", "--gpu", "MI300X")["stack"])
    assert amd["gpu_driver"] == "amd" and amd["models"][0]["gpus"] == 1
    assert "gpu_driver" not in run.json("show", "meta-llama/Llama-3.3-70B-Instruct", "--gpu", "H200")["stack"]
    assert "engine_version: 0.33.0" in run("show", name, "--engine-version", "0.33.0", "--gpu", "H200")
    assert "did you mean" not in run("show", name + "-FP8", "--gpu", "H200")
    # a parser that this vLLM does not have is named, and is not in the stack
    shown = run.json("show", "nvidia/NVIDIA-Nemotron-Nano-9B-v2", "--gpu", "H100")
    assert "--tool-call-parser nemotron_json" in [one["flag"] for one in shown["left_out"]]
    assert "\n  tool_call_parser" not in shown["stack"]


def test_a_checkpoint_names_its_own_quantization(run: Output) -> None:
    """For an explicit `awq`, older versions of vLLM use slow kernels."""
    for name in ("Qwen/Qwen3-32B-AWQ", "Qwen/Qwen2.5-VL-7B-Instruct-AWQ"):
        (model,) = yaml.safe_load(run.json("show", name, "--gpu", "A100-80GB")["stack"])["models"]
        assert model["model"] == name and "quantization" not in model
    # here vLLM quantizes while it loads
    (model,) = yaml.safe_load(run.json("show", "baidu/ERNIE-4.5-300B-A47B-PT", "--gpu", "H200")["stack"])["models"]
    assert model.get("quantization") in (None, "fp8")


def test_a_model_for_another_server_has_facts_but_no_stack(run: Output) -> None:
    found = run.json("show", "Wan-AI/Wan2.2-T2V-A14B-Diffusers", "--gpu", "H100", code=1)
    assert found["stack"] is None and "vllm-omni" in found["problem"]
    assert not run.json("search", "wan2.2", code=1)["models"] and run.json("search", "wan2.2", "--all")["models"]


def test_show_asks_the_hub_for_license_gate_and_fit(
    run: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG | {"hidden_size": 4096, "intermediate_size": 14336}
    folder = write_model(tmp_path / "published", config)
    hub = Hub({"Qwen/Qwen3-8B": folder})
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    try:
        found = run.json("show", "Qwen/Qwen3-8B", "--gpu", "H100", "--hub")
    finally:
        hub.close()
    assert found["hub"] == "ok" and found["facts"]["gated"] | {"date": ""} == {
        "value": False, "origin": "the Hub", "date": "",
    }  # fmt: skip
    # the fake model is tiny, so the recipe's 20 GB are far above the estimate
    assert found["fit"]["recipe_gib"] == 18.63 and found["fit"]["verdict"] == "fits" and found["fit"]["difference"] > 1


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["show", "Qwen/Qwen3-8"], "no model 'Qwen/Qwen3-8'", "Qwen/Qwen3-8B"),
        (["show", "zzzz"], "no model 'zzzz'", "search WORD"),
        (["show", "BAAI/bge-m3"], "no model 'BAAI/bge-m3'", "outside the catalog work too"),
        (["show"], "needs one model", "show Qwen/Qwen3-8B"),
        (["show", "a", "b"], "needs one model", ""),
        (["show", "Qwen/Qwen3-8B", "--variant", "int3"], "no variant 'int3'", "default"),
        (["show", "Qwen/Qwen3-8B", "--gpu", "H1000"], "--gpu: 'H1000'", "H100"),
        (["show", "Qwen/Qwen3-8B", "--engine-version", "0.1.2"], "no table of vLLM 0.1.2", "0.32.0"),
        (["show", "Qwen/Qwen3-8B", "--tools"], "`models show` has no option --tools", "for search"),
        (["search", "--gpus", "2"], "--gpus needs --fits", ""),
        (["search", "--gpus", "0", "--fits", "H100"], "not a number of GPUs", "1 to 64"),
        (["search", "--min-size", "big"], "--min-size: 'big'", "7B"),
        (["search", "--context", "long"], "--context: 'long'", "32k"),
        (["search", "--context", "-5"], "--context: '-5'", "32k"),
        (["search", "--hardware", "H20O"], "verified on 'H20O'", "similar: H20"),
        (["search", "--dry-run"], "has no option --dry-run", "sync"),
    ],
)
def test_wrong_input_has_a_reason_and_a_suggestion(words: list[str], message: str, hint: str, run: Output) -> None:
    run(*words, code=2)
    assert message in run.err and hint in run.err


def test_sync_from_a_checkout_replaces_the_catalog_until_it_is_removed(run: Output, tmp_path: Path) -> None:
    folder = write_recipes(tmp_path / "recipes")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (folder / ".git" / "packed-refs").write_text(f"# pack-refs\n{COMMIT} refs/heads/main\n")
    dry = run.json("sync", str(folder), "--dry-run")
    assert dry["new"] == ["org/New-7B"] and not dry["written"] and not cache_file().exists()
    done = run.json("sync", str(folder))
    assert done["commit"] == COMMIT and done["updated"] == "2026-10-01" and done["left_out"] == 3
    shown = run.json("show", "org/New-7B", "--gpu", "H100")
    assert shown["facts"]["tool_call_parser"]["value"] == "hermes"
    # the pinned version decides, not the recipe
    assert "no-such-flag" not in yaml.dump(yaml.safe_load(shown["stack"]))
    assert {one["flag"] for one in shown["left_out"]} == {"--trust-remote-code", "--no-such-flag", "--port 1"}
    assert "A text that is not taken" not in cache_file().read_text()
    assert run.json("sync", "--remove")["removed"] == str(cache_file())
    run("show", "org/New-7B", code=2)


def test_sync_from_an_archive_and_a_catalog_by_url(run: Output, tmp_path: Path, server: str) -> None:
    data = archive_of(write_recipes(tmp_path / "recipes"))
    Files.content["/main.tar.gz"] = data
    digest = hashlib.sha256(data).hexdigest()
    assert run.json("sync", f"{server}/main.tar.gz", "--sha256", digest)["commit"] == COMMIT
    Files.content["/catalog.json"] = cache_file().read_bytes()
    run("sync", "--remove")
    assert run.json("sync", f"{server}/catalog.json")["new"] == ["org/New-7B"]
    run("sync", f"{server}/main.tar.gz", "--sha256", "0" * 64, code=2)
    assert f"has the SHA-256 {digest}" in run.err
    run("sync", f"{server}/nothing", code=3)
    assert "HTTP 404" in run.err


def test_sync_refuses_what_is_no_catalog(run: Output, tmp_path: Path, server: str) -> None:
    recipes = write_recipes(tmp_path / "recipes")
    (tmp_path / "empty").mkdir()
    Files.content["/page"] = b"<html>"
    bad = {
        str(tmp_path / "empty"): "has no models/ORGANIZATION/MODEL.yaml",
        str(tmp_path / "gone"): "can't be read",
        f"{server}/page": "neither an archive of the recipes nor a catalog",
        "ftp://x/y": "is not a URL that stackgen reads",
    }
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(archive_of(recipes)[:-30])
    old = tmp_path / "old.json"
    old.write_text(snapshot_text(load_packaged()).replace("2026", "2025"))
    bad |= {str(cut): "is cut off", str(old): "the hash of the models"}
    for source, message in bad.items():
        run("sync", source, code=2)
        assert message in run.err and "hint: " in run.err, source
    (recipes / "models" / "org" / "New-7B.yaml").write_text("{a: [")
    run("sync", str(recipes), code=2)
    assert "models/org/New-7B.yaml is not YAML" in run.err
    write_recipes(recipes, meta=RECIPE["meta"] | {"date_updated": "2024-01-01"})
    run("sync", str(recipes), code=2)
    assert "is older than stackgen's own catalog" in run.err
    assert not cache_file().exists()


def test_a_damaged_file_in_the_cache_is_named_and_not_used(run: Output) -> None:
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text("{}")
    assert "hermes" in run("show", "Qwen/Qwen3-8B", "--gpu", "H100")
    assert "the synced catalog is not used" in run.err and "models sync" in run.err


def test_init_writes_the_parsers_that_the_catalog_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "a"), "--model", "Qwen/Qwen3-8B"]) == 0
    model = open_stack(str(tmp_path / "a")).spec.models[0]
    assert (model.tool_call_parser, model.reasoning_parser) == ("hermes", "qwen3")
    assert main(["init", str(tmp_path / "d"), "--model", "Qwen/Qwen3-235B-A22B"]) == 0
    assert open_stack(str(tmp_path / "d")).spec.models[0].reasoning_parser == "qwen3"
    assert main(["init", str(tmp_path / "e"), "--model", "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8"]) == 0
    assert open_stack(str(tmp_path / "e")).spec.models[0].reasoning_parser is None
    assert "gated" not in capsys.readouterr().err
    assert main(["init", str(tmp_path / "b"), "--model", "meta-llama/Llama-3.1-8B-Instruct"]) == 0
    assert "is gated: accept its license on https://huggingface.co/meta-llama/" in capsys.readouterr().err
    assert main(["init", str(tmp_path / "c"), "--model", "Qwen/Qwen3-8B", "--engine", "sglang"]) == 0
    assert "_parser" not in (tmp_path / "c" / "stack.yaml").read_text()


def test_show_warns_if_the_weights_leave_little_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", "Qwen/Qwen3-32B-AWQ", "--gpu", "RTX-4090"]) == 0
    assert "40,960 tokens may not fit" in capsys.readouterr().err
    assert main(["models", "show", "Qwen/Qwen3-32B-AWQ", "--gpu", "H200"]) == 0
    assert "may not fit" not in capsys.readouterr().err


def test_a_number_of_gpus_that_cannot_hold_the_weights_does_not_fit(run: Output) -> None:
    command = ("show", "Qwen/Qwen3-32B", "--gpu", "RTX-4090", "--gpus", "2")
    assert "stack.yaml for 2 × RTX-4090 (does not fit):" in run(*command, code=1)
    assert "Qwen/Qwen3-32B does not fit on 2 × RTX-4090: its weights need about 64 GB" in run.err
    # fp8 would leave little memory for the context
    assert "choose --variant awq, or use --gpus 4" in run.err and "may not fit" not in run.err
    assert run.json(*command, code=1)["weights_fit"] is False
    # the hinted command estimates the same number of GPUs
    run(*command, "--variant", "fp8")
    assert "`stackgen fit Qwen/Qwen3-32B-FP8 --gpu RTX-4090 --gpus 2 --max-model-len 8K`" in run.err
    assert run.json(*command, "--variant", "fp8")["weights_fit"] is True


def test_fewer_gpus_than_the_table_says_are_a_warning_with_the_count_of_the_table(run: Output) -> None:
    command = ("show", "meta-llama/Llama-3.3-70B-Instruct", "--gpu", "A100-40GB")
    assert "8 × A100-40GB" in run(*command, "--gpus", "4")
    assert "may not start on 4 × A100-40GB, even with a short context: vLLM's recipe counts 170 GB" in run.err
    assert "use --gpus 8" in run.err and "Set a shorter max_model_len" not in run.err
    run(*command, "--gpus", "8")
    assert "may not start" not in run.err


def test_an_empty_search_says_that_other_models_work_too(run: Output) -> None:
    assert "Models outside the catalog work too" in run("search", "no-such-model", code=1)


def test_a_smaller_model_of_a_family_has_its_own_size(run: Output) -> None:
    found = run.json("search", "translategemma", "--fits", "RTX-4090")["models"]
    assert [(one["repository"], one["parameters"]) for one in found] == [("google/translategemma-4b-it", "4B")]
    assert run.json("search", "translategemma", "--fits", "RTX-4090", "--min-size", "20B", code=1)["models"] == []
    # the size in the name of a mixture of experts is that of the active part
    assert run.json("search", "Llama-4-Scout")["models"][0]["parameters"] == "109B"


def test_a_word_about_the_precision_chooses_the_variant(run: Output) -> None:
    for options in ((), ("--fits", "RTX-4090", "--gpus", "2")):
        found = run.json("search", "int4", *options)["models"]
        assert found and {one["precision"] for one in found} == {"int4"}
    (one,) = run.json("search", "Qwen3-32B", "awq")["models"]
    assert one["repository"] == "Qwen/Qwen3-32B-AWQ"


def test_names_of_ollamas_library_are_translated(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["models", "show", "qwen3:8b"], ["fit", "qwen3:8b", "--gpu", "H100"]):
        assert main(command) == 2
        assert "Write `model: Qwen/Qwen3-8B`" in capsys.readouterr().err
    assert main(["models", "search", "qwen3:8b"]) == 0
    assert "Qwen/Qwen3-8B " in capsys.readouterr().out
