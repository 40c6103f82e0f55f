"""The interface of checks: the context of one target, and the verdict that each check returns."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stackgen.check.checks.adapt import Shape, learn
from stackgen.check.options import Options
from stackgen.check.report import ApiState, ApiSupport, Status
from stackgen.check.transport.faults import Fault
from stackgen.check.transport.session import Reply, Session
from stackgen.plan import Dialect

__all__ = ["QUESTION", "Check", "Context", "Verdict", "fail", "skip", "succeed", "warn"]

QUESTION = "What is the capital of France?"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a check, with the fields of `report.Result`. The runner adds name and time and removes the key.

    `support`: what a client gets from the API or feature that was checked; None if the status is enough to tell.
    """

    status: Status
    message: str
    hint: str = ""
    evidence: str = ""
    notes: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    samples: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    support: ApiState | None = None


@dataclass(slots=True)
class Context:
    """One target during its check, and the findings that later checks use.

    - `listed`: the listed model names; None until the server has listed them. `listing`: the response itself.
      `chat_models`: the models that can chat, if the server reports the type (Together lists image models first).
    - `addresses`: the results of getaddrinfo for the host name.
    - `answer`: the text of the first completion. `chat_answers`: by model, the answer to `chat_body` and its tokens.
    - `context_length`: the context length in tokens; None while unknown.
    - `front_is_down`: whether the front service is down. Then no request is answered, so the other checks are skipped.
    - `timed_out_models`: models that did not answer `chat` in time.
    - `reported_notes`: notes that an earlier result already contains.
    - `has_failed`: whether a check has failed so far.
    - `listing_fault`: why the model list could not be read. `completion_failure`: why there was no completion, if the
      server itself is to blame.
    - `shapes`: by model, the form of requests that the model accepts.
    - `unloaded`: the listed models that a request would load first, with their states.
    - `outcomes`: the verdicts so far, by check and model. `apis`: what works, as the check `apis` found it.
    """

    session: Session
    options: Options
    dialect: Dialect
    listed: tuple[str, ...] | None = None
    chat_models: tuple[str, ...] = ()
    listing: Reply | None = None
    answer: str | None = None
    addresses: tuple[Any, ...] = ()
    chat_answers: dict[str, tuple[str, int]] = field(default_factory=dict)
    context_length: int | None = None
    front_is_down: bool = False
    timed_out_models: set[str] = field(default_factory=set)
    reported_notes: set[str] = field(default_factory=set)
    has_failed: bool = False
    listing_fault: Fault | None = None
    completion_failure: str = ""
    shapes: dict[str, Shape] = field(default_factory=dict)
    unloaded: dict[str, str] = field(default_factory=dict)
    outcomes: dict[tuple[str, str], Verdict] = field(default_factory=dict)
    apis: list[ApiSupport] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The base URL of the target."""
        return self.session.target.base_url

    @property
    def any_model(self) -> str:
        """A model name for requests that need one: an expected model that is listed, else any listed model."""
        wanted, listed = self.session.target.models, self.listed
        known = [name for name in wanted if listed is None or name in listed]
        # if no model is listed, a request still shows whether the server requires a key
        names = (*known, *self.chat_models, *(listed or ()), *wanted)
        loaded = [name for name in names if name not in self.unloaded]
        return next(iter(loaded if self.options.is_light else (*loaded, *names)), "unknown")

    @property
    def max_tokens(self) -> int:
        """The token limit of an answer; a quick check allows one token."""
        return self.options.max_tokens if self.options.depth else 1

    def shape(self, model: str) -> Shape:
        """The form of requests that `model` accepts, as far as it is known."""
        return self.shapes.get(model, Shape())

    def token_limit(self, model: str) -> int:
        """The token limit of answers of `model` to `chat_body`."""
        return max(self.max_tokens, self.shape(model).min_tokens)

    def learn(self, model: str, reply: Reply) -> bool:
        """Whether `reply` refuses only the form of a request. Later requests to `model` then have another form."""
        if shape := learn(self.shape(model), reply):
            self.shapes[model] = shape
        return shape is not None

    def post_chat(self, model: str, body: Mapping[str, Any], **options: Any) -> Reply:
        """Sends a chat request in the form that `model` accepts, and repeats it if the model refuses its form."""
        while True:
            url = f"{self.url}/chat/completions"
            reply = self.session.post(url, self.shape(model).apply(body), **options)
            if not self.learn(model, reply):
                return reply

    def excerpt(self, reply: Reply) -> str:
        """Returns the status, the target of a redirect, and the start of the body, without the key."""
        location = f" to {self.redirect_target(reply)}" if self.redirect_target(reply) else ""
        return f"{reply.summary}{location} {self.session.redact.excerpt(reply.body)}".rstrip()

    def redirect_target(self, reply: Reply) -> str:
        """The target of a redirect, without the key; empty for every other reply."""
        return self.session.redact.excerpt(reply.location, 200) if 300 <= reply.status < 400 else ""

    def drop_deviations(self, check: str, problems: Iterable[str], notes: list[str]) -> list[str]:
        """Returns the `problems` that are not known deviations of the dialect; adds a note once for each deviation.

        A problem may start with its place in a stream (`event 3: `), which the patterns of deviations don't contain.
        """
        left = []
        for problem in problems:
            bare = re.sub(r"^event \d+: ", "", problem)
            # fullmatch: a deviation must not excuse a longer, different problem
            known = [d.note for d in self.dialect.deviations if d.check == check and re.fullmatch(d.pattern, bare)]
            if not known:
                left.append(problem)
            elif (note := f"{self.dialect.name} {known[0]}") not in notes:
                notes.append(note)
        return left

    def chat_body(self, model: str, *, stream: bool = False) -> dict[str, Any]:
        """The chat request of the checks: one short question, with temperature 0 for a reproducible answer."""
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": QUESTION}],
            # not max_completion_tokens: FastChat ignores that field and answers up to its own limit
            "max_tokens": self.max_tokens,
            "temperature": 0,
        }
        if stream:
            body["stream"] = True
            # the single token of a quick check shows no speed
            if self.session.target.min_tokens_per_second or self.options.min_tokens_per_second:
                body["max_tokens"] = self.options.max_tokens
            # a server that does not know `stream_options` may reject the whole request
            if self.dialect.stream_usage:
                body["stream_options"] = {"include_usage": True}
        return body


@dataclass(frozen=True, slots=True)
class Check:
    """A named check: one row of the table that `stackgen check --list` prints.

    - `run`: called with the context and the model name (empty unless `per_model`); may raise Fault.
    - `about`: one line for users.
    - `needs`: this check is skipped if one of these checks failed.
    - `per_model`: the check runs for each model; if not `exhaustive`, only for the first model.
    - `depth`: 0 runs in every profile, 1 in `default` and `deep`, 2 in `deep` only.
    """

    name: str
    run: Callable[[Context, str], Verdict]
    about: str = ""
    needs: tuple[str, ...] = ("http",)
    per_model: bool = False
    exhaustive: bool = True
    depth: int = 0


def succeed(message: str, *, evidence: str = "", **more: Any) -> Verdict:
    """A passed check: the server works as documented."""
    return Verdict("pass", message, evidence=evidence, **more)


def warn(message: str, *, hint: str, evidence: str = "", **more: Any) -> Verdict:
    """A warning: the server works, but the operator should know about the problem."""
    return Verdict("warn", message, hint=hint, evidence=evidence, **more)


def fail(message: str, *, hint: str, evidence: str = "", **more: Any) -> Verdict:
    """A failed check: a client would fail, or the server is not protected."""
    return Verdict("fail", message, hint=hint, evidence=evidence, **more)


def skip(message: str, **more: Any) -> Verdict:
    """A check that did not run; `message` is the reason."""
    return Verdict("skip", message, **more)
