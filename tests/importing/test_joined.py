"""Sources of several files: overrides, `include`, `extends`, and Dockerfiles. The real Compose joins the same files."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.cli.main import main

FILES = {
    "compose.yaml": """\
name: joined
include:
  - llm/compose.yaml
  - {path: [web/compose.yaml, web/extra.yaml], env_file: web/web.env}
services:
  proxy: {image: "nginx:1", depends_on: [chat]}
""",
    "compose.override.yaml": """\
services:
  proxy: {image: "nginx:2", depends_on: {ui: {condition: service_started}}}
""",
    "llm/compose.yaml": """\
services:
  chat:
    build: {context: ., args: {TAG: v0.11.0}}
    image: my-vllm
    extends: {file: base/common.yaml, service: gpu}
    ports: ["8001:8000"]
    environment: ["NCCL_DEBUG=INFO"]
    volumes: ["./models:/models", "cache:/root/.cache/huggingface"]
volumes: {cache: {}}
""",
    "llm/base/common.yaml": """\
services:
  zero:
    environment: {VLLM_LOGGING_LEVEL: DEBUG, NCCL_DEBUG: WARN}
    volumes: ["./tmpl:/tmpl", "./old:/models"]
  gpu:
    extends: {service: zero}
    deploy: {resources: {reservations: {devices: [{driver: nvidia, count: 1, capabilities: [gpu]}]}}}
""",
    "llm/Dockerfile": """\
ARG TAG=latest
FROM vllm/vllm-openai:${TAG} AS base
ENV HF_HUB_OFFLINE=1 \\
    # a comment inside
    OMP_NUM_THREADS=4
FROM base
EXPOSE 8000
ENTRYPOINT ["python3", "-m", "vllm.entrypoints.openai.api_server"]
CMD ["--model", "/models/one", "--max-model-len", "8192"]
""",
    "web/compose.yaml": """\
services:
  ui: {image: "ghcr.io/open-webui/open-webui:${UI_TAG}", ports: ["3000:8080"], environment: {WEBUI_NAME: first}}
""",
    "web/extra.yaml": "services:\n  ui: {environment: [WEBUI_NAME=second]}\n",
    "web/web.env": "UI_TAG=main\n",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> dict[str, Any]:
    assert main(["import", *map(str, words), "--json"]) == code
    out, err = capsys.readouterr()
    data: dict[str, Any] = json.loads(out) if out else {"error": err}
    return data | {"stderr": err}


def reasons(data: dict[str, Any]) -> dict[str, str]:
    return {f"{one['place']} {one['text']}": f"{one['outcome']}: {one['reason']}" for one in data["items"]}


def leaves(node: Any) -> Iterator[str]:
    if isinstance(node, (dict, list)):
        for one in node.values() if isinstance(node, dict) else node:
            yield from leaves(one)
    elif node is not None:
        yield str(node)


def test_included_and_extended_files_become_one_stack(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = run(capsys, project)
    stack = data["stack"]
    [model] = stack["models"]
    # paths are relative to the folder of the project, whatever file they are in
    assert model["model"] == "./llm/models/one" and model["max_model_len"] == 8192 and model["gpus"] == 1
    assert {"source": "./llm/base/tmpl", "target": "/tmpl", "read_only": False} in model["mounts"]
    assert model["extra_env"] == {"NCCL_DEBUG": "INFO", "VLLM_LOGGING_LEVEL": "DEBUG", "OMP_NUM_THREADS": "4"}
    assert stack["storage"] == {"volume": "joined_cache"} and stack["port"] == 8001 and stack["ui"]["port"] == 3000
    found = reasons(data)
    assert found["llm/compose.yaml: services.chat.extends: environment.NCCL_DEBUG WARN"].startswith(
        "built-in: the serv"
    )
    assert found["services.proxy.image nginx:1"] == "built-in: a later file replaces it"
    assert found["web/compose.yaml: services.ui.environment.WEBUI_NAME first"] == "built-in: a later file replaces it"


def test_no_value_of_any_file_is_lost(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = " ".join(
        re.sub(r"\./(?:llm/|base/)+", "./", f"{one['place']} {one['text']}") for one in run(capsys, project)["items"]
    )
    for name, text in FILES.items():
        if name.endswith(".yaml"):
            for value in leaves(yaml.safe_load(text)):
                assert value.partition("=")[2] in told if "=" in value else value in told, (name, value)
    for word in re.findall(r"[\w./-]+", re.sub(r"#.*", "", FILES["llm/Dockerfile"])):
        assert word in told or word in ("FROM", "ENV"), word


def test_the_real_compose_joins_the_files_in_the_same_way(project: Path) -> None:
    words = ["docker", "compose", "--project-directory", str(project), "config", "--format", "json"]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=project, env={"PATH": "/usr/bin:/bin:/usr/local/bin"}
    )
    if "is not a docker command" in done.stderr:
        pytest.skip("Docker Compose is not installed")
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    chat = services["chat"]
    assert chat["environment"] == {"NCCL_DEBUG": "INFO", "VLLM_LOGGING_LEVEL": "DEBUG"}
    sources = {one["target"]: one["source"] for one in chat["volumes"]}
    assert sources["/models"] == str(project / "llm/models") and sources["/tmpl"] == str(project / "llm/base/tmpl")
    assert services["ui"]["environment"] == {"WEBUI_NAME": "second"}
    assert services["ui"]["image"].endswith(":main") and services["proxy"]["image"] == "nginx:2"
    assert set(services["proxy"]["depends_on"]) == {"chat", "ui"}


def test_files_are_merged_in_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, over = tmp_path / "a.yaml", tmp_path / "b.yaml"
    base.write_text(
        "services:\n  a: {image: vllm/vllm-openai, command: [--model, org/m, --dtype, half], ports: ['80:8000']}\n"
    )
    over.write_text("services:\n  a: {command: --model org/n}\n  b: {image: redis}\n")
    data = run(capsys, base, over)
    assert data["stack"]["models"][0]["model"] == "org/n"
    assert reasons(data)["services.a.command[3] half"] == "built-in: a later file replaces it"
    # the folder's override is not part of a file that is named
    base.rename(tmp_path / "compose.yaml")
    over.rename(tmp_path / "compose.override.yml")
    data = run(capsys, tmp_path / "compose.yaml")
    assert data["stack"]["models"][0]["model"] == "org/m"
    assert "compose.override.yml was not read" in data["stderr"]


def test_what_include_cannot_read_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "llm/compose.yaml").write_text(
        FILES["llm/compose.yaml"] + "include: [missing.yaml, 'oci://example/x:1']\n"
    )
    found = reasons(run(capsys, project))
    assert found["llm/compose.yaml: include[0] missing.yaml"].startswith("dropped: ")
    assert found["llm/compose.yaml: include[1] oci://example/x:1"].startswith("dropped: ")
    (project / "llm/compose.yaml").write_text("include: [../compose.yaml]\nservices: {}\n")
    assert "includes itself" in run(capsys, project, code=2)["error"]
    (project / "llm/compose.yaml").write_text("services:\n  ui: {image: vllm/vllm-openai, command: --model m}\n")
    assert "Compose refuses two services with the same name" in run(capsys, project, code=2)["error"]


@pytest.mark.parametrize(
    ("service", "text", "model"),
    [
        # the service's command replaces CMD, and not ENTRYPOINT
        ({"command": "--model org/b"},
         'FROM vllm/vllm-openai\nENTRYPOINT ["vllm", "serve"]\nCMD ["--model", "a"]\n', "org/b"),
        # its entrypoint replaces both
        ({"entrypoint": "vllm serve org/c"},
         'FROM vllm/vllm-openai\nENTRYPOINT ["vllm", "serve"]\nCMD ["a"]\n', "org/c"),
        # the shell form has variables, also of the service
        ({"environment": {"NAME": "org/d"}}, "FROM python:3.12\nRUN pip install vllm\nENTRYPOINT vllm serve $NAME \\\n"
                                             " --port ${PORT:-8000}\n", "org/d"),
        # a stage that is not used
        ({},
         'FROM go AS build\nRUN make\nFROM vllm/vllm-openai\nCOPY --from=build /a /a\nCMD ["--model", "org/e"]\n',
         "org/e"),
        ({"build": {"context": ".", "target": "one"}},
         'FROM vllm/vllm-openai AS one\nCMD ["--model", "org/f"]\nFROM one AS two\nCMD ["--model", "org/g"]\n',
         "org/f"),
    ],
)  # fmt: skip
def test_dockerfile_of_a_service(
    service: dict[str, Any], text: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "Dockerfile").write_text(text)
    (tmp_path / "compose.yaml").write_text(json.dumps({"services": {"a": {"build": ".", **service}}}))
    data = run(capsys, tmp_path)
    [found] = data["stack"]["models"]
    assert found["model"] == model and "image" not in found
    lines = {int(one["place"].partition("line ")[2].partition("[")[0].partition(".")[0].partition(",")[0])
             for one in data["items"] if "Dockerfile: line" in one["place"]}  # fmt: skip
    assert lines == {number for number, line in enumerate(text.splitlines(), 1) if not line.startswith(" ")}
    steps = [one for one in data["items"] if re.match(r"RUN|COPY", one["text"]) and "stage" not in one["reason"]]
    assert all(one["outcome"] == "dropped" for one in steps)
    assert bool(steps) == any("builds its own image" in str(one) for one in data["warnings"])


def test_dockerfile_alone_and_other_texts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text('# syntax=docker/dockerfile:1\nARG V=v0.11.0\nFROM vllm/vllm-openai:$V\nCMD ["--model", "org/m"]\n')
    assert run(capsys, path)["stack"]["models"][0]["model"] == "org/m"
    path.write_text("FROM python\nCMD python app.py\n")
    assert "starts no engine" in run(capsys, path, code=2)["error"]
    path.write_text("apiVersion: v1\nkind: Service\n---\napiVersion: apps/v1\nkind: Deployment\n")
    assert "a Kubernetes manifest (Service, Deployment)" in run(capsys, path, code=2)["error"]
