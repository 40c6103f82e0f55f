"""Features of chat completions: tools, answers by a schema, probabilities, seeds."""

from __future__ import annotations

import json

from stackgen.check.checks.features.outcome import ignored, refused, works, wrong
from stackgen.check.checks.features.schemas import (
    CityAnswer,
    LogprobCompletion,
    PlainChoice,
    PlainCompletion,
    ToolCompletion,
)
from stackgen.check.checks.verdict import QUESTION, Context, Verdict, failed, warned
from stackgen.check.transport.openai_schema import parse
from stackgen.check.transport.session import Reply

__all__ = ["json_schema", "logprobs", "seed", "tools"]

# a call or an object takes 20 to 40 tokens; a reasoning model thinks before
LONG, SHORT = 128, 24
TOP = 2
CUT_HINT = "a reasoning model spends its tokens before it answers, or a small model never ends"
REPEAT_HINT = "answers can't be repeated exactly: requests that run at the same time change the rounding"
FUNCTION = "get_weather"
TOOL = {
    "type": "function",
    "function": {
        "name": FUNCTION,
        "description": "The current weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
# kept to a few words, so that no model can run on inside a string; `CityAnswer` is the same as types
SCHEMA = {
    "type": "object",
    "properties": {"capital": {"type": "string", "enum": ["Berlin", "Paris", "Rome"]}, "european": {"type": "boolean"}},
    "required": ["capital", "european"],
    "additionalProperties": False,
}
WEATHER_QUESTION = "What is the weather in Paris? Answer in one word."
# many different words may come next, so that the same text twice is no chance
OPEN_QUESTION = "Make up a long list of strange words that do not exist."


def tools(context: Context, model: str) -> Verdict:
    """A model that must call a function calls it, with arguments that are JSON as a text."""
    # `required` first: `auto` leaves it to the model, whose plain answer would prove nothing
    named = {"type": "function", "function": {"name": FUNCTION}}
    # one that ignores them writes up to the limit, and a slow one would run into the time-out
    most = SHORT if "tools" in context.dialect.ignores else LONG
    reply = _ask(context, model, WEATHER_QUESTION, most, tools=[TOOL], tool_choice="required")
    if 400 <= reply.status < 500:
        other = _ask(context, model, WEATHER_QUESTION, most, tools=[TOOL], tool_choice=named)
        reply = other if other.status == 200 else reply
    if verdict := refused(context, "tools", reply):
        if verdict.status == "skip" and context.dialect.name == "vllm":
            return Verdict("skip", f"{verdict.message}; `tool_call_parser` in the stack file turns it on")
        return verdict
    choice, problems = _first(reply)
    if choice is None:
        return wrong(context, problems, reply)
    if not (choice.message.model_extra or {}).get("tool_calls"):
        if choice.finish_reason == "length" and not choice.message.content:
            return warned(f"no call came within {most} tokens", CUT_HINT, context.excerpt(reply))
        return ignored(context, "tools", "a plain answer, though a call is required", reply)
    parsed, problems = parse(ToolCompletion, reply.json())
    if parsed is None:
        return wrong(context, problems, reply)
    function = parsed.choices[0].message.tool_calls[0].function
    if function.name != FUNCTION:
        return wrong(context, (f"the call is of {function.name!r}, which is no tool of the request",), reply)
    if not isinstance(_json(function.arguments), dict):
        if choice.finish_reason == "length":
            return warned(f"the call was cut after {most} tokens", CUT_HINT, context.excerpt(reply))
        return wrong(context, ("the arguments of the call are not the JSON text of an object",), reply)
    arguments = context.session.redact.excerpt(function.arguments, 60)
    return works(context, "tools", f"calls {FUNCTION} with {arguments}")


def json_schema(context: Context, model: str) -> Verdict:
    """An answer that must follow a schema does, though the question says nothing of JSON."""
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
    reply = _ask(context, model, QUESTION, LONG, response_format=wanted)
    if verdict := refused(context, "json-schema", reply):
        return verdict
    choice, problems = _first(reply)
    if choice is None:
        return wrong(context, problems, reply)
    content = choice.message.content or ""
    # a plain answer may be cut as well: only one that began as JSON is still on its way
    if choice.finish_reason == "length" and content.lstrip()[:1] in ("", "{") and _json(content) is None:
        return warned(f"the answer was cut after {LONG} tokens, so it can't be judged", CUT_HINT,
                      context.excerpt(reply))  # fmt: skip
    answer, problems = parse(CityAnswer, _json(content))
    if answer is None:
        what = "the answer is no JSON" if _json(content) is None else f"the answer breaks the schema: {problems[0]}"
        return ignored(context, "json-schema", what, reply)
    return works(context, "json-schema", f"answers {context.session.redact.excerpt(content, 60)}")


def logprobs(context: Context, model: str) -> Verdict:
    """Each token of an answer comes with its probability and as many others as were asked for."""
    reply = _ask(context, model, QUESTION, 4, logprobs=True, top_logprobs=TOP)
    if verdict := refused(context, "logprobs", reply):
        return verdict
    choice, problems = _first(reply)
    if choice is None:
        return wrong(context, problems, reply)
    if not (choice.model_extra or {}).get("logprobs"):
        return ignored(context, "logprobs", "the answer has none", reply)
    parsed, problems = parse(LogprobCompletion, reply.json())
    if parsed is None:
        return wrong(context, problems, reply)
    tokens = parsed.choices[0].logprobs.content
    counts = sorted({len(token.top_logprobs) for token in tokens})
    if counts != [TOP]:
        told = " or ".join(map(str, counts))
        return warned(f"{told} top_logprobs a token, and {TOP} were asked for", "clients may count on them",
                      context.excerpt(reply))  # fmt: skip
    return works(context, "logprobs", f"{len(tokens)} tokens with {TOP} top_logprobs each")


def seed(context: Context, model: str) -> Verdict:
    """The same seed gives the same text at temperature 1, and temperature 0 the same text without one."""
    texts: list[str] = []
    # the third time tells chance from rule; another seed tells whether the seed does anything
    for number in (11, 11, 11, 4177):
        reply = _ask(context, model, OPEN_QUESTION, SHORT, temperature=1, seed=number)
        if verdict := refused(context, "seed", reply):
            return verdict
        choice, problems = _first(reply)
        if choice is None:
            return wrong(context, problems, reply)
        texts.append(_text(choice))
    greedy = []
    for _ in range(2):
        again = _ask(context, model, OPEN_QUESTION, SHORT)
        choice, problems = _first(again)
        if again.status != 200 or choice is None:
            return failed(f"without a seed it gives {again.what}", "see `chat`", context.excerpt(again))
        greedy.append(_text(choice))
    notes = () if greedy[0] == greedy[1] else ("at temperature 0 the same request gave two texts",)
    same, excerpt = len(set(texts[:3])), context.session.redact.excerpt
    if same == 3:
        return ignored(context, "seed", "one seed gave three texts", reply, notes=notes)
    if same == 2 and "seed" not in context.dialect.ignores:
        return warned("one seed gave two texts in three requests", REPEAT_HINT, excerpt(repr(texts[:3])), notes=notes)
    if same == 2 or (len(set(texts)) == 1 and "seed" in context.dialect.ignores):
        return ignored(context, "seed", "texts are the same by chance only", reply, notes=notes)
    if notes:
        return warned(notes[0], REPEAT_HINT, excerpt(repr(greedy)))
    if len(set(texts)) == 1:
        return works(context, "seed", "the same text at temperature 0 and with one seed",
                     "another seed gave the same text too, so the model or the server leaves no choice")  # fmt: skip
    return works(context, "seed", "one seed gives one text, another one another; the same text at temperature 0")


def _ask(context: Context, model: str, question: str, max_tokens: int, **more: object) -> Reply:
    body = context.chat_body(model) | {"messages": [{"role": "user", "content": question}], "max_tokens": max_tokens}
    return context.session.post(f"{context.url}/chat/completions", body | more)


def _first(reply: Reply) -> tuple[PlainChoice | None, tuple[str, ...]]:
    """The first answer, or what is wrong with the body."""
    if reply.status != 200:
        return None, (reply.what,)
    parsed, problems = parse(PlainCompletion, reply.json())
    return (parsed.choices[0] if parsed else None), problems


def _text(choice: PlainChoice) -> str:
    extra = choice.message.model_extra or {}
    # of a reasoning model nothing else may have come yet
    return f"{extra.get('reasoning') or extra.get('reasoning_content') or ''}{choice.message.content or ''}"


def _json(text: str) -> object:
    try:
        parsed: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed
