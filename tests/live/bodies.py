"""JSON bodies that parsers may read in different ways, for the tests of how the gateway finds the model."""

from __future__ import annotations

import json

from hypothesis import strategies as st

__all__ = ["TWO_MODELS", "json_objects"]

TWO_MODELS = [
    '{"model": "alpha", "model": "beta"}',
    '{"model": "alpha", "model": "alpha"}',
    r'{"mod\u0065l": "alpha", "model": "beta"}',
    r'{"model": "alpha", "x": {"model": 1}, "\u006D\u006Fde\u006C" : "beta"}',
    '{"model": "alpha", "messages": ["model"], "model": 5}',
    '{"model": null, "model": "beta"}',
]

names_in_bodies = st.sampled_from(["alpha", "beta", "first", "org/Model-1.5:latest", "none", '{"model": "beta"}'])
keys_in_bodies = st.sampled_from(["model", "model", "Model", "models", "x", "", '"model', 'model"', "\\model", "mödel"])
values = st.recursive(
    names_in_bodies | st.sampled_from([None, 5, 1.5, True, "model", '"model": ', 'x", "model": "beta', "\\", "ü\n"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys_in_bodies, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def json_objects(draw: st.DrawFn) -> str:
    """Valid JSON objects, also with equal keys, escaped letters and any whitespace."""
    fields = []
    for key, value in draw(st.lists(st.tuples(keys_in_bodies, names_in_bodies | values), max_size=4)):
        texts = [json.dumps(one, ensure_ascii=draw(st.booleans())) for one in (key, value)]
        letter = draw(st.sampled_from([*"modelar", "", "", ""]))
        if letter:
            texts = [text.replace(letter, f"\\u{ord(letter):04X}") if text[0] == '"' else text for text in texts]
        fields.append(draw(st.sampled_from([":", " : ", "\n\t:\r\n"])).join(texts))
    return "{" + draw(st.sampled_from([",", " , \n"])).join(fields) + "}"
