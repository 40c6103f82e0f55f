"""Features with a path of their own: text completions, embeddings, the tokenizer."""

from __future__ import annotations

from stackgen.check.checks.features.outcome import LOGS_HINT, refused, works, wrong
from stackgen.check.checks.features.schemas import Embeddings, TextCompletion, Tokens
from stackgen.check.checks.verdict import Context, Verdict, failed, skipped, warned
from stackgen.check.transport.openai_schema import parse, sum_problem
from stackgen.check.transport.session import Reply

__all__ = ["completions", "embeddings", "tokenize"]

PROMPT = "The capital of France is"
MAX_TOKENS = 8
# accents and marks that a tokenizer which cuts bytes would damage
SAMPLE = "Is Paris the capital of France? Très bien, 42 times!"


def completions(context: Context, model: str) -> Verdict:
    """POST /v1/completions continues a text, and the body has every documented field."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": MAX_TOKENS, "temperature": 0}
    reply = context.session.post(f"{context.url}/completions", body)
    if verdict := refused(context, "completions", reply):
        return verdict
    parsed, problems = parse(TextCompletion, reply.json())
    if parsed is None:
        return wrong(context, problems, reply)
    notes: list[str] = []
    first, usage = parsed.choices[0], parsed.usage
    found = [problem] if usage and (problem := sum_problem(usage)) else []
    # a model may end at once; one that was stopped by the limit has written something
    if not first.text and first.finish_reason == "length":
        found.append("the answer has no text")
    if left := context.allow("completions", found, notes):
        return wrong(context, tuple(left), reply)
    if usage is None:
        notes.append("text completions report no usage")
    elif usage.completion_tokens > MAX_TOKENS:
        return warned(f"{usage.completion_tokens} tokens came, and at most {MAX_TOKENS} were asked for",
                      "max_tokens is not kept to: answers may run away", context.excerpt(reply))  # fmt: skip
    said = repr(context.session.redact.excerpt(first.text, 60))
    figures = {"completion_tokens": float(usage.completion_tokens)} if usage else {}
    return works(context, "completions", f"continues the text with {said}", *notes, figures=figures)


def embeddings(context: Context, model: str) -> Verdict:
    """POST /v1/embeddings gives a vector for each text, all of one length and of finite numbers."""
    body = {"model": model, "input": ["Paris is in France.", "A cat sleeps on the warm roof."]}
    reply = context.session.post(f"{context.url}/embeddings", body)
    if verdict := refused(context, "embeddings", reply):
        return verdict
    parsed, problems = parse(Embeddings, reply.json())
    if parsed is None:
        return wrong(context, problems, reply)
    notes: list[str] = []
    sizes = sorted({len(one.embedding) for one in parsed.data})
    found = []
    if [one.index for one in parsed.data] != [0, 1]:
        found.append(f"{len(parsed.data)} vectors with the indices {[one.index for one in parsed.data]} for two texts")
    if len(sizes) > 1:
        found.append(f"vectors of different lengths: {', '.join(map(str, sizes))}")
    if any(not any(one.embedding) for one in parsed.data):
        found.append("a vector of zeros only")
    # a list that is not batched right gives the first text's vector for all
    elif len(parsed.data) > 1 and parsed.data[0].embedding == parsed.data[1].embedding:
        found.append("different texts have the same vector")
    if left := context.allow("embeddings", found, notes):
        return wrong(context, tuple(left), reply)
    return works(context, "embeddings", f"vectors of {sizes[0]} numbers", *notes, figures={"length": float(sizes[0])})


def tokenize(context: Context, model: str) -> Verdict:
    """The server's own tokenizer turns a text into numbers and, where it can, back into the same text."""
    if context.dialect.tokenize is None:
        return skipped(f"no path of a tokenizer is known of {context.dialect.name}")
    path, field = context.dialect.tokenize
    root = context.session.target.root
    reply = context.session.post(root + path, {"model": model, field: SAMPLE})
    # it is no part of /v1, and a gateway that lets only that through does right
    if reply.status in (401, 403, 404, 405) and "tokenize" in context.dialect.claims:
        return skipped(f"{path} gives {reply.what}: a gateway in front may hide it")
    if verdict := refused(context, "tokenize", reply):
        return verdict
    parsed, problems = parse(Tokens, reply.json())
    if parsed is None:
        return wrong(context, problems, reply)
    if parsed.count is not None and parsed.count != len(parsed.tokens):
        return wrong(context, (f"count is {parsed.count} for {len(parsed.tokens)} tokens",), reply)
    if context.context_length is None:
        context.context_length = parsed.max_model_len
    figures = {"tokens": float(len(parsed.tokens))}
    told = f"{len(SAMPLE)} characters are {len(parsed.tokens)} tokens"
    back = context.session.post(
        root + path.replace("tokenize", "detokenize"), {"model": model, "tokens": parsed.tokens}
    )
    if back.status in (401, 403, 404, 405, 501):
        return works(context, "tokenize", told, "there is no way back from tokens to text", figures=figures)
    text = _text(back, field)
    if text is None:
        return failed(f"{told}, and back it gives {back.what}", LOGS_HINT, context.excerpt(back), figures=figures)
    # tokens of the start or the end may come as text around it
    if SAMPLE not in text:
        return warned(f"{told}, and back they are another text", "a tokenizer may change spaces or letters",
                      context.excerpt(back), figures=figures)  # fmt: skip
    return works(context, "tokenize", f"{told}, and back they are the same text", figures=figures)


def _text(reply: Reply, field: str) -> str | None:
    # vLLM and llama.cpp call the text in the answer as in the question
    body = reply.json()
    text = body.get(field) if reply.status == 200 and isinstance(body, dict) else None
    return text if isinstance(text, str) else None
