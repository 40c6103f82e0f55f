"""The JSON Schema of `stack.yaml`, generated from the pydantic models that validate it, so the two can't differ."""

from __future__ import annotations

from typing import Any

from stackgen import engines
from stackgen.spec import StackSpec

__all__ = ["MODELINE", "stack_schema"]

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
        "required": ["model", "engine"],
        "discriminator": {"propertyName": "engine", "mapping": {name: f"#/$defs/{title}" for name, title in variants}},
        "oneOf": [{"$ref": f"#/$defs/{title}"} for _, title in variants],
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "stack.schema.json"} | schema
