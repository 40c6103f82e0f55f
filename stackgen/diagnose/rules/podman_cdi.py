"""Rules for Podman and CDI: devices that Podman does not know, and CDI names that it takes for files.

None of these failures was reproduced. `source` names the reports that quote the messages.
"""

from __future__ import annotations

import re

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.rule import Input, Rule, Variant, compile_patterns
from stackgen.diagnose.rules.cdi_files import GENERATE

__all__ = ["RULES"]

EVERYWHERE: tuple[Input, ...] = ("log", "compose", "docker")
UNRESOLVABLE = compile_patterns(r"setting up CDI devices: unresolvable CDI devices (?P<device>[^\s,:]+)")
TAKEN_FOR_A_FILE = compile_patterns(r"stat (?P<device>[\w.-]+/\w+=\S+?): no such file or directory")
# what `nvidia-ctk` was told, and what it and `podman` report, in the same text
WRITTEN_TO_RUN = re.compile(r"cdi generate .{0,200}--output[= ]/(?:var/)?run/|(?:wrote|Generated) .{0,100}/run/cdi/")
LISTED = re.compile(r"^(?:\S+ +\| )?nvidia\.com/gpu=\S+\s*$", re.M)
# what the parser of a CDI file says about a field of a newer format, wherever it stands in the text
UNKNOWN_FIELD = re.compile(r"(?i)(?<!unresolvable )\bcdi\b(?:(?!unresolvable).){0,400}\bunknown field \\*\"\w")


def _was_written_to_run(evidence: Evidence, service: str) -> bool:
    return bool(WRITTEN_TO_RUN.search(evidence.read_log(service)))


def _is_listed(evidence: Evidence, service: str) -> bool:
    text = evidence.read_log(service)
    return "cdi list" in text and bool(LISTED.search(text))


def _has_unknown_field(evidence: Evidence, service: str) -> bool:
    # another program may name a field of its own
    return any(UNKNOWN_FIELD.search(line) for line in evidence.read_log(service).splitlines())


NEWER_FILE = (
    "update the container engine (Podman, Docker or containerd), or generate the file with an older version of the "
    "NVIDIA Container Toolkit (for `additionalGids`, 1.18 instead of 1.19)"
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-G027",
        title="Podman does not know the CDI device",
        cause="Podman finds no CDI device {device}. Either no CDI file was generated, or its format version is too "
        "new for this Podman, or it is in a folder that this Podman does not search",
        fix="run `nvidia-ctk cdi list`, which also searches /var/run/cdi; if the list contains the device, check "
        "whether the file is in /etc/cdi, where every Podman searches; if it is only in /var/run/cdi, copy it to "
        "/etc/cdi, or run `podman --cdi-spec-dir=/var/run/cdi run …`; if it is in /etc/cdi, update Podman, or "
        f"generate the file with an older toolkit; if the list does not contain the device, run {GENERATE}",
        source="The message comes from Podman 5 (pkg/specgen/generate/config_linux.go), and is quoted in "
        "NVIDIA/nvidia-container-toolkit issue 1940 (2026-07): Podman 4.9 can't read CDI 0.7, which toolkit 1.19.1 "
        "writes. Issues 1860 (2026-05) and 38 (2022-12) quote the parser. The failure was not reproduced.",
        explain="Podman silently ignores CDI files that it can't read. `podman --version` shows the version of Podman.",
        patterns=UNRESOLVABLE,
        inputs=EVERYWHERE,
        variants=(
            Variant(
                compile_patterns(
                    r"failed to parse CDI Spec \\*\"(?P<file>[^\"\\]+)\\*\": failed to unmarshal CDI Spec: .{0,200}?"
                    r"unknown field \\*\"(?P<field>\w+)"
                ),
                title="a CDI file is too new for the container engine",
                cause="the CDI file {file} has the field `{field}`, which this container engine does not know. So the "
                "engine ignores the whole file, including all of its GPUs. The toolkit that generated the file is "
                "newer than the engine",
                fix=NEWER_FILE,
            ),
            Variant(
                UNRESOLVABLE,
                title="a CDI file is too new for the container engine",
                cause="Podman finds no CDI device {device}, because Podman ignores the CDI file that defines this "
                "device. The file has a field that this Podman does not know: the toolkit that generated the file is "
                "newer than Podman",
                fix=NEWER_FILE,
                applies=_has_unknown_field,
                condition="the text shows that a CDI file has an unknown field",
            ),
            Variant(
                UNRESOLVABLE,
                cause="Podman finds no CDI device {device}, although a CDI file was written below /run. Some "
                "versions of Podman (5.5) search only /etc/cdi",
                fix="write the CDI file to the folder that every version searches: `sudo nvidia-ctk cdi generate "
                "--output=/etc/cdi/nvidia.yaml`; or configure the folder of the file: `podman --cdi-spec-dir=/run/cdi "
                "run …`, or `cdi_spec_dirs` in containers.conf; if this changes nothing, the format version of "
                "the file may be too new for this Podman",
                applies=_was_written_to_run,
                condition="the text shows that the file was written below /run",
            ),
            Variant(
                UNRESOLVABLE,
                cause="Podman finds no CDI device {device}, although the toolkit lists it. Either the format version "
                "of the CDI file is too new for this Podman, or the file is in a folder that this Podman does not "
                "search",
                fix="update Podman, or generate the CDI file with an older toolkit, which writes an older format "
                "version; if the file is not in /etc/cdi, write it there, or pass its folder with `--cdi-spec-dir`",
                applies=_is_listed,
                condition="the text shows the device in the output of `nvidia-ctk cdi list`",
            ),
        ),
    ),
    Rule(
        "SG-G028",
        title="the container engine mistakes the CDI name for a file",
        cause="the container engine looked for a device file with the name {device}, which is the name of a CDI device",
        fix="update Docker Compose to 2.30 or newer, which supports CDI names",
        source="The message is quoted in podman-container-tools/podman issue 28309 (2026-03). The failure was not "
        "reproduced.",
        explain="Older versions of Compose send entries of `devices:` to the container engine as paths. Podman then "
        f"looks the path up on the disk. The CDI file itself is generated with {GENERATE}.",
        patterns=TAKEN_FOR_A_FILE,
        inputs=EVERYWHERE,
        variants=(
            Variant(
                TAKEN_FOR_A_FILE,
                title="a CDI file is too new for the container engine",
                cause="the container engine ignores the CDI file that defines {device}, because the file has a field "
                "that this engine does not know. Then it looked for a device file with this name",
                fix=NEWER_FILE,
                applies=_has_unknown_field,
                condition="the text shows that a CDI file has an unknown field",
            ),
        ),
    ),
)
