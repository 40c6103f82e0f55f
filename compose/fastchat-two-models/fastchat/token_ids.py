"""Prompts as token ids. FastChat's API server decodes them with OpenAI's tokenizer, which it would have to download.

The API server has no tokenizer of the model, so the ids travel to the worker as text, after `MARK`. The worker uses
them as they are: no decoding and encoding, which could give other ids.
"""

MARK = "\x02token ids:"
# the member of a tokenizer that accepts ids
ENCODING = "_stackgen_encoding"


class IdsRefused(Exception):
    """Token ids that the model can't use. No ValueError: FastChat reports those as errors of the server."""


class Prompt(str):
    """The text of a prompt, whose tokens are `ids`."""

    ids = ()


def mark(ids):
    return MARK + ",".join(map(str, ids))


def read(prompt):
    """The ids in a marked prompt, or of a Prompt; None if `prompt` is text."""
    if isinstance(prompt, Prompt):
        return list(prompt.ids)
    if not isinstance(prompt, str) or not prompt.startswith(MARK):
        return None
    try:
        return [int(one) for one in prompt[len(MARK) :].split(",")]
    except ValueError:
        return None


def accept_ids(tokenizer):
    """Makes calls of `tokenizer` return the ids of a marked prompt. All else about it stays as it is."""
    original = type(tokenizer)

    def call(self, text=None, *args, **options):
        ids = read(text[0]) if isinstance(text, list) and len(text) == 1 else read(text)
        if ids is None:
            return original.__call__(self, text, *args, **options)
        if args or options or isinstance(text, list):
            raise IdsRefused("this model's code in FastChat reads only text: send the prompt as a string")
        return getattr(self, ENCODING)({"input_ids": ids, "attention_mask": [1] * len(ids)})

    from transformers import BatchEncoding

    members = {"__call__": call, ENCODING: staticmethod(BatchEncoding)}
    tokenizer.__class__ = type(original.__name__, (original,), members)


def to_prompt(prompt, tokenizer, model):
    """`prompt`, or the Prompt of a marked one. Raises IdsRefused for an id outside of the model's vocabulary."""
    ids = read(prompt)
    if ids is None:
        return prompt
    vocabulary = _vocabulary_size(model)
    if not vocabulary or not hasattr(tokenizer, ENCODING):
        raise IdsRefused("this model's tokenizer reads only text: send the prompt as a string")
    if wrong := [one for one in ids if not 0 <= one < vocabulary]:
        # FastChat itself does not check ids
        raise IdsRefused(f"token id {wrong[0]} is not below the size of the model's vocabulary, {vocabulary}")
    # decoded as FastChat decodes what it echoes: it looks for stop strings only after a text of this length
    text = tokenizer.decode(
        ids, skip_special_tokens=True, spaces_between_special_tokens=False, clean_up_tokenization_spaces=True
    )
    made = Prompt(text)
    made.ids = tuple(ids)
    return made


def _vocabulary_size(model):
    try:
        return model.get_input_embeddings().num_embeddings
    except (AttributeError, NotImplementedError):
        return 0
