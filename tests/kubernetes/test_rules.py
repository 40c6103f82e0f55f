"""The rules that no schema checks: each finds its mistake, and none finds anything in what stackgen renders."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stackgen.kubernetes.rules import RULES, find_mistakes
from stackgen.kubernetes.rules.resources import parse_quantity
from tests.conftest import ROOT
from tests.kubernetes.planted import EFFECTS, MISTAKES, NOT_SENT, TWINS, pod, valid
from tests.kubernetes.test_manifests import by_stack, objects


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_found_and_no_other(name: str) -> None:
    rule, change = MISTAKES[name]
    made, by = valid()
    change(by)
    found = find_mistakes(made)
    assert {one.rule for one in found} == {rule}, [str(one) for one in found]
    assert all(one.message and "/" in one.object for one in found)


def test_two_objects_of_one_name_are_found_once() -> None:
    made, by = valid()
    assert [str(one) for one in find_mistakes([*made, by["Secret"]])] == ["Secret/keys metadata.name: exists twice"]


def test_valid_objects_have_no_mistake_and_every_rule_has_an_example() -> None:
    made, _ = valid()
    assert [str(one) for one in find_mistakes(made)] == []
    assert len({rule for rule, _ in MISTAKES.values()} | {"twins"}) == len(RULES)


@by_stack
def test_rendered_manifests_have_no_mistake(folder: Any) -> None:
    assert [str(one) for one in find_mistakes(objects(folder), existing=["PersistentVolumeClaim/compiled"])] == []


@pytest.mark.parametrize("content", [None, 1, [], "x", {"kind": "Deployment"}, {"kind": "Deployment", "spec": []}])
def test_no_content_is_a_bug(content: Any) -> None:
    find_mistakes([content])
    broken, by = valid()
    pod(by)["containers"] = [content]
    find_mistakes(broken)


@pytest.mark.parametrize(
    ("text", "number"),
    [("500m", "0.5"), (4, "4"), ("1Ki", "1024"), ("1.5G", "1500000000"), ("1e3", "1000"), ("8 Gi", None), ("8g", None),
     ("", None), (True, None), (None, None)],
)  # fmt: skip
def test_quantities(text: Any, number: str | None) -> None:
    found = parse_quantity(text)
    assert (found is None) == (number is None)
    assert number is None or float(found or 0) == float(number)


def test_every_mistake_that_the_server_accepts_has_a_known_effect() -> None:
    recorded = json.loads((ROOT / "tests/cluster/recorded/mistakes.json").read_text())
    assert set(recorded) == {*MISTAKES, TWINS} - set(NOT_SENT)
    assert set(EFFECTS) >= {name for name, answer in recorded.items() if answer == "accepted"} | set(NOT_SENT)
