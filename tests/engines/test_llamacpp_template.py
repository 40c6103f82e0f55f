"""Chat templates inside GGUF files that ignore tools are reported by `render` and `doctor`."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from stackgen.doctor.gguf_template import check_gguf_template
from stackgen.doctor.model_facts import read_model_facts
from stackgen.resolve.pipeline import resolve
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite

TOOLS = "{% if tools %}{{ tools }}{% endif %}{% for m in messages %}{{ m.tool_calls }}{{ m.content }}{% endfor %}"
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
HALF = "{{ tools }}" + PLAIN


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def write_gguf(path: Path, template: str | None) -> Path:
    pairs = {"general.architecture": "llama"} | ({"tokenizer.chat_template": template} if template else {})
    body = b"".join(text(name) + struct.pack("<I", 8) + text(value) for name, value in pairs.items())
    # a vocabulary, whose texts are skipped
    body += text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2000) + text("ab") * 2000
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs) + 1) + body)
    return path


def warnings(**fields: object) -> list[str]:
    model = {"engine": "llamacpp", "gpus": "none", **fields}
    plan = resolve(build_spec({"name": "demo", "models": [model], "gateway": False}, "test"), ComposeSite(), "t")
    return [one for one in plan.warnings if "ignores `tools`" in one]


@pytest.mark.parametrize(("template", "status"), [(TOOLS, "ok"), (PLAIN, "warn"), (None, "warn"), (HALF, "unknown")])
def test_a_template_without_tools_is_reported(tmp_path: Path, template: str | None, status: str) -> None:
    file = write_gguf(tmp_path / "m.gguf", template)
    assert len(warnings(model=str(file))) == (status == "warn")
    spec = build_spec({"name": "demo", "models": [{"model": str(file), "engine": "llamacpp", "gpus": "none"}]}, "test")
    [result] = check_gguf_template(spec.models[0], read_model_facts(file), "models[0]")
    assert result.status == status and "m.gguf" in result.message


def test_another_template_or_a_missing_file_is_not_judged(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", PLAIN)
    assert not warnings(model=str(file), extra_args=["--chat-template-file", "/t.jinja"])
    assert not warnings(model=str(tmp_path / "missing.gguf"))
    file.write_bytes(file.read_bytes()[:60])
    assert not warnings(model=str(file))


def test_each_model_of_a_router_is_judged(tmp_path: Path) -> None:
    for name, template in (("a", TOOLS), ("b", PLAIN)):
        write_gguf(tmp_path / f"{name}.gguf", template)
    [warning] = warnings(models_dir=str(tmp_path), served_names=["a", "b"])
    assert "b.gguf" in warning and "neither" in warning
