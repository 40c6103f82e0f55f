"""Rules for weights that have another shape than the model, or that the model's files do not have.

The files can be read, so a new download has the same weights. `source` names the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.messages import find_messages
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns

__all__ = ["RULES"]

LOADS = re.compile(r"\b(?:load_weights|weight_loader|load_\w*weight\w*|weight_utils)\b")
SIZES = re.compile(
    r"^RuntimeError: (?P<problem>The size of tensor a \(\d+\) must match the size of tensor b \(\d+\).{0,60}|"
    r"start \(\d+\) \+ length \(\d+\) exceeds dimension size \(\d+\))"
)
SAME_SHAPE = re.compile(r"^\s*(?P<problem>assert \S.{0,80}\b(?:shape|size)\b.{0,40}loaded_weight\.(?:shape|size)\S*)|"
                        r"^\s*(?P<other>assert loaded_weight\.(?:shape|size)\S*.{0,80})")  # fmt: skip
DIVISIBLE = re.compile(r"^\s*assert (?P<what>[\w.]{3,60}) % (?P<by>[\w.]*(?:tp_size|world_size|parallel_size)) == 0")


def _find_loading_size(evidence: Evidence) -> Iterator[Hit]:
    """An error about sizes ended the start while the engine loaded the weights."""
    for message in find_messages(evidence):
        near = message.before[-16:]
        if not any(LOADS.search(line) for line in near):
            continue
        found = SIZES.search(message.text)
        # an assertion with a message names the sizes itself
        if not found and message.text.strip() in ("AssertionError", "AssertionError:"):
            found = next((one for line in reversed(near[-4:]) if (one := SAME_SHAPE.search(line))), None)
        if found:
            problem = next(value for value in found.groupdict().values() if value).strip()
            lines = tuple(dict.fromkeys((problem, message.text)))
            is_draft = "Loading drafter model" in message.service.log
            variant = OF_DRAFT if is_draft else WHILE_LOADING
            yield Hit(message.service.service, lines, {"problem": problem}, variant=variant)


def _find_indivisible(evidence: Evidence) -> Iterator[Hit]:
    """An assertion without a message ended the start: a size of the model is not a multiple of the number of GPUs."""
    for message in find_messages(evidence):
        if message.text.startswith("AssertionError"):
            found = next((one for line in reversed(message.before[-4:]) if (one := DIVISIBLE.search(line))), None)
            if found:
                values = {"what": found["what"].removeprefix("self."), "by": found["by"].removeprefix("self.")}
                yield Hit(message.service.service, (found[0].strip(), message.text), values)


WHILE_LOADING = Variant(
    (),
    cause="the size of a weight in the model's files differs from the size of the engine's layer: {problem}. Either "
    "config.json and the weights are from different models or versions, or this version of the engine reads this model "
    "incorrectly, or the weight can't be divided across this number of GPUs",
    fix="start with tensor_parallel_size 1 as a test, or with fewer GPUs; compare config.json with that of the model's "
    "page; for a quantized or fine-tuned model, test the original model; then set `image:` to a newer version of the "
    "engine, or to the one that the model's page names",
    condition="the message names no weight, and the traceback ends in the loader",
)

SHAPE = r"(?:torch\.Size\()?\[(?P<{}>[\d, ]+)\]\)?"
FILE, OWN = SHAPE.format("file"), SHAPE.format("own")

OF_DRAFT = Variant(
    (),
    title="a weight of the draft model has a different shape from what vLLM expects",
    cause="the model itself was loaded, but a weight of the draft model for speculative decoding (such as the MTP "
    "layers of the same files) has a different size from its layer: {problem}. Most often, this version of vLLM reads "
    "the quantization of these layers incorrectly",
    fix="start without speculative decoding (`speculative` in stack.yaml, `--speculative-config` in extra_args); to "
    "use "
    "it, set `image:` to a newer version of vLLM, or use a model whose page names this combination",
    condition="vLLM was loading the draft model",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V048",
        title="a weight has a different shape from what the engine expects",
        cause="the model's files contain a weight of the shape [{file}], but the engine expects [{own}]. Either "
        "config.json and the weights are from different models or versions, or this version of the engine reads this "
        "model incorrectly",
        fix="compare config.json (hidden_size, intermediate_size, head_dim, vocab_size) with that of the model's page; "
        "for a fine-tuned or merged model, test its base model first, and save it again with its own config.json; if "
        "the files are unchanged, set `image:` to a newer version of the engine, or to the one that the model's page "
        "names",
        source="The messages come from vLLM (model_executor/model_loader/weight_utils.py, default_weight_loader), "
        "SGLang (model_loader/weight_utils.py) and torch (nn/modules/module.py, load_state_dict). "
        "verl-project/verl issue 834 (2025-03), vllm-project/vllm issue 42813 (2026-05) and "
        "Avarok-Cybersecurity/dgx-vllm issue 6 (2026-03) quote them. The failure "
        "was not reproduced.",
        explain="The engine creates the layers from config.json, and then copies the weights into them. The files are "
        "complete, so a new download does not help. Memory and the GPU are not the cause.",
        patterns=compile_patterns(
            rf"Attempted to load weight \({FILE}\) into parameter \({OWN}\)",
            rf"Tried to load weights of size {FILE} ?to a parameter of size {OWN}",
            rf"size mismatch for [\w.]+: copying a param with shape {FILE} from checkpoint, the shape in current "
            rf"model is {OWN}",
        ),
        find=_find_loading_size,
        variants=(
            WHILE_LOADING,
            OF_DRAFT,
            Variant(
                compile_patterns(
                    r"org_vocab_size=(?P<own>\d+).{0,80}?loaded_weight\.shape\[(?:output_dim|\d)\]=(?P<file>\d+)"
                ),
                title="the vocabulary size in the weights differs from config.json",
                cause="the embeddings in the model's files have {file} tokens, but vocab_size in config.json is {own}",
                fix="set vocab_size in config.json to {file} if the files come from a training or conversion that "
                "padded "
                "the vocabulary; otherwise use the config.json and the weights of the same repository; with a LoRA "
                "adapter or a draft model, check that its base model is this model",
            ),
            Variant(
                # bitsandbytes stores two values of 4 bits in a byte, and all bytes of a layer in one column
                compile_patterns(
                    rf"(?:Tried to load weights of size|Attempted to load weight) \(?(?:torch\.Size\()?"
                    rf"\[(?P<file>\d+, 1)\]\)?\)? ?(?:to a|into) parameter (?:of size )?\(?{OWN}"
                ),
                title="the engine can't read this layer with bitsandbytes",
                cause="the model's files contain a weight that bitsandbytes has packed to 4 bits (shape [{file}]), but "
                "this version of the engine expects the layer without quantization (shape [{own}])",
                fix="set `image:` to a newer version of the engine; or use another quantization of the model (AWQ, "
                "GPTQ, FP8), or the model without quantization",
            ),
        ),
    ),
    Rule(
        "SG-V049",
        title="the model's files lack weights that vLLM expects",
        cause="vLLM finds no values in the model's files for some weights, for example {weight}. Either the files "
        "contain these weights under other names, or the model was saved without these weights, or a file is missing",
        fix="compare the names in model.safetensors.index.json with the message, and check that all files of the index "
        "exist; if the names differ only in their beginning, or the model shares layers (Gemma), set `image:` to "
        "another version of vLLM: the one that the model's page names, or a newer one; for a model that you have "
        "trained or merged, serve the base model as a test, and save your model with the version of Transformers that "
        "the base model names",
        source="The message comes from vLLM (model_executor/model_loader/default_loader.py), and is quoted in "
        "vllm-project/vllm issues 44788 (2026-06) and 15536 (2025-03), OpenGVLab/InternVL issue 1232 (2025-11) and "
        "OpenBMB/AgentCPM-GUI issue 80. The failure was not reproduced.",
        explain="Each version of vLLM expects the names that the model's repository used when this version was "
        "released. Transformers does not save weights of layers that share their values with another layer.",
        patterns=compile_patterns(
            r"Following weights were not initialized from checkpoint: \{?'(?P<weight>[\w.-]+)'",
        ),
        engines=("vllm",),
    ),
    Rule(
        "SG-V057",
        title="the model can't be divided across this number of GPUs",
        cause="the engine requires that {what} is a multiple of {by}, and it is not",
        fix="set tensor_parallel_size to another number: it must divide num_attention_heads, num_key_value_heads and "
        "intermediate_size of config.json without a remainder (usually 1, 2, 4 or 8); use pipeline_parallel_size for "
        "the other GPUs",
        source="The assertions are those of the models of vLLM (model_executor/models) and SGLang (srt/models, for "
        "example qwen2.py). The failure was not reproduced.",
        explain="With tensor parallelism, each GPU computes an equal share of the heads. Memory is not the cause.",
        find=_find_indivisible,
    ),
)
