"""The JSON Schema of `stack.yaml`: made from the same models that validate it, so the two can't differ."""

from __future__ import annotations

from typing import Any

from stackgen import engines
from stackgen.spec import StackSpec

__all__ = ["MODELINE", "stack_schema"]

MODELINE = "# yaml-language-server: $schema=stack.schema.json"


def stack_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a stack file, with a description on every field."""
    schema = StackSpec.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    kinds = []
    for name in engines.names():
        model = engines.get(name).Model.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(model.pop("$defs", {}))
        definitions[model["title"]] = model
        kinds.append((name, model["title"]))
    schema["properties"]["models"]["items"] = {
        "type": "object",
        "required": ["model", "engine"],
        "discriminator": {"propertyName": "engine", "mapping": {name: f"#/$defs/{title}" for name, title in kinds}},
        "oneOf": [{"$ref": f"#/$defs/{title}"} for _, title in kinds],
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "stack.schema.json"} | schema
