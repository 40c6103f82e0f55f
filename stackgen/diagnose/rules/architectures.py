"""Rules for models whose architecture this version of vLLM does not have, or runs only with Transformers' code."""

from __future__ import annotations

from stackgen.diagnose.rule import Rule, Variant, compile_patterns

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V006",
        title="vLLM does not know the model's architecture",
        cause="config.json has the architecture {architecture}, which this version of vLLM can't run",
        fix="set `image:` to an image with a newer vLLM, use another model, or try `engine: fastchat`, which runs "
        "the architectures that Transformers supports",
        source="The message comes from vLLM 0.32.0 (model_executor/models/registry.py). The failure was reproduced. "
        "MiniMax-AI/MiniMax-M1 issue 21 (2025-07) quotes the message about a model module.",
        explain="A new architecture needs a newer version of vLLM. docs.vllm.ai lists the supported architectures.",
        patterns=compile_patterns(
            r"Model architectures \[(?P<architecture>[^\]]+)\] are not supported for now",
        ),
        engines=("vllm",),
        variants=(
            Variant(
                # vLLM tries Transformers after its own models
                compile_patterns(
                    r"Cannot find model module\. '(?P<architecture>\w+)' is not a registered model in the Transformers "
                    r"library"
                ),
                cause="config.json has the architecture {architecture}, which neither this version of vLLM nor its "
                "version of Transformers has. Most often, the model is newer than the image",
                fix="set `image:` to an image with a newer vLLM (the model's page names the version), or use another "
                "model; leave trust_remote_code as it is, because config.json names no code in the model's repository "
                "for this architecture",
            ),
            Variant(
                # Transformers' reader of GGUF files, which vLLM uses for their configuration
                compile_patterns(r"GGUF model with architecture (?P<architecture>\S+) is not supported"),
                title="vLLM can't read a GGUF file of this architecture",
                cause="vLLM reads the configuration of a GGUF file with Transformers, which does not support the "
                "architecture {architecture}",
                fix="serve the GGUF file with the engine llamacpp, or set `model:` to the repository with safetensors "
                "files for vLLM",
            ),
            Variant(
                # of older versions; the warning of the same text ends with `falling back to Transformers`
                compile_patterns(
                    r"(?<!\w)(?P<architecture>\w{1,100}) has no vLLM implementation and the Transformers "
                    r"implementation "
                    r"is not compatible"
                ),
                cause="vLLM has no implementation of {architecture}, and can't use the implementation of Transformers",
                fix="set `image:` to an image with a newer vLLM, or use another model",
            ),
        ),
    ),
    Rule(
        "SG-V068",
        title="vLLM runs a multimodal model with code that was not made for it",
        cause="vLLM passed {expected} image or other input to the model, and the model's code returned {got} results. "
        "In known reports, vLLM was older than the model: it had no code of its own for the model, and tried the "
        "general code of Transformers",
        fix="set `image:` to the version of vLLM that the model's page names, or to a newer one (Qwen3-VL: vLLM "
        "0.11.0); don't update Transformers alone, because the missing code belongs to vLLM",
        source="The message comes from vLLM (v1/worker/utils.py, sanity_check_mm_encoder_outputs), and is quoted in "
        "QwenLM/Qwen3-VL issue 1626 (2025-10), whose answer names vLLM 0.11.0, and verl-project/verl issue 4994 "
        "(2026-07). The failure was not reproduced.",
        explain="The line `falling back to Transformers implementation` above the message shows that vLLM does not use "
        "its own code for the model. With its own code, the message would be a bug in vLLM.",
        patterns=compile_patterns(
            r"Expected number of multimodal embeddings to match number of input items: (?P<expected>\d+), but got "
            r"len\(mm_embeddings\)=(?P<got>\d+)"
        ),
        engines=("vllm",),
    ),
)
