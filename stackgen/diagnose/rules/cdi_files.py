"""Variants of the rule for CDI devices that no file defines: files that the container engine rejects, other vendors.

The texts come from cncf-tags/container-device-interface (pkg/cdi/device.go and cache.go).
"""

from __future__ import annotations

from stackgen.diagnose.rule import Variant, compile_patterns

__all__ = ["CDI_VARIANTS", "GENERATE", "OWN_VENDORS"]

GENERATE = "`sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`"

# devices of GPUs that stackgen configures; for other vendors, `gpus` is not the reason
OWN_VENDORS = r"(?:[\w-]+\.)*(?:nvidia|amd|intel)\.com/"

CDI_VARIANTS = (
    Variant(
        compile_patterns(r"invalid device(?: \\*\"[^\"\\]+\\*\")?,? .{0,120}?empty device edits"),
        title="a device in a CDI file has no edits",
        cause="the container engine ignores a CDI file, because one of its devices has no `containerEdits` of its own "
        "(`empty device edits`). The edits of the whole file do not count for this check. So the engine does not know "
        "any device of this file",
        fix="give each entry of `devices:` at least one edit of its own below `containerEdits` (a device node, a mount "
        "or a variable); if a tool wrote the file, the tool found no device: check that the driver works (`nvidia-smi` "
        "or `rocminfo`), and generate the file again",
    ),
    Variant(
        compile_patterns(
            r"(?<!setting up CDI devices: )unresolvable CDI devices "
            rf"(?P<device>(?!{OWN_VENDORS})[\w.-]+/[\w.-]+=[\w:.-]+)"
        ),
        cause="no CDI file that the container engine can read defines {device}. Either no file of this vendor exists "
        "in /etc/cdi or /var/run/cdi, or the engine rejects the file, and then ignores all of it without a message",
        fix="look for the file in both folders, and compare `kind` and `name` in it with {device}; each device needs "
        "`containerEdits` of its own; to see the devices that Docker has discovered, run `docker info`; to write the "
        "file again, use the vendor's tool",
    ),
)
