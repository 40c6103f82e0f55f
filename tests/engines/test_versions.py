"""`engine_version` chooses the image and the table of flags; `stackgen upgrade` shows what a version changes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from stackgen.check.checks.table import CHECKS
from stackgen.cli.main import main
from stackgen.engines import _dialects
from stackgen.errors import SpecError
from stackgen.flags import PINNED, changes, known_versions, load_table
from stackgen.flags.changes import compare_versions
from stackgen.flags.releases import cuda_of_image, flags_of, image_of, min_driver
from stackgen.images.tags import cpu_image_tag
from stackgen.plan import Plan
from stackgen.resolve.pipeline import resolve
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite

STACK = """name: up
models:
  - model: org/m  # keep this
    engine: vllm
    gpus: 1
"""


def plan(**fields: Any) -> Plan:
    model = {"model": "org/m", "engine": "vllm", "gpus": 1} | fields
    return resolve(build_spec({"name": "demo", "models": [model], "gateway": False}, "test"), ComposeSite(), "t")


def image(**fields: Any) -> str:
    return next(one.image for one in plan(**fields).services if one.role == "engine")


def upgrade(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> tuple[int, str, str]:
    code = main(["upgrade", str(folder), *words])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "stack.yaml").write_text(STACK, encoding="utf-8")
    return tmp_path


def test_the_version_chooses_the_image() -> None:
    assert image() == f"vllm/vllm-openai:v{PINNED['vllm']}"
    assert image(engine_version="0.33.0") == "vllm/vllm-openai:v0.33.0"
    assert image(engine_version="0.33.0", gpus="none") == "vllm/vllm-openai-cpu:v0.33.0-x86_64"
    assert image(engine="sglang", engine_version="0.5.22") == "lmsysorg/sglang:v0.5.22"
    llama = {"engine": "llamacpp", "file": "m.gguf"}
    assert image(**llama, engine_version="11401") == "ghcr.io/ggml-org/llama.cpp:server-cuda-b11401"
    assert image(**llama, engine_version=11401, gpus="none") == cpu_image_tag("llamacpp", "11401")


def test_each_version_of_llamacpp_is_built_once_from_the_same_files() -> None:
    models = [{"model": "/m.gguf", "engine": "llamacpp", "served_names": [f"m{index}"], "gpus": "none",
               "engine_version": version, "replicas": 2} for index, version in enumerate((11401, 11434))]  # fmt: skip
    services = [one for one in resolve(build_spec({"name": "demo", "models": models, "gateway": False}, "test"),
                                       ComposeSite(), "t").services if one.role == "engine"]  # fmt: skip
    assert [dict(one.build.args)["LLAMA_BUILD"] if one.build else "" for one in services] == ["11401", "", "11434", ""]
    assert [one.image for one in services] == [
        cpu_image_tag("llamacpp", one) for one in ("11401",) * 2 + ("11434",) * 2
    ]


def test_values_are_compared_with_the_version_of_the_model() -> None:
    with pytest.raises(SpecError, match=r"vllm 0\.32\.0 does not know the value 'step5'"):
        plan(reasoning_parser="step5")
    plan(reasoning_parser="step5", engine_version="0.33.0")


def test_a_version_without_a_table_is_a_warning_that_names_the_known_ones() -> None:
    [warning] = [one for one in plan(engine_version="0.30.0").warnings if "no table" in one]
    assert "vllm 0.30.0" in warning and "0.31.0, 0.32.0, 0.33.0" in warning
    assert not [one for one in plan(engine_version="0.33.0").warnings if "no table" in one]


def test_known_deviations_belong_to_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    def notes(**fields: Any) -> set[str]:
        (endpoint,) = plan(**fields).endpoints
        return {one.note for one in endpoint.dialect.deviations} | {str(endpoint.dialect.unknown_model)}

    role = "passes unknown roles to the chat template"
    # the data of the repository, for every version that a user can name
    assert role in notes() and notes() == notes(engine_version="0.33.0") == notes(engine_version="0.30.0")
    entries = [
        {"check": "errors", "pattern": "a", "note": "until 0.32", "recorded": "0.32.0", "before": "0.33"},
        {"check": "errors", "pattern": "b", "note": "from 0.33 on", "recorded": "0.33.0", "since": "0.33.0"},
        {"fields": {"unknown_model": [400, 400]}, "recorded": "0.33.0", "since": "0.33.0"},
    ]
    monkeypatch.setattr(_dialects, "_load", lambda: {"vllm": entries})
    assert notes() == {"until 0.32", "(404, 404)"}
    assert notes(engine_version="0.33.0") == notes(engine_version="0.34.1") == {"from 0.33 on", "(400, 400)"}


@pytest.mark.parametrize("engine", sorted(PINNED))
def test_each_recorded_deviation_names_a_check_and_a_known_version(engine: str) -> None:
    checks = {one.name for one in CHECKS}
    for entry in _dialects._load()[engine]:
        assert entry["check"] in checks and entry["recorded"] in known_versions(engine)
        assert re.compile(entry["pattern"]) and entry["note"]


def test_fastchat_is_built_in_one_version_for_all_models() -> None:
    models = [{"model": f"org/m{index}", "engine": "fastchat", "served_names": [f"m{index}"], "gpus": "none"}
              for index in range(2)]  # fmt: skip

    def make(*versions: str | None) -> Plan:
        entries = [
            model | ({"engine_version": one} if one else {}) for model, one in zip(models, versions, strict=True)
        ]
        return resolve(build_spec({"name": "demo", "models": entries, "gateway": False}, "test"), ComposeSite(), "t")

    same, other = make(PINNED["fastchat"], None), make("0.2.35", None)
    assert not [one for one in same.warnings if "no table" in one]
    [warning] = [one for one in other.warnings if "no table" in one]
    assert "models[0].engine_version" in warning and "It knows 0.2.36" in warning
    [build] = [one.build for one in other.services if one.build]
    assert dict(build.args)["FASTCHAT_VERSION"] == "0.2.35"
    assert not [one.build for one in same.services if one.build and "FASTCHAT_VERSION" in dict(one.build.args)]
    images = {one.image.rpartition("-")[0] for one in other.services if one.engine == "fastchat"}
    assert images == {"stackgen/fastchat:0.2.35-cpu"}
    with pytest.raises(SpecError, match=r"share one image, but engine_version differs: 0\.2\.35, 0\.2\.36"):
        make("0.2.35", "0.2.36")


def test_a_tag_or_a_shortened_version_gets_a_suggestion() -> None:
    with pytest.raises(SpecError, match=r"v0\.33\.0 is a tag\. Write the version: 0\.33\.0"):
        plan(engine_version="v0.33.0")
    with pytest.raises(SpecError, match=r"b11401 is a tag\. Write the version: 11401"):
        plan(engine="llamacpp", file="m.gguf", engine_version="b11401")
    [warning] = [one for one in plan(engine_version="0.33").warnings if "no table" in one]
    assert warning.endswith("Did you mean 0.33.0?")


@pytest.mark.parametrize("version", ["latest", "../vllm", "v0.33.0", "1", "b1"])
def test_what_is_no_version_is_refused(version: str) -> None:
    with pytest.raises(SpecError, match="engine_version"):
        plan(engine_version=version)


def test_a_version_next_to_an_image_is_a_mistake() -> None:
    with pytest.raises(SpecError, match="engine_version: has no effect"):
        plan(engine_version="0.33.0", image="me/vllm:1")


def test_upgrade_shows_the_change_and_writes_it_only_if_confirmed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = upgrade(capsys, folder)
    assert code == 0 and "vllm 0.32.0 -> 0.33.0" in out and '+    engine_version: "0.33.0"' in err
    assert "new default: --mamba-cache-mode" in out and "breaks" not in out
    assert (folder / "stack.yaml").read_text() == STACK
    code, _, err = upgrade(capsys, folder, "--yes")
    assert code == 0 and "stackgen update" in err
    text = (folder / "stack.yaml").read_text()
    assert 'engine_version: "0.33.0"' in text and "# keep this" in text
    code, _, err = upgrade(capsys, folder, "--yes")
    assert code == 0 and "nothing to upgrade" in err


def test_upgrade_names_what_breaks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "stack.yaml").write_text(STACK + '    extra_args: ["--spec-method", "medusa"]\n', encoding="utf-8")
    _, out, _ = upgrade(capsys, folder, "--json")
    [model] = json.loads(out)["models"]
    assert model["breaks"] == ["extra_args: --spec-method no longer accepts medusa"] and model["to"] == "0.33.0"
    speculative = "    speculative: {method: medusa, model: org/d, num_speculative_tokens: 2}\n"
    (folder / "stack.yaml").write_text(STACK + speculative, encoding="utf-8")
    _, out, _ = upgrade(capsys, folder)
    assert "breaks: speculative.method: the value medusa no longer exists" in out


def test_upgrade_names_the_field_whose_flag_is_gone(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new version is 0.33.0 without two flags: no flag of vLLM is gone between the versions with a table."""

    def load(engine: str, version: str) -> dict[str, Any]:
        table = load_table(engine, version)
        lost = {"--cpu-offload-gb", "--shutdown-timeout"} if version == "0.33.0" else set()
        return table | {"flags": [one for one in table["flags"] if not lost & set(one["names"])]}

    monkeypatch.setattr(changes, "load_table", load)
    (folder / "stack.yaml").write_text(STACK + "    cpu_offload_gib: 2\n", encoding="utf-8")
    _, out, _ = upgrade(capsys, folder, "--json")
    [model] = json.loads(out)["models"]
    assert model["breaks"] == [
        "cpu_offload_gib: --cpu-offload-gb no longer exists", "the command: --shutdown-timeout no longer exists",
    ]  # fmt: skip


def test_upgrade_tells_driver_image_and_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = upgrade(capsys, folder)
    assert code == 0 and "driver: CUDA 13 (as before) needs NVIDIA driver 580 or newer" in out
    assert "image: vllm/vllm-openai:v0.33.0 is not on this machine, and its size is unknown" in out
    assert "weights: not compared, because the model could not be read on this machine" in out and "MedusaModel" in out


@pytest.mark.parametrize("gateway", ["false", "true"])
def test_upgrade_of_replicas_names_the_engine_and_not_the_gateway(
    folder: Path, capsys: pytest.CaptureFixture[str], gateway: str
) -> None:
    replicas = "" if gateway == "false" else "    replicas: 2\n"
    (folder / "stack.yaml").write_text(f"{STACK}{replicas}gateway: {gateway}\n", encoding="utf-8")
    code, out, _ = upgrade(capsys, folder)
    assert code == 0 and "driver: CUDA 13 (as before) needs NVIDIA driver 580 or newer" in out
    assert "image: vllm/vllm-openai:v0.33.0 " in out and "haproxy" not in out
    assert "if the model's architecture or format is MedusaModel, the new version does not load it" in out


def test_upgrade_compares_the_model_on_this_machine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = folder / "m"
    model.mkdir()
    config = {"architectures": ["MedusaModel"], "model_type": "llama", "num_hidden_layers": 1, "hidden_size": 8,
              "num_attention_heads": 1, "vocab_size": 8}  # fmt: skip
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    header = b'{"w": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}'
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    (folder / "stack.yaml").write_text(STACK.replace("org/m", "./m"), encoding="utf-8")
    _, out, _ = upgrade(capsys, folder, "--json")
    [report] = json.loads(out)["models"]
    assert report["breaks"] == ["model: vllm 0.33.0 has no architecture MedusaModel"]
    assert report["weights"]["architecture"] == "MedusaModel" and report["driver"]["oldest"] == 580


def test_upgrade_to_an_unknown_version_says_so_and_works(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = upgrade(capsys, folder, "--to", "0.34.0", "--yes")
    assert code == 0 and "unknown: stackgen has no table" in out and "0.32.0, 0.33.0" in out
    assert "driver: unknown" in out
    assert 'engine_version: "0.34.0"' in (folder / "stack.yaml").read_text()


def test_upgrade_needs_an_engine_whose_version_stackgen_chooses(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "stack.yaml").write_text(STACK.replace("vllm", "fastchat"), encoding="utf-8")
    code, _, err = upgrade(capsys, folder)
    assert code == 2 and "can't change the engine version of any model" in err


def test_hidden_names_of_flags_are_not_reported_as_gone() -> None:
    """vLLM 0.33 still accepts --no-enable-x, which its help no longer shows."""
    found = compare_versions("vllm", "0.32.0", "0.33.0")
    assert found and found.removed == () and found.renamed == ()
    assert "--watchdog-config" in found.added and found.paths_added == ("/v1/decisions",)


def test_paths_that_need_no_key_are_those_that_no_guarded_beginning_covers() -> None:
    found = compare_versions("vllm", "0.31.0", "0.32.0")
    assert found and "/v1/systemone" in found.paths_added
    assert found.open_paths and not [one for one in found.open_paths if one.startswith("/v1")]


def test_the_cuda_version_of_an_image_is_that_of_its_version() -> None:
    assert cuda_of_image(image_of("vllm", "0.33.0", "nvidia")) == "13" and min_driver("13") == 580
    assert cuda_of_image(image_of("llamacpp", "11434", "nvidia")) == "12" and min_driver("12") == 525
    assert cuda_of_image("vllm/vllm-openai:v0.1.0") is None and min_driver("14") is None


def test_the_flags_of_a_model_are_those_of_its_version() -> None:
    models = build_spec({"name": "demo", "models": [
        {"model": "org/m", "engine": "vllm", "gpus": 1, "engine_version": version} for version in ("0.33.0", "0.30.0")
    ]}, "test").models  # fmt: skip
    known, unknown = map(flags_of, models)
    assert known and known.version == "0.33.0" and unknown is None


@pytest.mark.parametrize("engine", PINNED)
def test_the_pinned_version_has_a_table(engine: str) -> None:
    assert PINNED[engine] in known_versions(engine)
    for version in known_versions(engine):
        table = load_table(engine, version)
        assert table["version"] == version and table["paths"] and table["architectures"]
        # what shows the progress of a start
        assert table["log"] and bool(table.get("guarded")) != bool(table.get("unguarded"))
