"""Conversation templates from the tokenizer's own chat template, and context lengths as the model means them.

FastChat 0.2.36 picks a template by the model's path alone. It knows none for Llama 3, Gemma or Phi-3, and any
path it doesn't know gets `one_shot`: a prompt of 964 tokens around "hi", in a format the model never saw.
"""

import sys
from os.path import commonprefix

NAME = "chat-template"
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
        made = from_tokenizer(model_path, _revision())
        if made is None:
            print("stackgen: the tokenizer has no chat template: FastChat's one_shot is used", file=sys.stderr)
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

    def show(*messages):
        pairs = [{"role": role, "content": text} for role, text in messages]
        return tokenizer.apply_chat_template(pairs, tokenize=False, add_generation_prompt=True)

    turns = (("user", FIRST), ("assistant", ANSWER), ("user", SECOND))
    try:
        with_system = show(("system", SYSTEM), *turns)
        before, rest = with_system.split(SYSTEM)
    except Exception:  # Gemma's template, for one, refuses the system role
        before, rest = "", show(*turns)
    opening, rest = rest.split(FIRST)
    to_answer, rest = rest.split(ANSWER)
    to_user = rest.split(SECOND)[0]
    # what comes before each user message is what both ways to it end in; the rest closes the system or the answer
    user = commonprefix([opening[::-1], to_user[::-1]])[::-1]
    closing_system, closing_answer = opening[: len(opening) - len(user)], to_user[: len(to_user) - len(user)]
    plain = show(("user", FIRST)).split(FIRST)[0]
    default = ""
    if before and plain.startswith(before) and plain.endswith(opening):
        default = plain[len(before) : len(plain) - len(opening)]
    bos = tokenizer.bos_token or ""
    # FastChat's tokenizer call puts the first token there itself
    if bos and before.startswith(bos) and tokenizer("x").input_ids[:1] == [tokenizer.bos_token_id]:
        before = before[len(bos) :]
    stops = {text for text in (closing_answer.strip(), tokenizer.eos_token) if text}
    return Conversation(
        name=NAME,
        system_template=_escaped(before) + "{system_message}" + _escaped(closing_system),
        system_message=default,
        roles=(user, to_answer),
        sep_style=SeparatorStyle.NO_COLON_TWO,
        sep="",
        sep2=closing_answer,
        stop_str=sorted(stops),
        stop_token_ids=[tokenizer.eos_token_id],
    )


def _escaped(text):
    return text.replace("{", "{{").replace("}", "}}")


def patch_prompt():
    """Leaves the system block out where there is no system message, as chat templates do; FastChat prints it empty."""
    from fastchat.conversation import Conversation

    original = Conversation.get_prompt

    def get_prompt(self):
        if self.name != NAME or self.system_message:
            return original(self)
        template, self.system_template = self.system_template, ""
        try:
            return original(self)
        finally:
            self.system_template = template

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
