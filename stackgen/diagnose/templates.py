"""Fills the templates of titles, causes and fixes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from stackgen.flags import normalize_flag
from stackgen.spec import ModelSpec

__all__ = ["fill_template", "has_field"]


def fill_template(template: str, values: Mapping[str, str], model: ModelSpec | None = None) -> str:
    """`template` with each `{name}` replaced by its value.

    `[[…]]` is left out if a value in it is unknown. An unknown value elsewhere becomes `?`. `[[?field|…]]` is left out
    if `model` does not set the field, and `[[!field|…]]` if it does (see `has_field`); both stay without a model.
    """

    def optional(match: re.Match[str]) -> str:
        text = match[1]
        if condition := re.match(r"(?P<kind>[?!])(?P<field>[\w.-]+)\|", text):
            if model is not None and has_field(model, condition["field"]) != (condition["kind"] == "?"):
                return ""
            text = text[condition.end() :]
        return text if all(name in values for name in re.findall(r"\{([a-z_]+)\}", text)) else ""

    template = re.sub(r"\[\[(.*?)\]\]", optional, template)
    return re.sub(r"\{([a-z_]+)\}", lambda match: values.get(match[1], "?"), template)


def has_field(model: ModelSpec, field: str) -> bool:
    """Whether stack.yaml sets `field` of `model`: a field such as `image`, `extra_env.NAME` or `extra_args.--flag`."""
    name, _, part = field.partition(".")
    value = getattr(model, name, None)
    if not part:
        return value not in (None, "", 0, (), "none")
    if name == "extra_args":
        return any(normalize_flag(one.partition("=")[0]) == part for one in value or () if one.startswith("-"))
    return part in (value or ())
