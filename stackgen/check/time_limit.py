"""The time limit for all checks of an endpoint together. Checks that it ends or prevents never count as ok."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import Future, wait

from stackgen.check.checks.verdict import Check, Context, Verdict, fail, skip
from stackgen.check.transport.faults import Fault

__all__ = ["NOT_CHECKED", "run_within"]

# the start of the message of a check that was not reached
NOT_CHECKED = "not checked: "
HINT = "raise --timeout, or run fewer checks: --quick, --select or --skip"
# checks end their requests on time; a check that waits for anything else is abandoned this much later (s)
ABANDON_SECONDS = 0.5
# a request that waited until the end of the time may return slightly earlier
EARLY_SECONDS = 0.02


def run_within(check: Check, context: Context, model: str) -> Verdict:
    """Runs a check until the time of its endpoint is over (`Options.time_limit`).

    A check that was not reached fails, or is skipped if an earlier check has failed. Raises what the check raises, and
    Fault if the check does not end in time.
    """
    session = context.session
    if session.ends_at == math.inf:
        return check.run(context, model)
    limit = f"the time limit of {context.options.time_limit:g} s"
    if _is_over(context):
        message = f"{NOT_CHECKED}{limit} expired before this check started"
        return skip(message) if context.has_failed else fail(message, hint=HINT)
    outcome: Future[Verdict] = Future()

    def work() -> None:
        try:
            outcome.set_result(check.run(context, model))
        except Exception as error:
            outcome.set_exception(error)

    # a daemon thread: a Docker engine that hangs, for example, must not keep the program from exiting
    threading.Thread(target=work, daemon=True, name=f"stackgen-check-{check.name}").start()
    wait([outcome], session.ends_at - time.monotonic() + ABANDON_SECONDS)
    if not outcome.done():
        raise Fault("limit", f"{limit} expired before this check ended", hint=HINT)
    error = outcome.exception()
    # "sent nothing for 0.1 s" alone would blame the server, although only 0.1 s were left
    if isinstance(error, Fault) and error.kind.endswith("timeout") and _is_over(context):
        raise Fault(error.kind, f"{limit} expired before this check ended: {error.message}", hint=error.hint)
    verdict = outcome.result()
    if not _is_over(context):
        return verdict
    # requests of this check were ended early, so even its success proves nothing
    found = f": {verdict.message}" if verdict.status == "fail" else ""
    return fail(f"{limit} expired before this check ended{found}", hint=HINT, evidence=verdict.evidence)


def _is_over(context: Context) -> bool:
    return time.monotonic() >= context.session.ends_at - EARLY_SECONDS
