"""The JSON Schema of `stack.yaml`, generated from the pydantic models that validate it, so the two can't differ."""

from __future__ import annotations

from typing import Any

from stackgen import engines
from stackgen.spec import StackSpec

__all__ = ["MODELINE", "QUOTED", "stack_schema"]

# numbers in quotes, as pydantic reads them
QUOTED = {"integer": r"^[+-]?[0-9]+(\.0+)?$", "number": r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"}
# read by the YAML language server in editors; init writes the schema next to stack.yaml
MODELINE = "# yaml-language-server: $schema=stack.schema.json"


def stack_schema() -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) of a stack file. Every field has a description."""
    schema = StackSpec.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    variants = []
    for name in engines.names():
        model = engines.get(name).Model.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(model.pop("$defs", {}))
        definitions[model["title"]] = model
        variants.append((name, model["title"]))
    # `models` is Any in StackSpec, because stackgen.spec must not import engines
    schema["properties"]["models"]["items"] = {
        "type": "object",
        # each engine requires `model`, or what it has instead
        "required": ["engine"],
        "discriminator": {"propertyName": "engine", "mapping": {name: f"#/$defs/{title}" for name, title in variants}},
        "oneOf": [{"$ref": f"#/$defs/{title}"} for _, title in variants],
    }
    # as in Compose: fields of the user's own, for YAML anchors
    schema["patternProperties"] = {"^x-": {}}
    _accept_quoted_numbers(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "stack.schema.json"} | schema


def _accept_quoted_numbers(node: Any) -> None:
    """Lets each number also be a number in quotes, which pydantic accepts, as Compose does for `port: "8080"`."""
    for key, one in node.items() if isinstance(node, dict) else enumerate(node):
        # `oneOf` is only in schemas that are written by hand, for fields with a validator of their own
        if isinstance(one, (dict, list)) and key != "oneOf":
            _accept_quoted_numbers(one)
    kind = node.get("type") if isinstance(node, dict) else None
    # the limits of a number say nothing about text, and a pattern says nothing about a number
    if isinstance(kind, str) and (pattern := QUOTED.get(kind)):
        node |= {"type": [kind, "string"], "pattern": pattern}
