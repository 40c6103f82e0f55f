"""Rules for requests that a running server refuses. Such a finding describes a client, not a failed stack.

The texts are those of the programs that `source` names. They are read from logs and from the answers to the check.
"""

from __future__ import annotations

from stackgen.diagnose.rule import Input, Rule, Variant, compile_patterns

__all__ = ["RULES"]

ANSWERS: tuple[Input, ...] = ("log", "check")

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V031",
        title="the chat template refuses the messages",
        cause="the server works, but the model's chat template refuses a client's messages: {problem}",
        fix="change the messages in the client, for example merge all system messages into one at the beginning, and "
        "alternate user and assistant messages; or set chat_template to a template that accepts the client's messages",
        source="The messages come from templates (raise_exception), as llama-server and vLLM print them. "
        "Mangi-11/Eta issue 59 (2026-08) quotes one. The failure was not reproduced.",
        explain="A chat template can refuse roles or their order. Neither the model nor the image is broken, and a "
        "restart does not help.",
        patterns=compile_patterns(
            r"Jinja Exception: (?P<problem>[^\"\\]+)",
            r"jinja2\.exceptions\.TemplateError: (?P<problem>.+)",
        ),
        inputs=ANSWERS,
        refusal=True,
    ),
    Rule(
        "SG-A024",
        title="a request names no model",
        cause="the server is a router for several models, and a client sent a request without `model`",
        fix="set the model in the client; `/v1/models` lists the names of the models",
        source="The message comes from llama-server in router mode, and is quoted in itigges22/ATLAS issue 146 "
        "(2026-07). The failure was not reproduced.",
        explain="A llama-server with one model ignores the model name in a request. A router needs the name to "
        "choose the model.",
        patterns=compile_patterns(r"model name is missing from the request"),
        inputs=ANSWERS,
        refusal=True,
    ),
    Rule(
        "SG-V032",
        title="the model does not accept images or audio",
        cause="the server works, but a client sent input that the model or its configured limit does not allow: "
        "{problem}",
        fix="send fewer images or other files in a request, or raise the limit with `--limit-mm-per-prompt` in "
        "extra_args; if the limit is 0, the model was started for text only",
        source="The messages come from vLLM (multimodal/processing.py and entrypoints/chat_utils.py). The failure was "
        "not reproduced.",
        explain="The limit is 0 if the model was started for text only (`--language-model-only`).",
        patterns=compile_patterns(
            r"(?P<problem>At most \d+ \w+\(s\) may be provided in one prompt)",
        ),
        inputs=ANSWERS,
        refusal=True,
        variants=(
            Variant(
                compile_patterns(r"(?P<problem>(?<!\S)\S{1,100} is not a multimodal model)"),
                cause="the server works, but a client sent an image or audio to a text-only model: {problem}",
                fix="send text only, or serve a model that accepts images or audio",
            ),
        ),
    ),
    Rule(
        "SG-A028",
        title="a request arrived while the model was loading",
        cause="llama-server is still loading the model. Until the model is loaded, it refuses requests with HTTP 503",
        fix="wait until `/health` answers with HTTP 200; let clients retry requests that get HTTP 503",
        source="The message comes from llama-server, and is quoted in mostlygeek/llama-swap issue 146 (2025-05). The "
        "failure was not reproduced.",
        explain="Large models take minutes to load. `stackgen check --wait 600` waits for the server.",
        patterns=compile_patterns(r'"code":503,"message":"Loading model"'),
        inputs=ANSWERS,
        refusal=True,
    ),
)
