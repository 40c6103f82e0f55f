"""What all features have in common: which replies mean that a server hasn't got one, ignores it or fails at it."""

from __future__ import annotations

import re
from typing import Any

from stackgen.check.checks.verdict import Context, Verdict, failed, passed, skipped, warned
from stackgen.check.transport.session import Reply, error_message

__all__ = ["LOGS_HINT", "ignored", "refused", "works", "wrong"]

LOGS_HINT = "look at the server's log: `docker compose logs`"
DOCS_HINT = "OpenAI clients may fail on it: https://platform.openai.com/docs/api-reference"
# Words of a refusal because of what the server is or how it was started, not because of the request. Recorded: vLLM
# "requires --tool-call-parser to be set", llama.cpp "does not support embeddings. Start it with"; OpenAI "You are not
# allowed to generate embeddings from this model"
UNSUPPORTED = re.compile(
    r"support|requires? |enable|disabled|not allowed|not available|not implemented|not permitted|extra (inputs|fields)"
    r"|unrecognized|unknown (field|parameter|argument)|must be set|start it with|no such (path|endpoint|route)",
    re.IGNORECASE,
)


def refused(context: Context, name: str, reply: Reply) -> Verdict | None:
    """The verdict on a reply that is not 200; None for one that is.

    A feature that the dialect claims must work. Of others 404, 405, 501 and a 4xx that says so mean that it is not
    there, which is no fault; 5xx always is.
    """
    if reply.status == 200:
        return None
    said = context.session.redact.excerpt(error_message(reply), 160)
    told = reply.what + (f": {said}" if said else "")
    if reply.status == 429:
        return warned(f"a rate limit or a full queue: {told}", "ask less often", context.excerpt(reply))
    if name in context.dialect.claims:
        return failed(f"{context.dialect.name} offers {name}, and here it gives {told}", LOGS_HINT,
                      context.excerpt(reply))  # fmt: skip
    if reply.status in (404, 405, 501):
        return skipped(f"not offered: {told}")
    if reply.status >= 500:
        return failed(told, LOGS_HINT, context.excerpt(reply))
    if reply.status in (401, 403) or (reply.status < 500 and said and UNSUPPORTED.search(said)):
        return skipped(f"not offered: {told}")
    # neither done nor clearly declined: a client learns nothing from it
    return warned(f"a valid request is refused: {told}", DOCS_HINT, context.excerpt(reply))


def ignored(context: Context, name: str, what: str, reply: Reply, **more: Any) -> Verdict:
    """200, and nothing of what was asked for. A warning: clients can't tell by the status."""
    message = f"{context.dialect.name} ignores {name}: {what}"
    if name in context.dialect.claims:
        return failed(f"{name} is offered, and ignored: {what}", LOGS_HINT, context.excerpt(reply), **more)
    return warned(message, "clients get an answer as if they had not asked for it", context.excerpt(reply), **more)


def works(context: Context, name: str, message: str, *notes: str, **more: Any) -> Verdict:
    """It does what was asked; a note where the dialect was known to ignore it."""
    if name in context.dialect.ignores:
        notes = (*notes, f"{context.dialect.name} was known to ignore {name}, and does it here")
    return passed(message, notes=notes, **more)


def wrong(context: Context, problems: tuple[str, ...], reply: Reply) -> Verdict:
    """200 with a body that is not as documented."""
    if reply.json() is None:
        kind = reply.content_type or "an empty body"
        # Python's own `NaN` ends here as well
        problems = ("it is no valid JSON" if "json" in kind.lower() else f"{kind} instead of JSON",)
    return failed(f"the body is not as documented: {problems[0]}", DOCS_HINT,
                  f"{'; '.join(problems[:5])}; {context.excerpt(reply)}")  # fmt: skip
