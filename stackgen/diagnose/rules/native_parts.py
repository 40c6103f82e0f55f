"""Rules for native libraries that are missing or do not fit: parts of llama.cpp in its image, and of the host's driver.

None of these failures was reproduced. `source` names the programs and the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns

__all__ = ["RULES"]

# llama.cpp's own libraries, which only its image can bring
OWN = r"lib(?:ggml|llama|mtmd)[\w-]*\.so[.\d]*"
# libraries of the driver without which no program in the container finds a GPU; the toolkit warns of others as well
NOT_LOCATED = re.compile(
    r"(?:Could not|[Ff]ailed to) locate (?P<library>lib(?:dxcore|cuda|nvidia-ml)\.so[.\d*]*): pattern \S+ not found"
)
FOUND = re.compile(r"=> (?P<folder>/\S+)/(?P<library>lib[\w-]+\.so)")


def _find_not_located(evidence: Evidence) -> Iterator[Hit]:
    """The NVIDIA Container Toolkit did not find a library that the GPU needs while it wrote the CDI file."""
    # nvidia-ctk is mostly run by hand, so its output is in a pasted text
    texts = [(one.service, one.log) for one in evidence.services if not one.is_working]
    for service, text in (*texts, ("", evidence.compose_output)):
        lines = [strip_prefix(line).strip().strip('"') for line in text.splitlines()] if "locate lib" in text else []
        hits = [(line, found) for line in lines if (found := NOT_LOCATED.search(line))]
        if hits:
            line, found = hits[-1]
            name = found["library"].partition(".so")[0]
            places = [
                (one, at["folder"]) for one in lines if (at := FOUND.search(one)) and at["library"].startswith(name)
            ]
            values = {"library": found["library"], **({"folder": places[-1][1]} if places else {})}
            failed = [one for one in lines if one.startswith("Failed to initialize NVML")][-1:]
            yield Hit(service, (line, *(one for one, _ in places[-1:]), *failed), values, highlight=found[0])


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-A031",
        title="a library of llama.cpp in the image is missing or broken",
        cause="llama.cpp can't load its own library {library}. The image was built incompletely, or contains files "
        "of two builds",
        fix="set `image:` to another tag of the image, older or newer; leave the host, its driver and the device "
        "files as they are, because they are not the cause",
        source="The messages come from glibc (elf/dl-load.c, elf/dl-lookup.c), and are quoted in ggml-org/llama.cpp "
        "issues 17190 (2025-11), 23522 (2026-05) and 23943 (2026-06). The failure was not reproduced.",
        explain="Sometimes the build of one tag of an image is broken, and the next tag works. If a backend can't "
        "be loaded, the server runs on the CPU. If a library of the server itself is missing, the server ends with "
        "exit code 127.",
        patterns=compile_patterns(
            rf"(?P<library>{OWN}): (?:error: )?(?:symbol lookup error: )?(?:\S+ )?undefined symbol: \w+",
            rf"symbol lookup error: \S*?(?P<library>{OWN}|llama-\w+): undefined symbol: (?:ggml|llama|mtmd|common)_\w+",
        ),
        variants=(
            Variant(
                compile_patterns(rf"(?P<library>{OWN}): cannot open shared object file"),
                cause="llama.cpp can't find its own library {library}. Either the image lacks the file, or the "
                "loader does not search the file's folder",
                fix="set `image:` to another tag of the image, older or newer; until then, if the file is next to "
                "llama-server (usually in /app), set LD_LIBRARY_PATH=/app in the container, so that the loader finds "
                "it; leave the host and its driver as they are, because they are not the cause",
            ),
            Variant(
                compile_patterns(
                    r"\b(?P<library>lib(?:vulkan|gomp|curl|ssl|crypto|stdc\+\+)\.so[.\d]*): cannot open "
                    r"shared object file"
                ),
                title="a system library is missing in the image",
                cause="a program in the image needs the library {library}, which the image does not contain",
                fix="use an official image of the engine, or another tag of it; if you build the image yourself, "
                "install the package with {library} in it",
            ),
        ),
    ),
    Rule(
        "SG-G046",
        title="the NVIDIA Container Toolkit did not find a library of the driver",
        cause="the NVIDIA Container Toolkit did not find {library} when it wrote the CDI file[[, although {folder} "
        "on the host contains it]]. Containers that use this CDI file lack the library, and find no GPU",
        fix="update the NVIDIA Container Toolkit, and generate the file again; or pass the folder of the library: "
        "`sudo nvidia-ctk cdi generate --library-search-path[[={folder}]] --output=/etc/cdi/nvidia.yaml`; on WSL, "
        "don't install a Linux driver: the Windows driver provides the libraries in /usr/lib/wsl/lib",
        source="The messages come from the NVIDIA Container Toolkit (nvidia-ctk cdi generate), and are quoted in "
        "NVIDIA/nvidia-container-toolkit issues 735 (2024-10), 82 (2023-07) and 1739 (2026-03). The failure was not "
        "reproduced.",
        explain="The toolkit also warns about libraries that most machines lack, such as libnvdxgdmal.so.1 and "
        "libnvidia-sandboxutils.so.1. Those warnings are harmless.",
        find=_find_not_located,
    ),
    Rule(
        "SG-G047",
        title="a hook of the NVIDIA Container Toolkit failed",
        cause="the container runtime started {hook} before the program of the image, and the hook ended with exit code "
        "{code}. The line does not contain the hook's own message",
        fix="generate the CDI file again, because an update of the driver or of the toolkit often leaves paths in it "
        "that no longer exist: `sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`; then compare "
        "`nvidia-cdi-hook --version` with `nvidia-ctk --version`, and update the toolkit (1.17.0 had a bug in this "
        "hook, which 1.17.1 fixed); if it still fails, start the container once with runc (`--runtime runc`), which "
        "shows the hook's message",
        source="The message comes from crun (src/libcrun/container.c), and is quoted in ublue-os/bluefin issue 3454 "
        "(2025-10). podman-container-tools/podman issue 24502 (2024-11) names the versions. The failure was not "
        "reproduced.",
        explain="The hooks make links and update the linker's cache in the container. They run on the host, so the "
        "image and the engine are not the cause.",
        patterns=compile_patterns(
            r"error executing hook `(?P<hook>\S*nvidia-[\w-]+)` \(exit code: (?P<code>\d+)\)",
        ),
        inputs=("log", "compose", "docker"),
    ),
)
