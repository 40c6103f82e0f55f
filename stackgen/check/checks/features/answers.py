"""Features of chat completions: tools, JSON schemas, log probabilities, seeds."""

from __future__ import annotations

import json
from typing import Any

from stackgen.check.checks.features.calls import CALL_REASONS, FINISH_HINT, judge_streamed_call
from stackgen.check.checks.features.outcome import fail_body, judge_ignored, judge_refusal, succeed_feature
from stackgen.check.checks.features.schemas import (
    CityAnswer,
    LogprobCompletion,
    PlainChoice,
    PlainCompletion,
    ToolCompletion,
)
from stackgen.check.checks.features.tool_parser import lacks_parser, warn_no_parser
from stackgen.check.checks.verdict import QUESTION, Context, Verdict, fail, warn
from stackgen.check.transport.openai_schema import parse
from stackgen.check.transport.session import Reply

__all__ = ["json_schema", "logprobs", "seed", "tools"]

# a tool call or an object takes 20 to 40 tokens, and a reasoning model generates other tokens before that
MAX_TOKENS, MAX_TOKENS_SHORT = 128, 24
TOP_LOGPROBS = 2
CUT_HINT = "a reasoning model may use up its tokens before it answers, and a small model may never stop"
REPEAT_HINT = "answers are not exactly reproducible: concurrent requests change the rounding"
FUNCTION = "get_weather"
TOOL = {
    "type": "function",
    "function": {
        "name": FUNCTION,
        "description": "The current weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
# only a few values, so that no model can generate an endless string; `CityAnswer` has the same types
SCHEMA = {
    "type": "object",
    "properties": {"capital": {"type": "string", "enum": ["Berlin", "Paris", "Rome"]}, "european": {"type": "boolean"}},
    "required": ["capital", "european"],
    "additionalProperties": False,
}
WEATHER_QUESTION = "What is the weather in Paris? Answer in one word."
# many words are equally likely here, so two equal texts are no coincidence
OPEN_QUESTION = "Make up a long list of strange words that do not exist."


def tools(context: Context, model: str) -> Verdict:
    """A model that must call a function does so, with arguments that are JSON in a string."""
    # `required`, not `auto`: with `auto` a plain answer would prove nothing
    named = {"type": "function", "function": {"name": FUNCTION}}
    # a server that ignores tools generates up to the limit, and a slow server would time out
    limit = MAX_TOKENS_SHORT if "tools" in context.dialect.ignores else MAX_TOKENS
    request: dict[str, Any] = {"tools": [TOOL], "tool_choice": "required"}
    reply, is_named = _ask_chat(context, model, WEATHER_QUESTION, limit, **request), False
    if 400 <= reply.status < 500:
        # some servers support only a named function
        by_name = _ask_chat(context, model, WEATHER_QUESTION, limit, **request | {"tool_choice": named})
        if by_name.status == 200:
            reply, is_named, request["tool_choice"] = by_name, True, named
    request |= {"messages": [{"role": "user", "content": WEATHER_QUESTION}], "max_tokens": limit}
    if verdict := judge_refusal(context, "tools", reply):
        return warn_no_parser(context, model, verdict) if lacks_parser(verdict) else verdict
    choice, problems = _first_choice(reply)
    if choice is None:
        return fail_body(context, problems, reply)
    if not (choice.message.model_extra or {}).get("tool_calls"):
        if choice.finish_reason == "length" and not choice.message.content:
            return warn(
                f"the answer has no tool call within {limit} tokens", hint=CUT_HINT, evidence=context.excerpt(reply)
            )
        return judge_ignored(context, "tools", "the answer is plain text, although a tool call was required", reply)
    parsed, problems = parse(ToolCompletion, reply.json())
    if parsed is None:
        return fail_body(context, problems, reply)
    function = parsed.choices[0].message.tool_calls[0].function
    if function.name != FUNCTION:
        return fail_body(context, (f"the tool call is for {function.name!r}, but the request has no such tool",), reply)
    if not isinstance(_parse_json(function.arguments), dict):
        if choice.finish_reason == "length":
            return warn(
                f"the tool call was cut off after {limit} tokens", hint=CUT_HINT, evidence=context.excerpt(reply)
            )
        return fail_body(context, ("the arguments of the tool call are not a string with a JSON object",), reply)
    arguments = context.session.redact.excerpt(function.arguments, 60)
    message = f"the model calls {FUNCTION} with {arguments}"
    # OpenAI itself ends a call of a *named* function with `stop` (vLLM pull 25054 has the table)
    wrong = None if is_named or parsed.choices[0].finish_reason in CALL_REASONS else parsed.choices[0].finish_reason
    if wrong:
        problem = f"but finish_reason is {wrong!r} instead of 'tool_calls'"
        return warn(f"{message}, {problem}", hint=FINISH_HINT, evidence=context.excerpt(reply), support="fails")
    return judge_streamed_call(context, model, request, message)


def json_schema(context: Context, model: str) -> Verdict:
    """An answer follows the requested schema, although the question does not mention JSON."""
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
    reply = _ask_chat(context, model, QUESTION, MAX_TOKENS, response_format=wanted)
    if verdict := judge_refusal(context, "json-schema", reply):
        return verdict
    choice, problems = _first_choice(reply)
    if choice is None:
        return fail_body(context, problems, reply)
    content = choice.message.content or ""
    # only an answer that starts like JSON can have been cut off in the middle of JSON
    if choice.finish_reason == "length" and content.lstrip()[:1] in ("", "{") and _parse_json(content) is None:
        message = f"the answer was cut off after {MAX_TOKENS} tokens, so it can't be checked"
        return warn(message, hint=CUT_HINT, evidence=context.excerpt(reply))
    answer, problems = parse(CityAnswer, _parse_json(content))
    if answer is None:
        what = (
            "the answer is not JSON"
            if _parse_json(content) is None
            else f"the answer violates the schema: {problems[0]}"
        )
        return judge_ignored(context, "json-schema", what, reply)
    return succeed_feature(context, "json-schema", f"the model answers {context.session.redact.excerpt(content, 60)}")


def logprobs(context: Context, model: str) -> Verdict:
    """Each token of an answer comes with its log probability and the requested number of alternatives."""
    reply = _ask_chat(context, model, QUESTION, 4, logprobs=True, top_logprobs=TOP_LOGPROBS)
    if verdict := judge_refusal(context, "logprobs", reply):
        return verdict
    choice, problems = _first_choice(reply)
    if choice is None:
        return fail_body(context, problems, reply)
    if not (choice.model_extra or {}).get("logprobs"):
        return judge_ignored(context, "logprobs", "the answer has no logprobs", reply)
    parsed, problems = parse(LogprobCompletion, reply.json())
    if parsed is None:
        return fail_body(context, problems, reply)
    tokens = parsed.choices[0].logprobs.content
    counts = sorted({len(token.top_logprobs) for token in tokens})
    if counts != [TOP_LOGPROBS]:
        message = (
            f"the answer has {' or '.join(map(str, counts))} top_logprobs per token, but {TOP_LOGPROBS} were requested"
        )
        return warn(
            message,
            hint="some clients fail unless they get exactly as many top_logprobs as they requested",
            evidence=context.excerpt(reply),
        )
    return succeed_feature(
        context, "logprobs", f"the answer has {len(tokens)} tokens with {TOP_LOGPROBS} top_logprobs each"
    )


def seed(context: Context, model: str) -> Verdict:
    """The same seed gives the same text at temperature 1; temperature 0 gives the same text without a seed."""
    texts: list[str] = []
    # three times, to rule out chance; then another seed, to see whether the seed has any effect
    for number in (11, 11, 11, 4177):
        # temperature 1: without sampling, a seed has no effect
        reply = _ask_chat(context, model, OPEN_QUESTION, MAX_TOKENS_SHORT, temperature=1, seed=number)
        if verdict := judge_refusal(context, "seed", reply):
            return verdict
        choice, problems = _first_choice(reply)
        if choice is None:
            return fail_body(context, problems, reply)
        texts.append(_full_text(choice))
    greedy = []
    for _ in range(2):
        again = _ask_chat(context, model, OPEN_QUESTION, MAX_TOKENS_SHORT)
        choice, problems = _first_choice(again)
        if again.status != 200 or choice is None:
            message = f"a request without a seed returns {again.summary}"
            return fail(message, hint="see the check `chat`", evidence=context.excerpt(again))
        greedy.append(_full_text(choice))
    notes = () if greedy[0] == greedy[1] else ("at temperature 0, the same request gave two different texts",)
    same, excerpt = len(set(texts[:3])), context.session.redact.excerpt
    if same == 3:
        return judge_ignored(context, "seed", "the same seed gave three different texts", reply, notes=notes)
    if same == 2 and "seed" not in context.dialect.ignores:
        message = "the same seed gave two different texts in three requests"
        return warn(message, hint=REPEAT_HINT, evidence=excerpt(repr(texts[:3])), notes=notes)
    # a dialect that ignores seeds may still repeat a text by chance
    if same == 2 or (len(set(texts)) == 1 and "seed" in context.dialect.ignores):
        message = "requests with the same seed got the same text only by chance"
        return judge_ignored(context, "seed", message, reply, notes=notes)
    if notes:
        return warn(notes[0], hint=REPEAT_HINT, evidence=excerpt(repr(greedy)))
    if len(set(texts)) == 1:
        note = "another seed gave the same text as the first seed: the model or the server always picks the same tokens"
        message = "requests with the same seed get the same text, and requests at temperature 0 get the same text"
        return succeed_feature(context, "seed", message, note)
    message = (
        "requests with the same seed get the same text, another seed gives another text, and requests at temperature 0"
        " get the same text"
    )
    return succeed_feature(context, "seed", message)


def _ask_chat(context: Context, model: str, question: str, max_tokens: int, **more: object) -> Reply:
    body = context.chat_body(model) | {"messages": [{"role": "user", "content": question}], "max_tokens": max_tokens}
    return context.post_chat(model, body | more)


def _first_choice(reply: Reply) -> tuple[PlainChoice | None, tuple[str, ...]]:
    """The first answer, or what is wrong with the body."""
    if reply.status != 200:
        return None, (reply.summary,)
    parsed, problems = parse(PlainCompletion, reply.json())
    return (parsed.choices[0] if parsed else None), problems


def _full_text(choice: PlainChoice) -> str:
    extra = choice.message.model_extra or {}
    # a reasoning model may have sent only reasoning so far
    return f"{extra.get('reasoning') or extra.get('reasoning_content') or ''}{choice.message.content or ''}"


def _parse_json(text: str) -> object:
    try:
        parsed: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed
