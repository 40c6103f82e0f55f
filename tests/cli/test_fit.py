"""`stackgen fit` as users run it: stacks, models, the Hub, bad arguments."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fit_starts import MODELS
from stackgen.cli.main import main
from stackgen.runtimes.process.logs import log_file
from tests.fit.test_models import write_model
from tests.fit.test_verdict import LOG
from tests.hub.standin import Hub

TENSORS: dict[str, tuple[str, list[int]]] = {"model.embed_tokens.weight": ("BF16", [1024, 128])}


# no server listens at this port
NO_HUB = "http://127.0.0.1:9"


class Run:
    """Runs the command in this process, which is faster than a process of its own."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments: str, code: int = 0, env: dict[str, str] | None = None) -> str:
        for name, value in {"HOME": "/nonexistent", "PATH": "/nonexistent", **(env or {})}.items():
            self._monkeypatch.setenv(name, value)
        found = main(["fit", *arguments])
        printed = self._capsys.readouterr()
        assert found == code, printed.out + printed.err
        # JSON goes to stdout, and errors and notes to stderr
        return printed.out if "--json" in arguments else printed.out + printed.err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(capsys, monkeypatch)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny", MODELS["gqa-untied"], TENSORS)


def test_a_folder_fits_and_each_term_is_printed(run: Run, model: Path) -> None:
    text = run(str(model), "--gpu", "RTX-4090")
    assert "fits on RTX-4090 (23.53 GiB)" in text
    for term in ("weights", "activations", "CUDA graphs", "CUDA and NCCL", "room for the KV cache"):
        assert term in text


def test_json_has_the_verdict_the_terms_and_the_changes(run: Run, model: Path) -> None:
    data = json.loads(run(str(model), "--gpu-memory", "24GiB", "--json"))
    assert data["fits"] is True
    (found,) = data["models"]
    assert found["verdict"] == "fits"
    assert found["token_bytes"] == 768
    assert {term["name"] for term in found["terms"]} >= {"weights", "activations"}


def test_what_does_not_fit_exits_with_1_and_says_what_would_help(run: Run, tmp_path: Path) -> None:
    large = {**MODELS["gqa-untied"], "hidden_size": 8192, "num_attention_heads": 64, "head_dim": 128,
             "num_key_value_heads": 8, "num_hidden_layers": 80, "vocab_size": 128256}  # fmt: skip
    tensors = {f"model.layers.{layer}.mlp.up_proj.weight": ("BF16", [8192, 65536]) for layer in range(80)}
    text = run(str(write_model(tmp_path / "large", large, tensors)), "--gpu", "H100", "--max-num-seqs", "64", code=1)
    assert "doesn't fit on H100" in text
    assert "are missing" in text
    assert "to make it fit:" in text


def test_blocks_of_fp8_weights_that_cannot_be_split_are_an_error(run: Run, tmp_path: Path) -> None:
    config = {**MODELS["gqa-untied"], "hidden_size": 2560, "num_attention_heads": 32, "head_dim": 128,
              "num_key_value_heads": 8, "intermediate_size": 9728,
              "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}  # fmt: skip
    folder = str(write_model(tmp_path / "fp8", config, TENSORS))
    text = run(folder, "--gpu", "H100", "--gpus", "8", code=2)
    assert "the slice 1216 of the intermediate size 9728 is no multiple of the block size 128" in text
    assert "use one of 1, 2, 4" in text
    assert "fits on 4" in run(folder, "--gpu", "H100", "--gpus", "4")


def test_a_stack_is_estimated_model_by_model(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "stack.yaml").write_text("""name: two
models:
  - {model: ./tiny, engine: vllm, gpus: 1, served_names: [a], max_model_len: 1024}
  - {model: ./tiny, engine: vllm, gpus: none, served_names: [b], extra_args: [--kv-transfer-config, "{}"]}
""")
    data = json.loads(run(str(tmp_path), "--gpu", "H100", "--json", code=1))
    first, second = data["models"]
    assert (first["model"], first["verdict"], first["context"]) == ("a", "fits", 1024)
    assert (second["verdict"], second["gpu"]["name"]) == ("too close to call", "this machine's CPU")
    assert "kv-transfer-config" in second["reason"]


def test_a_model_on_the_hub_is_read_from_its_headers_only(run: Run, model: Path, tmp_path: Path) -> None:
    with closing(Hub({"org/tiny": model})) as hub:
        data = json.loads(run("org/tiny", "--gpu", "L4", "--json", env={"HF_ENDPOINT": hub.url}))
    local = json.loads(run(str(model), "--gpu", "L4", "--json"))
    assert data["models"][0]["verdict"] == "fits"
    assert data["models"][0]["terms"][0]["bytes"] == local["models"][0]["terms"][0]["bytes"]
    assert "on the Hub" in data["models"][0]["terms"][0]["source"]


def test_a_hub_that_does_not_answer_is_an_error_with_remedies(run: Run) -> None:
    text = run("org/tiny", "--gpu", "L4", code=3, env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert "does not answer" in text
    assert "pass a local folder" in text


def test_offline_asks_nobody(run: Run, model: Path) -> None:
    assert "forbids asking the Hub" in run("org/tiny", "--gpu", "L4", "--offline", code=2)


def test_a_model_in_the_cache_of_this_user_needs_no_hub(run: Run, model: Path, tmp_path: Path) -> None:
    repository = tmp_path / "cache" / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    shutil.copytree(model, repository / "snapshots" / "abc")
    run("org/tiny", "--gpu", "L4", "--offline", env={"HF_HUB_CACHE": str(tmp_path / "cache")})


@pytest.mark.parametrize(("arguments", "expected"), [
    (["--gpu", "RTX-4099"], "similar: RTX-4090"),
    (["--gpu-memory", "much"], "is not the memory of a GPU"),
    (["--gpu", "L4", "--gpu-memory", "24"], "can't be combined"),
    (["--gpu", "L4", "--max-model-len", "long"], "is not a number of tokens"),
    (["--gpu", "L4", "--engine-version", "new"], "is not a version"),
    (["--gpu", "L4", "--gpus", "0"], "is not a number of GPUs"),
    (["--gpu", "L4", "--gpus", "3"], "can't be divided"),
    (["--gpu", "L4", "--gpu-memory-utilization", "1.5"], "at most 1"),
    (["--gpu", "L4", "--kv-cache-dtype", "fp99"], "kv_cache_dtype"),
    (["--gpu", "L4", "--engine", "llamacpp"], "not a GGUF file"),
    ([], "this machine has no GPU"),
    (["--observe"], "--observe needs a stack"),
])  # fmt: skip
def test_wrong_arguments_are_errors_with_a_remedy(run: Run, model: Path, arguments: list[str], expected: str) -> None:
    text = run(str(model), *arguments, code=2)
    assert expected in text
    assert "hint:" in text


def test_the_table_of_gpus_is_printed_also_as_json(run: Run) -> None:
    assert "RTX-4090" in run("--list-gpus")
    data: list[dict[str, Any]] = json.loads(run("--list-gpus", "--json"))
    assert any(gpu["unified"] for gpu in data)


@pytest.mark.parametrize(("before", "after"), [
    ('    extra_args: [--max-num-seqs, "64", --kv-cache-memory-bytes, "1"]',
     '["--max-num-seqs", "64", "--kv-cache-memory-bytes=60141234567"]'),
    ("", '["--kv-cache-memory-bytes=60141234567"]'),
], ids=["after other arguments", "alone"])  # fmt: skip
def test_the_measured_cache_of_a_gpu_is_pinned_in_stack_yaml(
    run: Run, model: Path, tmp_path: Path, before: str, after: str
) -> None:
    """The log is one that a real vLLM wrote on an H100, because this machine has no GPU."""
    (tmp_path / "stack.yaml").write_text(f"""name: one
models:
  # comments stay
  - model: ./tiny
    engine: vllm
    gpus: 1
    served_names: [a]
{before}
""")
    logs = tmp_path / ".stackgen"
    logs.mkdir()
    # the fields that the supervisor writes
    texts = {"service": "vllm-a", "role": "engine", "state": "exited", "health": "", "ready": ""}
    entry = {**texts, "exit_code": 0, "pid": 0, "start": None, "restarts": 0, "grace": 30, "ports": []}
    state = {"supervisor": {"pid": 0, "start": None}, "services": [entry]}
    (logs / "state.json").write_text(json.dumps(state))
    log = log_file(tmp_path, "vllm-a")
    log.parent.mkdir(exist_ok=True)
    log.write_text(LOG)
    arguments = (str(tmp_path), "--gpu", "H100", "--observe", "--runtime", "process")
    text = run(*arguments, "--pin", code=1)
    assert "tokens in that room" in text
    changed = (tmp_path / "stack.yaml").read_text()
    assert after in changed
    assert "# comments stay" in changed
    # a start that compiled code is no measure
    log.write_text(LOG + "Cache the graph of compile range (1, 8192) for later use\n")
    assert "compiled code" in run(*arguments, "--pin", code=2)


@pytest.mark.parametrize(("field", "verdict", "reason"), [
    ("speculative: {method: ngram, num_speculative_tokens: 3}", "too close to call", "speculative"),
    ("cpu_offload_gib: 2", "too close to call", "cpu-offload-gb"),
    ("kv_cache_memory: 40g", "doesn't fit", "a KV cache of 40.00 GiB"),
    ("kv_cache_memory: 4g", "fits", ""),
])  # fmt: skip
def test_fields_count_like_their_flags(
    run: Run, model: Path, tmp_path: Path, field: str, verdict: str, reason: str
) -> None:
    (tmp_path / "stack.yaml").write_text(
        f"name: one\nmodels: [{{model: ./tiny, engine: vllm, gpus: 1, max_model_len: 1024, {field}}}]\n"
    )
    (found,) = json.loads(run(str(tmp_path), "--gpu", "RTX-4090", "--json", code=verdict != "fits"))["models"]
    assert found["verdict"] == verdict and reason in found["reason"]


def test_models_that_can_not_be_read_do_not_hide_the_others(run: Run, model: Path, tmp_path: Path) -> None:
    entries = [{"model": "org/first"}, {"model": str(model)}, {"model": "org/last"}]
    stack = tmp_path / "stack.yaml"
    stack.write_text(json.dumps({"name": "s", "models": [{"engine": "vllm", "gpus": [n], **one} for n, one in
                                                         enumerate(entries)]}))  # fmt: skip
    arguments, env = (str(stack), "--gpu", "RTX-4090"), {"HF_ENDPOINT": NO_HUB}
    text = run(*arguments, code=3, env=env)
    assert "fits on RTX-4090" in text
    assert "? org/first was not estimated" in text and "? org/last was not estimated" in text
    assert "check the network and the proxy" in text
    data = json.loads(run(*arguments, "--json", code=3, env=env))
    assert data["fits"] is False and len(data["models"]) == 1
    assert [one["model"] for one in data["unread"]] == ["org/first", "org/last"]
    # a model that does not fit is an answer
    assert "fit" in run(str(stack), "--gpu-memory", "1GiB", code=1, env=env)


@pytest.mark.parametrize(("gpu", "verdict", "said"), [
    ("V100", "doesn't fit", "V100-32GB does not support a KV cache in fp8 (compute capability 7.0;"),
    ("A100", "fits", "a KV cache in fp8 may not work on A100-80GB: only vLLM's attention backend FlashInfer accepts"),
    ("RTX-3090", "fits", "may not work on RTX-3090"),
    ("RTX-4090", "fits", ""),
])  # fmt: skip
def test_an_fp8_cache_is_compared_with_the_gpu(run: Run, model: Path, gpu: str, verdict: str, said: str) -> None:
    code = int(verdict != "fits")
    arguments = (str(model), "--gpu", gpu, "--kv-cache-dtype", "fp8")
    (found,) = json.loads(run(*arguments, "--json", code=code))["models"]
    assert found["verdict"] == verdict
    assert said in " ".join([found["reason"], *found["warnings"]]) and bool(found["warnings"]) == (
        said != "" and not code
    )
    text = run(*arguments, code=code)
    assert said in text and ("warning:" in text) == bool(found["warnings"])
    assert ("(`kv_cache_dtype: auto`)" in text) == bool(code)
    (model.parent / "stack.yaml").write_text(
        "name: one\nmodels: [{model: ./tiny, engine: vllm, gpus: 1, kv_cache_dtype: fp8}]\n"
    )
    assert said in run(str(model.parent), "--gpu", gpu, code=code)


def test_a_gpu_of_the_same_size_is_not_offered_as_a_larger_one(run: Run, tmp_path: Path) -> None:
    # needs a little more than 24 GB
    tensors = {"model.embed_tokens.weight": ("BF16", [1024, 11_100_000])}
    arguments = (str(write_model(tmp_path / "large", MODELS["gqa-untied"], tensors)), "--max-model-len", "2048")
    text = run(*arguments, "--gpu", "RTX-4090", code=1)
    assert "RTX-5090 (31.37 GiB) is the smallest in the table that fits" in text


def test_fastchat_without_room_for_the_whole_context_says_which_prompts_fit(run: Run, tmp_path: Path) -> None:
    llama = {**MODELS["gqa-untied"], "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
             "head_dim": 128, "num_key_value_heads": 8, "num_hidden_layers": 32, "vocab_size": 128256,
             "max_position_embeddings": 131072}  # fmt: skip
    tensors = {f"model.layers.{layer}.mlp.up_proj.weight": ("BF16", [4096, 53248]) for layer in range(32)}
    write_model(tmp_path / "m", llama, tensors)
    (tmp_path / "stack.yaml").write_text("name: s\nmodels:\n- {model: ./m, engine: fastchat, gpus: 1}\n")
    text = run(str(tmp_path), "--gpu", "RTX-4090", code=1)
    assert "needed for 5 x 131072 tokens" in text
    assert "FastChat has no field that limits the context" in text and "`worker_concurrency: 1`" in text
    # a GPU of 268 GiB is no answer for a model of 8B
    assert "which limits the context: `max_model_len: " in text and "use a GPU with more memory" not in text
    (found,) = json.loads(run(str(tmp_path), "--gpu", "RTX-4090", "--json", code=1))["models"]
    assert 500 < found["longest_context"] < 10_000
    assert [one["field"] for one in found["changes"]] == ["engine"]
    # that many tokens fit
    short = str(found["longest_context"])
    fits = ("--gpu", "RTX-4090", "--engine", "fastchat", "--max-model-len", short)
    assert "FastChat has no field" not in run(str(tmp_path / "m"), *fits)


def write_32b_awq(folder: Path) -> Path:
    """The shapes of Qwen/Qwen3-32B-AWQ: 18.0 GiB."""
    config = {**MODELS["gqa-untied"], "hidden_size": 5120, "intermediate_size": 25600, "num_attention_heads": 64,
              "head_dim": 128, "num_key_value_heads": 8, "num_hidden_layers": 64, "vocab_size": 151936,
              "max_position_embeddings": 40960, "torch_dtype": "float16",
              "quantization_config": {"bits": 4, "group_size": 128, "quant_method": "awq", "zero_point": True},
              }  # fmt: skip
    tensors = {name: ("F16", [151936, 5120]) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    sizes = {"self_attn.q_proj": (8192, 5120), "self_attn.k_proj": (1024, 5120), "self_attn.v_proj": (1024, 5120),
             "self_attn.o_proj": (5120, 8192), "mlp.gate_proj": (25600, 5120), "mlp.up_proj": (25600, 5120),
             "mlp.down_proj": (5120, 25600)}  # fmt: skip
    for layer in range(64):
        for name, (outputs, inputs) in sizes.items():
            path = f"model.layers.{layer}.{name}"
            tensors |= {f"{path}.qweight": ("I32", [inputs, outputs // 8]),
                        f"{path}.qzeros": ("I32", [inputs // 128, outputs // 8]),
                        f"{path}.scales": ("F16", [inputs // 128, outputs])}  # fmt: skip
    return write_model(folder, config, tensors)


def test_the_documented_stack_for_one_gpu_with_24_gb_fits(run: Run, tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "how-to" / "choose-a-model.md").read_text()
    text = textwrap.dedent(re.search(r"```yaml\n( *name: large\n.*?)```", guide, re.S)[1])  # type: ignore[index]
    write_32b_awq(tmp_path / "m")
    stack = text.replace("Qwen/Qwen3-32B-AWQ", "./m")
    (tmp_path / "stack.yaml").write_text(stack)
    assert "✓ m fits on RTX-4090" in run(str(tmp_path), "--gpu", "RTX-4090")
    # without FP8, fewer requests or a shorter context alone are not enough
    stack = re.sub(r" +(kv_cache_dtype|max_num_seqs).*\n", "", stack)
    (tmp_path / "stack.yaml").write_text(stack)
    offered = re.search(r"`max_num_seqs: 64` and `max_model_len: (\d+)`",
                        run(str(tmp_path), "--gpu", "RTX-3090", code=1))  # fmt: skip
    assert offered
    (tmp_path / "stack.yaml").write_text(stack.replace("8K", f"{offered[1]}\n    max_num_seqs: 64"))
    assert "✓ m fits on RTX-3090" in run(str(tmp_path), "--gpu", "RTX-3090")
    (tmp_path / "stack.yaml").write_text(stack.replace("8K", "4K\n    max_num_seqs: 64"))
    assert "✓ m fits on RTX-3090" in run(str(tmp_path), "--gpu", "RTX-3090")


def machine_with(folder: Path, count: int) -> dict[str, str]:
    """An nvidia-smi that lists `count` GPUs, as the variables of the command."""
    tool = folder / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    rows = "".join(f"{index}, GPU-{index}, RTX 4090, 24564, 24000, 8.9, [N/A], 0, Enabled\n" for index in range(count))
    tool.write_text(f"#!/bin/sh\ncase $* in *query-gpu*) printf '{rows}';; esac\n".replace("\n'", "\\n'"))
    tool.chmod(0o755)
    return {"PATH": f"{tool.parent}:/usr/bin:/bin"}


@pytest.mark.parametrize(("gpus", "said"), [
    ((1, 1), "✗ the stack needs 2 GPUs: a on 0; b on 1. This machine has 1 GPU, and lacks GPU 1"),
    ((4, "none"), "✗ the stack needs 4 GPUs: a on 0,1,2,3. This machine has 1 GPU, and lacks GPU 1, 2, 3"),
    ((["GPU-0"], ["GPU-7"]), "lacks GPU-7"), ((1, "none"), ""),
])  # fmt: skip
def test_a_stack_with_more_gpus_than_the_machine_does_not_fit(
    run: Run, model: Path, tmp_path: Path, gpus: tuple[Any, Any], said: str
) -> None:
    models = [{"model": "./tiny", "engine": "vllm", "gpus": count, "max_model_len": 1024, "served_names": [name]}
              for name, count in zip("ab", gpus, strict=True)]  # fmt: skip
    (tmp_path / "stack.yaml").write_text(json.dumps({"name": "s", "models": models}))
    env = machine_with(tmp_path, 1)
    code = int(bool(said))
    data = json.loads(run(str(tmp_path), "--json", code=code, env=env))
    assert bool(data["absent"]) == bool(said)
    text = run(str(tmp_path), code=code, env=env)
    assert said in text and ("This machine has" in text) == bool(said)
    assert ("share_gpus: true" in text) == bool(said and "none" not in gpus)
    # another machine: only how many it needs
    assert "This machine has" not in run(str(tmp_path), "--gpu", "RTX-4090")


def test_options_without_an_effect_on_a_stack_are_warnings(run: Run, model: Path, tmp_path: Path) -> None:
    stack = tmp_path / "stack.yaml"
    fields = {"model": "./tiny", "engine": "vllm", "gpus": 1, "max_model_len": 1024}
    stack.write_text(json.dumps({"name": "s", "models": [fields]}))
    text = run(str(tmp_path), "--gpu", "L4", "--max-model-len", "8k", "--max-num-seqs", "4")
    assert "warning: --max-model-len, --max-num-seqs have no effect on a stack" in text
    assert "no effect" not in run(str(tmp_path), "--gpu", "L4") + run(str(model), "--gpu", "L4", "--max-num-seqs", "4")
    stack.write_text(json.dumps({"name": "s", "models": [fields | {"gpus": "none"}]}))
    text = run(str(tmp_path), "--gpu", "L4")
    assert "warning: --gpu has no effect: all models of the stack run on the CPU" in text
    assert "in the machine's memory, GiB" in text and "on each GPU" not in text


def test_a_cluster_splits_the_model_as_its_manifests_do(run: Run, model: Path, tmp_path: Path) -> None:
    def stages(**fields: Any) -> Any:
        spec = {"model": "org/tiny", "engine": "vllm", "gpus": 2, "max_model_len": 1024} | fields
        stack = {"name": "s", "target": "kubernetes", "kubernetes": {"gpus_per_node": 1}, "models": [spec]}
        (tmp_path / "stack.yaml").write_text(json.dumps(stack))
        return json.loads(run(str(tmp_path), "--gpu", "L4", "--json", env={"HF_ENDPOINT": hub.url}))["models"][0]

    with closing(Hub({"org/tiny": model})) as hub:
        assert stages()["terms"] == stages(tensor_parallel_size=1, pipeline_parallel_size=2)["terms"]
        assert stages()["terms"] != stages(tensor_parallel_size=2)["terms"]


def test_a_size_as_the_name_of_a_gpu_names_the_other_option(run: Run, model: Path) -> None:
    assert "use `--gpu-memory 24GB`" in run(str(model), "--gpu", "24GB", code=2)
    assert "similar" in run(str(model), "--gpu", "RTX-409O", code=2)


def test_an_error_of_a_stack_names_its_model(run: Run, model: Path, tmp_path: Path) -> None:
    fields = {"model": "./tiny", "engine": "vllm", "gpus": 3, "served_names": ["a"]}
    (tmp_path / "stack.yaml").write_text(json.dumps({"name": "s", "models": [fields]}))
    assert "models[0] (a): " in run(str(tmp_path), "--gpu", "L4", code=2)


@pytest.mark.parametrize(
    ("gpu", "fields", "gateway", "is_noted"),
    [("H100", "", "true", True), ("H100", "", "false", False), ("H100", ", max_num_seqs: 1024", "true", False),
     ("L40S", "", "true", False)],
)  # fmt: skip
def test_a_gateway_that_sends_fewer_requests_than_vllm_runs_is_noted(
    model: Path, tmp_path: Path, gpu: str, fields: str, gateway: str, is_noted: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "stack.yaml").write_text(
        f"name: demo\ngateway: {gateway}\nmodels: [{{model: {model}, engine: vllm, gpus: 1{fields}}}]\n"
    )
    main(["fit", str(tmp_path), "--gpu", gpu])
    assert ("sends at most 256 to each replica" in capsys.readouterr().err) == is_noted
