"""What checks work with: the context of one target, and the verdict each of them gives."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stackgen.check.options import Options
from stackgen.check.report import Status
from stackgen.check.transport.faults import Fault
from stackgen.check.transport.session import Reply, Session
from stackgen.plan import Dialect

__all__ = ["QUESTION", "Check", "Context", "Verdict", "failed", "passed", "skipped", "warned"]

QUESTION = "What is the capital of France?"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a check ended; the runner adds its name and time and takes the key out. Fields as in `report.Result`."""

    status: Status
    message: str
    hint: str = ""
    evidence: str = ""
    notes: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    samples: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(slots=True)
class Context:
    """One target while it is checked; what a check finds out for later ones is kept here.

    `listed` is None until the server has listed its models; `chats` are those of them that can chat, where the server
    tells the kind (Together lists image models first); `addresses` are those that the host name stands for;
    `texts` are whole answers to `chat_body` and their tokens, by model; `context_length` is in tokens, None while
    nobody told it; `blocked` tells that nothing can answer, so that the rest of the checks would only wait; `silent`
    are models that `chat` got no answer from in time; `told` are notes that stand in a result already;
    `fault` is why the list of models could not be had; `broken` is why no completion could be had, where the server
    itself is to blame.
    """

    session: Session
    options: Options
    dialect: Dialect
    listed: tuple[str, ...] | None = None
    chats: tuple[str, ...] = ()
    listing: Reply | None = None
    answer: str | None = None
    addresses: tuple[Any, ...] = ()
    texts: dict[str, tuple[str, int]] = field(default_factory=dict)
    context_length: int | None = None
    blocked: bool = False
    silent: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)
    fault: Fault | None = None
    broken: str = ""

    @property
    def url(self) -> str:
        """The base URL."""
        return self.session.target.base_url

    @property
    def any_model(self) -> str:
        """A model name for requests that need one: an expected one that is listed, else a listed one."""
        wanted, listed = self.session.target.models, self.listed
        known = (name for name in wanted if listed is None or name in listed)
        return next(known, next(iter((*self.chats[:1], *(listed or ())[:1], *wanted)), "unknown"))

    @property
    def max_tokens(self) -> int:
        """How long an answer may be: one token for a quick check."""
        return self.options.max_tokens if self.options.depth else 1

    def excerpt(self, reply: Reply) -> str:
        """Status, where a redirect leads, and the start of the body, without the key."""
        place = f" to {self.place(reply)}" if self.place(reply) else ""
        return f"{reply.what}{place} {self.session.redact.excerpt(reply.body)}".rstrip()

    def place(self, reply: Reply) -> str:
        """Where a redirect leads, without the key; empty for every other reply."""
        return self.session.redact.excerpt(reply.location, 200) if 300 <= reply.status < 400 else ""

    def allow(self, check: str, problems: Iterable[str], notes: list[str]) -> list[str]:
        """The `problems` that the dialect is not known for; of the others each note is added to `notes` once.

        A problem may begin with its place in a stream (`event 3: `), which the patterns of deviations leave out.
        """
        left = []
        for problem in problems:
            bare = re.sub(r"^event \d+: ", "", problem)
            known = [d.note for d in self.dialect.deviations if d.check == check and re.fullmatch(d.pattern, bare)]
            if not known:
                left.append(problem)
            elif (note := f"{self.dialect.name} {known[0]}") not in notes:
                notes.append(note)
        return left

    def chat_body(self, model: str, *, stream: bool = False) -> dict[str, object]:
        """The request of the checks: one short question, temperature 0 for an answer that stays the same."""
        body: dict[str, object] = {
            "model": model,
            "messages": [{"role": "user", "content": QUESTION}],
            # not max_completion_tokens: FastChat ignores that one and answers up to its own limit
            "max_tokens": self.max_tokens,
            "temperature": 0,
        }
        if stream:
            body["stream"] = True
            # a single token tells no speed
            if self.session.target.min_tokens_per_second or self.options.min_tokens_per_second:
                body["max_tokens"] = self.options.max_tokens
            # a server that does not know it may refuse the whole request
            if self.dialect.stream_usage:
                body["stream_options"] = {"include_usage": True}
        return body


@dataclass(frozen=True, slots=True)
class Check:
    """A named check: a line in the table that `stackgen check --list` prints.

    `run` gets the context and the model name (empty for checks that are not per model), and may raise Fault.
    `needs` are checks that must not have failed, as far as they ran; a check `per_model` is run for each model, and
    one that is not `exhaustive` for the first of them only. `depth`: 0 runs in every profile, 1 from `default` on, 2 in
    `deep` only. `about` is one line for people.
    """

    name: str
    run: Callable[[Context, str], Verdict]
    about: str = ""
    needs: tuple[str, ...] = ("http",)
    per_model: bool = False
    exhaustive: bool = True
    depth: int = 0


def passed(message: str, evidence: str = "", **more: Any) -> Verdict:
    """The server does what it should."""
    return Verdict("pass", message, "", evidence, **more)


def warned(message: str, hint: str, evidence: str = "", **more: Any) -> Verdict:
    """Works, but somebody should know."""
    return Verdict("warn", message, hint, evidence, **more)


def failed(message: str, hint: str, evidence: str = "", **more: Any) -> Verdict:
    """A client would fail, or the server is not guarded."""
    return Verdict("fail", message, hint, evidence, **more)


def skipped(message: str, **more: Any) -> Verdict:
    """Not run, and why."""
    return Verdict("skip", message, **more)
