"""The rule for access logs of gateways that are built on Envoy: why Envoy itself answered a request with an error.

The failure was not reproduced. `source` names the file with Envoy's details and the reports that quote them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import has_crashed, strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant

__all__ = ["RULES"]

# JSON of Envoy Gateway, and the text format of Envoy and Istio: … HTTP/1.1" 404 NR route_not_found - "-"
DETAILS = (
    r"(?P<{0}>route_not_found|route_configuration_not_found|cluster_not_found|response_timeout|"
    r"upstream_per_try_timeout|stream_idle_timeout|request_overall_timeout|max_duration_timeout|"
    r"upstream_max_stream_duration_reached|re(?:quest|sponse)_payload_too_large|ext_proc_error\w*(?:-message\w*)?)"
)
LOGGED = re.compile(
    rf'"response_code_details": ?"{DETAILS.format("json")}|'
    rf'HTTP/[\d.]+" [45]\d\d [\w,-]{{1,20}} {DETAILS.format("text")}'
)
NO_ROUTE = Variant(
    (),
    title="a gateway has no route for a request",
    cause="the gateway answered a request itself, with the detail `{detail}`: no route matches the request's host "
    "name, path and headers, or the route's backend does not exist",
    fix="compare the host name and the path of the request with the HTTPRoutes (`kubectl get httproute -A -o yaml`: "
    "hostnames, matches, parentRefs); look at the conditions of the route (Accepted, ResolvedRefs); gateways that "
    "route by model read `model` of the request, or a header such as x-ai-eg-model",
    condition="the detail names a route or a cluster",
)
TIME_LIMIT = Variant(
    (),
    title="a gateway's time limit ended a request",
    cause="the gateway ended a request, with the detail `{detail}`: the engine had not answered within the time limit "
    "of the gateway. The engine may still work on the request",
    fix="raise the limit of the route (Gateway API: `timeouts.request` of the HTTPRoute, 0s for none; Envoy Gateway: "
    "BackendTrafficPolicy and, for stream_idle_timeout, ClientTrafficPolicy); let clients stream; if short requests "
    "are ended as well, look at the engine: it may be loading or overloaded",
    condition="the detail is a time limit",
)
PROCESSOR = Variant(
    (),
    title="a gateway's external processor does not answer",
    cause="the gateway asks an external processor about each request, such as the endpoint picker of llm-d (EPP) or "
    "AIBrix's plug-in. It failed, or did not answer in time (`{detail}`), so the gateway answered with an error",
    fix="look at the state, log and CPU limit of the processor's pod (EPP, gateway plug-ins), and whether network "
    "policies block its gRPC port; raise messageTimeout of the processor in the gateway's policy (Envoy's default is "
    "200 ms, which is short under load); add replicas or CPU if it only fails under load",
    condition="the detail begins with ext_proc_error",
)


def _find_detail(evidence: Evidence) -> Iterator[Hit]:
    """An access log of Envoy shows that Envoy itself answered a request with an error."""
    for service in evidence.services:
        if "_" not in service.log or has_crashed(service.log):
            continue
        for line in reversed(service.log.splitlines()):
            if found := LOGGED.search(line):
                detail = found["json"] or found["text"]
                if "not_found" in detail:
                    variant: Variant | None = NO_ROUTE
                elif not detail.startswith("ext_proc") and re.search("timeout|duration", detail):
                    variant = TIME_LIMIT
                else:
                    variant = PROCESSOR if detail.startswith("ext_proc") else None
                yield Hit(service.service, (strip_prefix(line).strip(),), {"detail": detail}, variant=variant)
                break


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-C058",
        title="a gateway refused a request or answer because of its size",
        cause="the gateway answered a request itself, with the detail `{detail}`: the body is larger than the buffer "
        "in which the gateway collects it. Long prompts, images and answers that are not streamed need large buffers",
        fix="raise the buffer of the gateway (Envoy Gateway: `connection.bufferLimit` of ClientTrafficPolicy and "
        "BackendTrafficPolicy); let clients stream; send smaller images",
        source="The details come from Envoy (envoy/stream_info/stream_info.h and "
        "source/extensions/filters/http/ext_proc/ext_proc.cc). vllm-project/aibrix issue 916 (2025-03) and "
        "envoyproxy/ai-gateway issue 494 (2025-03) quote some. The failure was not reproduced.",
        explain="In access logs of Envoy, the detail via_upstream means that the engine sent the status; every other "
        "detail is Envoy's own.",
        find=_find_detail,
        consequence_of=("SG-C018", "SG-C019"),
        fallback=True,
        variants=(NO_ROUTE, TIME_LIMIT, PROCESSOR),
    ),
)
