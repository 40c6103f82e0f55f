"""Did-you-mean for model names."""

from __future__ import annotations

import pytest

from stackgen.check.checks.model_names import did_you_mean, nearest, resolve

KNOWN = ("meta-llama/Llama-3.2-1B-Instruct", "Qwen/Qwen3-8B", "tiny")


@pytest.mark.parametrize(
    ("wanted", "name", "reason"),
    [
        ("TINY", "tiny", "upper and lower case differ"),
        ("meta-llama/llama-3.2-1b-instruct", KNOWN[0], "upper and lower case differ"),
        ("meta-llama/Llama-3-2-1B-Instruct", KNOWN[0], "'-', '.' and '_' differ"),
        ("Llama-3.2-1B-Instruct", KNOWN[0], "the organization in the name is missing or different"),
        ("unsloth/Llama-3.2-1B-Instruct", KNOWN[0], "the organization in the name is missing or different"),
        ("qwen3_8b", KNOWN[1], "the organization in the name is missing or different"),
        ("/models/Qwen3-8B/", KNOWN[1], "the organization in the name is missing or different"),
        ("meta-llama/Llama-3.1-8B-Instruct", KNOWN[0], "the names are similar"),
        ("tinny", "tiny", "the names are similar"),
    ],
)
def test_the_usual_mistakes_get_a_suggestion(wanted: str, name: str, reason: str) -> None:
    assert nearest(wanted, KNOWN) == (name, reason)
    assert did_you_mean(wanted, KNOWN) == f"did you mean {name!r}? ({reason})"


def test_a_shared_organization_alone_is_no_similarity() -> None:
    assert nearest("Qwen/totally-other", ("Qwen/abc", "Qwen/xyz")) is None


def test_without_a_similar_name_all_are_listed() -> None:
    assert did_you_mean("gpt", KNOWN) == f"the server lists: {', '.join(KNOWN)}"
    assert did_you_mean("gpt", ()) == "the server lists no models"
    assert did_you_mean("gpt", [f"m{i}" for i in range(11)]).endswith("m7 and 3 more")


@pytest.mark.parametrize(
    ("wanted", "known", "name"),
    [
        ("tiny", KNOWN, "tiny"),
        ("TINY", KNOWN, "tiny"),
        # an exact match wins over all rules
        ("a", ("A", "a"), "a"),
        ("qwen3_8b", KNOWN, "Qwen/Qwen3-8B"),
        ("unsloth/Llama-3.2-1B-Instruct", KNOWN, "meta-llama/Llama-3.2-1B-Instruct"),
        # the strictest rule with a match decides
        ("org/A-b", ("org/a-b", "org/a_b"), "org/a-b"),
        # two matches are ambiguous
        ("A", ("a", "ä", "a "), "a"),
        ("ORG/A", ("org/a", "Org/a"), "ORG/A"),
        ("x", ("one/x", "two/x"), "x"),
        ("one/x.y", ("one/x-y", "one/x_y"), "one/x.y"),
        # similarity is only for hints
        ("tinny", KNOWN, "tinny"),
        ("meta-llama/Llama-3.1-8B-Instruct", KNOWN, "meta-llama/Llama-3.1-8B-Instruct"),
        ("tiny", (), "tiny"),
    ],
)
def test_only_an_unambiguous_name_is_resolved(wanted: str, known: tuple[str, ...], name: str) -> None:
    found, reason = resolve(wanted, known)
    assert found == name
    assert bool(reason) is (found != wanted)


def test_a_name_that_is_listed_twice_is_unambiguous() -> None:
    assert resolve("SMOL", ("smol", "smol", "smollm2")) == ("smol", "upper and lower case differ")


def test_the_requested_name_is_never_suggested() -> None:
    assert nearest("tiny", ["tiny"]) is None
    assert nearest("tiny", ["tiny", "Tiny"]) == ("Tiny", "upper and lower case differ")
    assert did_you_mean("tiny", ["tiny", "Tiny"]).startswith(
        "the server lists 'tiny', but the model may not support chat"
    )
