"""The base of all pydantic models of a stack file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

__all__ = ["Strict", "allow_instead", "short_form"]


def short_form(schema: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Returns a `json_schema_extra` that also allows `schema`: the short form of a field that is a mapping."""
    return lambda field: field["anyOf"].insert(0, schema)


def allow_instead(field: str, other: str) -> Callable[[dict[str, Any]], None]:
    """Returns a `json_schema_extra` that requires `field` only if `other` is missing."""

    def change(schema: dict[str, Any]) -> None:
        schema["required"] = [name for name in schema.get("required", ()) if name != field]
        schema["anyOf"] = [{"required": [field]}, {"required": [other]}]

    return change


def _is_number(annotation: Any) -> bool:
    # `int`, or `int | None`; other unions have validators of their own
    return annotation in (int, float) or set(getattr(annotation, "__args__", ())) in (
        {int, type(None)},
        {float, type(None)},
    )


class Strict(BaseModel):
    """Base of all pydantic models: frozen, and unknown fields are errors."""

    # defer_build: base classes and the models of unused engines are never built (docs/decisions/startup-cost.md)
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_switch_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML reads `yes` as true, which pydantic accepts as the number 1: `port: yes` would publish port 1
        if isinstance(value, bool) and _is_number(cls.model_fields[str(info.field_name)].annotation):
            raise PydanticCustomError(
                "number", "must be a number, but YAML reads the value as {shown}", {"shown": str(value).lower()}
            )
        return value
