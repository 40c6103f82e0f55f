"""The stack in a bundle: offline, without secrets, with local files next to it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import yaml

from stackgen.bundle.sources import name_by_tag
from stackgen.bundle.stack_copy import StackCopy, copy_stack
from stackgen.bundle.weights import Request, parse_requests
from stackgen.errors import StackgenError
from stackgen.stack.folder import open_stack
from tests.bundle.bundles import STACK

DIGEST = "sha256:" + "ab" * 32


def copy(folder: Path, text: str) -> tuple[StackCopy, dict[str, object]]:
    (folder / "stack.yaml").write_text(text)
    stack = open_stack(str(folder))
    found = copy_stack(stack, name_by_tag(stack.plan))
    return found, yaml.safe_load({path: data for path, data, _ in found.files}["stack.yaml"])


def test_stack_becomes_offline_and_keeps_its_comments(tmp_path: Path) -> None:
    found, data = copy(tmp_path, "# why\n" + STACK.replace(", offline: true", ""))
    assert data["storage"] == {"volume": "tiny-models", "offline": True}
    assert found.files[0][1].startswith(b"# why\n")
    assert all(service.role != "download" for service in found.plan.services)


def test_stack_without_a_storage_and_with_aliases_becomes_offline(tmp_path: Path) -> None:
    text = STACK.replace("storage: {volume: tiny-models, offline: true}\n", "x-len: &len 512\n").replace(
        ": 512", ": *len"
    )
    _, data = copy(tmp_path, text)
    assert data["storage"] == {"offline": True} and data["models"][0]["max_model_len"] == 512  # type: ignore[index]


def test_local_model_and_certificates_are_copied_and_their_paths_changed(tmp_path: Path) -> None:
    source = tmp_path / "elsewhere" / "My-Model"
    source.mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_bytes(bytes(1000))
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    (tmp_path / "s").mkdir()
    text = STACK.replace("org/tiny", str(source)).replace(", revision: main", "") + "ca_certificates: ../ca.pem\n"
    found, data = copy(tmp_path / "s", text)
    assert data["models"][0]["model"] == "./weights/My-Model" and data["ca_certificates"] == "./files/ca.pem"  # type: ignore[index]
    assert [(one.source, one.place) for one in found.local_models] == [(source, "weights/My-Model")]
    compose = {path: data for path, data, _ in found.files}["compose.yaml"].decode()
    assert "./weights/My-Model" in compose and str(tmp_path) not in compose
    # the name under which clients know the model
    assert "- My-Model\n" in compose


def test_snapshot_of_the_hub_cache_is_still_served_under_its_repository(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--org--name" / "blob").write_bytes(bytes(10))
    (snapshot / "model.safetensors").symlink_to("../../blob")
    found, data = copy(tmp_path, STACK.replace("org/tiny", str(snapshot)).replace(", revision: main", ""))
    assert data["models"][0]["model"] == "./weights/name" and data["models"][0]["served_names"] == ["org/name"]  # type: ignore[index]
    assert found.local_models[0].name == "org/name"


def test_image_by_digest_gets_a_tag(tmp_path: Path) -> None:
    found, data = copy(tmp_path, STACK.replace("example/vllm:1", f"localhost:5000/vllm:1@{DIGEST}"))
    assert data["models"][0]["image"] == "localhost:5000/vllm:sha256-abababababab"  # type: ignore[index]
    assert found.plan.services[0].image == "localhost:5000/vllm:sha256-abababababab"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("    extra_env: {MY_TOKEN: hf_abcdefghijklmnopqrstuvwxyz123456}\n", "secret"),
        ("    labels: {note: sk-in-the-env-file-0123456789}\n", "a secret of this stack"),
        ("    extra_args: [--chat-template, ./key.pem]\n", "contains a private key"),
    ],
)
def test_secrets_are_refused(tmp_path: Path, change: str, message: str) -> None:
    (tmp_path / ".env").write_text("STACKGEN_API_KEY=sk-in-the-env-file-0123456789\n")
    (tmp_path / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\n")
    model = yaml.safe_load(STACK)["models"][0]
    text = (
        "name: tiny\nmodels:\n  - " + "\n    ".join(f"{key}: {value}" for key, value in model.items()) + f"\n{change}"
    )
    with pytest.raises(StackgenError, match=message):
        copy(tmp_path, text)


def test_what_a_bundle_lacks_is_listed(tmp_path: Path) -> None:
    (tmp_path / "compose.override.yaml").write_text("services: {}\n")
    text = STACK.replace(
        ", revision: main", ", mounts: [{source: /data, target: /data}], extra_env: {A: {from_env: MY_A}}"
    )
    found, _ = copy(tmp_path, text)
    assert [one.partition(" ")[0] for one in found.needed] == [
        "models[0].mounts[0].source:",
        "MY_A",
        "compose.override.yaml:",
    ]


def test_requests_have_the_markers_of_the_download_service() -> None:
    arguments = ["--model", "a/b", "--revision", "v1", "--file", "x.gguf", "--model", "c", "--vocabulary", "o200k_base"]
    requests, vocabularies = parse_requests(arguments)
    assert requests == [Request("a/b", "v1", ("x.gguf",)), Request("c")] and vocabularies == ["o200k_base"]
    script = runpy.run_path(str(Path(__file__).parents[2] / "templates/images/common/download.py"))
    for request in requests:
        model = script["Model"](request.repo)
        model.revision, model.patterns = request.revision, list(request.patterns)
        store = model.folder.parents[1]
        assert request.marker == str(model.marker().relative_to(store))
        assert request.folder == str(model.folder.relative_to(store))
