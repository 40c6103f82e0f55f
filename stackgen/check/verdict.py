"""What checks work with: the context of one target, and the verdict each of them gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stackgen.check.report import Status
from stackgen.check.session import Reply, Session
from stackgen.plan import Dialect

__all__ = ["QUESTION", "Check", "Context", "Options", "Verdict", "failed", "passed", "skipped", "warned"]

QUESTION = "What is the capital of France?"


@dataclass(frozen=True, slots=True)
class Options:
    """`timeout` (s) of each request; at most `max_models` models are asked, for `max_tokens` tokens each."""

    timeout: float = 30.0
    # LoRA adapters count as models, and a server may have many
    max_models: int = 8
    max_tokens: int = 32


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a check ended; the runner adds its name and time and takes the key out."""

    status: Status
    message: str
    hint: str = ""
    evidence: str = ""


@dataclass(slots=True)
class Context:
    """One target while it is checked. `listed` is None until the server has listed its models."""

    session: Session
    options: Options
    dialect: Dialect
    listed: tuple[str, ...] | None = None
    listing: Reply | None = None
    answer: str | None = None

    @property
    def url(self) -> str:
        """The base URL."""
        return self.session.target.base_url

    @property
    def any_model(self) -> str:
        """A model name for requests that need one: an expected one, else a listed one."""
        return next(iter((*self.session.target.models, *(self.listed or ()))), "unknown")

    def excerpt(self, reply: Reply) -> str:
        """Status and start of the body, without the key."""
        return f"{reply.what} {self.session.redact.excerpt(reply.body)}".rstrip()

    def chat_body(self, model: str, *, stream: bool = False) -> dict[str, object]:
        """The request of the checks: one short question, temperature 0 for an answer that stays the same."""
        body: dict[str, object] = {
            "model": model,
            "messages": [{"role": "user", "content": QUESTION}],
            # not max_completion_tokens: FastChat ignores that one and answers up to its own limit
            "max_tokens": self.options.max_tokens,
            "temperature": 0,
        }
        if stream:
            body["stream"] = True
            # a server that does not know it may refuse the whole request
            if self.dialect.stream_usage:
                body["stream_options"] = {"include_usage": True}
        return body


@dataclass(frozen=True, slots=True)
class Check:
    """A named check. `needs` must not have failed or been skipped; a check `per_model` is run for each model.

    `run` gets the context and the model name (empty for checks that are not per model), and may raise Fault.
    """

    name: str
    run: Callable[[Context, str], Verdict]
    needs: tuple[str, ...] = ("connect",)
    per_model: bool = False


def passed(message: str, evidence: str = "") -> Verdict:
    """The server does what it should."""
    return Verdict("pass", message, "", evidence)


def warned(message: str, hint: str, evidence: str = "") -> Verdict:
    """Works, but somebody should know."""
    return Verdict("warn", message, hint, evidence)


def failed(message: str, hint: str, evidence: str = "") -> Verdict:
    """A client would fail, or the server is not guarded."""
    return Verdict("fail", message, hint, evidence)


def skipped(message: str) -> Verdict:
    """Not run, and why."""
    return Verdict("skip", message)
