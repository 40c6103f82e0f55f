"""`stackgen import` as people run it: what it prints and writes, and what it refuses."""

from __future__ import annotations

import io
import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen import engines
from stackgen.cli.main import main
from stackgen.stack.envfile import read_env

KEY, TOKEN = "sk-0123456789abcdefghij", "hf_abcdefghijklmnopqrstuv"
RUN = f"docker run --gpus all -e HF_TOKEN={TOKEN} -p 8000:8000 vllm/vllm-openai:v0.11.0 --model org/m --api-key {KEY}"
COMPOSE = """\
x-gpu: &gpu
  deploy:
    resources:
      reservations:
        devices:
          - {driver: nvidia, device_ids: ["3"], capabilities: [gpu]}
services:
  base:
    image: vllm/vllm-openai:${TAG:-latest}
    environment: {NCCL_DEBUG: "${LEVEL}"}
    volumes: ["./models:/models", "cache:/root/.cache/huggingface"]
  chat:
    <<: *gpu
    extends: {service: base}
    command: --model /models/one --served-model-name chat
    ports: ["127.0.0.1:${PORT}:8000"]
  web:
    image: ghcr.io/open-webui/open-webui:main
    ports: ["3000:8080"]
    environment: [OPENAI_API_BASE_URL=http://chat:8000/v1]
volumes:
  cache: {}
"""


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    """What `stackgen import` prints to stdout and to stderr."""
    assert main(["import", *words]) == code
    out = capsys.readouterr()
    return out.out, out.err


@pytest.mark.parametrize(
    ("gpus", "imported"),
    [("[{count: 0}]", "none"), ("[{count: '0'}]", "none"), ("[{count: 2}]", 2), ("[{count: all}]", "all"),
     ("all", "all"), ("[{count: '${UNSET}'}]", "all"), ("[{count: 0}, {count: 1}]", 1)],
)  # fmt: skip
def test_a_service_with_zero_gpus_runs_on_the_cpu(
    gpus: str, imported: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "compose.yaml").write_text(
        "services:\n  chat: {image: 'ghcr.io/ggml-org/llama.cpp:server-cuda', command: -m /models/a.gguf,\n"
        f"         volumes: ['./models:/models'], gpus: {gpus}}}\n"
    )
    out, _ = run(capsys, str(tmp_path))
    assert yaml.safe_load(out)["models"][0]["gpus"] == imported


@pytest.mark.parametrize(("gpus", "imported"), [("0", "none"), ("count=0", "none"), ("1", 1), ("count=-1", "all")])
def test_docker_run_with_zero_gpus_runs_on_the_cpu(
    gpus: str, imported: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"docker run --gpus {gpus} -v /m:/models ghcr.io/ggml-org/llama.cpp:server-cuda -m /models/a.gguf"
    out, _ = run(capsys, command)
    assert yaml.safe_load(out)["models"][0]["gpus"] == imported


def test_a_compose_file_merges_anchors_as_compose_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "compose.yaml").write_text(
        "x-one: &one {image: 'vllm/vllm-openai:v0.11.0', command: --model org/one}\n"
        "x-two: &two {image: redis, command: --model org/two}\nservices:\n  chat: {<<: [*one, *two]}\n"
    )
    out, _ = run(capsys, str(tmp_path))
    assert [one["model"] for one in yaml.safe_load(out)["models"]] == ["org/one"]


def test_a_command_becomes_a_stack_file_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, RUN)
    assert yaml.safe_load(out)["models"] == [{"model": "org/m", "engine": "vllm", "gpus": 1}]
    assert "becomes stackgen's pinned version" in err and "open on 0.0.0.0" in err
    # neither secret is printed, and the report says where they go
    assert KEY not in out + err and TOKEN not in out + err
    assert "`-o FOLDER` writes them into FOLDER/.env" in err


def test_secrets_of_other_services_and_short_keys_are_shown_nowhere(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "compose.yaml").write_text(
        "services:\n"
        "  db: {image: postgres, environment: {POSTGRES_PASSWORD: correct-horse}}\n"
        "  graph: {image: neo4j, environment: ['NEO4J_PASSWORD=battery-staple']}\n"
        "  a:\n    image: vllm/vllm-openai\n    command: --model org/m --api-key short-key\n"
        "    environment: {S3_SECRET_KEY: abcdefghijklmnop}\n"
    )
    for options in ([], ["--json"], ["--diff"], ["--verbose"]):
        out, err = run(capsys, str(tmp_path), *options)
        for secret in ("correct-horse", "battery-staple", "short-key", "abcdefghijklmnop"):
            assert secret not in out + err, options
    # the report still says what is lost
    assert "POSTGRES_PASSWORD" in err


def test_words_after_two_dashes_need_no_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, "--", "vllm", "serve", "org/m", "--max-model-len", "32k")
    assert yaml.safe_load(out)["models"][0]["max_model_len"] == "32k"


def test_standard_input_and_a_folder_are_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"vllm serve org/m")))
    assert yaml.safe_load(run(capsys, "-")[0])["models"][0]["model"] == "org/m"
    (tmp_path / "docker-compose.yml").write_text("vllm:\n  image: vllm/vllm-openai\n  command: --model org/old\n")
    # a Compose file of version 1 has no `services`
    assert yaml.safe_load(run(capsys, str(tmp_path))[0])["models"][0]["model"] == "org/old"


def test_secrets_go_into_files_that_only_the_owner_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "new"
    out, err = run(capsys, RUN, "-o", str(folder))
    assert KEY not in out + err and TOKEN not in out + err
    assert KEY not in (folder / "stack.yaml").read_text() and TOKEN not in (folder / "stack.yaml").read_text()
    for name in (".env", "hf-token.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    values = read_env(folder)
    assert values["STACKGEN_API_KEY"] == KEY
    assert (folder / values["HF_TOKEN_FILE"]).read_text() == TOKEN + "\n"
    # git must see neither file
    ignored = (folder / ".gitignore").read_text()
    assert ".env" in ignored and "*.key" in ignored
    assert main(["render", str(folder), "--no-validate"]) == 0


def test_an_existing_stack_and_its_keys_are_not_overwritten(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "stack.yaml").write_text("mine\n")
    (tmp_path / ".env").write_text("STACKGEN_API_KEY=the-key-of-my-clients\n")
    _, err = run(capsys, RUN, "-o", str(tmp_path), code=2)
    assert "already exists" in err and "--force" in err
    assert (tmp_path / "stack.yaml").read_text() == "mine\n"
    _, err = run(capsys, RUN, "-o", str(tmp_path), "--force")
    assert "already contains another STACKGEN_API_KEY" in err
    assert read_env(tmp_path)["STACKGEN_API_KEY"] == "the-key-of-my-clients"


def test_a_compose_file_with_variables_anchors_and_extends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LEVEL", raising=False)
    folder = tmp_path / "Stack"
    folder.mkdir()
    (folder / "compose.yaml").write_text(COMPOSE)
    (folder / ".env").write_text("PORT=8123\n")
    out, err = run(capsys, str(folder / "compose.yaml"))
    stack = yaml.safe_load(out)
    assert stack["name"] == "stack" and stack["port"] == 8123 and "bind" not in stack
    # the volume has the project's name in Docker, and the chat page is a field of a stack
    assert stack["storage"] == {"volume": "stack_cache"}
    assert stack["ui"] == {"kind": "open-webui", "port": 3000, "bind": "0.0.0.0"}
    chat = stack["models"][-1]
    assert chat["model"] == "./models/one" and chat["gpus"] == [3] and chat["served_names"] == ["chat"]
    assert chat["extra_env"] == {"NCCL_DEBUG": {"from_env": "LEVEL"}}
    # `base` alone has no model
    assert "does not say which model" in err


def test_relative_paths_lead_to_the_same_files_from_another_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "old" / "m").mkdir(parents=True)
    (tmp_path / "old" / "compose.yaml").write_text(
        "services:\n  a:\n    image: vllm/vllm-openai\n    command: --model /m\n    volumes: [./m:/m]\n    gpus: all\n"
    )
    run(capsys, str(tmp_path / "old"), "-o", str(tmp_path / "new"))
    model = yaml.safe_load((tmp_path / "new" / "stack.yaml").read_text())["models"][0]
    assert Path(model["model"]) == tmp_path / "old" / "m"


def test_a_unit_with_its_environment_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "vllm.env").write_text(f"MODEL=org/m\nHF_TOKEN={TOKEN}\nVLLM_LOGGING_LEVEL=DEBUG\n")
    (tmp_path / "chat.service").write_text(
        f'[Unit]\nDescription=x\n[Service]\nEnvironmentFile={tmp_path}/vllm.env\nEnvironment="CUDA_VISIBLE_DEVICES=1"\n'
        "ExecStart=/opt/venv/bin/vllm serve ${MODEL} \\\n  --port 9000 --host 127.0.0.1\nLimitNOFILE=65536\n"
    )
    out, err = run(capsys, str(tmp_path / "chat.service"))
    stack = yaml.safe_load(out)
    assert stack["name"] == "chat" and stack["port"] == 9000
    model = stack["models"][0]
    assert model["model"] == "org/m" and model["gpus"] == [1]
    assert model["extra_env"] == {"VLLM_LOGGING_LEVEL": "DEBUG"}
    assert TOKEN not in out + err and "LimitNOFILE=65536" in err


def test_equal_services_become_replicas_and_equal_gpus_are_pointed_out(capsys: pytest.CaptureFixture[str]) -> None:
    two = "CUDA_VISIBLE_DEVICES={} vllm serve org/m --port {} --host 127.0.0.1\n"
    out, _ = run(capsys, two.format(0, 8000) + two.format(1, 8001))
    assert yaml.safe_load(out)["models"] == [{"model": "org/m", "engine": "vllm", "gpus": [0, 1], "replicas": 2}]
    out, err = run(
        capsys,
        "CUDA_VISIBLE_DEVICES=0 vllm serve org/a --gpu-memory-utilization 0.4 --port 1\n"
        "CUDA_VISIBLE_DEVICES=0 vllm serve org/b --gpu-memory-utilization 0.5 --port 2\n",
    )
    assert "GPU 0 is used twice" in err
    assert [one["share_gpus"] for one in yaml.safe_load(out)["models"]] == [True, True]


def test_removed_flags_move_to_their_successors(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(
        capsys,
        "python -m vllm.entrypoints.openai.api_server --model org/m --guided-decoding-backend xgrammar --task embed "
        "--swap-space 4 --rope-scaling '{}' --not-a-flag",
    )
    model = yaml.safe_load(out)["models"][0]
    assert model["extra_args"] == [
        "--structured-outputs-config.backend", "xgrammar", "--runner=pooling", "--convert=embed",
    ]  # fmt: skip
    assert "--rope-scaling {}: removed from vLLM: use --hf-overrides" in err
    assert "vLLM 0.32.0 has no flag --not-a-flag" in err
    # what is not carried over is also in the file
    assert "# Not carried over:" in out


def test_json_has_the_outcome_of_each_word(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, RUN, "--json")
    data: dict[str, Any] = json.loads(out)
    assert data["kind"] == "command" and data["result"] == "whole" and data["problems"] == []
    outcomes = {item["text"]: (item["outcome"], item["field"]) for item in data["items"]}
    assert outcomes["org/m"] == ("carried", "models[0].model")
    assert outcomes["8000:8000"] == ("carried", "port")
    assert outcomes["HF_TOKEN=[secret]"] == ("secret", ".env: HF_TOKEN_FILE")
    assert KEY not in out + err and TOKEN not in out + err


def test_diff_shows_both_sides_and_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(
        "services:\n  chat:\n    image: vllm/vllm-openai\n    command: --model org/m\n    shm_size: 8g\n"
        f"    environment: {{HF_TOKEN: {TOKEN}}}\n"
    )
    out, _ = run(capsys, str(tmp_path), "--diff")
    assert "chat" in out.splitlines()[0] and "vllm-m" in out.splitlines()[0]
    row = next(line for line in out.splitlines() if line.startswith("shm_size"))
    assert row.split("│")[0].strip() == "shm_size: 8g" and row.split("│")[1].strip() == 'shm_size: "8g"'
    assert "only in the rendered file: download" in out
    assert TOKEN not in out
    assert [path.name for path in tmp_path.iterdir()] == ["compose.yaml"]


def test_a_stack_that_cannot_be_rendered_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, "vllm serve org/m --quantization nonsense", code=1)
    assert yaml.safe_load(out)["models"][0]["quantization"] == "nonsense"
    assert "change before `stackgen render`" in err and "models[0].quantization" in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("docker run -p 11434:11434 ollama/ollama", "Ollama is not an engine of stackgen"),
        ("ollama run qwen3:8b", "qwen3:8b is a name in Ollama's library"),
        ("ollama serve", "see `From Ollama` in docs/coming-from.md"),
        ("echo hello world", "starts no engine that stackgen knows"),
        ("vllm serve $UNKNOWN_MODEL", "does not say which model"),
        ("no-such-file.yaml", "the file does not exist"),
        ("name: x\nmodels:\n- model: a\n  engine: vllm\n", "this is a stack file already"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n", "a Kubernetes manifest (Pod)"),
        ("services:\n  a:\n    command: 'vllm serve \"x'\n    image: vllm/vllm-openai\n", "can't be split into words"),
        ("services:\n  a: {image: x, image: y}\n", "is set twice"),
        ("services:\n  a: {image: x, extends: {service: b}}\n", "there is no service 'b'"),
        ("servingEngineSpec: {modelSpec: []}\n", "lists no model"),
        ("servingEngineSpec: {modelSpec: [x]}\n", "must be a mapping with `modelURL`"),
        ("services:\n  a: {image: x, deploy: [y], command: [{z: 1}]}\n", "services.a.deploy: must be a mapping"),
        ("services:\n  a: {image: x}\nvolumes: [v]\n", "must be a mapping with names as keys"),
    ],
)
def test_what_cannot_be_imported_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.delenv("UNKNOWN_MODEL", raising=False)
    out, err = run(capsys, text, code=2)
    assert message in err
    assert out == ""


def test_sglang_is_imported_if_stackgen_has_the_engine(capsys: pytest.CaptureFixture[str]) -> None:
    command = "python3 -m sglang.launch_server --model-path org/m --tp 2 --context-length 8192 --disable-cuda-graph"
    if "sglang" not in engines.names():
        _, err = run(capsys, command, code=2)
        assert "SGLang is not an engine of stackgen" in err
        return
    out, _ = run(capsys, f"{command} --enable-metrics --mem-fraction-static 0.8")
    stack = yaml.safe_load(out)
    assert stack["port"] == 30000 and "bind" not in stack
    assert stack["models"] == [{
        "model": "org/m", "engine": "sglang", "gpus": 2, "tensor_parallel_size": 2, "max_model_len": 8192,
        "enforce_eager": True, "mem_fraction_static": 0.8,
    }]  # fmt: skip


def test_the_file_of_a_config_flag_is_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "vllm.yaml").write_text(
        "model: org/m\nmax-model-len: 4096\nenforce-eager: true\ntrust-remote-code: false\nserved-model-name: [a, b]\n"
    )
    out, err = run(capsys, f"vllm serve --config {tmp_path}/vllm.yaml --max-model-len 8192", "--verbose")
    assert "max-model-len: 4096: --max-model-len is given more than once, and the last value counts" in err
    model = yaml.safe_load(out)["models"][0]
    assert model["model"] == "org/m" and model["enforce_eager"] is True and model["served_names"] == ["a", "b"]
    # the command line overrides the file
    assert model["max_model_len"] == 8192 and "trust_remote_code" not in model
    _, err = run(capsys, "vllm serve org/m --config /no/such/file.yaml")
    assert "--config reads flags from a file, which stackgen does not read" in err


FASTCHAT = """\
services:
  controller:
    build: .
    image: fastchat:latest
    ports: ["21001:21001"]
    entrypoint: [python3.9, -m, fastchat.serve.controller, --host, 0.0.0.0, --dispatch-method, lottery]
  worker:
    build: .
    image: fastchat:latest
    volumes: ["huggingface:/root/.cache/huggingface"]
    gpus: all
    entrypoint: [python3.9, -m, fastchat.serve.model_worker, --model-names, "${NAMES:-a,b}", --model-path, org/m]
  api:
    build: .
    image: fastchat:latest
    ports: ["8000:8000"]
    entrypoint: [python3.9, -m, fastchat.serve.openai_api_server, --host, 0.0.0.0, --api-keys, sk-0123456789abcdefghij]
"""


def test_the_three_services_of_fastchat_are_one_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "docker-compose.yml").write_text(FASTCHAT)
    out, _ = run(capsys, str(tmp_path), "--json")
    data = json.loads(out)
    assert data["result"] == "whole" and data["secrets"] == ["STACKGEN_API_KEY"]
    # the port is that of the API server; the controller's and the worker's stay inside
    assert data["stack"]["port"] == 8000 and data["stack"]["bind"] == "0.0.0.0"
    assert data["stack"]["models"] == [{
        "model": "org/m", "engine": "fastchat", "served_names": ["a", "b"], "gpus": 1, "dispatch_method": "lottery",
    }]  # fmt: skip


def test_values_of_a_cluster_keep_replicas_and_routing(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(
        capsys,
        "servingEngineSpec:\n  vllmApiKey: sk-0123456789abcdefghij\n  modelSpec:\n"
        "  - {name: a, modelURL: org/a, replicaCount: 2, requestGPU: 4, pvcStorage: 10Gi,\n"
        "     vllmConfig: {tensorParallelSize: 4, enableChunkedPrefill: true, extraArgs: [--seed, '1']}}\n"
        "routerSpec: {routingLogic: prefixaware, sessionKey: user}\n",
    )
    stack = yaml.safe_load(out)
    assert stack["gateway"] == {"routing": "prefix"}
    assert stack["models"] == [{
        "model": "org/a", "engine": "vllm", "gpus": 4, "replicas": 2, "tensor_parallel_size": 4,
        "extra_args": ["--enable-chunked-prefill", "--seed", "1"],
    }]  # fmt: skip
    assert "routerSpec.sessionKey: user: stackgen's gateway has its own settings" in err
    assert "sk-0123456789" not in out + err


def test_dangerous_options_are_pointed_out(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(
        capsys,
        "docker run --privileged --network host --ipc=host --pid host -v /var/run/docker.sock:/var/run/docker.sock "
        "vllm/vllm-openai org/m --trust-remote-code",
    )
    for text in (
        "privileged gave the container full access", "ipc: host shares memory", "could control Docker",
        "--trust-remote-code runs Python code", "is not pinned to a version", "the host's network",
        "the source needs no key", "let the container see the processes",
    ):  # fmt: skip
        assert text in err, text
    assert "privileged" not in yaml.safe_load(out)["models"][0]


def test_render_of_a_compose_file_points_at_import(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("services:\n  a: {image: vllm/vllm-openai, command: --model org/m}\n")
    assert main(["render", str(tmp_path / "compose.yaml")]) == 2
    assert "stackgen import" in capsys.readouterr().err


def test_docker_compose_reads_the_example_as_the_importer_does(tmp_path: Path) -> None:
    """The real Compose expands COMPOSE in the same way: its command, port and volume are those that were imported."""
    (tmp_path / "compose.yaml").write_text(COMPOSE)
    words = ["docker", "compose", "-f", str(tmp_path / "compose.yaml"), "config", "--format", "json"]
    done = subprocess.run(
        words, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "PORT": "8123", "HOME": "/root"}
    )
    assert done.returncode == 0, done.stderr
    chat = json.loads(done.stdout)["services"]["chat"]
    assert chat["command"] == ["--model", "/models/one", "--served-model-name", "chat"]
    assert chat["image"] == "vllm/vllm-openai:latest" and chat["ports"][0]["published"] == "8123"
