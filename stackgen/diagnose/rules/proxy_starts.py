"""Rules for proxies that can't start, or that lost the engine's connection: nginx, HAProxy, Caddy, Traefik, Envoy.

None of these failures was reproduced. `source` names the programs and the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import has_crashed, last_status, strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant

__all__ = ["RULES"]

TEMPORARY = re.compile(
    r'\[emerg\].*?mkdir\(\) "(?P<path>[^"]+)" failed \((?P<errno>13|30|2|1): (?P<why>[^)]+)\)|'
    r'\[emerg\].*?open\(\) "(?P<pid>[^"]+\.pid)" failed \((?P<errno2>13|30): (?P<why2>[^)]+)\)'
)
BIND = re.compile(
    r"\[emerg\].*?bind\(\) to (?P<address>\S+) failed \((?P<errno>\d+): (?P<why>[^)]+)\)|"
    r"\[ALERT\].*?cannot bind (?:UNIX )?socket \((?P<why2>[^)]+)\) (?:for )?\[(?P<address2>[^\]]+)\]"
)
CERTIFICATE = re.compile(
    r'\[emerg\].*?(?P<problem>cannot load certificate (?:key )?"(?P<path>[^"]+)".{0,200})|'
    r"\[ALERT\].*?(?P<problem2>unable to (?:load|stat) SSL certificate .{0,20}'(?P<path2>[^']+)'.{0,120})"
)
# what each program writes if it rejects its configuration
CONFIGURATION = re.compile(
    r"\[emerg\] (?:\d+#\d+: )?(?P<nginx>(?:unknown directive|unexpected|invalid |no \"|\"\w+\" directive|directive |"
    r"duplicate |unknown \"|host not found in resolver|the \"|open\(\) \").{0,300}? in (?P<file>/\S+):(?P<line>\d+))|"
    r"\[ALERT\].{0,60}?(?P<haproxy>parsing \[(?P<file2>/[^:\]]+):(?P<line2>\d+)\] ?: .{1,200})|"
    r"Error: (?P<caddy>(?:adapting config using caddyfile|parsing caddyfile tokens)[^\n]{1,300})|"
    r"(?P<traefik>command traefik error: .{1,200}|(?:EntryPoint|entryPoint) .{1,80} doesn't exist)|"
    r"(?P<envoy>error initializing configuration '[^']+': .{1,300})"
)
CLOSED = re.compile(
    r"(?P<what>upstream prematurely closed connection while reading (?:response header from )?upstream|"
    r"recv\(\) failed \(104: [^)]+\) while reading (?:response header from )?upstream)"
)
HEADER = re.compile(r"upstream sent too big header while reading response header from upstream")


def _find_start(evidence: Evidence) -> Iterator[Hit]:
    """Nginx or another proxy ends at its start, and names the file, the address or the line of its configuration."""
    for service in evidence.services:
        if service.is_working:
            continue
        for line in (strip_prefix(one).strip() for one in service.log.splitlines()):
            if hit := _read_start(service.service, line):
                yield hit
                break


def _read_start(service: str, line: str) -> Hit | None:
    # nginx has a rule of its own for an upstream without a name: SG-C017
    if "host not found in upstream" in line:
        return None
    if found := TEMPORARY.search(line):
        values = {"path": found["path"] or found["pid"], "why": found["why"] or found["why2"]}
        errno = found["errno"] or found["errno2"]
        variant = READ_ONLY if errno == "30" else NO_PARENT if errno == "2" else NO_PERMISSION
        return Hit(service, (line,), values, found[0], variant=variant)
    if found := BIND.search(line):
        values = {"address": found["address"] or found["address2"], "why": found["why"] or found["why2"]}
        return Hit(service, (line,), values, found[0], variant=NOT_BOUND)
    if found := CERTIFICATE.search(line):
        values = {"path": found["path"] or found["path2"], "problem": found["problem"] or found["problem2"]}
        return Hit(service, (line,), values, found[0], variant=NO_CERTIFICATE)
    if found := CONFIGURATION.search(line):
        program = next(name for name in ("nginx", "haproxy", "caddy", "traefik", "envoy") if found[name])
        values = {"problem": found[program].strip(), "program": PROGRAMS[program]}
        place = (found["file"] or found["file2"], found["line"] or found["line2"])
        values |= {"file": place[0], "line": place[1]} if place[0] else {}
        return Hit(service, (line,), values, found[0])
    return None


def _find_closed(evidence: Evidence) -> Iterator[Hit]:
    """Nginx reports that the engine closed a connection before its answer, and no engine's log shows a failure."""
    if any(one.has_failed or has_crashed(one.log) for one in evidence.services):
        return
    for service in evidence.services:
        lines = [strip_prefix(one).strip() for one in service.log.splitlines()]
        status = last_status(service.log)
        hits = [(one, found) for one in lines if (found := CLOSED.search(one) or HEADER.search(one))]
        # a proxy that has since passed on an answer is no failure
        if hits and (status is None or status >= 400):
            line, found = hits[-1]
            yield Hit(service.service, (line,), {}, found[0], variant=TOO_BIG if HEADER.search(line) else None)


PROGRAMS = {"nginx": "nginx", "haproxy": "HAProxy", "caddy": "Caddy", "traefik": "Traefik", "envoy": "Envoy"}
READ_ONLY = Variant(
    (),
    title="nginx can't write to its folders on a read-only file system",
    cause="nginx exited at startup, because it can't create {path}: the root file system of the container is read-only "
    "(`read_only: true`, or `readOnlyRootFilesystem: true` in Kubernetes)",
    fix="keep the root read-only, and mount writable folders: in Compose `tmpfs: [/var/cache/nginx, /var/run, /tmp]`, "
    "in Kubernetes an emptyDir for /var/cache/nginx, /var/run and /tmp; or, in nginx's configuration, move the folders "
    "below /tmp (client_body_temp_path, proxy_temp_path, fastcgi_temp_path, uwsgi_temp_path, scgi_temp_path and pid)",
    condition="errno is 30",
)
NO_PERMISSION = Variant(
    (),
    title="nginx can't create its folders",
    cause="nginx exited at startup, because it can't create {path}: {why}. Most often, the container runs as a user "
    "other than root, or without the capabilities CHOWN, SETUID and SETGID",
    fix="use the image nginxinc/nginx-unprivileged, which needs no root and listens on port 8080; or mount writable "
    "folders at /var/cache/nginx and /var/run (tmpfs or emptyDir, for the user of the container), and move pid and "
    "the temp_path folders below /tmp",
    condition="errno is 13 or 1",
)
NO_PARENT = Variant(
    (),
    title="a folder of nginx is missing",
    cause="nginx exited at startup, because the folder above {path} does not exist. Most often, an empty volume is "
    "mounted over a folder of the image",
    fix="mount the writable folder at the last folder of the path (for example /var/cache/nginx, not /var/cache)",
    condition="errno is 2",
)
NOT_BOUND = Variant(
    (),
    title="a proxy can't listen on its address",
    cause="the proxy exited at startup, because it can't listen on {address}: {why}",
    fix="for `Permission denied`, use a port of 1024 or higher in the container, and publish it as 80 or 443; for "
    "`Address already in use`, find the other program (`ss -ltnp`, in the same network namespace); for `Cannot assign "
    "requested address`, listen on 0.0.0.0",
    condition="the proxy can't listen",
)
NO_CERTIFICATE = Variant(
    (),
    title="a proxy can't load its certificate",
    cause="the proxy exited at startup: {problem}",
    fix="check in the container that {path} exists and that the proxy's user can read it (`docker compose run --rm "
    "--entrypoint ls SERVICE -lL {path}`); with Let's Encrypt, mount the whole folder /etc/letsencrypt, because the "
    "files in live/ are links; check that the key belongs to the certificate; for HAProxy, put both in one file",
    condition="the certificate can't be loaded",
)
TOO_BIG = Variant(
    (),
    title="a header of the answer is too big for nginx",
    cause="nginx rejected the answer of the server behind it, because the headers of the answer are larger than "
    "nginx's buffer",
    fix="raise proxy_buffer_size (for example 16k) and proxy_buffers in nginx's configuration; engines send small "
    "headers, so the answer most likely comes from a login service or a web page",
    condition="the header is too big",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-C031",
        title="a proxy rejects its configuration",
        cause="{program} exited at startup because of its configuration: {problem}",
        fix="[[correct line {line} of {file}; ]]if the message names a setting, correct this setting; test the "
        "file before the next start (`nginx -t`, `haproxy -c -f FILE`, `caddy validate --config FILE`, `envoy "
        "--mode validate -c FILE`)",
        source="The messages come from nginx (src/core/ngx_file.c, ngx_conf_file.c, ngx_connection.c and "
        "event/ngx_event_openssl.c), HAProxy (src/cfgparse.c), Caddy (caddyconfig) and Envoy (source/server/server.cc)."
        " nginx/docker-nginx-unprivileged issues 17 (2019-02) and 175 (2023-11), nginx/docker-nginx issue 524 (2021-03)"
        " and nginx/unit issue 624 (2021-12) quote those of folders. The failure was not reproduced.",
        explain="The engine behind the proxy is not the cause.",
        find=_find_start,
        variants=(READ_ONLY, NO_PERMISSION, NO_PARENT, NOT_BOUND, NO_CERTIFICATE),
    ),
    Rule(
        "SG-C032",
        title="the engine closed a proxy's connection before its answer",
        cause="nginx had a connection to the engine, and the engine (or what is between them) closed it before the "
        "answer. Either the engine ended or restarted, or nginx reused an idle connection just when the engine closed "
        "it",
        fix="look at the engine's log and state at this time (`docker compose ps`, `kubectl get pods`: a restart, "
        "OOMKilled); if the engine did not restart and only single requests fail, let nginx close idle connections "
        "first: `keepalive_timeout` in the upstream block below the engine's (uvicorn: 5 s, `--timeout-keep-alive`), "
        "or no `keepalive`; if each long request fails after the same time, look for a time limit in between",
        source="The messages come from nginx (src/http/ngx_http_upstream.c). kubernetes/ingress-nginx issues 12285 "
        "(2024-11) and 11244 (2026-02) and nginx-proxy/nginx-proxy issue 1587 (2021-04) quote them. The failure was "
        "not reproduced.",
        explain="A longer proxy_read_timeout does not help, because this error is not a time-out of nginx.",
        find=_find_closed,
        consequence_of=("*",),
        fallback=True,
        variants=(TOO_BIG,),
    ),
)
