"""Rules for what is around an engine: Compose's variables, container runtime, firewall, file locks, proxies, signals.

None of these failures was reproduced, unless `source` says so. `source` names the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.error_lines import CRASH_BANNER, find_error_lines
from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import (
    has_crashed,
    has_served,
    last_status,
    lines_since_ready,
    strip_prefix,
)
from stackgen.diagnose.rule import Hit, Input, Rule, Variant, compile_patterns

__all__ = ["LAST_RULES", "RULES"]

EVERYWHERE: tuple[Input, ...] = ("log", "compose", "docker")
UNSET = re.compile(r'The \\?"(?P<name>\w+)\\?" variable is not set\. Defaulting to a blank string')
# what a program says about an argument without a value, or about the value that took its place
BLANK = re.compile(
    r"invalid argument: (?!-)|expected (?:one|at least one) argument|unrecognized arguments: (?!-)|"
    r"invalid reference format|invalid (?:hostPort|containerPort|\w+ value: '')|empty (?:section|string)|"
    r"requires a value|error while handling argument|Repo id must"
)
# a missing secret leaves no gap in the arguments
SECRET = re.compile(r"TOKEN|KEY|PASSWORD|SECRET|PROXY", re.I)
LOCK = re.compile(r"still waiting to acquire lock on (?P<path>\S+)")
SOFT_LOCK = re.compile(r"does not appear to support flock|SoftFileLock")
UPSTREAM = re.compile(
    r"(?P<slow>upstream timed out) \(110: [^)]+\) while (?P<what>reading|connecting|sending)|"
    r"(?P<refused>connect\(\) failed \(\d+: [^)]+\) while connecting to upstream|no live upstreams)|"
    r"(?P<large>client intended to send too large body)"
)
SIGNALS = {"132": "SIGILL, an illegal instruction", "134": "SIGABRT, an abort", "135": "SIGBUS, a bus error",
           "136": "SIGFPE, an arithmetic error", "139": "SIGSEGV, a segmentation fault"}  # fmt: skip
ENDED = re.compile(r"^(?:[\w.-]+ )?exited with code (?P<code>132|134|135|136|139)\b")


def _find_unset_variable(evidence: Evidence) -> Iterator[Hit]:
    """Compose warns that a variable is not set, and a program then rejects an argument or finds none."""
    texts = [("", evidence.compose_output), *((one.service, one.log) for one in evidence.services)]
    warned = next(((found["name"], strip_prefix(line)) for _, text in texts for line in text.splitlines()
                   if (found := UNSET.search(line)) and not SECRET.search(found["name"])), None)  # fmt: skip
    if warned is None:
        return
    for service in evidence.services:
        lines = [] if service.is_working else lines_since_ready(service.log)
        error = next((plain for line in reversed(lines) if BLANK.search(plain := strip_prefix(line))
                      and not UNSET.search(plain)), None)  # fmt: skip
        if error:
            yield Hit(service.service, (warned[1].strip(), error.strip()), {"name": warned[0], "error": error.strip()})


def _find_lock(evidence: Evidence) -> Iterator[Hit]:
    """A download logs again and again that it waits for a lock file, and does not go on."""
    for service in evidence.services:
        lines = [strip_prefix(line).strip() for line in service.log.splitlines()]
        waits = [(line, found) for line in lines[-60:] if (found := LOCK.search(line))]
        if len(waits) >= 3 and not (service.role == "download" and service.exit_code == 0):
            soft = next((line for line in lines if SOFT_LOCK.search(line)), "")
            line, found = waits[-1]
            yield Hit(service.service, (line, *([soft] if soft else [])), {"path": found["path"]}, highlight=found[0])


def _find_proxy_timeout(evidence: Evidence) -> Iterator[Hit]:
    """A proxy logs that it stopped waiting for the engine's answer, and the engine's log shows no failure."""
    # if an engine failed, the proxy's errors follow from it
    if any(one.has_failed or has_crashed(one.log) for one in evidence.services):
        return
    for service in evidence.services:
        lines = [strip_prefix(line).strip() for line in service.log.splitlines()]
        hits = [(line, found) for line in lines if (found := UPSTREAM.search(line))]
        status = last_status(service.log)
        # a proxy that has since passed on an answer is no failure
        if hits and (status is None or status >= 400):
            line, found = hits[-1]
            is_reached = found["slow"] and found["what"] != "connecting"
            variant = TOO_LARGE if found["large"] else None if is_reached else UNREACHABLE
            yield Hit(service.service, (line,), {"what": found["what"] or ""}, highlight=found[0], variant=variant)


def _find_signal(evidence: Evidence) -> Iterator[Hit]:
    """A signal that the program itself caused (for example SIGSEGV) ended it, and the log shows no earlier error.

    At the start, only an illegal instruction counts, which has one cause; other crashes there have many.
    """
    for service in evidence.services:
        lines = [strip_prefix(line).strip() for line in service.log.splitlines()]
        places = [(index, found) for index, line in enumerate(lines) if (found := ENDED.match(line))]
        if places:
            (place, found), before = places[-1], lines[: places[-1][0]]
            code, shown = found["code"], lines[place]
        else:
            code, before = str(service.exit_code), lines
            shown = f"{service.service} is {service.state}, exit code {code}"
        # a start that crashes has many reasons, from a wrong image to a full memory
        text = "\n".join(before)
        is_served, is_illegal = has_served(text), code == "132" and "Illegal instruction" in text
        others = any(one.certain and not CRASH_BANNER.match(one.text) for one in find_error_lines(before))
        if code in SIGNALS and not service.is_working and (is_served or is_illegal) and not others:
            last = [line for line in before if line][-2:]
            variant = ILLEGAL if is_illegal else None
            yield Hit(service.service, (shown, *last), {"signal": SIGNALS[code], "code": code}, variant=variant)


ILLEGAL = Variant(
    (),
    title="the program ended at an illegal instruction",
    cause="the program ended with exit code {code} ({signal}): most often it was compiled for a CPU with other "
    "instructions, such as AVX-512 or AMX; Docker did not stop it, and the out-of-memory killer has another code (137)",
    fix="set `image:` to an image that is compiled for this CPU or chooses at run time: another version, or the "
    "official image; `lscpu` lists what the CPU has, and the log often lists what the program was compiled for; in a "
    "virtual machine, pass the host's CPU through",
    condition="the exit code is 132",
)


UNREACHABLE = Variant(
    (),
    title="a proxy can't reach the engine",
    cause="the proxy in front of the engine got no connection: the engine does not listen at this address, or the "
    "network between them drops packets",
    fix="compare the address in the line with `docker compose ps` and the engine's port, and try `curl` from the "
    "proxy's container",
    condition="the proxy waited for the connection",
)

TOO_LARGE = Variant(
    (),
    title="a proxy refuses a large request",
    cause="the proxy in front of the engine refuses requests of this size; the engine has not seen the request",
    fix="raise the proxy's limit (nginx: client_max_body_size, 1m by default), or send less, for example smaller "
    "images",
    condition="the proxy reports a body that is too large",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-D021",
        title="a variable of the Compose file is not set",
        cause="Compose replaced the unset variable {name} with nothing, so an argument lost its value, and a program "
        "rejects what is left: {error}",
        fix="set {name} in the file `.env` next to the Compose file, or in the shell; `docker compose config` shows "
        "the arguments that the program gets",
        source="The warning comes from Compose (compose-go, template), and is quoted in StartupHakk/OpenMonoAgent.ai "
        "issue 23 (2026-05). The failure was not reproduced.",
        explain="A flag whose value is empty takes the next flag as its value, and the value of that flag is then left "
        "over. The compose.yaml that stackgen renders needs no variable that stackgen does not write to .env.",
        find=_find_unset_variable,
    ),
    Rule(
        "SG-D022",
        title="Docker's own firewall chain is missing",
        cause="the Docker daemon can't add its firewall rule, because its chain[[ {chain}]] does not exist: something "
        "on this machine has replaced the firewall rules since the daemon started, or the version of Docker and the "
        "machine's iptables are not compatible",
        fix="first run `sudo iptables -S | grep DOCKER`, which shows whether the chain exists; firewalld, scripts "
        "with iptables-restore, and an update of Docker are frequent reasons; the daemon creates its chains when it "
        "starts, but a restart of the daemon stops all containers unless live-restore is on",
        source="The message comes from iptables 1.8, through libnetwork, and is quoted in docker/cli issue 6691 "
        "(2025-12) and srl-labs/containerlab issue 2944 (2025-11). The failure was not reproduced.",
        explain="Nothing in the stack is wrong: no network can be created until the chain exists.",
        patterns=compile_patterns(
            r"iptables failed: .{0,600}Chain (?P<chain>'[\w-]+') does not exist",
            r"iptables failed: .{0,600}(?:No|no) chain/target/match by that name",
        ),
        inputs=EVERYWHERE,
    ),
    Rule(
        "SG-D023",
        title="the container runtime can't start the container",
        cause="the container runtime ({runtime}) failed before a program of the image ran: {problem}",
        fix="read the last part of the message: it names the mount, device, user or program that the runtime could not "
        "prepare; look at this part on the host and in the image; if it names a call of the kernel, compare with "
        "another runtime or version (`docker info` and `podman info` show them)",
        source="The message comes from crun and runc, and is quoted in containers/crun issue 2104 (2026-06). The "
        "failure was not reproduced.",
        explain="The runtime prepares mounts, namespaces and devices. Its errors come from the host's kernel, file "
        "systems and packages.",
        patterns=compile_patterns(
            # the end of a nested message has the cause
            r"OCI runtime (?:create failed|error): (?:[\w/.-]*/)?(?P<runtime>crun|runc|runsc|youki)(?: [\w ]+)?: "
            r".{0,4000}?(?<!\w)(?P<problem>\w.{2,299})$",
        ),
        inputs=EVERYWHERE,
        fallback=True,
        variants=(
            Variant(
                compile_patterns(
                    r"(?:^|[ /])(?P<runtime>crun|runc|runsc|youki): (?P<problem>.{3,200}: Function not implemented)"
                ),
                cause="this build of the container runtime {runtime}, or the kernel, does not support a system call "
                "that is needed to start the container: {problem}",
                fix="use the {runtime} of the distribution's packages or a newer one, or another runtime (Podman: "
                "`--runtime runc`); `podman info` and `docker info` show which one runs",
            ),
        ),
    ),
    Rule(
        "SG-D025",
        title="a command does not fit the version of Docker or Compose",
        cause="the installed version does not support what the command asks for: {problem}",
        fix="compare `docker version` and `docker compose version` with the version that the command needs, and update "
        "the older program; `docker --help` and `docker compose --help` list what this version knows; a missing "
        "`compose` command means that the plugin docker-compose-plugin is not installed",
        source="The messages come from docker/cli (cmd/docker/docker.go), pflag (flag.go) and moby "
        "(server/middleware/version.go). The order of the folders comes from docker/cli "
        "(cli-plugins/manager/manager_unix.go); docker/compose issue 13389 (2025-11) has an old plugin. The failure "
        "was not reproduced.",
        explain="Client, daemon and Compose plugin are updated apart from each other.",
        patterns=compile_patterns(
            r"^(?P<problem>unknown (?:shorthand )?flag: .*)",
            r"^docker: (?P<problem>'[\w-]+' is not a docker command|unknown command: docker \S+)",
            r"(?P<problem>client version \S+ is too new\. .{0,100}API version is [\d.]*\d)",
        ),
        inputs=("compose",),
        variants=(
            Variant(
                compile_patterns(
                    r"client version (?P<client>1\.\d+) is too old\. Minimum supported API version is "
                    r"(?P<minimum>[\d.]*\d)"
                ),
                title="a program that talks to Docker is older than the daemon accepts",
                cause="a client uses version {client} of Docker's API, but this daemon needs at least {minimum}. "
                "`docker version` shows only the version of the `docker` command. Compose, buildx and other clients "
                "have their own versions",
                fix="run `docker compose version` if a `docker compose` command failed, and update the program that is "
                "old; an old copy in ~/.docker/cli-plugins or /usr/local/lib/docker/cli-plugins wins over the plugin "
                "of the package, which is in /usr/libexec/docker/cli-plugins: list them with `ls -l`, and replace the "
                "old one; for a client in a container (Portainer, Traefik, Watchtower …), use its newer image",
            ),
        ),
    ),
    Rule(
        "SG-L010",
        title="a download waits for a lock file",
        cause="the download waits for the lock {path}: another download holds it, or one that was ended left it, which "
        "happens on network file systems without flock",
        fix="look whether another download of this model runs (`docker ps`, also on other machines with this storage), "
        "and let it finish; only if none runs, remove this one lock file, and nothing else, and start the stack again; "
        "with storage.path on a local disk, such locks do not remain",
        source="The messages come from huggingface_hub (utils/_fixes.py) and are quoted in huggingface/huggingface_hub "
        "issue 2543. The failure was not reproduced.",
        explain="Without flock, huggingface_hub uses a file as lock (SoftFileLock). The file stays if its process is "
        "killed. The files that have arrived are fine.",
        find=_find_lock,
    ),
    Rule(
        "SG-C012",
        title="a proxy stopped waiting for the engine's answer",
        cause="the proxy in front of the engine ended the request while {what} from the engine, because its time limit "
        "passed without a byte; nginx waits 60 seconds by default, and an answer that is not streamed sends nothing "
        "until it is complete",
        fix="raise the proxy's limit for these paths (nginx: proxy_read_timeout and proxy_send_timeout, for example "
        "600s), or let clients stream; the engine shows no failure, so don't restart it",
        source="The message comes from nginx (ngx_http_upstream.c), and is quoted in oasm-platform/open-asm issue 451 "
        "(2026-06). The failure was not reproduced.",
        explain="stackgen's own gateway is HAProxy. This rule is about another proxy in front of it or of the engine. "
        "The client sees status 504.",
        find=_find_proxy_timeout,
    ),
)

# a signal describes how a program ended; if an error explains it, the error is the cause
LAST_RULES: tuple[Rule, ...] = (
    Rule(
        "SG-D024",
        title="the program crashed",
        cause="the program ended with exit code {code} ({signal}): it crashed in its own native code; Docker did not "
        "stop it, and the out-of-memory killer has another code (137)",
        fix="look at the last requests before the crash: if one kind of request repeats the crash, stop sending such "
        "requests, and try a newer image; most such crashes are bugs of one version; the kernel log names the library "
        "that crashed (`sudo dmesg | grep -iE 'segfault|xid|amdgpu'`)",
        source="Shells and Docker report 128 plus the number of the signal. ggml-org/llama.cpp issue 27427 (2026-08) "
        "has one.",
        explain="A crash in native code leaves no traceback. The model's files are rarely the reason if the server has "
        "answered before.",
        find=_find_signal,
        fallback=True,
    ),
)
