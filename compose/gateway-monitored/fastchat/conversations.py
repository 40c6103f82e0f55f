"""Conversation templates from the tokenizer's own chat template, and context lengths as the model means them.

FastChat 0.2.36 picks a template by the model's path alone. It knows none for Llama 3, Gemma or Phi-3, and any
path it doesn't know gets `one_shot`: a prompt of 964 tokens around "hi", in a format the model never saw.

The worker builds the Conversation; the API server, which has no tokenizer, receives its fields as JSON and prints
the prompt. What FastChat's Conversation has no field for travels in two places that it leaves alone:
`system_message` is PLAIN + what a prompt without a system message begins with, until a request sets one, and
`roles` has a third item, what comes before the answer to be generated (some models start it with `<think>`).
"""

import sys
from os.path import commonprefix

NAME, PLAIN = "chat-template", "\x02"
SYSTEM, FIRST, ANSWER, SECOND = "\x01system\x01", "\x01first\x01", "\x01answer\x01", "\x01second\x01"


def patch_conversations(base_model_worker, model_worker):
    """Makes workers use the tokenizer's template where FastChat has none of its own, and honest context lengths."""
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
        found = None if conv_template else original(self, None, model_path)
        if found is not None and found.name not in ("one_shot", "zero_shot"):
            return found
        try:
            made = from_tokenizer(model_path, _revision())
            why = "the tokenizer has no chat template"
        except Exception as error:  # one that needs tools, or that fits no pattern: a worse prompt beats no worker
            made, why = None, f"the tokenizer's chat template can't be used ({type(error).__name__}: {error})"
        if made is None:
            print(f"stackgen: {why}: FastChat's one_shot is used; set conv_template to choose another", file=sys.stderr)
        return made or found or original(self, None, model_path)

    base_model_worker.BaseModelWorker.make_conv_template = make
    model_worker.get_context_length = context_length


def _revision():
    return sys.argv[sys.argv.index("--revision") + 1] if "--revision" in sys.argv else "main"


def from_tokenizer(model_path, revision):
    """A Conversation that prints what the tokenizer's chat template prints, or None where it has none."""
    from fastchat.conversation import Conversation, SeparatorStyle
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path, revision=revision)
    if not tokenizer.chat_template:
        return None

    def show(*messages, ask=True):
        pairs = [{"role": role, "content": text} for role, text in messages]
        return tokenizer.apply_chat_template(pairs, tokenize=False, add_generation_prompt=ask)

    turns = (("user", FIRST), ("assistant", ANSWER), ("user", SECOND))
    opening, to_generate = show(turns[0]).split(FIRST)
    to_answer, between = show(*turns).split(FIRST)[1].split(SECOND)[0].split(ANSWER)
    # a finished answer's end tells where, in what stands between two turns, the answer ends and the user begins
    end = show(*turns[:2], ask=False).split(ANSWER)[1]
    closing = commonprefix([end, between])
    user = between[len(closing) :]
    if not opening.endswith(user):  # some end the last answer differently: then what both ways to the user share
        user = commonprefix([opening[::-1], between[::-1]])[::-1]
        closing = between[: len(between) - len(user)]
    plain = opening[: len(opening) - len(user)]
    system = _system(show, user)
    bos = tokenizer.bos_token
    # FastChat's tokenizer call puts the first token there itself
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
        # a part of an end could stand in any answer
        stop_str=sorted({text for text in (closing.strip() if closing == end else "", tokenizer.eos_token) if text}),
        stop_token_ids=_stop_ids(tokenizer, closing, model_path, revision),
    )


def _system(show, user):
    """The system block with its slot, or "" where the template has none of its own (Gemma refuses the role)."""
    try:
        before, after = show(("system", SYSTEM), ("user", FIRST)).split(FIRST)[0].split(SYSTEM)
    except Exception:
        return ""
    if not after.endswith(user):
        return ""
    return _escaped(before) + "{system_message}" + _escaped(after[: len(after) - len(user)])


def _stop_ids(tokenizer, closing, model_path, revision):
    """Tokens that end an answer. FastChat's texts lack special tokens, so stop strings never match those."""
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(model_path, revision=revision).eos_token_id
    except OSError:
        ends = None
    found = set(ends if isinstance(ends, list) else [ends]) | {tokenizer.eos_token_id}
    found |= set(tokenizer(closing, add_special_tokens=False).input_ids[:1]) & set(tokenizer.added_tokens_decoder)
    return sorted(found - {None})


def _escaped(text):
    return text.replace("{", "{{").replace("}", "}}")


def patch_prompt():
    """Makes the API server print prompts as the chat template would; Conversations of other names stay as they are."""
    from fastchat.conversation import Conversation

    original = Conversation.get_prompt

    def get_prompt(self):
        if self.name != NAME:
            return original(self)
        if not self.system_template and not self.system_message.startswith(PLAIN):
            # no system role: its text goes before the first message, as model cards advise
            role, text = self.messages[0]
            self.messages[0] = [role, f"{self.system_message}\n\n{text}"]
            self.system_message = PLAIN
        if self.system_message.startswith(PLAIN):
            self.system_template, self.system_message = "{system_message}", self.system_message[len(PLAIN) :]
        text = original(self)
        if self.messages[-1][1] is None:
            text = text[: len(text) - len(self.roles[1])] + self.roles[2]
        return text

    Conversation.get_prompt = get_prompt


def context_length(config):
    """The context in tokens. FastChat multiplies by the scaling factor also where the length holds it already."""
    longest = getattr(config, "max_position_embeddings", None)
    scaling = getattr(config, "rope_scaling", None) or {}
    kind = scaling.get("rope_type") or scaling.get("type")
    if longest and kind in ("linear", "dynamic") and "original_max_position_embeddings" not in scaling:
        return int(longest * scaling.get("factor", 1))
    if longest:
        return int(longest)
    from fastchat.utils import get_context_length

    return get_context_length(config)
