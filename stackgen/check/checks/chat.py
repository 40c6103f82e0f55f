"""The check `chat`: a completion has the documented fields, the right model, text, and token counts."""

from __future__ import annotations

from dataclasses import replace

from stackgen.check.checks.adapt import REASONING_TOKENS
from stackgen.check.checks.refusal import LOGS_HINT, describe_model_problems, fail_refused, is_unknown_model
from stackgen.check.checks.verdict import Context, Verdict, fail, succeed, warn
from stackgen.check.dialects import allowed_finish_reasons, finish_problem
from stackgen.check.transport.answer import Content, Outcome
from stackgen.check.transport.faults import Fault
from stackgen.check.transport.openai_schema import Completion, parse, usage_problem
from stackgen.check.transport.session import Reply, error_message

__all__ = ["chat", "is_unknown_model"]

CONTRACT_HINT = "OpenAI clients may fail. Expected response: https://platform.openai.com/docs/api-reference/chat/object"
REASONING_HINT = "the model used all tokens for reasoning: raise --max-tokens to see an answer"
CONTROL_HINT = "run `stackgen check` without --quick: it requests longer answers"
# how the gateway names a fallback, and why it answers (templates/gateway/fallback.cfg.j2)
FALLBACK, OVERFLOW = "fallback/", "overflow/"
FALLBACK_HINT = (
    "`stackgen status` shows the replicas, and `stackgen diagnose` finds out why they are down. Until one is up, the "
    "gateway sends all requests for this model to the fallback"
)
OVERFLOW_HINT = (
    "the answer came from the fallback, so the stack's own model was not checked: repeat the check when fewer requests "
    "are in flight"
)
TOO_LONG_HINT = "the server ignores max_tokens, so answers may become very long"


def chat(context: Context, model: str) -> Verdict:
    """The answer has all documented fields and text, its usage adds up, and it comes from the requested model."""
    reply = context.post_chat(model, context.chat_body(model))
    verdict = _judge_reply(context, reply, model)
    if _is_cut_in_reasoning(context, reply, model):
        verdict = _repeat_with_more_tokens(context, model) or verdict
    if (needs := context.shape(model).describe()) and verdict.status != "fail":
        verdict = replace(verdict, notes=(*verdict.notes, f"this model needs {needs}"))
    return verdict


def _is_cut_in_reasoning(context: Context, reply: Reply, model: str) -> bool:
    """Whether a larger token limit would show more of an answer that has no text yet."""
    completion, _ = parse(Completion, reply.json()) if reply.status == 200 else (None, ())
    if completion is None or context.options.is_light or context.token_limit(model) >= REASONING_TOKENS:
        return False
    content = _read(completion)
    unfinished = content.only_reasoning or _judge_content(context, completion, model).kind == "unshown"
    return unfinished and completion.choices[0].finish_reason == "length"


def _repeat_with_more_tokens(context: Context, model: str) -> Verdict | None:
    """The verdict on an answer with more tokens; None, and no other effect, if it has no text either."""
    before = context.shape(model)
    context.shapes[model] = replace(before, min_tokens=REASONING_TOKENS)
    try:
        reply = context.post_chat(model, context.chat_body(model))
        completion, _ = parse(Completion, reply.json()) if reply.status == 200 else (None, ())
        if completion and _read(completion).text:
            return _judge_reply(context, reply, model)
    # a slow server: the first answer has already shown that the model generates
    except Fault:
        pass
    context.shapes[model] = before
    return None


def _judge_reply(context: Context, reply: Reply, model: str) -> Verdict:
    # an answer of the provider, or its error, says nothing about the model that the stack serves
    if reply.served_by.startswith((FALLBACK, OVERFLOW)):
        kind, _, provider = reply.served_by.partition("/")
        is_down = kind + "/" == FALLBACK
        state = (
            f"no replica of {model} is up" if is_down else f"all replicas of {model} are busy, and its queue is full"
        )
        what = "answered" if reply.status == 200 else f"returned {reply.summary}"
        hint = FALLBACK_HINT if is_down else OVERFLOW_HINT
        return fail(f"{state}: the fallback {provider} {what}", hint=hint, evidence=context.excerpt(reply))
    if reply.status != 200:
        return fail_refused(context, reply, model)
    excerpt, notes, limit = context.session.redact.excerpt, list[str](), context.token_limit(model)
    # the schema reports all structural problems at once; the rules between fields follow below
    completion, problems = parse(Completion, reply.json())
    if completion is None:
        if reply.json() is None:
            kind = (reply.content_type or "no content type") if reply.body.strip() else "an empty body"
            problems = (f"{kind} instead of JSON",)
        elif error := excerpt(error_message(reply), 160):
            message = f"the response is an error despite status 200: {error}"
            return fail(message, hint=LOGS_HINT, evidence=context.excerpt(reply))
        evidence = f"{'; '.join(problems[:5])}; {context.excerpt(reply)}"
        return fail(f"the response body is not as documented: {problems[0]}", hint=CONTRACT_HINT, evidence=evidence)
    outcome = _judge_content(context, completion, model)
    wrong = context.drop_deviations("chat", _content_problems(context, completion, outcome, limit), notes)
    wrong += describe_model_problems(context, completion.model, model, notes)
    if wrong:
        return fail("; ".join(wrong), hint=CONTRACT_HINT, evidence=context.excerpt(reply))
    first, usage = completion.choices[0], completion.usage
    counted = usage.completion_tokens if usage else 0
    # a full context ends an answer early too, so a short answer alone is no failure
    if usage and first.finish_reason == "length" and 0 < counted < limit:
        short = [_short_count(counted, limit)]
        # the known deviation of a dialect is one token; a larger difference stays a note
        notes += context.drop_deviations("chat", short, notes) if counted == limit - 1 else short
    if reply.content_type.lower() != "application/json":
        notes.append(f"the content type of the response is {excerpt(reply.content_type, 60) or 'missing'}")
    figures = {"prompt_tokens": float(usage.prompt_tokens), "completion_tokens": float(counted)} if usage else {}
    if counted > limit:
        message = f"{counted} tokens were generated, but at most {limit} were requested"
        return warn(message, hint=TOO_LONG_HINT, evidence=context.excerpt(reply), figures=figures)
    text, shown = first.message.content or "", _describe_content(context, completion, outcome)
    if outcome.status == "warn":
        hint = CONTROL_HINT if outcome.kind == "control" else REASONING_HINT
        if outcome.kind == "other" and not _read(completion).only_reasoning:
            hint = "the request asked for plain text: check the server's chat template and parsers"
        return warn(shown, hint=hint, evidence=context.excerpt(reply), figures=figures)
    # the answer of the first model is shown for the endpoint
    context.answer = excerpt(text, 1000) if context.answer is None else context.answer
    context.chat_answers[model] = (text, counted)
    if usage is None:
        return warn(f"{shown}, but the server reports no usage", hint="clients can't count tokens", notes=tuple(notes))
    message = f"{shown} ({counted} tokens, finish_reason {first.finish_reason})"
    return succeed(message, notes=tuple(notes), figures=figures)


def _read(completion: Completion) -> Content:
    content = Content()
    content.add(completion.choices[0].message)
    content.add_usage(completion.usage)
    return content


def _judge_content(context: Context, completion: Completion, model: str) -> Outcome:
    counted = completion.usage.completion_tokens if completion.usage else 0
    return _read(completion).judge(completion.choices[0].finish_reason, counted, context.token_limit(model))


def _describe_content(context: Context, completion: Completion, outcome: Outcome) -> str:
    """What the answer contains, for an answer that is no failure."""
    content = _read(completion)
    if outcome.kind == "text":
        shown = repr(context.session.redact.excerpt(content.text, 60)) if content.text.strip() else "with white space"
        return f"the model answers {shown}"
    if outcome.kind == "other" and outcome.status == "pass":
        return "the model generates tokens, and the first one is reasoning"
    if outcome.kind == "other":
        kinds = " and ".join(content.others)
        return f"the answer has only {kinds} and no content"
    if outcome.kind == "token":
        return "the model generates tokens, but the first one contains no text"
    if outcome.kind == "control":
        return "the answer has no text: the model stopped after one token, possibly a control token"
    return "the answer has no text, although the model used all tokens"


def _content_problems(context: Context, completion: Completion, outcome: Outcome, limit: int) -> list[str]:
    """Returns problems beyond single fields. One choice is expected, because the request does not set `n`."""
    first, usage = completion.choices[0], completion.usage
    wrong = [problem] if usage and (problem := usage_problem(usage)) else []
    if len(completion.choices) > 1:
        wrong.append(f"the answer has {len(completion.choices)} choices, but one was requested")
    if first.index:
        wrong.append(f"the only choice has the index {first.index} instead of 0")
    if problem := finish_problem(first.finish_reason, allowed_finish_reasons(context.dialect)):
        wrong.append(problem)
    if outcome.kind == "nothing" and limit > 1:
        wrong.append("the answer has no content")
    # a single token may be half a letter or a mark of reasoning; then only the usage shows that a token was generated
    elif outcome.kind == "nothing":
        wrong.append("the model generated nothing: the answer has no content, and `usage` counts no completion tokens")
    elif usage and not usage.completion_tokens:
        at_limit = first.finish_reason == "length" and limit == 1
        wrong.append(_short_count(0, 1) if at_limit else "`usage` counts no completion tokens, but the answer has text")
    return wrong


def _short_count(counted: int, limit: int) -> str:
    return f"completion_tokens is {counted}, but the answer reached its limit of {limit} tokens"
