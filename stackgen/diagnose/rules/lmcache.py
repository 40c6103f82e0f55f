"""Rules for LMCache's settings, which vLLM reads when its connector starts.

None of these failures was reproduced. `source` names the files and the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import is_below_error, strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant

__all__ = ["RULES"]

# the program must be in the log: other programs have addresses and buffers too
NAMED = re.compile(r"lmcache", re.I)


def _find_setting(evidence: Evidence) -> Iterator[Hit]:
    """LMCache is in the log, and its start ends with a message about one of its settings."""
    for service in evidence.services:
        if service.is_working or not NAMED.search(service.log):
            continue
        lines = [strip_prefix(one).strip() for one in service.log.splitlines() if not is_below_error(one)]
        cases = ((one, found, variant) for one in lines for words, variant in MESSAGES if (found := words.search(one)))
        if case := next(cases, None):
            line, found, variant = case
            values = {key: value for key, value in found.groupdict().items() if value}
            if {"size", "align"} <= set(values):
                size, align = int(values["size"]), int(values["align"])
                lower = size // align * align
                # a float has all digits of bytes / 2^30, so LMCache gets the same number of bytes back
                values |= {"lower": f"{lower} bytes, {lower / 2**30!r} GiB"} if lower else {}
            yield Hit(service.service, (line,), values, found[0], variant=variant)


EMPTY = Variant(
    (),
    title="LMCache's memory on the CPU has the size 0",
    cause="LMCache tried to reserve a buffer of 0 bytes, because its setting max_local_cpu_size is 0. It needs this "
    "buffer even with `local_cpu: false`, for example to load from a disk or a remote store",
    fix="remove max_local_cpu_size (LMCACHE_MAX_LOCAL_CPU_SIZE) from LMCache's settings, so that LMCache uses its "
    "default of 5 GB, or set it to a size above 0; check that the machine has this memory for each GPU of a replica, "
    "because LMCache reserves it once for each GPU",
    condition="a buffer has the length 0",
)
ALIGNED = Variant(
    (),
    title="LMCache's buffer is not a multiple of its chunks",
    cause="LMCache's buffer of {size} bytes must be a multiple of the size of one chunk, which is {align} bytes for "
    "this model and chunk_size. The model and the number of GPUs are not the cause",
    fix="set the size of the buffer to a multiple of {align} bytes[[ (the next smaller one: {lower})]]: pd_buffer_size "
    "and nixl_buffer_size are in bytes, max_local_cpu_size is in GiB; or try a newer LMCache, which may round the size "
    "itself",
    condition="the message has both sizes",
)
NO_SCHEME = Variant(
    (),
    title="LMCache does not understand the address of its remote store",
    cause="LMCache rejects the address in remote_url: {problem}",
    fix="write the address as LMCache documents it: redis://HOST:PORT, lm://HOST:PORT, mooncakestore://HOST:PORT, "
    "s3://BUCKET.s3.REGION.amazonaws.com; for a folder, some versions need a host before the path "
    "(fs://HOST:PORT/PATH), newer ones accept fs:///PATH; without a remote store, remove remote_url",
    condition="remote_url can't be parsed",
)
NO_SERDE = Variant(
    (),
    title="LMCache's serializer does not support this model",
    cause="this model has compressed attention (MLA), which LMCache stores only in the plain format: {problem}",
    fix="set remote_serde to naive in LMCache's settings (LMCACHE_REMOTE_SERDE)",
    condition="the model uses MLA",
)
DOUBLE_PORT = Variant(
    (),
    title="the address of the LMCache server has two ports",
    cause="vLLM can't use the address {address} of the LMCache server: it contains a port twice, because the setting "
    "of the host contains the port as well",
    fix="in kv_connector_extra_config of --kv-transfer-config, set `lmcache.mp.host` to the host without a port (for "
    "example tcp://127.0.0.1), and `lmcache.mp.port` to the port",
    condition="the address ends with two ports",
)
NO_TCP = Variant(
    (),
    title="the address of the LMCache server has no protocol",
    cause="vLLM can't use the address {address} of the LMCache server, because it does not begin with tcp://",
    fix="in kv_connector_extra_config of --kv-transfer-config, write `lmcache.mp.host` with the protocol, for example "
    "tcp://127.0.0.1, and the port only in `lmcache.mp.port`",
    condition="the address has no protocol",
)
REQUIRED = Variant(
    (),
    title="one setting of LMCache needs another one",
    cause="LMCache's settings contradict each other: {problem}",
    fix="correct the settings that the message names, in the file of LMCACHE_CONFIG_FILE or in the variables that "
    "begin with LMCACHE_",
    condition="the message names the settings",
)

MESSAGES = tuple(
    (re.compile(words), variant)
    for words, variant in (
        (r"both buffer length \(0\) and count \(-1\) must not be 0", EMPTY),
        (r"Buffer size (?P<size>\d+) must be a multiple of align bytes (?P<align>\d+)", ALIGNED),
        (r"(?P<problem>Invalid remote url .{1,200}|No adapter found for URL: .{1,200}|"
         r"Invalid URL .{1,200}: missing (?:host|port))", NO_SCHEME),
        (r"(?P<problem>MLA only works with naive serde mode)", NO_SERDE),
        (r"ZMQError: Invalid argument \(addr='(?P<address>[^']*:\d+:\d+)'", DOUBLE_PORT),
        (r"ZMQError: Invalid argument \(addr='(?P<address>[\w.-]+(?::\d+)?)'", NO_TCP),
        (r"(?:ValueError|AssertionError): (?P<problem>\w+ is required (?:and cannot be empty )?when \w+=True|"
         r"PD only supports .{1,80}|pd_backend_mode must be .{1,80}|min_retrieve_tokens must be .{1,80}|"
         r"nixl_\w+ must (?:not )?be .{1,120}|nixl_buffer_device='cpu' requires .{1,80}|"
         r"store_location cannot be .{1,80})", REQUIRED),
    )
)  # fmt: skip

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V060",
        title="a setting of LMCache is wrong",
        cause="LMCache rejects one of its settings",
        fix="correct the setting that the message names",
        source="The messages come from LMCache 0.5 (v1/config.py, v1/memory_management.py and "
        "v1/storage_backend/connector/__init__.py), torch (frombuffer) and ZMQ. LMCache/LMCache issues 1901 and 1909 "
        "(2025-10), 707 (2025-05), 4267 (2026-07) and 4493 (2026-08) and pull request 2104 (2025-11) quote them. The "
        "failure was not reproduced.",
        explain="LMCache reads its settings from the file in LMCACHE_CONFIG_FILE and from variables that begin with "
        "LMCACHE_. Unknown names are only warnings, so look for typing errors in the log.",
        find=_find_setting,
        variants=tuple(dict.fromkeys(one for _, one in MESSAGES)),
    ),
)
