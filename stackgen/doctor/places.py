"""Adds the line in stack.yaml to each finding of doctor."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from stackgen.doctor.finding import DoctorInputs, Finding
from stackgen.stack.load import locate_path
from stackgen.stack.yaml_text import find_places

__all__ = ["with_places"]


def with_places(inputs: DoctorInputs, findings: Sequence[Finding]) -> Iterator[Finding]:
    """`findings` with the lines and columns of their places in stack.yaml."""
    # with hosts, the indices of models are those of the machine's part
    text = inputs.stack.text if inputs.stack and not inputs.stack.spec.hosts else ""
    places = find_places(text) if any(one.place and not one.line for one in findings) else {}
    for one in findings:
        known = one.place and not one.line and re.split(r"[.\[]", one.place)[0] in places
        line, column = (known and locate_path(one.place, places)) or (one.line, one.column)
        yield replace(one, line=line, column=column)
