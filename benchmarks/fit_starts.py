"""Starts real vLLM on the CPU with six tiny models, and compares the KV tokens it prints with `fit`, block by block.

    .venv/bin/python benchmarks/fit_starts.py IMAGE TOKENIZER_FOLDER

IMAGE: `scripts/build-image vllm-cpu` prints it. TOKENIZER_FOLDER: `scripts/small-model tiny` makes one. The weights are
random, and made in the container. Each start takes about 40 s. Run it after each change of vLLM's version.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from stackgen.fit import Gpu, Settings, estimate, read_model
from stackgen.fit.gpus import GIB

COMMON = {
    "dtype": "bfloat16", "vocab_size": 1024, "hidden_size": 128, "intermediate_size": 256,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
# each architecture has another kind of cache
MODELS = {
    "gqa-untied": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 3, **HEADS,
                   "head_dim": 32, "tie_word_embeddings": False, **COMMON},
    "tied": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64, "tie_word_embeddings": True, **COMMON},
    "mqa": {"architectures": ["GPTBigCodeForCausalLM"], "model_type": "gpt_bigcode", "n_layer": 2, "n_head": 4,
            "n_embd": 128, "n_inner": 256, "n_positions": 2048, "vocab_size": 1024, "multi_query": True,
            "dtype": "bfloat16", "activation_function": "gelu_pytorch_tanh", "bos_token_id": 1, "eos_token_id": 2},
    "mla": {"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 512,
            "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "first_k_dense_replace": 2,
            "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_shared_experts": 1,
            "topk_method": "greedy", "n_group": 1, "topk_group": 1, "rope_theta": 10000, "tie_word_embeddings": False,
            **COMMON},
    "sliding": {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "num_hidden_layers": 7,
                "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64, "query_pre_attn_scalar": 64,
                "sliding_window": 256, "sliding_window_pattern": 6, "hidden_activation": "gelu_pytorch_tanh",
                "tie_word_embeddings": True, **{k: v for k, v in COMMON.items() if k != "hidden_act"}},
    "hybrid": {"architectures": ["GraniteMoeHybridForCausalLM"], "model_type": "granitemoehybrid",
               "num_hidden_layers": 4, "layer_types": ["mamba", "mamba", "attention", "mamba"], **HEADS,
               "mamba_n_heads": 8, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 64, "mamba_d_conv": 4,
               "mamba_expand": 2, "mamba_chunk_size": 64, "num_local_experts": 0, "num_experts_per_tok": 0,
               "shared_intermediate_size": 256, "position_embedding_type": "nope", "attention_multiplier": 0.1,
               "embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0,
               "tie_word_embeddings": True, **COMMON},
}  # fmt: skip
MAKE = """
import sys, torch, shutil
from transformers import AutoConfig, AutoModelForCausalLM
for name in sys.argv[1:]:
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(f"/configs/{name}"), dtype=torch.bfloat16)
    model.save_pretrained(f"/models/{name}")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"/tokenizer/{file}", f"/models/{name}/{file}")
"""
# the end of the engine's start: the line with the tokens comes before it
READY = "Application startup complete"
START = ("vllm serve /models/{name} --enforce-eager --port 8999 & pid=$!; "
         "for _ in $(seq 120); do sleep 1; kill -0 $pid || exit 1; "
         "curl -s -o /dev/null http://127.0.0.1:8999/health && break; done; kill $pid; wait $pid")  # fmt: skip
GIB_OF_CACHE = 1


def run(image: str, mounts: list[str], command: list[str]) -> str:
    environment = {"HOME": "/tmp", "VLLM_CPU_KVCACHE_SPACE": str(GIB_OF_CACHE), "TORCHDYNAMO_DISABLE": "1",
                   "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}  # fmt: skip
    flags = [flag for name, value in environment.items() for flag in ("-e", f"{name}={value}")]
    volumes = [flag for mount in mounts for flag in ("-v", mount)]
    done = subprocess.run(["docker", "run", "--rm", "--shm-size", "512m", *flags, *volumes, "--entrypoint", command[0],
                           image, *command[1:]], capture_output=True, text=True, timeout=300)  # fmt: skip
    return done.stdout + done.stderr


def main(image: str, tokenizer: str, *names: str) -> int:
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        configs, models = Path(folder) / "configs", Path(folder) / "models"
        models.mkdir(parents=True)
        # the image's user is not the one who runs this script
        Path(folder).chmod(0o755)
        models.chmod(0o777)
        wanted = names or tuple(MODELS)
        for name in wanted:
            (configs / name).mkdir(parents=True)
            (configs / name / "config.json").write_text(json.dumps(MODELS[name]))
        mounts = [f"{configs}:/configs:ro", f"{models}:/models", f"{Path(tokenizer).resolve()}:/tokenizer:ro"]
        log = run(image, mounts, ["python3", "-c", MAKE, *wanted])
        for name in wanted:
            if not (models / name).exists():
                print(f"{name:11} could not be made: {log[-400:]}")
                return 2
            log = run(image, mounts, ["sh", "-c", START.format(name=name)])
            found = re.search(r"KV cache size: ([\d,]+) tokens", log)
            settings = Settings(is_cpu=True, kv_cache_bytes=GIB_OF_CACHE * GIB)
            expected = estimate(read_model(models / name), settings, Gpu("CPU", 24 * GIB))
            printed = int(found[1].replace(",", "")) if found else None
            tokens = expected.plan.tokens(GIB_OF_CACHE * GIB, expected.length)
            same = printed == tokens
            failed += not same
            print(f"{name:11} vLLM printed {printed} tokens, fit computed {tokens}: {'equal' if same else 'DIFFERENT'}",
                  flush=True)  # fmt: skip
            if found is None:
                print(log[-1500:])
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
