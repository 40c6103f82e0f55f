"""Rules for model files that are newer than the image, or made for another program, quantization or number of GPUs.

Such files are whole: to download them again does not help. `source` names the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns

__all__ = ["RULES"]

NOT_REPRODUCED = "The failure was not reproduced."
NEWER_BUILD = "set `image:` to a newer build of llama.cpp, or to the build that the file's page names; or use a file"
WEIGHT = (
    r"(?:weight|bias|weight_(?:scale(?:_inv|_2)?|zero_point|packed|shape|global_scale|g_idx)|input_(?:global_)?scale|"
    r"[kvq]_scale|scales?|qweight|qzeros|g_idx|w\d+_\w+|absmax)"
)

# the frames of Transformers 4 that read the field extra_special_tokens
SPECIAL_TOKENS = re.compile(r"_set_model_specific_special_tokens|list\(special_tokens\.keys\(\)\)|extra_special_tokens")
NO_KEYS = "AttributeError: 'list' object has no attribute 'keys'"


def _find_token_list(evidence: Evidence) -> Iterator[Hit]:
    """Transformers 4 reads special tokens that Transformers 5 has saved as a list."""
    for service in evidence.services:
        lines = service.log.splitlines() if NO_KEYS in service.log and not service.is_working else []
        for index, line in enumerate(lines):
            if strip_prefix(line).strip() == NO_KEYS and any(
                map(SPECIAL_TOKENS.search, lines[max(0, index - 8) : index])
            ):
                yield Hit(service.service, (NO_KEYS,), variant=TOKEN_LIST)
                break


TOKEN_LIST = Variant(
    (),
    title="the tokenizer was saved by Transformers 5",
    cause="tokenizer_config.json has a list in extra_special_tokens, as Transformers 5 saves it, and the image's "
    "Transformers 4 expects names and values",
    fix="set `image:` to a version of the engine with Transformers 5; for a fine-tuned model, use the tokenizer files "
    "of its base model, or change the list in a copy of tokenizer_config.json to `{}`; leave the weights as they are, "
    "because they are not the cause",
    condition="the traceback ends in the special tokens of the tokenizer",
)

UNMATCHED_LAYER = Variant(
    compile_patterns(r"Unable to find matching target for (?P<layer>\S{1,120}) in the compressed-tensors config"),
    title="the model's quantization does not list one of its layers",
    cause="vLLM builds the layer {layer}, but the model's quantization_config names this layer, or its class, neither "
    "in `targets` nor in `ignore`. Either this version of vLLM gives the layer another name or class (for example, if "
    "it uses the implementation of Transformers), or the list is incomplete",
    fix="use another version of vLLM: the one that the model's page names, or a newer one; if the message stays the "
    "same, use another quantization of the model, whose quantization_config lists the layer",
)
BLOCK_STRUCTURE = Variant(
    compile_patterns(r"\bblock_structure\W+Input should be a valid string.{0,80}?input_value=(?P<value>\[[\d, ]+\])"),
    title="the model's quantization is newer than the image",
    cause="the image's compressed-tensors is older than the model: it expects text as block_structure in the model's "
    "quantization_config, but the model has the list {value}",
    fix="set `image:` to a newer version of the engine, or to the one that the model's page names",
)
PER_LAYER = Variant(
    compile_patterns(
        r"AmbiguousGlobalPerLayerAttributeError: '(?P<field>\w+)' is a per-layer",
        r"AmbiguousGlobalPerLayerAttributeError",
    ),
    title="Transformers is too new for this version of vLLM",
    cause="Transformers 5.15 and newer have a value for each layer of this model[[, namely of {field}]], but this "
    "version of vLLM reads one value for the whole model. This happens with Gemma 4 and versions of vLLM before 0.28.0",
    fix="set `image:` to vLLM 0.28.0 or newer, or to an image with Transformers 5.14.1 or older; in your own "
    "installation, you can also install `transformers==5.14.1`; don't set allow_global_per_layer_attribute_access, "
    "because some layers can then get a wrong size",
)

EXPERTS = Variant(
    compile_patterns(
        r"Unsupported FusedMoe scheme: num_bits=(?P<bits>\d+) type='(?P<type>\w+)'.{0,200}?"
        r"(?:, num_bits=(?P<act_bits>\d+) type='(?P<act_type>\w+)'|$)",
        r"Unsupported FusedMoe scheme",
        r"For FP8 Fused MoE layers, only per-tensor ?scales? ?for weights and activations are supported",
    ),
    title="this version of the engine can't run the quantization of the model's experts",
    cause="the experts of the model (its mixture-of-experts layers) are quantized in a way for which this version of "
    "the engine has no code[[: weights as {type} of {bits} bits]][[, activations as {act_type} of {act_bits} bits]]. "
    "Engines support fewer quantizations for experts than for other layers",
    fix="set `image:` to a newer version of the engine, which may support it (4-bit weights with FP8 activations: vLLM "
    "0.20); or use another quantization of the model: for experts, FP8, AWQ, GPTQ and 4-bit weights without quantized "
    "activations (W4A16) are supported most widely",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V022",
        title="the model has weights that the engine does not expect",
        cause="the model's files contain a weight that this version of the engine does not expect: {weight} (engines "
        "rename some weights, so the files may contain it under another name). Either the model's format or "
        "quantization is newer than the image, or the files were made for another program, or a tool quantized a layer "
        "that the engine reads without quantization",
        fix="set `image:` to a newer version of the engine (the model's page names the version), or use another "
        "quantization of the model",
        source="The messages come from vLLM (model_executor/models/utils.py, and load_weights of the models). They are "
        "quoted in vllm-project/vllm issues 44081 (2026-06), 38303 (2026-03) and 40358 (2026-04), and in "
        "ModelCloud/GPTQModel issue 1788 (2025-09) and vllm-project/llm-compressor "
        f"issue 2255 (2026-01). {NOT_REPRODUCED}",
        explain="vLLM looks up each weight of the files in the model's class. A quantized model has additional "
        "weights, such as scales. The files are complete, so a new download would contain the same weights.",
        patterns=compile_patterns(
            r"There is no module or parameter named '(?P<weight>[^']+)' in \w+",
            rf"KeyError: '(?P<weight>(?:[\w-]+\.)+{WEIGHT})'",
        ),
    ),
    Rule(
        "SG-V023",
        title="the tokenizer needs another version of Transformers",
        cause="the model's tokenizer uses the class {tokenizer}, which the image's Transformers does not have. "
        "Either the tokenizer was saved with another version (TokenizersBackend belongs to Transformers 5), or it is "
        "custom code",
        fix="set `image:` to an image with a newer Transformers; for a fine-tuned model, use the tokenizer files of "
        "its base model",
        source="The messages come from transformers 4.x and 5.24 (models/auto/tokenization_auto.py). "
        "gpustack/gpustack issue 5096 (2026-04) quotes the first one, and SearchSavior/OpenArc issue 132 (2026-05) and "
        f"huggingface/transformers pull request 45566 (2026-04) the one about a list. {NOT_REPRODUCED}",
        explain="vLLM advises --trust-remote-code for every missing class. The flag helps only if the repository "
        "contains Python code for the tokenizer.",
        patterns=compile_patterns(
            r"Tokenizer class (?P<tokenizer>\w+) does not exist or is not currently imported",
            r"Tokenizer class '(?P<tokenizer>\w+)' specified in the tokenizer config was not found",
        ),
        find=_find_token_list,
        variants=(TOKEN_LIST,),
    ),
    Rule(
        "SG-V056",
        title="Transformers has no class for this model",
        cause="{auto} of the image's Transformers has no class for models with the configuration {type}. Either the "
        "image is older than the model, or the model is of another kind (for example an embedding model or a part of "
        "one)",
        fix="set `image:` to a newer version of the engine, or to the one that the model's page names; check that "
        "`model:` is the model itself, not its encoder, its adapter, or a quantization for another program",
        source="The message comes from transformers (models/auto/auto_factory.py and tokenization_auto.py), and is "
        "quoted in vllm-project/vllm issue 17210 (2025-04), where the model's configuration has no class. The failure "
        "was not reproduced.",
        explain="The files are complete, so a new download does not help.",
        patterns=compile_patterns(
            r"Unrecognized configuration class <class '[\w.]*?(?P<type>\w+)'> (?:for this kind of AutoModel: |to "
            r"build an )"
            r"(?P<auto>Auto\w+)"
        ),
    ),
    Rule(
        "SG-V024",
        title="this version of vLLM can't run the model's quantization",
        cause="vLLM does not support the model's quantization: {problem}",
        fix="use another quantization of the model, or an image with a version of vLLM that supports this quantization",
        source="The messages come from vLLM 0.32.0 (quantization/compressed_tensors, quantization/__init__.py, "
        "config/model.py and transformers_utils/configs/mistral.py), and are quoted in "
        "vllm-project/vllm issues 34028 (2026-02), 30969 (2025-12) and 25241 (2025-09), a comment on "
        f"vllm-project/llm-compressor issue 1709 and sgl-project/sglang issue 19406. {NOT_REPRODUCED}",
        explain="The names of quantization methods change between versions: new ones are added, and old ones are "
        "removed (bitsandbytes).",
        patterns=compile_patterns(
            r"(?P<problem>No compressed-tensors compatible scheme was found.*)",
            r"(?P<problem>Unknown quantization method: ?[^.]{0,80})",
            r"(?P<problem>Invalid quantization method: ?[^.]{0,80})",
            r"(?P<problem>Found unknown quantization(?:='[^']*' in config)?)",
        ),
        variants=(UNMATCHED_LAYER, BLOCK_STRUCTURE, EXPERTS),
    ),
    Rule(
        "SG-V025",
        title="the quantized weights can't be split across this number of GPUs",
        cause="tensor parallelism would cut through a block of quantized weights[[. The layer's slice on each GPU "
        "has size {part}, which is not a multiple of {block}]]",
        fix="lower tensor_parallel_size (often 1 or 2 works), use pipeline_parallel_size, or use another "
        "quantization; for a mixture-of-experts model, you can also add `--enable-expert-parallel` to extra_args",
        source="The messages come from vLLM 0.32.0 (quantization/utils/fp8_utils.py and auto_awq.py) and older "
        "versions "
        "(quantization/fp8.py). They are quoted in "
        f"vllm-project/vllm issues 21695 (2025-07) and 54178 (2026-08). {NOT_REPRODUCED}",
        explain="Quantized weights are stored in blocks, for example of 128 values. The size of a layer, divided by "
        "tensor_parallel_size, must be a multiple of the block size. Neither the file nor the image is damaged.",
        patterns=compile_patterns(
            r"(?:size of .{0,80}weight|Weight \w+) = (?P<part>\d+) is not divisible by weight quantization block_\w = "
            r"(?P<block>\d+)",
            r"size is not aligned with the quantized weight shape",
        ),
    ),
    Rule(
        "SG-A021",
        title="llama.cpp can't read this version of the GGUF file",
        cause="this build of llama.cpp can't read the file: {problem}. The file was made for a newer build, or for "
        "another program",
        fix=(
            f"{NEWER_BUILD} that was made for this build; don't download the same file again, because it is not damaged"
        ),
        source="The messages come from llama.cpp (ggml/src/gguf.cpp, src/llama-model-loader.cpp, src/llama-vocab.cpp). "
        "They are quoted in ggml-org/llama.cpp issues 23033 and 25833 (2026-07), and containers/ramalama issue 2500 "
        f"(2026-03). {NOT_REPRODUCED}",
        explain="llama.cpp compares the file's header with its own tables before it reads any weights. The next "
        "line, `failed to read tensor data`, does not mean that bytes are missing. For a truncated file, the message "
        "is `data is not within the file bounds`.",
        patterns=compile_patterns(
            r"(?P<problem>missing tensor '[^']+')",
            r"(?P<problem>tensor '[^']+' has offset \d+, expected \d+)",
            r"(?P<problem>tensor '[^']+' has invalid ggml type \d+)",
            r"(?P<problem>tensor '[^']+' has wrong shape)",
            r"(?P<problem>wrong number of tensors; expected \d+, got \d+)",
            r"(?P<problem>unknown pre-tokenizer type: '[^']*')",
            r"(?P<problem>key not found in model: \S+)",
        ),
    ),
    Rule(
        "SG-A022",
        title="the multimodal file is newer than llama.cpp",
        cause="the mmproj file has the projector type {projector}, which this build of llama.cpp does not know",
        fix="set `image:` to a newer build of llama.cpp[[?extra_args.--mmproj|, or remove --mmproj from "
        "extra_args to serve "
        "text only]]",
        source="The message comes from llama.cpp (tools/mtmd/clip.cpp), and is quoted in docker/model-runner issue 959 "
        f"(2026-06). {NOT_REPRODUCED}",
        explain="The file is complete, and may belong to the model. Only the build of llama.cpp is too old.",
        patterns=compile_patterns(r"unknown projector type: (?P<projector>[\w.-]+)"),
    ),
    Rule(
        "SG-A023",
        title="the multimodal file belongs to another model",
        cause="the mmproj file was made for a model with embedding size {other}, but this model has embedding size "
        "{own}",
        fix="use the mmproj file from the repository of this model, for the same model size (for example 4B)",
        source="The message comes from llama.cpp (tools/mtmd/mtmd.cpp), and is quoted in ggml-org/llama.cpp issue "
        "20899 "
        f"(2026-03). {NOT_REPRODUCED}",
        explain="A projector turns images into the embeddings of exactly one model. The 2B and the 4B version of a "
        "model need different projectors.",
        patterns=compile_patterns(
            r"mismatch between text model \(n_embd = (?P<own>\d+)\) and mmproj \(n_embd = (?P<other>\d+)\)"
        ),
    ),
    Rule(
        "SG-V033",
        title="the model's configuration does not match the image",
        cause="the engine reads {field} from {config}, which does not have it. Either the versions of the engine, of "
        "Transformers and of the model are not compatible, or a flag for the model's format is missing",
        fix="use an official image of the engine without other packages, in the version and with the flags that the "
        "model's page names; if the image is official, use a newer one",
        source="The messages come from Python and transformers 5 (tokenization_utils_base.py). QwenLM/Qwen3-VL issue "
        "2058 (2026-03) and PaddlePaddle/PaddleOCR issue 17587 (2026-01) quote them for all_special_tokens_extended, "
        "and lumi-ai-factory/laifs-container-recipes issue 40 (2026-08) for a processor. vllm-project/vllm issues "
        "51744 and 52768 (2026-08) quote the one about layers, and pull request 49797 corrects vLLM. "
        "The failure was not reproduced.",
        explain="Transformers 5 renamed or removed attributes that older versions of vLLM read. A model that is "
        "newer than "
        "the image has the same effect. The model's files are not damaged.",
        variants=(
            PER_LAYER,
            Variant(
                compile_patterns(
                    r"AttributeError: '?(?P<config>\w+)'?(?: object)? has no attribute '?(?P<field>all_special_tokens_"
                    r"extended)"
                ),
                title="Transformers is too new for this version of vLLM",
                cause="vLLM reads {field} from {config}, but Transformers 5 has removed this field. The installed "
                "Transformers is too new for this version of vLLM",
                fix="use an official image of vLLM without other packages, or a newer version of vLLM, which was "
                "built for Transformers 5; in your own installation, you can also install an older Transformers "
                "(`transformers<5`)",
            ),
            Variant(
                compile_patterns(
                    r"AttributeError: '?(?P<config>Mistral\w*Tokenizer\w*)'?(?: object)? has no attribute "
                    r"'?(?P<field>\w+)"
                ),
                cause="the engine reads {field} from {config}, which does not have it. {config} is the wrapper of "
                "Transformers around Mistral's tokenizer. Either flags for Mistral's own model format are missing, "
                "or the versions of the engine and of Transformers are not compatible",
                fix="for a model in Mistral's own format with vLLM, set extra_args to [--tokenizer-mode, mistral, "
                "--config-format, mistral, --load-format, mistral]; for a model in Transformers' format, use a newer "
                "image",
            ),
        ),
        patterns=compile_patterns(
            r"AttributeError: '(?P<config>\w*(?:Config|Tokenizer\w*|(?:Image|Video|VL)Processor(?:Fast)?|"
            r"FeatureExtractor))' object has no attribute '(?P<field>\w+)'",
            r"AttributeError: (?P<config>\w*Tokenizer\w*) has no attribute (?P<field>\w+)",
        ),
    ),
)
