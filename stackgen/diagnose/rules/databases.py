"""Rules for the databases of programs around the engines: LiteLLM, Open WebUI, Grafana, Langfuse.

None of these failures was reproduced. `source` names the programs and the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns

__all__ = ["RULES"]

# LiteLLM goes on without tables, and reports that it is ready
WITHOUT_TABLES = re.compile(r"Database migration failed but continuing startup")
REJECTED = re.compile(
    r"P1000: Authentication failed against(?: the)? database server(?: at `(?P<server>[^`]+)`)?|"
    r"(?:FATAL: +|error: )?password authentication failed for user \\?\"(?P<user>[^\"\\]+)|"
    r"Access denied for user '(?P<name>[^'@]+)'@"
)
UNREACHABLE = re.compile(
    r"P1001: Can't reach database server at `(?P<server>[^`]+)`(?::`(?P<port>\d+)`)?|"
    r"connection to server (?:at|on socket) \"(?P<host>[^\"]+)\".{0,60}failed: (?:Connection refused|No such "
    r"file|timeout)"
)
NO_LIBRARY = re.compile(r"(?P<program>\S+): error while loading shared libraries: (?P<library>\S+): cannot open")
# lines before the message that may show its reason
BEFORE = 60


def _find_database(evidence: Evidence) -> Iterator[Hit]:
    """A program's database rejects the password or can't be reached, or LiteLLM could not create its tables."""
    for service in evidence.services:
        log = service.log
        if not ("P100" in log or "authentication failed" in log or "connection to server" in log
                or "Access denied for user" in log or "migration failed" in log):  # fmt: skip
            continue
        lines = [strip_prefix(line).strip() for line in log.splitlines()]
        place = max((i for i, line in enumerate(lines) if WITHOUT_TABLES.search(line)), default=None)
        if place is None and service.is_working:
            continue
        shown = () if place is None else (lines[place],)
        searched = lines if place is None else lines[max(0, place - BEFORE) : place]
        for line in reversed(searched):
            kinds = ((REJECTED, None), (UNREACHABLE, GONE), *(((NO_LIBRARY, LIBRARY),) if shown else ()))
            found = next(((match, kind) for pattern, kind in kinds if (match := pattern.search(line))), None)
            if found:
                match, kind = found
                values = {name: value for name, value in match.groupdict().items() if value}
                if "host" in values:
                    values["server"] = values.pop("host")
                if "name" in values:
                    values["user"] = values.pop("name")
                yield Hit(service.service, (line, *shown), values, variant=kind)
                break
        else:
            if shown:
                yield Hit(service.service, shown, variant=NO_TABLES)


GONE = Variant(
    (),
    title="a program can't reach its database",
    cause="no database answers at {server}[[, port {port}]]. Either the database is not ready yet or has ended, or the "
    "address does not work where the program runs: in a container, localhost means the container itself",
    fix="look at the state and the log of the database's container (`docker compose ps -a`); between containers, use "
    "the database's service name and a common network; let the program wait for the database (`depends_on` with "
    "`condition: service_healthy`, and a `healthcheck` with `pg_isready`)",
    condition="the connection failed",
)
LIBRARY = Variant(
    (),
    title="LiteLLM could not create the tables of its database",
    cause="`{program}` in the image needs the library {library}, which the image does not have, so the migration of "
    "the database did not run. LiteLLM continues, but keys, budgets and spending don't work without the tables",
    fix="use another version of the image (the release notes and issues of the project name the versions that "
    "start), or install the library's package in an image of your own; set ENFORCE_PRISMA_MIGRATION_CHECK=true, so "
    "that LiteLLM ends when its migration fails",
    condition="a program in the image lacks a library",
)
NO_TABLES = Variant(
    (),
    title="LiteLLM could not create the tables of its database",
    cause="the migration of LiteLLM's database failed, and LiteLLM continued. Keys, budgets and spending don't work "
    "without the tables. The lines above this message in the whole log show the reason",
    fix="read the log from its start (`docker logs`), above this message; check the address and the password in "
    "DATABASE_URL, and that the database runs; set ENFORCE_PRISMA_MIGRATION_CHECK=true, so that LiteLLM ends when "
    "its migration fails",
    condition="the log does not show why the migration failed",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-C041",
        title="a database rejects the user or password of a program",
        cause="the database[[ at {server}]] rejects the user[[ `{user}`]] or the password that the program sends",
        fix="compare the user and password in the program's address (often DATABASE_URL; special characters in it must "
        "be encoded, for example @ as %40) with those of the database; if you changed POSTGRES_PASSWORD (or "
        "MYSQL_PASSWORD) after the first start, use the old password, or change the password in the database (`ALTER "
        "ROLE NAME PASSWORD '…'`), because the database reads this variable only when its data folder is empty",
        source="P1000 and P1001 are error codes of Prisma (its error reference, prisma-engines 5.4). BerriAI/litellm "
        "issues 38070 (2026), 9876 (2025-04) and 33650 (2026-07) quote these codes, and LiteLLM's message about the "
        "failed migration (proxy/proxy_cli.py). The other messages come from PostgreSQL (libpq/auth.c) and MySQL. "
        "The failure was not reproduced.",
        explain="The program reached the database, so its address and network are right.",
        find=_find_database,
        variants=(GONE, LIBRARY, NO_TABLES),
    ),
    Rule(
        "SG-D041",
        title="an image lacks the generated code for its database",
        cause="the image lacks Prisma's generated client, which the program needs for its database, or the container's "
        "user has no permission to read the client",
        fix="use the image that the program's project builds with this code (for LiteLLM, "
        "ghcr.io/berriai/litellm-database); in an image of your own, run `prisma generate` during the build, as the "
        "user that runs the program; without a database, remove DATABASE_URL",
        source="The messages come from LiteLLM (proxy/utils.py) and prisma-client-py; docker-hardened-images/catalog "
        "issue 192 (2026-02) and BerriAI/litellm issues 10024 (2025-04) and 4876 (2024-07) quote them. The failure "
        "was not reproduced.",
        explain="`prisma generate` creates the client when the image is built. The package alone does not contain it.",
        patterns=compile_patterns(
            r"Unable to find Prisma binaries\. Please run 'prisma generate' first",
            r"The Client hasn't been generated yet, you must run `prisma generate`",
        ),
    ),
    Rule(
        "SG-L013",
        title="a program can't open its SQLite file",
        cause="SQLite can't open or create the program's database file. Either its folder does not exist in the "
        "container, or the container's user has no permission to write to the folder (SQLite creates files next to the "
        "database)",
        fix="find out which folder holds the database, and what is mounted there (`docker inspect --format '{{json "
        ".Mounts}}' CONTAINER`); run `ls -ldn` with the folder on the host, and give it to the container's user (`sudo "
        "chown -R UID FOLDER`), or use a named volume; with SELinux (Fedora, RHEL), add `:z` to the mount",
        source="The message is SQLite's SQLITE_CANTOPEN (src/main.c). sqrlmstr5000/discovarr issue 2 (2025-06) and "
        "ofkm/svelocker-ui issue 41 (2025-02) quote it. The failure was not reproduced.",
        explain="Docker creates a missing folder of a mount as root, and a program that is not root can't write to it.",
        patterns=compile_patterns(
            r"(?:OperationalError|SqliteError|[Ss]qlite.{0,40}|Error code 14): .{0,20}?"
            r"unable to open database file"
        ),
    ),
    Rule(
        "SG-L014",
        title="a SQLite file is locked",
        cause="SQLite can't lock the program's database file. Either another process uses the file (a second container "
        "or replica, or the old pod during an update), or the file is on a network file system (NFS, SMB), where "
        "SQLite's locks don't work reliably",
        fix="look for a second process with this file (`docker ps`, `kubectl get pods`: one replica, and the strategy "
        "Recreate); put the folder on a local disk or a block volume; for several replicas, use PostgreSQL; if you "
        "have already set DATABASE_URL, check that the program reads it, because this message shows that the program "
        "uses SQLite",
        source="The message is SQLite's SQLITE_BUSY (src/main.c). open-webui/open-webui issues 11946 (2025-03) and "
        "5003 (2024-08) and flowintel/flowintel issue 16 (2025-05) quote it. The failure was not reproduced.",
        explain="Single messages under load are harmless if the program tries again. Don't delete the file: it holds "
        "the program's users and settings.",
        patterns=compile_patterns(
            r"(?:OperationalError|SQLITE_BUSY|SQLite Error 5|database connection): .{0,20}?"
            r"database (?:table )?is locked"
        ),
        fallback=True,
    ),
    Rule(
        "SG-C057",
        title="Dynamo can't reach etcd or NATS",
        cause="Dynamo finds its workers through etcd and NATS, and can't connect to {service_name}[[ at {url}]]. "
        "Either it does not run (yet), or the address does not work here: in a container, localhost means the "
        "container itself",
        fix="start both before Dynamo (Dynamo's repository has a Compose file for them), and check that they run "
        "(`docker compose ps`, `kubectl get pods`); set ETCD_ENDPOINTS and NATS_SERVER of every worker and frontend to "
        "addresses that work in their containers, for example http://etcd:2379 and nats://nats:4222; in a cluster, let "
        "pods wait for them with an init container",
        source="The messages come from Dynamo (lib/runtime/src/distributed.rs and transports/nats.rs). "
        "ai-dynamo/dynamo issues 851 and 1699 (2025) quote them. The failure was not reproduced.",
        explain="NATS needs JetStream (`nats-server -js`).",
        patterns=compile_patterns(
            r"Failed to connect to (?P<service_name>etcd) server with config .{0,80}?(?P<url>https?://[^\s\"\]]+)",
            r"Failed to connect to (?P<service_name>NATS): .{0,300}?Verify NATS server is running",
        ),
    ),
)
