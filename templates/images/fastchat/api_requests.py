"""Changes requests of today's OpenAI clients into requests that FastChat 0.2.36 understands, or refuses them.

FastChat ignores fields that it doesn't know, so a client gets an answer without the schema, tool call or limit that it
asked for. Such requests are refused, unless the field has no effect on the answer. FastChat's own fields are in
fastchat/protocol/openai_api_protocol.py.
"""

import json
from itertools import pairwise

import token_ids

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
# FastChat decides greedily below these values (serve/inference.py), and then a seed changes nothing
GREEDY_TEMPERATURE, GREEDY_TOP_P = 1e-5, 1e-8
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "user",
         "function": "user"}  # fmt: skip
# vLLM's names for structured output, and fields of OpenAI's that ask for another kind of answer
NOT_SUPPORTED = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
                 "logit_bias", "audio", "web_search_options")  # fmt: skip


class Refused(Exception):
    """A request that can't be answered as the client expects. `param` names the field; the status is 400 or 413."""

    def __init__(self, message, param=None, code="unsupported_parameter", status=400):
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


def unsupported(what, param, advice):
    return Refused(f"FastChat does not support {what}: {advice}", param)


def invalid(message, param):
    return Refused(message, param, "invalid_value")


def adapt_body(path, body):
    """(parsed body, the body that FastChat understands or None if that is `body` itself). Raises Refused."""
    try:
        data = json.loads(body)
        if not isinstance(data, dict):
            raise Refused("the body must be a JSON object", code="invalid_json")
        new = adapt(path, data)
        return data, None if new is data else json.dumps(new).encode()
    except RecursionError:
        raise Refused("the body is nested too deeply", code="invalid_json") from None
    except ValueError as error:
        raise Refused(f"the body is not valid JSON: {error}", code="invalid_json") from None


def adapt(path, data):
    """Returns `data` as FastChat understands it; `data` itself, unchanged, if nothing had to change."""
    # for OpenAI, null means the default, but FastChat does not read it so
    new = {name: value for name, value in data.items() if value is not None}
    if path == EMBED:
        _check_embeddings(new)
    elif path == TEXT:
        _check_generation(new)
        _adapt_text(new)
    else:
        _check_generation(new)
        _check_chat(new)
        if "max_completion_tokens" in new:
            new["max_tokens"] = new.pop("max_completion_tokens")
        if isinstance(new.get("messages"), list):
            new["messages"] = adapt_messages(new["messages"])
    return data if new == data else new


def asks_for_usage(data):
    options = data.get("stream_options")
    return bool(data.get("stream") and isinstance(options, dict) and options.get("include_usage"))


def _check_generation(data):
    for name in NOT_SUPPORTED:
        if data.get(name):
            raise unsupported(f"`{name}`", name, "remove it")
    wanted = data.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else wanted
    if wanted and kind != "text":
        raise unsupported(f"`response_format` {_quote(kind)}", "response_format", "remove it, or use vLLM or llama.cpp")
    if "seed" in data and not _is_greedy(data):
        raise unsupported("`seed` for sampled answers", "seed", "remove it, or set `temperature` to 0")


def _check_chat(data):
    for tools, choice in (("tools", "tool_choice"), ("functions", "function_call")):
        wanted = data.get(choice)
        if data.get(tools) and wanted != "none":
            advice = f"remove them, set `{choice}` to none, or use vLLM or llama.cpp"
            raise unsupported(f"`{tools}`", tools, advice)
        if wanted not in (None, "none", "auto"):
            raise unsupported(f"`{choice}` {_quote(wanted)}", choice, "remove it, or use vLLM or llama.cpp")
    if data.get("logprobs") or data.get("top_logprobs"):
        raise unsupported("`logprobs` of chats", "logprobs", f"remove it, or use {TEXT}")
    if data.get("modalities") not in (None, [], ["text"]):
        raise unsupported(f"`modalities` {_quote(data['modalities'])}", "modalities", "remove it")


def _adapt_text(data):
    prompt = data.get("prompt")
    if data.get("suffix"):
        raise unsupported("`suffix`", "suffix", "remove it")
    if data.get("use_beam_search"):
        raise unsupported("`use_beam_search`", "use_beam_search", "remove it")
    if _number(data.get("best_of", 1)) > _number(data.get("n", 1)):
        raise unsupported("`best_of` above `n`", "best_of", "remove it")
    if isinstance(prompt, list):
        if not prompt:
            raise invalid("`prompt` is an empty list", "prompt")
        # one prompt as token ids, or several prompts
        prompts = [prompt] if isinstance(prompt[0], int) else prompt
        data["prompt"] = [_adapt_prompt(one) for one in prompts] if not _all_text(prompts) else prompts
        if data.get("stream") and len(prompts) > 1:
            # all their chunks have the index 0
            raise unsupported("streams of several prompts", "prompt", "send one request per prompt")


def _adapt_prompt(prompt):
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list) or not prompt or not all(type(one) is int and one >= 0 for one in prompt):
        raise invalid("`prompt` must be a string, a list of strings, or token ids", "prompt")
    return token_ids.mark(prompt)


def _check_embeddings(data):
    given = data.get("input")
    if data.get("dimensions"):
        raise unsupported("`dimensions`", "dimensions", "remove it, and shorten the vectors yourself")
    if isinstance(given, list) and (not given or not _all_text(given)):
        # LangChain sends ids of OpenAI's tokenizer, which mean nothing to another model
        advice = "send strings (LangChain: check_embedding_ctx_length=False)"
        raise unsupported("`input` without text", "input", advice)


def adapt_messages(messages):
    """Messages with the roles system, user and assistant, which have one text each.

    FastChat's templates assume that user and assistant take turns, and of several system messages they keep the last:
    so neighbours of the same role become one message.
    """
    if not messages:
        raise invalid("`messages` is empty", "messages")
    if not all(isinstance(one, dict) for one in messages):
        raise invalid("each of `messages` must be an object", "messages")
    if _is_plain(messages):
        return messages
    tools, system, turns = {}, [], []
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        role = _role(message, place)
        text = _message_text(message, place, tools)
        if role == "system":
            system.append(text)
        elif turns and turns[-1]["role"] == role:
            turns[-1]["content"] += f"\n\n{text}"
        # an answer without text is no turn
        elif text or role == "user":
            turns.append({"role": role, "content": text})
    return ([{"role": "system", "content": "\n\n".join(system)}] if system else []) + turns


def _is_plain(messages):
    roles = [one.get("role") for one in messages]
    if not all(isinstance(value, str) for one in messages for value in one.values()):
        return False
    if not all("content" in one for one in messages) or not all(
        one in ("system", "user", "assistant") for one in roles
    ):
        return False
    turns = [one for one in roles if one != "system"]
    return roles.count("system") <= 1 and all(one != other for one, other in pairwise(turns))


def _role(message, place):
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"{place}.role: {_quote(role)} is none of {', '.join(ROLES)}", f"{place}.role")
    return ROLES[role]


def _message_text(message, place, tools):
    """The text of a message. Calls of tools and their results become text too; `tools` maps ids of calls to names."""
    made = [{"function": message["function_call"]}] if message.get("function_call") else message.get("tool_calls") or []
    calls = []
    for call in made if isinstance(made, list) else [made]:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise unsupported(f"{place}.tool_calls of another type than function", f"{place}.tool_calls", "remove them")
        calls.append(function)
        tools[str(call.get("id"))] = function.get("name")
    content = message.get("content")
    if content is None:
        if message["role"] != "assistant":
            raise invalid(f"{place}.content is missing", f"{place}.content")
        content = ""
    text = content if isinstance(content, str) else _join_parts(content, f"{place}.content")
    if message["role"] in ("tool", "function"):
        name = message.get("name") or tools.get(str(message.get("tool_call_id"))) or "the tool"
        return f"Result of {name}: {text}"
    return "\n".join(filter(None, (text, *map(_format_call, calls))))


def _join_parts(parts, place):
    if not isinstance(parts, list):
        raise invalid(f"{place} must be a string or a list of parts", place)
    texts = []
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        # a refusal is a part of an earlier answer
        if kind not in ("text", "refusal"):
            advice = "this server reads only text parts"
            raise unsupported(f"{place}[{index}] of type {_quote(kind)}", f"{place}[{index}]", advice)
        if not isinstance(part.get(kind), str):
            raise invalid(f"{place}[{index}].{kind} must be a string", f"{place}[{index}]")
        texts.append(part[kind])
    # joined as by vLLM
    return "\n".join(texts)


def _format_call(function):
    arguments = function.get("arguments")
    try:
        arguments = json.loads(arguments)
    except (TypeError, ValueError):
        pass
    return json.dumps({"name": function.get("name"), "arguments": arguments}, ensure_ascii=False)


def _is_greedy(data):
    temperature, top_p = _number(data.get("temperature", 0.7)), _number(data.get("top_p", 1))
    return temperature < GREEDY_TEMPERATURE or top_p < GREEDY_TOP_P


def _number(value):
    # FastChat itself refuses values that are not numbers
    return value if isinstance(value, (int, float)) else 1


def _all_text(values):
    return all(isinstance(one, str) for one in values)


def _quote(value):
    # a client's value may be as long as its body
    return json.dumps(value, ensure_ascii=False)[:80]
