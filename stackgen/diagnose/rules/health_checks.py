"""The rule for health checks that mark a service as unhealthy, in texts that show no error of the service itself.

The failures were not reproduced. `source` names the programs and the reports that quote the lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.error_lines import find_error_lines
from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant

__all__ = ["RULES"]

UNHEALTHY = re.compile(
    r"(?:dependency failed to start: |^(?:Error: )?)[Cc]ontainer (?:for service )?\"?(?P<name>[\w.-]+)\"? is unhealthy|"
    r"health ?check of container (?P<other>[\w.-]+)'? timed out|"
    # the state of the health check, as `docker inspect` prints it
    r"\bunhealthy\b.{0,20}\bFailingStreak\W{1,4}[1-9]"
)
# a server that listens on one address only, in a command line of the text
BOUND = re.compile(r"--host[ =](?P<address>(?!0\.0\.0\.0|127\.|localhost|::)[\w.:-]*[.:][\w.:-]+)")
PERIOD = re.compile(r"start[_-]period['\"]?[:= ]+['\"]?(?P<period>\d+m?s)\b")


def _find_unhealthy(evidence: Evidence) -> Iterator[Hit]:
    """Compose or another program gave up on a service because it is unhealthy, and the text has no other error."""
    for service in evidence.services:
        if service.state or not ("unhealthy" in service.log or "timed out" in service.log):
            continue
        lines = [strip_prefix(line).strip() for line in service.log.splitlines()]
        hits = [(line, found) for line in lines if (found := UNHEALTHY.search(line))]
        others = [one.text for one in find_error_lines(service.log.splitlines()) if one.certain]
        if not hits or any(not UNHEALTHY.search(one) for one in others):
            continue
        line, found = hits[0]
        values = {"name": found["name"] or found["other"] or "the container"}
        bound = BOUND.search(service.log)
        period = PERIOD.search(service.log)
        values |= (bound.groupdict() if bound else {}) | (period.groupdict() if period else {})
        shown = tuple(one for one in lines if bound and bound[0] in one)[:1]
        yield Hit(service.service, (*shown, line), values, found[0], variant=ONE_ADDRESS if bound else None)


ONE_ADDRESS = Variant(
    (),
    title="the health check connects to an address on which the server does not listen",
    cause="the health check of {name} failed. The server listens only on {address} (`--host`), but health checks run "
    "in or next to its container and connect to 127.0.0.1",
    fix="let the health check connect to {address}, which also works with `network_mode: host`; or let the server "
    "listen on all addresses of its container (`--host 0.0.0.0`), and choose the address for clients where the port is "
    "published (`-p {address}:PORT:PORT`); otherwise read the log of {name}, which shows whether the server was ready",
    condition="a command line in the text binds the server to one address",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-D034",
        title="the health check of a service failed for too long",
        cause="{name} was reported as unhealthy: its health check failed more often than `retries` allows[[, after a "
        "start period of only {period}]]. Either the server was still loading its model when the time was over "
        "(start_period + interval × retries), or the check itself can't succeed. The text does not show which of the "
        "two happened",
        fix="read the log of {name} (`docker logs`); if the log has an error, this error is the cause; if the server "
        "was still loading, raise `start_period` of the health check above the time that loading takes (minutes for "
        "large models), because failures in this time do not count; if the server was ready, run `docker inspect "
        "--format '{{json .State.Health}}' {name}`, which shows the output of the check: compare its port, path and "
        "program with those of the server and the image",
        source="The lines come from Compose 2 (pkg/compose) and RamaLama; Toloka/tolokaforge issue 659 (2026-07), "
        "containers/ramalama issue 2800 (2026-06), zeenolife/ai-baby-monitor issue 4 and linagora/openrag issue "
        "294 (2026-03) quote them; MiaAI-Lab/DeepSeek-v4-Flash-DSpark-2x-DGX-Spark issue 185 (2026-09) quotes the "
        "state of a health check. The failure was not reproduced.",
        explain="Services that wait for a healthy service never start. The health checks that stackgen renders have a "
        "start period that is long enough for the model; `start_timeout` sets another one.",
        find=_find_unhealthy,
        fallback=True,
        # these know why the check failed
        consequence_of=("SG-D007", "SG-D030", "SG-D011"),
        variants=(ONE_ADDRESS,),
    ),
)
