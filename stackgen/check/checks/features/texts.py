"""Features that have their own paths: text completions, embeddings, the tokenizer."""

from __future__ import annotations

from stackgen.check.checks.features.outcome import LOGS_HINT, fail_body, judge_refusal, succeed_feature
from stackgen.check.checks.features.schemas import Embeddings, TextCompletion, Tokens
from stackgen.check.checks.verdict import Context, Verdict, fail, skip, warn
from stackgen.check.transport.openai_schema import parse, usage_problem
from stackgen.check.transport.session import Reply

__all__ = ["completions", "embeddings", "tokenize"]

PROMPT = "The capital of France is"
MAX_TOKENS = 8
# accents and punctuation: a tokenizer that cuts between bytes would damage them
SAMPLE = "Is Paris the capital of France? Très bien, 42 times!"
NO_DETOKENIZE = "the server can't turn tokens back into text"


def completions(context: Context, model: str) -> Verdict:
    """POST /v1/completions continues a text, and the body has every documented field."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": MAX_TOKENS, "temperature": 0}
    reply = context.session.post(f"{context.url}/completions", body)
    if verdict := judge_refusal(context, "completions", reply):
        return verdict
    parsed, problems = parse(TextCompletion, reply.json())
    if parsed is None:
        return fail_body(context, problems, reply)
    notes: list[str] = []
    first, usage = parsed.choices[0], parsed.usage
    wrong = [problem] if usage and (problem := usage_problem(usage)) else []
    # a model may stop at once, but a model that reached the limit must have written something
    if not first.text and first.finish_reason == "length":
        wrong.append("the answer has no text")
    if left := context.drop_deviations("completions", wrong, notes):
        return fail_body(context, tuple(left), reply)
    if usage is None:
        notes.append("text completions report no usage")
    elif usage.completion_tokens > MAX_TOKENS:
        message = f"{usage.completion_tokens} tokens were generated, but at most {MAX_TOKENS} were requested"
        hint = "the server ignores max_tokens, so answers may become very long"
        return warn(message, hint=hint, evidence=context.excerpt(reply), support="fails")
    text = repr(context.session.redact.excerpt(first.text, 60))
    figures = {"completion_tokens": float(usage.completion_tokens)} if usage else {}
    return succeed_feature(context, "completions", f"the model continues the text with {text}", *notes, figures=figures)


def embeddings(context: Context, model: str) -> Verdict:
    """POST /v1/embeddings returns a vector for each text, all of the same length and with finite numbers."""
    body = {"model": model, "input": ["Paris is in France.", "A cat sleeps on the warm roof."]}
    reply = context.session.post(f"{context.url}/embeddings", body)
    if verdict := judge_refusal(context, "embeddings", reply):
        return verdict
    parsed, problems = parse(Embeddings, reply.json())
    if parsed is None:
        return fail_body(context, problems, reply)
    notes: list[str] = []
    sizes = sorted({len(one.embedding) for one in parsed.data})
    wrong = []
    if [one.index for one in parsed.data] != [0, 1]:
        indices = [one.index for one in parsed.data]
        wrong.append(f"the server returned {len(indices)} vectors with the indices {indices} for two texts")
    if len(sizes) > 1:
        wrong.append(f"the vectors have different lengths: {', '.join(map(str, sizes))}")
    if any(not any(one.embedding) for one in parsed.data):
        wrong.append("a vector has only zeros")
    # a server with broken batching returns the vector of the first text for all
    elif len(parsed.data) > 1 and parsed.data[0].embedding == parsed.data[1].embedding:
        wrong.append("different texts have the same vector")
    if left := context.drop_deviations("embeddings", wrong, notes):
        return fail_body(context, tuple(left), reply)
    return succeed_feature(
        context,
        "embeddings",
        f"the server returns vectors with {sizes[0]} dimensions",
        *notes,
        figures={"length": float(sizes[0])},
    )


def tokenize(context: Context, model: str) -> Verdict:
    """The server's tokenizer turns a text into tokens and, if it can, back into the same text."""
    if context.dialect.tokenize is None:
        return skip(f"{context.dialect.name} has no known tokenizer path")
    path, field = context.dialect.tokenize
    root = context.session.target.root
    reply = context.session.post(root + path, {"model": model, field: SAMPLE})
    # the path is outside of /v1, and a gateway that forwards only /v1 hides it on purpose
    if reply.status in (401, 403, 404, 405) and "tokenize" in context.dialect.claims:
        return skip(f"{path} returns {reply.summary}: a gateway in front of the server may hide this path")
    if verdict := judge_refusal(context, "tokenize", reply):
        return verdict
    parsed, problems = parse(Tokens, reply.json())
    if parsed is None:
        return fail_body(context, problems, reply)
    if parsed.count is not None and parsed.count != len(parsed.tokens):
        return fail_body(
            context,
            (f"the field `count` is {parsed.count}, but the field `tokens` has {len(parsed.tokens)} entries",),
            reply,
        )
    if context.context_length is None:
        context.context_length = parsed.max_model_len
    figures = {"tokens": float(len(parsed.tokens))}
    message = f"the tokenizer turns {len(SAMPLE)} characters into {len(parsed.tokens)} tokens"
    # vLLM and llama.cpp use the same name for the reverse path
    back = context.session.post(
        root + path.replace("tokenize", "detokenize"), {"model": model, "tokens": parsed.tokens}
    )
    if back.status in (401, 403, 404, 405, 501):
        return succeed_feature(context, "tokenize", message, NO_DETOKENIZE, figures=figures)
    text = _decoded_text(back, field)
    if text is None:
        message += f", but detokenizing returns {back.summary}"
        return fail(message, hint=LOGS_HINT, evidence=context.excerpt(back), figures=figures)
    # the start and end tokens may come back as text before and after the sample
    if SAMPLE not in text:
        message += " and back into a different text"
        hint = "some tokenizers change spaces or letters"
        return warn(message, hint=hint, evidence=context.excerpt(back), figures=figures)
    return succeed_feature(context, "tokenize", f"{message} and back into the same text", figures=figures)


def _decoded_text(reply: Reply, field: str) -> str | None:
    # vLLM and llama.cpp use the same field name in request and response
    body = reply.json()
    text = body.get(field) if reply.status == 200 and isinstance(body, dict) else None
    return text if isinstance(text, str) else None
