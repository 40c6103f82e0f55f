"""Rules for requests and answers whose form the other side can't read: missing fields, schemas, streams, SDKs.

None of these failures was reproduced. `source` names the programs and the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import has_crashed, strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns

__all__ = ["RULES"]

# older and newer vLLM, older and newer SGLang
NO_SCHEMA = re.compile(
    r"^\s*assert json_schema is not None$|When response_format type is 'json_schema', the 'json_schema' field must|"
    r"'NoneType' object has no attribute 'schema_'|schema_ is required for json_schema response format"
)
IGNORED = re.compile(
    r"fields were present in the request but ignored: .{0,200}?'(?P<field>extra_body|guided_(?:json|regex|choice|"
    r"grammar|decoding_backend|whitespace_pattern))'"
)
SDK_CALL = r"\b(?:Async)?(?:Completions|Responses|Embeddings)\.(?:create|parse|stream)\(\) got an unexpected keyword "


def _find_no_schema(evidence: Evidence) -> Iterator[Hit]:
    """A server fails on a response_format of type json_schema that contains no schema."""
    for service in evidence.services:
        if "schema" not in service.log or has_crashed(service.log):
            continue
        for line in reversed(service.log.splitlines()):
            text = strip_prefix(line)
            if NO_SCHEMA.search(text):
                yield Hit(service.service, (text.strip(),))
                break


def _find_ignored(evidence: Evidence) -> Iterator[Hit]:
    """A pasted log of a vLLM that works contains its warning about a field that it ignores."""
    for service in evidence.services:
        # on a running stack, clients may send such fields on purpose
        if service.state or "but ignored" not in service.log or has_crashed(service.log):
            continue
        for line in reversed(service.log.splitlines()):
            if found := IGNORED.search(line):
                yield Hit(service.service, (strip_prefix(line).strip(),), {"field": found["field"]},
                          variant=OF_SDK if found["field"] == "extra_body" else None)  # fmt: skip
                break


OF_SDK = Variant(
    (),
    title="a client sends extra_body as a field",
    cause="vLLM ignored the field `extra_body` of a request. It is no field, but an argument of the OpenAI SDK for "
    "Python, which puts the contents of `extra_body` into the request itself. So a client without this SDK, or a "
    "second `extra_body` inside the first, sent the name itself",
    fix="write the fields inside `extra_body` directly into the request's JSON, next to `model` and `messages`; in the "
    "OpenAI SDK for Python, pass `extra_body=` once, as an argument of `create`",
    condition="the field is extra_body",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-C051",
        title="a server does not accept the form of a client's request",
        cause="the server works, but refused a client's request because of its form: {problem}[[, at {place}]]",
        fix="compare this field with the server's API (`/docs` of vLLM and SGLang shows it), and correct or update the "
        "client; a client often builds the field from a setting, such as a template or a list of tools; as a test, "
        "repeat the request with `curl` and without the field",
        source="The messages come from pydantic 2 (pydantic-core, errors/types.rs), axum (json.rs) and serde. "
        "vllm-project/vllm issue 9312 (2024-10) and vllm-project/router issue 275 (2026-09) quote some. The failure "
        "was not reproduced.",
        explain="The status is 400 or 422. The model and the GPU are not the cause. If a field may have several "
        "types, pydantic lists one error for each of them; the last part of the place names the type.",
        patterns=compile_patterns(
            r"['\"]type['\"]: ?['\"]missing['\"], ?['\"]loc['\"]: ?[\[(](?P<place>['\"]body['\"][^\])]{0,120})[\])], "
            r"?['\"]msg['\"]: ?['\"](?P<problem>Field required)",
            r"['\"]type['\"]: ?['\"](?:\w+_type|\w+_parsing|literal_error|enum|(?:greater|less)_than\w*)['\"], ?"
            r"['\"]loc['\"]: ?[\[(](?P<place>['\"]body['\"][^\])]{0,120})[\])], ?['\"]msg['\"]: ?['\"](?P<problem>"
            r"Input should .{3,90}?)['\"][,}]",
        ),
        variants=(
            Variant(
                compile_patterns(
                    r"Failed to deserialize the JSON body into the target type: (?P<problem>tools\[\d+\][\w.]*: missing"
                    r" field `parameters`)",
                ),
                title="a router requires parameters for each tool of a request",
                cause="a router or server that is written in Rust refused a client's request: {problem}. OpenAI's API "
                "and vLLM accept a function without parameters, but this program does not",
                fix="give each function of the client `parameters`, for a function without any: a JSON schema of type "
                "`object` with empty `properties`; as a test, send the request to the engine itself, past the router: "
                "if it works there, report it to the router's project, and try a newer version of the router",
            ),
            Variant(
                compile_patterns(
                    r"Failed to deserialize the JSON body into the target type: (?P<problem>(?:[\w.\[\]]{1,80}: )?"
                    r"(?:missing field|unknown (?:field|variant)|duplicate field|invalid (?:type|value|length)|data did"
                    r" not match any variant).{0,120}?)(?: at line \d+|$|\")",
                ),
                cause="a router or server that is written in Rust refused a client's request: {problem}. Such programs "
                "accept only the fields and values that they know",
                fix="correct this field in the client, or update the client; as a test, send the request to the engine "
                "itself, past the router: if it works there, try a newer version of the router, which may know the "
                "field",
            ),
        ),
        fallback=True,
    ),
    Rule(
        "SG-C052",
        title="a request asks for a JSON schema, but contains none",
        cause="the server works, but a client's response_format has the type json_schema and no field json_schema, "
        "where OpenAI's API for chats has the schema",
        fix="in the client, put the schema into response_format.json_schema, which has the fields `name` and `schema` "
        "(not into response_format.schema); for JSON without a schema, use the type json_object; if a framework builds "
        "the request, update it",
        source="The messages come from vLLM (entrypoints/openai/chat_completion/protocol.py) and SGLang "
        "(entrypoints/openai/serving_chat.py). vllm-project/vllm issue 35438 (2026-02) and sgl-project/sglang pull "
        "request 9461 (2025-08) quote them. The failure was not reproduced.",
        explain="Older versions answer with HTTP 500 and an empty message, so the request looks like a fault of the "
        "server. Newer versions answer with 400.",
        find=_find_no_schema,
        fallback=True,
    ),
    Rule(
        "SG-C053",
        title="a client got a web page instead of JSON",
        cause="a program in JavaScript expected JSON, but the answer begins with `<`: it is a web page. At this "
        "address, the client gets the page of another program, a login page, or the error page of a proxy",
        fix="run `curl -i` with the client's base URL and /models, which shows the page and its status; correct the "
        "base URL (http://HOST:PORT/v1 of the engine or gateway itself), or let the proxy pass this path on without a "
        "login; if the page has status 502, 503 or 504, look at the engine behind the proxy",
        source="The messages come from V8 (JSON.parse, Node and Chrome). open-webui/open-webui issues 9986 (2025-02), "
        "17501 (2025-09) and 13669 (2025-05) quote them. The failure was not reproduced.",
        explain="The message quotes the beginning of the answer. The model is not the cause.",
        patterns=compile_patterns(r"Unexpected token '?<'?(?:,? (?:\\?\"|in JSON)|.{0,40} is not valid JSON)"),
        variants=(
            Variant(
                compile_patterns(r"Unexpected token '?d'?, \\?\"data: .{0,60} is not valid JSON"),
                title="a client got a stream instead of one answer",
                cause="the client expected one JSON document, but the server sent a stream: its lines begin with "
                "`data:`. Either the client asked for no stream, and a gateway or model setting streams anyway; or the "
                "client did ask for a stream, but did not recognize it, for example because a proxy changed the header "
                "Content-Type (text/event-stream)",
                fix='run `curl -i` for the same request with and without `"stream": true`, at the engine and at each '
                "gateway: only the first may have the type text/event-stream; set streaming to the same value in the "
                "client and the gateway; let the proxy pass Content-Type on; update the client",
            ),
            Variant(
                compile_patterns(
                    r"Unexpected token '?[Iu]'?, \\?\"(?:Internal S|upstream|Unauthor).{0,60} is not valid JSON"
                ),
                title="a client got an error text instead of JSON",
                cause="the client expected JSON, but the server or a proxy in front of it answered with a text that "
                "reports an error; the message quotes its beginning",
                fix="run `curl -i` for the same request, which shows the whole text and its status; read the log of "
                "the server that sent it at this time: it has the cause",
            ),
        ),
        fallback=True,
    ),
    Rule(
        "SG-C054",
        title="the client's OpenAI SDK does not know an argument",
        cause="the OpenAI SDK in the client does not know the argument `{name}`, so it sent no request. Either the "
        "argument belongs to the server (vLLM, SGLang) and not to OpenAI's API, or the SDK is too old for it",
        fix="pass arguments that only the server knows in `extra_body=` of the call; for an argument of OpenAI's own "
        "API, update the client's package openai; if a framework makes the call, remove the argument from the "
        "framework's settings for the model, or update the framework",
        source="The message comes from Python; the functions are those of the OpenAI SDK "
        "(resources/chat/completions/completions.py). langflow-ai/langflow issue 9470 (2025-08) has an empty name. The "
        "failure was not reproduced.",
        explain="The server has nothing to do with this error: its log shows no request.",
        patterns=compile_patterns(rf"{SDK_CALL}argument '(?P<name>\w+)'"),
        variants=(
            Variant(
                compile_patterns(rf"{SDK_CALL}argument ''"),
                cause="a framework calls the OpenAI SDK with an argument whose name is empty, so the SDK sent no "
                "request. One of the framework's settings for the model has an empty name",
                fix="look for an empty row in the settings of the model in the framework (additional parameters, model "
                "kwargs), and remove it; update the framework",
            ),
        ),
        fallback=True,
    ),
    Rule(
        "SG-C055",
        title="vLLM ignores a field of a request",
        cause="vLLM ignored the field `{field}` of a request: vLLM 0.12 and newer don't have the fields guided_… any "
        "more. So the answer does not follow the schema, choice or grammar of the client",
        fix="in the client, use response_format with the type json_schema, or the field structured_outputs with json, "
        "regex, choice or grammar (for the OpenAI SDK: inside extra_body)",
        source="The message comes from vLLM (entrypoints/openai/engine/protocol.py). vllm-project/vllm issue 33397 "
        "(2026-01) quotes it for extra_body. The failure was not reproduced.",
        explain="The request still gets an answer with status 200. Newer versions log the message only at level debug.",
        find=_find_ignored,
        fallback=True,
        variants=(OF_SDK,),
    ),
)
