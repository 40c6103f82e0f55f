"""Builds FastChat's conversation template from the tokenizer's chat template, and fixes context lengths.

FastChat 0.2.36 chooses a template by the model's path alone. It has none for Llama 3, Gemma or Phi-3. An unknown
path gets `one_shot`: a prompt of 964 tokens around "hi", in a format that the model was never trained on.

The worker builds the Conversation. The API server has no tokenizer: it receives the fields as JSON and formats the
prompt. Two things have no field in FastChat's Conversation, so they travel in fields that FastChat passes through:
- `system_message` is PLAIN + the start of a prompt without a system message, until a request sets one;
- `roles` has a third item: the text before the answer to generate (some models start it with `<think>`).
"""

import sys
from os.path import commonprefix

NAME, PLAIN = "chat-template", "\x02"
SYSTEM, FIRST, ANSWER, SECOND = "\x01system\x01", "\x01first\x01", "\x01answer\x01", "\x01second\x01"


def patch_conversations(base_model_worker, model_worker):
    """Makes workers use the tokenizer's chat template where FastChat has none, and the model's real context length."""
    original = base_model_worker.BaseModelWorker.make_conv_template

    def make(self, conv_template=None, model_path=None):
        if conv_template and conv_template != NAME:
            try:
                return original(self, conv_template, model_path)
            except KeyError:
                from fastchat.conversation import conv_templates

                known = ", ".join(sorted(conv_templates))
                sys.exit(
                    f"stackgen: no conversation template {conv_template!r}; `{NAME}` takes the tokenizer's; "
                    f"known: {known}"
                )
        builtin = None if conv_template else original(self, None, model_path)
        # these two are FastChat's generic templates, for models that it doesn't know
        if builtin is not None and builtin.name not in ("one_shot", "zero_shot"):
            return builtin
        try:
            converted = from_tokenizer(model_path, _revision())
            why = "the tokenizer has no chat template"
        except Exception as error:  # e.g. a template that needs tools: a worse prompt is better than no worker
            converted, why = None, f"the tokenizer's chat template can't be used ({type(error).__name__}: {error})"
        if converted is None:
            print(f"stackgen: {why}: FastChat's one_shot is used; set conv_template to choose another", file=sys.stderr)
        return converted or builtin or original(self, None, model_path)

    base_model_worker.BaseModelWorker.make_conv_template = make
    model_worker.get_context_length = context_length


def _revision():
    # FastChat passes the model's path to make_conv_template, but not its revision
    return sys.argv[sys.argv.index("--revision") + 1] if "--revision" in sys.argv else "main"


def from_tokenizer(model_path, revision):
    """Returns a Conversation equivalent to the tokenizer's chat template, or None if the tokenizer has none."""
    from fastchat.conversation import Conversation, SeparatorStyle
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path, revision=revision)
    if not tokenizer.chat_template:
        return None

    def format_prompt(*messages, ask=True):
        pairs = [{"role": role, "content": text} for role, text in messages]
        return tokenizer.apply_chat_template(pairs, tokenize=False, add_generation_prompt=ask)

    turns = (("user", FIRST), ("assistant", ANSWER), ("user", SECOND))
    opening, to_generate = format_prompt(turns[0]).split(FIRST)
    to_answer, between = format_prompt(*turns).split(FIRST)[1].split(SECOND)[0].split(ANSWER)
    # the text after a final answer shows where, between two turns, the answer ends and the user's turn begins
    end = format_prompt(*turns[:2], ask=False).split(ANSWER)[1]
    closing = commonprefix([end, between])
    user = between[len(closing) :]
    if not opening.endswith(user):  # some templates end the last answer differently: use the common suffix
        user = commonprefix([opening[::-1], between[::-1]])[::-1]
        closing = between[: len(between) - len(user)]
    plain = opening[: len(opening) - len(user)]
    system = _system_template(format_prompt, user)
    bos = tokenizer.bos_token
    # FastChat's tokenizer call adds the BOS token itself
    if bos and tokenizer("x").input_ids[:1] == [tokenizer.bos_token_id]:
        plain, system = plain.removeprefix(bos), system.removeprefix(bos)
    return Conversation(
        name=NAME,
        system_template=system,
        system_message=PLAIN + plain,
        roles=(user, to_answer, to_generate),
        sep_style=SeparatorStyle.NO_COLON_TWO,
        sep="",
        sep2=closing,
        # only a whole end marker: a part of one could occur in any answer
        stop_str=sorted({text for text in (closing.strip() if closing == end else "", tokenizer.eos_token) if text}),
        stop_token_ids=_stop_ids(tokenizer, closing, model_path, revision),
    )


def _system_template(format_prompt, user):
    """The system block with its placeholder, or "" if the template has none (Gemma's rejects the role)."""
    try:
        before, after = format_prompt(("system", SYSTEM), ("user", FIRST)).split(FIRST)[0].split(SYSTEM)
    except Exception:
        return ""
    if not after.endswith(user):
        return ""
    return _escape_braces(before) + "{system_message}" + _escape_braces(after[: len(after) - len(user)])


def _stop_ids(tokenizer, closing, model_path, revision):
    """Ids of tokens that end an answer. FastChat decodes without special tokens, so stop strings can't match those."""
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(model_path, revision=revision).eos_token_id
    except OSError:
        ends = None
    found = set(ends if isinstance(ends, list) else [ends]) | {tokenizer.eos_token_id}
    found |= set(tokenizer(closing, add_special_tokens=False).input_ids[:1]) & set(tokenizer.added_tokens_decoder)
    return sorted(found - {None})


def _escape_braces(text):
    # FastChat fills in the system message with str.format
    return text.replace("{", "{{").replace("}", "}}")


def patch_prompt():
    """Makes the API server format prompts as the chat template does. Other Conversations are left unchanged."""
    from fastchat.conversation import Conversation

    original = Conversation.get_prompt

    def get_prompt(self):
        if self.name != NAME:
            return original(self)
        if not self.system_template and not self.system_message.startswith(PLAIN):
            # no system role: model cards advise to put the text before the first message
            role, text = self.messages[0]
            self.messages[0] = [role, f"{self.system_message}\n\n{text}"]
            self.system_message = PLAIN
        if self.system_message.startswith(PLAIN):
            self.system_template, self.system_message = "{system_message}", self.system_message[len(PLAIN) :]
        text = original(self)
        if self.messages[-1][1] is None:
            # FastChat has added roles[1], which precedes answers in the history, not the one to generate
            text = text[: len(text) - len(self.roles[1])] + self.roles[2]
        return text

    Conversation.get_prompt = get_prompt


def context_length(config):
    """Context length in tokens. FastChat applies the scaling factor even if the length already includes it."""
    longest = getattr(config, "max_position_embeddings", None)
    scaling = getattr(config, "rope_scaling", None) or {}
    kind = scaling.get("rope_type") or scaling.get("type")
    if longest and kind in ("linear", "dynamic") and "original_max_position_embeddings" not in scaling:
        return int(longest * scaling.get("factor", 1))
    if longest:
        return int(longest)
    from fastchat.utils import get_context_length

    return get_context_length(config)
