"""Rules for what requests need besides a model: chat templates, parsers, adapters.

The texts are those of vLLM 0.32.0.
"""

from __future__ import annotations

import re

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.rule import Rule, Variant, compile_patterns
from stackgen.flags import load_flags

__all__ = ["RULES"]

KNOWN = load_flags("vllm")
NEWER_PARSER = "if the model's page names this parser, set `image:` to a newer version of vLLM, or remove the parser"
ASKED_PARSER = re.compile(r"invalid tool call parser: (\S+) \(chose from")


def _is_known_parser(evidence: Evidence, service: str) -> bool:
    """Whether the vLLM version that stackgen knows has the parser that the image rejects."""
    choices = KNOWN.by_name["--tool-call-parser"].get("values", ()) if KNOWN else ()
    log = next((one.log for one in evidence.services if one.service == service), "")
    return any(found[1] in choices for found in ASKED_PARSER.finditer(log))


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V053",
        title="a grammar and the generated tokens contradict each other",
        cause="a request asks for structured output (a JSON schema, a grammar, or required tools), and the model "
        "generated a token that the grammar does not allow. vLLM ended the request. The server itself works",
        fix="as a test, repeat the request without speculative decoding (`speculative`, `--speculative-config`), which "
        "is often the reason; simplify the schema, or use tool_choice `auto`; try another backend: "
        "`--structured-outputs-config` with the backend guidance in extra_args (before vLLM 0.11: "
        "`--guided-decoding-backend`); then try a newer image",
        source="The messages come from vLLM (v1/core/sched/scheduler.py and v1/structured_output/backend_xgrammar.py), "
        "and are quoted in vllm-project/vllm issues 51693 (2026-08), 45436 (2026-06) and 18783 (2025-05). The "
        "failure was not reproduced.",
        explain="Normally, vLLM only chooses tokens that the grammar allows. Several versions of vLLM had bugs that "
        "broke this rule: in speculative decoding, in reasoning parsers, and with special tokens at the end of an "
        "answer.",
        patterns=compile_patterns(
            r"Unexpected: grammar rejected tokens|[Ff]ailed to advance FSM for request|FSM failed to advance for "
            r"request"
        ),
        engines=("vllm",),
        refusal=True,
        fallback=True,
    ),
    Rule(
        "SG-V054",
        title="the server is not allowed to read local files for requests",
        cause="a request contains the path of a file (file://), and the server was started without permission to read "
        "files for requests",
        fix="send the file in the request itself (data:image/png;base64,…), or as a URL; or set extra_args to "
        "[--allowed-local-media-path, FOLDER] with a folder that is mounted into the container and that contains "
        "nothing but such files, because every client can then read it",
        source="The message comes from vLLM 0.32.0 (multimodal/media/connector.py, _load_file_url).",
        explain="The path must exist in the server's container. The client's own files do not matter.",
        patterns=compile_patterns(r"Cannot load local files without `?--allowed-local-media-path"),
        engines=("vllm",),
        refusal=True,
    ),
    Rule(
        "SG-V052",
        title="an image, video or sound of a request is too large",
        cause="a request contains one {kind} of {length} tokens, but vLLM's cache for encoded inputs holds only {size} "
        "tokens. The server itself works",
        fix="send a smaller {kind}, or limit the size with mm_processor_kwargs (for Qwen models, max_pixels); or set "
        "max_num_batched_tokens to at least {length}: the cache is at least as large as max_num_batched_tokens",
        source="The message comes from vLLM (v1/engine/input_processor.py, _validate_model_input), and is quoted in "
        "vllm-project/vllm issue 34040 (2026-02). The failure was not reproduced.",
        explain="The message advises --limit-mm-per-prompt, which helps only if it contains a size for the inputs. The "
        "length of the context does not matter here.",
        patterns=compile_patterns(
            r"contains a\(n\) (?P<kind>\w+) item with (?:length )?(?P<length>\d+)(?: embedding tokens)?, which exceeds "
            r"the pre-allocated encoder cache size (?P<size>\d+)"
        ),
        engines=("vllm",),
        refusal=True,
        inputs=("log", "check"),
    ),
    Rule(
        "SG-V011",
        title="this version of vLLM has no such tool call parser",
        cause="the vLLM in this image has no tool call parser {parser}. Either the name is wrong, or the image is "
        "older than the parser",
        fix=f"{NEWER_PARSER}; otherwise set tool_call_parser to one of these: {{known}}",
        source="The message comes from vLLM 0.32.0 (tool_parsers). The failure was reproduced.",
        explain="The right parser depends on the model's family. Examples of parsers are `hermes` (for Qwen 2.5), "
        "`llama3_json` and `mistral`. See the page Tool Calling on docs.vllm.ai.",
        patterns=compile_patterns(r"invalid tool call parser: (?P<parser>\S+) \(chose from \{ ?(?P<known>[^}]+)"),
        engines=("vllm",),
        variants=(
            Variant(
                compile_patterns(r"invalid tool call parser: (?P<parser>\S+) \(chose from \{ ?(?P<known>[^}]+)"),
                title="the image is older than the tool call parser",
                cause="the vLLM in this image has no tool call parser {parser}, but newer versions have it",
                fix="set `image:` to a newer version of vLLM, or remove tool_call_parser, which turns tool calls "
                "off; don't use another parser of this image: each parser reads only the format of its model family",
                applies=_is_known_parser,
                condition=f"vLLM {KNOWN.version if KNOWN else ''} has the parser",
            ),
        ),
    ),
    Rule(
        "SG-V013",
        title="this version of vLLM has no such reasoning parser",
        cause="the vLLM in this image has no reasoning parser {parser}. Either the name is wrong, or the image is "
        "older than the parser",
        fix=f"{NEWER_PARSER}; otherwise set reasoning_parser to one of these: {{known}}",
        source="The message comes from vLLM 0.32.0 (reasoning). The failure was reproduced.",
        explain="vLLM no longer has the flag --enable-reasoning, because reasoning_parser alone enables reasoning. "
        "Many model families have their own reasoning parser.",
        patterns=compile_patterns(
            r"Reasoning parser '(?P<parser>[^']+)' not found\. Available parsers: (?P<known>[^\"]+)"
        ),
        engines=("vllm",),
    ),
    Rule(
        "SG-V070",
        title="this version of vLLM has no such tokenizer mode",
        cause="the vLLM in this image has no tokenizer mode `{mode}`. Either the image is older than the mode, or the "
        "name is wrong",
        fix="compare the name with the model's page; if the page names this mode, set `image:` to a newer version of "
        "vLLM (`deepseek_v32` needs 0.13 or newer); otherwise correct the value after --tokenizer-mode in extra_args, "
        "or remove both",
        source="The message comes from vLLM (tokenizers/registry.py), and is quoted in vllm-project/vllm issue 30933 "
        "(2025-12), in which vLLM 0.12 does not know deepseek_v32. The failure was not reproduced.",
        explain="Some models have no Jinja template, such as DeepSeek-V3.2. vLLM then needs the mode to form the "
        "prompt: without it, the server starts, but chat requests fail (SG-V015).",
        patterns=compile_patterns(r"No tokenizer registered for tokenizer_mode='(?P<mode>[^']+)'"),
        engines=("vllm",),
    ),
    Rule(
        "SG-V014",
        title="the chat template file does not exist",
        cause="the chat template[[ {path}]] does not exist in the container",
        fix="set chat_template to a file on this machine, which stackgen mounts into the container",
        source="The messages come from vLLM 0.32.0 (renderers/chat_utils.py, validate_chat_template). The failure was "
        "reproduced.",
        explain="A path in extra_args is a path inside the container. stackgen mounts the file that you set in "
        "chat_template.",
        patterns=compile_patterns(
            r"The supplied chat template string \((?P<path>[^)]+)\) appears path-like, but doesn't exist",
            r"the supplied chat template path doesn't exist",
        ),
    ),
    Rule(
        "SG-V015",
        title="the model has no chat template",
        cause="/v1/chat/completions needs a chat template, but this model's tokenizer has none, and the server was "
        "started without one",
        fix="if this is a base model, use its instruction-tuned version; if the model's page names a "
        "`--tokenizer-mode`, set extra_args to [--tokenizer-mode, MODE]: the code of this mode then replaces the "
        "template (for DeepSeek-V3.2, `deepseek_v32` with vLLM 0.13 or newer); otherwise set chat_template to a Jinja "
        "file",
        source="The messages come from transformers 4.44 and later (tokenization_utils_base.py). The failure was "
        "reproduced. The mode is in vLLM's tokenizers/deepseek_v32.py, and vllm-project/vllm issue 30933 (2025-12) "
        "names it.",
        explain="Base models only continue text, and know no chat roles. /v1/completions works without a chat "
        "template. Newer repositories keep the chat template in chat_template.jinja next to tokenizer_config.json. "
        "Maybe this file was not downloaded.",
        patterns=compile_patterns(
            r"default chat template is no longer allowed, so you must provide a chat template",
            r"tokenizer\.chat_template is not set",
        ),
        inputs=("log", "check"),
        engines=("vllm",),
    ),
    Rule(
        "SG-V016",
        title="tool calls are not enabled",
        cause="the client sends tools, but the server was started without a tool call parser",
        fix="set tool_call_parser to the parser of the model's family, which also enables automatic tool choice "
        "(outside stackgen: `--enable-auto-tool-choice --tool-call-parser NAME`)",
        source="The messages come from vLLM 0.32.0 (renderers/online_renderer.py). The failure was reproduced.",
        explain="For tool calls, vLLM needs --enable-auto-tool-choice and --tool-call-parser. If tool_call_parser is "
        "set, stackgen passes both flags to vLLM.",
        patterns=compile_patterns(
            # the check quotes the answer as JSON, in which the quotes are escaped; clients
            # cut long answers off
            r'auto\\*"? tool choice requires --enable-auto',
            r"tool_choice=.{1,80} requires --tool-call-parser to be set",
        ),
        inputs=("log", "check"),
        refusal=True,
        engines=("vllm",),
    ),
    Rule(
        "SG-V020",
        title="a LoRA adapter can't be loaded",
        cause="the adapter {adapter} can't be loaded from {path}",
        fix="set `path` in lora_adapters to a folder with adapter_config.json and adapter_model.safetensors, or to a "
        "Hugging Face id",
        source="The messages come from vLLM 0.32.0 (lora/worker_manager.py, lora/peft_helper.py and "
        "lora/lora_model.py).",
        explain="The adapter must have been trained for this exact base model, which `base_model_name_or_path` in "
        "adapter_config.json names. The adapter's rank must not be above --max-lora-rank (16 by default). stackgen "
        "reads the rank of local adapters. `stackgen doctor` checks the files of adapters (SG-P066).",
        patterns=compile_patterns(
            r"Loading lora (?P<adapter>\S+) failed: No adapter found for (?P<path>\S+)",
        ),
        engines=("vllm",),
        variants=(
            Variant(
                compile_patterns(r"Loading lora (?P<adapter>[\[\"'{]\S*) failed: No adapter found for (?P<path>\S+)"),
                title="the list of LoRA adapters has brackets or quotes that belong to no name",
                cause="vLLM takes brackets and quotes as parts of the adapter's name and path: {adapter} and {path}",
                fix="write each adapter as NAME=PATH after `--lora-modules`, without brackets and quotes around the "
                "list; in stack.yaml, use lora_adapters with `name` and `path`",
            ),
            Variant(
                compile_patterns(r"LoRA rank (?P<rank>\d+) is greater than max_lora_rank (?P<limit>\d+)"),
                title="a LoRA adapter has a higher rank than vLLM accepts",
                cause="the adapter's rank {rank} is above the limit {limit}",
                fix="[[?extra_args.--max-lora-rank|remove --max-lora-rank from extra_args; ]]set max_lora_rank to at "
                "least {rank} (valid values: 1, 8, 16, 32, 64, 128, 256, 320 and 512)",
            ),
            Variant(
                compile_patterns(r"ValueError: (?P<path>\S+) doesn't contain tensors"),
                title="a LoRA adapter has no weights",
                cause="{path} has neither adapter_model.safetensors nor adapter_model.bin",
                fix="set `path` in lora_adapters to the folder that PEFT's save_pretrained wrote; if the adapter is "
                "already merged into the model, serve the folder as a model",
            ),
            Variant(
                compile_patterns(r"While loading (?P<path>\S+), expected target modules in .* but received"),
                title="a LoRA adapter was trained for another model",
                cause="the adapter in {path} changes layers that this model does not have",
                fix="serve the model that the adapter was trained for (`base_model_name_or_path` in its "
                "adapter_config.json), or remove the adapter from lora_adapters",
            ),
        ),
    ),
)
