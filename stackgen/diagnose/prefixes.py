"""The prefixes of log lines: services, timestamps, processes and levels of engines, libraries and JSON logs."""

from __future__ import annotations

import json
import re
from functools import lru_cache

__all__ = ["COLORS", "COMPOSE_PREFIX", "error_letter", "is_below_error", "is_error_level", "process_depth",
           "process_name", "strip_prefix"]  # fmt: skip

COMPOSE_PREFIX = re.compile(r"^(?P<service>[a-z0-9][a-z0-9_.-]*?)(?:-\d+)?(?:\s+\| | (?=exited with code \d+))")
# prefixes of `docker logs --timestamps`, Kubernetes (its log files, and --prefix) and the journal
TIMESTAMP_PREFIX = re.compile(
    # of a program that passes on the output of an engine: [llamacpp-router stdout] [52717]
    r"^(?:\[pod/\S+\] |\[[\w.-]{1,40} std(?:out|err)\] (?:\[\d+\] )?)?"
    r"(?:\d{4}-\d\d-\d\dT[\d:.,]+(?:Z|[+-]\d\d:?\d\d)(?: |$)(?:std(?:out|err) [FP] |\S+ [\w@./-]+\[\d+\]: )?"
    r"|[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \S+ [\w@./-]+(?:\[\d+\])?: )?"
)
# vLLM: (EngineCore pid=27) ERROR 11-23 04:27:04 [core.py:1510], (VllmWorker rank=0 pid=31);
# Ray: (RayWorkerWrapper pid=31, ip=10.0.0.1); FastChat: 2026-11-23 04:25:43 | ERROR | stderr |;
# loguru: 2026-11-23 04:25:43.120 | ERROR    | app.main:load:12 -;
# llama.cpp: 0.00.036.051 E srv    load_model:; torch: [rank0]:E0701 14:28:21.083000 91 torch/x.py:539] [0/0],
# [rank0]:[W106 12:41:43.88 x.cpp:15]; NCCL: node:221:221 [3] misc/shmutils.cc:72 NCCL WARN, also after [date time];
# nginx: 2026/06/18 09:41:07 [error] 29#29: *412; Go: 2026/06/18 09:41:07; Compose: WARN[0000];
# Kubernetes: E0618 09:41:07.123456       1 main.go:55]
ENGINE_PREFIX = re.compile(
    r"^(?:\[rank\d+\]:\s?)?(?P<process>\((?:[\w:.-]{1,60} ){0,2}(?:rank=\d+ )?pid=\d+(?:, [\w=., -]{1,60})?\)\s*)?"
    # vLLM's own format has `[file.py:1]`, with VLLM_LOGGING_PREFIX and in some versions without the date or the bracket
    r"(?:(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) (?:\d\d-\d\d [\d:]+ (?:\[[^\]]+|[\w./-]{1,100}:\d+)|"
    r"\[[\w./-]{1,100}:\d+)\]\s?)?"
    # SGLang: [2026-11-29 11:05:01], [2026-11-29 11:05:01 DP0 TP1]
    r"(?:\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?: [A-Z]{2,5}\d+){0,5}\] )?"
    r"(?:\d{4}-\d\d-\d\d [\d:,.]+ \| (?P<tier>\w+) *\| (?P<logger>[\w.]+)(?::[\w<>]{1,60}:\d+)? (?:\||-) )?"
    r"(?:\d+\.\d\d\.\d{3}\.\d{3} (?P<letter>[DIWE]) )?"
    r"(?:\[rank\d+\]:\s?)?"
    r"(?:\[?(?P<torch>[DIWEF])\d{3,4} [\d:.]+ {1,8}(?:\d+ )?[\w./-]{1,200}:\d+\] (?:\[[\d/_]+\] )*)?"
    r"(?:(?:\[[\d-]{10} [\d:.]+\] )?[\w.-]{1,100}:\d+:\d+ \[\d+\] (?:[\w./-]{1,100}:\d+ )?NCCL (?P<nccl>INFO|WARN) )?"
    r"(?:\d{4}/\d\d/\d\d [\d:.]{8,15} (?:\[(?P<nginx>\w{4,6})\] \d+#\d+: (?:\*\d+ )?)?)?"
    r"(?:(?P<logrus>TRAC|DEBU|INFO|WARN|ERRO|FATA|PANI)\[\d{4}\] )?"
)
# torch warns of every GPU that it sees, also of one that the engine does not use; a kernel's own error follows.
# huggingface_hub repeats requests, and raises an exception after the last one
BELOW_ERROR = re.compile(
    r"^(?:DEBUG|INFO|WARNING):\s|^.{0,300}?\w+Warning: |^.{1,100} is not compatible with the current PyTorch install|"
    r"^.{1,600} thrown while requesting (?:HEAD|GET) "
)
COLORS = re.compile("\x1b\\[[0-9;]*m")
# fields of JSON logs: those of Rust's tracing (hf-xet), and of common JSON formatters
JSON_LEVELS, JSON_MESSAGES = ("level", "severity", "levelname"), ("message", "msg", "event")
# no known program writes a longer line in JSON
MAX_JSON_CHARS = 20_000
# a line of Go's logfmt: time=… level=ERROR msg="…" err="…"; Grafana, Prometheus, DCGM exporter, Docker, containerd
LOGFMT = re.compile(
    r'^(?:[\w.]{1,30}=(?:"(?:[^"\\]|\\.){0,200}"|[^\s"]{1,100}) ){0,5}(?:level|lvl)="?(?P<level>[A-Za-z]{4,8})"? '
)
FIELD = re.compile(r'(?:^| )(?P<name>[\w.]{1,30})=(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>\S*))')
# fields that contain the reason of a logged error
REASONS = ("err", "error", "reason")


def _strip_timestamp(line: str) -> str:
    return TIMESTAMP_PREFIX.sub("", COLORS.sub("", line))


@lru_cache(maxsize=64)
def _unpack(text: str) -> tuple[str, str] | None:
    """Level and message of a line in JSON or in Go's logfmt, with the reason in it; None for any other line."""
    if "evel=" in text[:600] or "lvl=" in text[:600]:
        return _unpack_logfmt(text)
    if not text.startswith("{") or len(text) > MAX_JSON_CHARS or not text.rstrip().endswith("}"):
        return None
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    fields = entry.get("fields") if isinstance(entry.get("fields"), dict) else {}
    entry = {**entry, **fields}
    message = next((entry[name] for name in JSON_MESSAGES if isinstance(entry.get(name), str)), None)
    level = next((entry[name] for name in JSON_LEVELS if isinstance(entry.get(name), str)), None)
    if message is None or level is None:
        return None
    return level.upper(), _add_reason(message, [str(entry[one]) for one in REASONS if isinstance(entry.get(one), str)])


def _unpack_logfmt(text: str) -> tuple[str, str] | None:
    head = LOGFMT.match(text[:2000])
    if not head or len(text) > MAX_JSON_CHARS:
        return None
    fields = {one["name"]: one["plain"] if one["quoted"] is None else _unquote(one["quoted"])
              for one in FIELD.finditer(text)}  # fmt: skip
    message = fields.get("msg", fields.get("message"))
    reasons = [fields[one] for one in REASONS if fields.get(one)]
    return None if message is None else (head["level"].upper(), _add_reason(message, reasons))


def _unquote(text: str) -> str:
    return re.sub(r"\\(.)", lambda one: {"n": " ", "t": " "}.get(one[1], one[1]), text)


def _add_reason(message: str, reasons: list[str]) -> str:
    return ": ".join((message, *(one for one in reasons if one and one not in message)))


# every rule and every classification strips the same lines
@lru_cache(maxsize=8192)
def strip_prefix(line: str) -> str:
    """`line` without colors, timestamps and the prefix of the engine; of a line in JSON or logfmt, its message."""
    plain = ENGINE_PREFIX.sub("", _strip_timestamp(line)).rstrip()
    unpacked = _unpack(plain)
    return " ".join(unpacked[1].split()) if unpacked else plain


def is_below_error(line: str) -> bool:
    """Whether the level of `line` is below error. Such a line may also quote a request's text."""
    plain = _strip_timestamp(line)
    prefix = ENGINE_PREFIX.match(plain)
    assert prefix
    if prefix["level"] or prefix["letter"]:
        return prefix["level"] in ("DEBUG", "INFO", "WARNING") or prefix["letter"] in ("D", "I", "W")
    if prefix["torch"] or prefix["nccl"]:
        # NCCL prints its errors at level WARN
        return prefix["torch"] in ("D", "I", "W") or prefix["nccl"] == "INFO"
    if prefix["nginx"] or prefix["logrus"]:
        return not _is_error_word(prefix)
    unpacked = _unpack(plain[prefix.end() :])
    if unpacked:
        return unpacked[0] in ("TRACE", "DEBUG", "DBUG", "INFO", "NOTICE", "WARN", "WARNING")
    # FastChat logs everything from stderr at level ERROR, so only the message shows it
    return prefix["tier"] in ("DEBUG", "INFO", "WARNING") or bool(BELOW_ERROR.match(plain[prefix.end() :]))


def is_error_level(line: str) -> bool:
    """Whether the engine itself marks `line` as an error."""
    plain = _strip_timestamp(line)
    prefix = ENGINE_PREFIX.match(plain)
    assert prefix
    unpacked = _unpack(plain[prefix.end() :])
    return bool(prefix["level"] in ("ERROR", "CRITICAL") or prefix["letter"] == "E" or prefix["torch"] in ("E", "F")
                or _is_error_word(prefix)
                # FastChat logs all that a program prints to stderr at level ERROR
                or (prefix["tier"] in ("ERROR", "CRITICAL") and prefix["logger"] not in ("stderr", "stdout"))
                or (unpacked and unpacked[0].startswith(("ERR", "EROR", "CRIT", "FATAL", "PANIC"))))  # fmt: skip


def _is_error_word(prefix: re.Match[str]) -> bool:
    """Whether the level of nginx, or of a Go program, is that of an error."""
    return prefix["nginx"] in ("error", "crit", "alert", "emerg") or prefix["logrus"] in ("ERRO", "FATA", "PANI")


def error_letter(line: str) -> bool:
    """Whether only the prefix of `line` marks it as an error, as llama.cpp, torch's logger and JSON logs do."""
    plain = _strip_timestamp(line)
    prefix = ENGINE_PREFIX.match(plain)
    return bool(prefix and not prefix["level"] and is_error_level(line))


def process_name(line: str) -> str:
    """The process that wrote `line`, as vLLM prefixes it: `(Worker_TP0 pid=12)`; "" without such a prefix."""
    prefix = ENGINE_PREFIX.match(_strip_timestamp(line))
    return (prefix["process"] or "").strip() if prefix else ""


def process_depth(line: str) -> int:
    """2 for vLLM's workers, 1 for its engine core, 0 for its API server; -1 if the line names no process."""
    name = process_name(line)
    return -1 if not name else 0 if "APIServer" in name else 1 if "EngineCore" in name else 2
