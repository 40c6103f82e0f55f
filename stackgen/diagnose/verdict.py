"""Chooses among the matching rules: a consequence never wins over its cause, known or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from stackgen.diagnose.error_lines import ErrorLine, find_root_lines
from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import (
    has_crashed,
    is_below_error,
    last_status,
    lines_since_ready,
    strip_prefix,
)
from stackgen.diagnose.prefixes import process_depth
from stackgen.diagnose.rule import Hit, Rule

__all__ = ["Candidate", "drop_consequences"]

# in `consequence_of`: any earlier error of the log
ANY = "*"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rule that applies, and where."""

    rule: Rule
    hit: Hit

    @property
    def consequence_of(self) -> tuple[str, ...]:
        """The ids of the rules whose causes also produce this hit."""
        own = self.hit.variant.consequence_of if self.hit.variant else None
        return self.rule.consequence_of if own is None else own


def drop_consequences(found: Sequence[Candidate], evidence: Evidence) -> tuple[list[Candidate], frozenset[str]]:
    """`found` without the candidates that follow from another cause; and the services whose cause no rule knows.

    Dropped are: rules whose `consequence_of` names another rule that applies; lines of the API server after an error of
    the engine core or a worker, and warnings, if no rule explains the error of the deepest process; refused requests of
    a server that failed. Among the rest, the earliest error of a log comes first.
    """
    kept = [one for one in found if not any(_causes(other, one) for other in found)]
    dropped = [one for one in kept if _follows_from_log(one, kept, found, evidence)]
    unknown = frozenset(one.hit.service for one in dropped if not one.rule.refusal)
    return _sort_by_log([one for one in kept if one not in dropped], evidence), unknown


def _sort_by_log(found: list[Candidate], evidence: Evidence) -> list[Candidate]:
    """`found`, with the candidates that explain errors of one service's log in the order of these errors.

    All others keep their places, so that the order of the rules decides only about causes of the same line.
    """
    result = list(found)
    for service in evidence.services:
        roots = _roots(service.log)
        own = [(index, one) for index, one in enumerate(found) if one.hit.service == service.service]
        explained = {i: [at for at, root in enumerate(roots) if _explains(one, root.text)] for i, one in own}
        ranked = sorted((ats[0], i) for i, ats in explained.items() if ats)
        for place, (_, index) in zip(sorted(i for _, i in ranked), ranked, strict=True):
            result[place] = found[index]
    return result


def _causes(cause: Candidate, one: Candidate) -> bool:
    """Whether `one` is a consequence of `cause`, according to its rule."""
    # a cause of the whole stack ("") explains what its services show; a pasted log is also read as a whole stack
    is_same = cause.hit.service == one.hit.service or "" in (cause.hit.service, one.hit.service)
    return is_same and cause.rule.id in one.consequence_of


def _follows_from_log(
    one: Candidate, kept: Sequence[Candidate], found: Sequence[Candidate], evidence: Evidence
) -> bool:
    # a pasted log is also read as output of Compose, whose hits have no service
    service = next((each for each in evidence.services if each.service == one.hit.service
                    or (not one.hit.service and each.log and each.log == evidence.compose_output)), None)  # fmt: skip
    if service is None or not one.hit.lines:
        return False
    if one.rule.refusal:
        others = any(not each.rule.refusal and not each.rule.fallback and each.hit.service == one.hit.service
                     for each in kept)  # fmt: skip
        # a server that has since answered a request is healthy
        return (others or service.has_failed or has_crashed(service.log)
                or (last_status(service.log) or 400) < 400)  # fmt: skip
    roots = _roots(service.log)
    place = _place(service.log, one.hit.lines[0].strip())
    if not roots or place is None:
        return False
    index, depth, below_error = place
    if ANY in one.consequence_of and any(root.index < index and not _explains(one, root.text) for root in roots):
        return True
    # a finder has already weighed several lines; only hits of patterns have a highlight
    if not one.hit.highlight:
        return False
    same = [each for each in found if each.hit.service == one.hit.service]
    if any(_explains(one, root.text) for root in roots):
        return False
    # a general rule explains less than a specific rule for another process, but more than its consequence
    explaining = [each for each in same if not each.rule.fallback and any(_explains(each, r.text) for r in roots)]
    # a warning is no cause next to a rule that explains the error which ended the process
    if explaining:
        return below_error and any(each in kept for each in explaining)
    first = min((root for root in roots if root.depth >= 0), key=lambda root: root.index, default=roots[0])
    is_shallower = 0 <= depth < first.depth and index > first.index
    was_survived = 0 <= depth == first.depth and index < first.index
    return below_error or is_shallower or was_survived


def _explains(one: Candidate, text: str) -> bool:
    in_lines = any(line.strip() == text for line in one.hit.lines)
    return in_lines or any(pattern.search(text) for pattern in one.rule.all_patterns)


@lru_cache(maxsize=16)
def _roots(log: str) -> tuple[ErrorLine, ...]:
    return tuple(find_root_lines(lines_since_ready(log)))


@lru_cache(maxsize=64)
def _place(log: str, text: str) -> tuple[int, int, bool] | None:
    """Index, process depth and level of the first line with this text since the service was ready."""
    for index, line in enumerate(lines_since_ready(log)):
        # a finder may report a part of the line
        if text in line and text in strip_prefix(line):
            return index, process_depth(line), is_below_error(line)
    return None
