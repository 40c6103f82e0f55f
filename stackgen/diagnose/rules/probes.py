"""The rule for probes of Kubernetes: the reason that the kubelet gives decides the cause, not that a probe failed.

The lines are the kubelet's events, as `kubectl describe pod` prints them. `source` names the programs and reports.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import is_below_error, strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant

__all__ = ["RULES"]

# a program of a probe that can't run is no answer of the server
FAILED = re.compile(
    r"\b(?P<probe>Startup|Liveness|Readiness) probe (?:failed|errored): "
    r"(?P<problem>(?!.{0,120}(?:rpc error|exec failed|executable file))\S.{2,200})"
)
ENDED = re.compile(r"Container (?P<container>\S+) failed (?P<probe>startup|liveness) probe, will be restarted")
# the path of a request that the server did not know, in the access log of the same text
UNKNOWN_PATH = re.compile(r"\bGET (?P<path>/[^\s\"?]*)\S* HTTP/[\d.]+\"? (?:-> )?404\b")
CONFIGURED = "to see the probe, run `kubectl get pod POD -o yaml`"

WRONG_PATH = Variant(
    (),
    title="a probe requests a path that the server does not have",
    cause="the server answers the {probe} probe with HTTP {status}. So the server runs, but it does not have the path "
    "that the probe requests[[ ({path} in the log)]]. More time does not help",
    fix="set the path of the probe to one that the server has (/health in vLLM, SGLang and llama-server); "
    f"{CONFIGURED}; check the probe's port too, because another program may answer on this port; if the path is "
    "right, try a newer version of the server, because older versions may not have it",
    condition="the kubelet reports HTTP 404",
    # the server runs, so no other error explains the answer
    consequence_of=(),
)
NEEDS_KEY = Variant(
    (),
    title="a probe requests a path that needs a key",
    cause="the server answers the {probe} probe with HTTP {status}. So the server runs, but it refuses requests "
    "without a key",
    fix="set the path of the probe to one that needs no key (/health in vLLM, SGLang and llama-server); or send the "
    f"key with `httpHeaders` of the probe; {CONFIGURED}",
    condition="the kubelet reports HTTP 401 or 403",
    consequence_of=(),
)
REFUSES = Variant(
    (),
    title="the server refuses the request of a probe",
    cause="the server answers the {probe} probe with HTTP {status}. So the server runs, but it does not accept this "
    "request",
    fix="compare the scheme, the port and the path of the probe with those of the server (a server with TLS needs "
    f"`scheme: HTTPS`); {CONFIGURED}",
    condition="the kubelet reports another status from 400 to 499",
    consequence_of=(),
)
SERVER_ERROR = Variant(
    (),
    title="the server answers a probe with an error of its own",
    cause="the server answers the {probe} probe with HTTP {status}. So the probe reaches a program, which reports that "
    "it can't serve: llama-server answers 503 while it loads the model, and vLLM after its engine has failed",
    fix="read the container's log (`kubectl logs POD`; add `--previous` for the container before a restart), because "
    "an error there is the cause; if the model is still loading, raise failureThreshold or periodSeconds of the "
    "startupProbe",
    condition="the kubelet reports a status from 500 to 599",
)
NOT_LISTENING = Variant(
    (),
    title="nothing listens on the port of a probe",
    cause="nothing accepts the connection of the {probe} probe[[ on port {port}]]. Either the server has not opened "
    "its port yet, which is normal while the model loads, or it ended, or it listens on another port or address",
    fix="read the container's log (`kubectl logs POD`; add `--previous` for the container before a restart); if the "
    "log has an error, this error is the cause; if the model is still loading or downloading, wait; if the kubelet "
    "restarts the container before it is ready, raise failureThreshold or periodSeconds of the startupProbe; if the "
    "server is ready, compare its port and its address (0.0.0.0, not 127.0.0.1) with the probe",
    condition="the kubelet reports a refused connection",
)
SLOW = Variant(
    (),
    title="the server answers a probe too late",
    cause="the {probe} probe got no answer in time: {problem}. Either the server is busy or hangs, or the probe allows "
    "too little time (timeoutSeconds is 1 by default)",
    fix="read the container's log (`kubectl logs POD`); if the server is computing requests or still loading, raise "
    "timeoutSeconds and failureThreshold of the probe; if the log does not grow, the server hangs",
    condition="the kubelet reports that the answer did not come in time",
)
SCHEME = Variant(
    (),
    title="a probe uses HTTPS for a server without TLS, or the reverse",
    cause="the {probe} probe and the server don't agree on TLS: {problem}. So the probe fails although the server may "
    "work",
    fix="set `scheme` of the probe (`httpGet`) to HTTPS if the server uses TLS, and to HTTP if it does not (the "
    "kubelet does not verify the certificate); if the server should have TLS, check its own settings for a certificate",
    condition="the server speaks TLS and the probe does not, or the reverse",
)
UNREACHABLE = Variant(
    (),
    title="a probe gets no connection to the pod",
    cause="the {probe} probe got no connection in time: {problem}. The packets are dropped on the way (a network "
    "policy or a firewall), or the pod or its node is overloaded",
    fix="check whether network policies allow the kubelet to reach the pod (`kubectl get networkpolicy`); look at the "
    "node's load (`kubectl describe node`)",
    condition="the kubelet reports that the connection timed out",
)
OTHER = Variant(
    (),
    title="a probe of a pod fails",
    cause="the {probe} probe fails: {problem}. While the model loads, this is normal",
    fix="read the container's log (`kubectl logs POD`); if the model is still loading or downloading, wait; if the "
    "kubelet restarts the container before it is ready, raise failureThreshold or periodSeconds of the startupProbe",
    condition="the kubelet reports another reason",
)

# in the order of how much a reason says: the server's own answers before a server that does not answer
REASONS = tuple(
    (re.compile(pattern), variant)
    for pattern, variant in (
        (r"server gave HTTP response to HTTPS client|malformed HTTP response|first record does not look like", SCHEME),
        (r"statuscode: (?P<status>404)\b", WRONG_PATH),
        (r"statuscode: (?P<status>40[13])\b", NEEDS_KEY),
        (r"statuscode: (?P<status>4\d\d)\b", REFUSES),
        (r"statuscode: (?P<status>5\d\d)\b", SERVER_ERROR),
        (r"(?:dial tcp \S+?:(?P<port>\d+): )?(?:connect: )?connection refused", NOT_LISTENING),
        (r"dial tcp .{0,80}i/o timeout", UNREACHABLE),
        (r"context deadline exceeded|Client\.Timeout|timed out|timeout:", SLOW),
        (r"", OTHER),
    )
)


def _find_failed_probe(evidence: Evidence) -> Iterator[Hit]:
    """The kubelet reports a failed probe, or a container that it restarts because of one."""
    for service in evidence.services:
        if " probe" not in service.log or service.is_working:
            continue
        lines = [strip_prefix(line).strip() for line in service.log.splitlines() if not is_below_error(line)]
        ended = next(((line, found) for line in reversed(lines) if (found := ENDED.search(line))), None)
        failed = [(line, found) for line in reversed(lines) if (found := FAILED.search(line))]
        # a container that was restarted: only its own kind of probe is the reason
        probe = ended[1]["probe"] if ended else ""
        failed = [one for one in failed if one[1]["probe"].lower() == probe] or failed
        ranked = [(rank, line, found, reason) for line, found in failed for rank, (one, _) in enumerate(REASONS)
                  if (reason := one.search(found["problem"]))]  # fmt: skip
        shown = (ended[0],) if ended else ()
        if ranked:
            rank, line, found, reason = min(ranked, key=lambda one: one[0])
            variant = REASONS[rank][1]
            values = {"probe": found["probe"].lower(), "problem": found["problem"].strip(), **reason.groupdict("")}
            if variant is WRONG_PATH and (asked := UNKNOWN_PATH.search(service.log)):
                values["path"] = asked["path"]
            values = {key: value for key, value in values.items() if value}
            yield Hit(service.service, (line, *shown), values, found[0], variant=variant)
        elif ended:
            yield Hit(service.service, shown, ended[1].groupdict(), ended[1][0])


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-K015",
        title="the kubelet restarts a container whose probe fails",
        cause="the kubelet restarts the container {container}, because its {probe} probe failed too often. The line "
        "does not contain the reason. Often, the model takes longer to load than the probe allows. The probe may also "
        "request a wrong path or port",
        fix="run `kubectl describe pod POD`: its events name the reason (`probe failed: …`), and an HTTP status shows "
        "that the server answered; read the log of the container that ended (`kubectl logs POD --previous`); if the "
        "log has an error, this error is the cause; if the container was still loading the model, raise "
        "failureThreshold or periodSeconds of the startupProbe (the product is the time in seconds) above the time "
        "that loading takes; if the download is slow, keep the weights on a volume",
        source="The messages come from the kubelet of Kubernetes (pkg/kubelet/prober, kuberuntime and "
        "pkg/probe/http/http.go), and from Go (net/http/client.go, net/dial.go). llm-d/llm-d-inference-sim issue 45 "
        "(2025-06) reports a server without the path /health. The failure was not reproduced.",
        explain="`kubectl describe pod` prints these lines as events. A startup or liveness probe that fails too often "
        "restarts the container; a readiness probe that fails keeps requests away from the pod. HTTP 400 and above "
        "count as failed. stackgen's own pods have a startup probe that waits for the download and the load of the "
        "model.",
        find=_find_failed_probe,
        consequence_of=("*",),
        variants=(WRONG_PATH, NEEDS_KEY, REFUSES, SERVER_ERROR, NOT_LISTENING, SCHEME, UNREACHABLE, SLOW, OTHER),
    ),
)
