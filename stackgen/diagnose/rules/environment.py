"""Rules for what a container gets from outside: its user, the CPU's instructions, the command line, system libraries.

None of these failures was reproduced, unless `source` says so. `source` names the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.error_lines import find_root_lines
from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import is_below_error, lines_since_ready, strip_prefix
from stackgen.diagnose.rule import Hit, Input, Rule, Variant, compile_patterns

__all__ = ["RULES"]

EVERYWHERE: tuple[Input, ...] = ("log", "compose", "docker")
OLD_LIBRARY = re.compile(
    r"(?P<library>(?<![^\s(\"])[^\s:(\"]{0,200}?lib(?:stdc\+\+|gcc_s|c|m|pthread)\.so[\d.]*): version "
    r"[`'\"](?P<version>(?:GLIBCXX|GLIBC|CXXABI|GCC)_[\d.]+)' not found(?: \(required by (?P<file>[^)\s]+)\))?"
)
LEFT_OVER = re.compile(r"error: (?:unrecognized arguments|invalid argument): (?P<words>.+)")
# how a command starts that repeats the ENTRYPOINT of an engine's image
PROGRAM = re.compile(
    r"(?P<program>(?:\S*/)?(?:vllm(?: serve)?|serve|python3?(?:\.\d+)?|llama-server|server|bash|sh)(?![\w.-])|"
    r"(?:\S*/)?python3? -m \S+|-m (?:vllm|fastchat)[\w.]*)(?: |$)"
)
# dash, which Docker starts for a command in the form of text
SH = re.compile(r"^(?:/bin/)?sh$")
SHELL = Variant(
    (),
    title="the image's program got a shell as an argument",
    cause="the image's ENTRYPOINT already starts the engine, so the engine got `{program}` as an argument. Either the "
    "command starts with a shell, or a Dockerfile sets the command as text: Docker then runs `/bin/sh -c` with this "
    "text. A CMD whose list is not valid JSON (a missing comma or quotation mark) counts as text, too",
    fix='in your Dockerfile, write CMD as a list in JSON, such as `CMD ["--port", "8080"]`; in the Compose file or '
    "on the command line of `docker run`, begin the command with the engine's first argument; `docker image inspect "
    "IMAGE --format '{{.Config.Entrypoint}} {{.Config.Cmd}}'` prints both",
)


def _find_repeated_program(evidence: Evidence) -> Iterator[Hit]:
    """A program rejects the name of a program among its arguments."""
    for service in evidence.services:
        for line in reversed(lines_since_ready(service.log)):
            text = strip_prefix(line).strip()
            left = LEFT_OVER.search(text)
            if left and (found := PROGRAM.match(left["words"])):
                values = {"program": found["program"]}
                yield Hit(
                    service.service, (text,), values, left[0], variant=SHELL if SH.search(values["program"]) else None
                )
                break


def _find_old_library(evidence: Evidence) -> Iterator[Hit]:
    """The dynamic linker reports that a system library lacks a version that a compiled file needs."""
    for service in evidence.services:
        lines = [] if service.is_working else lines_since_ready(service.log)
        for line in (one for one in lines if "not found" in one):
            if not (found := OLD_LIBRARY.search(strip_prefix(line))):
                continue
            # a warning is the cause only if the engine misses what could not be loaded
            later = [root.text for root in find_root_lines(lines) if "_OpNamespace" in root.text]
            if later or not is_below_error(line):
                values = {name: value for name, value in found.groupdict().items() if value}
                yield Hit(service.service, (strip_prefix(line).strip(), *later[:1]), values)
                break


INSTRUCTIONS = compile_patterns(
    r"FATAL: (?P<library>\w+) library was compiled with (?P<feature>[\w.]+) but CPU does not support it",
    r"Fatal (?P<library>glibc) error: CPU does not support (?P<feature>x86-64-v\d)",
    r"(?P<library>NumPy) was built with baseline optimizations:? \(?(?P<feature>[\w ]+?)\)? but your machine "
    r"doesn't support",
)
NO_INSTRUCTION = (
    "run `lscpu` in this machine, and look for the feature; in a virtual machine, run it on the host too; if only "
    "the host has the feature, pass the host's CPU through to the virtual machine (Proxmox: CPU type `host`; "
    "libvirt: `host-passthrough`); if the CPU itself lacks the feature, set `image:` to a version for older CPUs; "
    "leave the GPU as it is, because the message is not about the GPU"
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-D026",
        title="the container's user has no name",
        cause="the container runs as user id {uid}, and the image's /etc/passwd has no entry for it. A library "
        "failed because it needs the user's name",
        fix="in extra_env, set USER and LOGNAME to any name, and HOME to a folder that this user can write (for "
        "example /tmp)[[?user|; or set `user:` to an id that the image knows]]; TORCHINDUCTOR_CACHE_DIR alone is "
        "not enough, because some versions of torch need the name even then",
        source="The message comes from Python's getpass.py and pwd, and is quoted in vllm-project/vllm issue 44548 "
        "(2026-06) and pytorch/pytorch issue 140765, and the one about a group in nullata/llamaMan issue 85 (2026-09). "
        "Pull requests 46734 of vllm-project/vllm and 974 of h2oai/h2o-llmstudio describe the variables. The failure "
        "was not reproduced.",
        explain="OpenShift, `--user` and `user:` run containers under a user id of their own. Python reads the name "
        "from LOGNAME and USER, and reads /etc/passwd only if both are unset. The model is not the cause, even if "
        "the traceback names one of its modules.",
        patterns=compile_patterns(
            r"getpwuid\(\): uid not found: (?P<uid>\d+)", r"cannot find name for user ID (?P<uid>\d+)"
        ),
        inputs=EVERYWHERE,
        variants=(
            Variant(
                # Python 3.13 and later
                compile_patterns(r"OSError: No username set in the environment"),
                cause="the image's /etc/passwd has no entry for the container's user. A library failed because it "
                "needs the user's name",
            ),
            Variant(
                compile_patterns(r"Could not determine home directory"),
                title="the container's user has no home folder",
                cause="the image's /etc/passwd has no entry for the container's user. A library failed because it "
                "needs the user's home folder",
            ),
            Variant(
                compile_patterns(r"unable to find user (?P<uid>[^:\s]+): no matching entries in passwd file"),
                title="the image does not know the user",
                cause="the container should run as user {uid}, but the image's /etc/passwd does not contain this name",
                fix="set `user:` to the number of the user, or to a name that the image has (`docker run --rm "
                "--entrypoint cat IMAGE /etc/passwd` lists them)",
            ),
            Variant(
                compile_patterns(r"[Uu]nable to find group (?P<group>[^:\s]+): no matching entries in group file"),
                title="the image does not know the group",
                cause="the container should get the group {group}. Docker looks up this name in the image's "
                "/etc/group, which does not contain it. A group of the host has no effect",
                fix="write the number of the host's group instead of its name in `group_add` (`getent group {group}` "
                "on the host prints the number); with Podman, `--group-add keep-groups` is another way",
            ),
        ),
    ),
    Rule(
        "SG-D033",
        title="the database is from a newer version of the program",
        cause="the database has the version {revision}, which this version of the program does not know. Most often, "
        "a newer image has used the same data before, and has migrated the database",
        fix="set the image to the newer version again; or restore the backup from before the upgrade, and use it with "
        "this version; don't delete the database or its volume, because the data is not damaged",
        source="The message comes from Alembic 1 (script/base.py), and is quoted in open-webui/open-webui issue 26163 "
        "(2026-06). The failure was not reproduced.",
        explain="Programs such as Open WebUI change the tables of their database when a new version starts for the "
        "first time. An older version can't undo these changes.",
        patterns=compile_patterns(r"Can't locate revision identified by '(?P<revision>\w{1,64})'"),
        inputs=EVERYWHERE,
    ),
    Rule(
        "SG-D027",
        title="the CPU lacks instructions that a program of the image needs",
        cause="{library} was compiled for CPUs with {feature}, which this machine does not offer. In a virtual "
        "machine, the CPU model of the virtual machine often hides the feature",
        fix=NO_INSTRUCTION,
        source="The messages come from UCX (src/ucs/arch/x86_64/cpu.c), glibc (sysdeps/x86/cpu-features.c), NumPy 2 "
        "(npy_cpu_features.c) and llamafile, and are quoted in vllm-project/vllm issue 52885 (2026-08) and "
        "mozilla-ai/llamafile issue 488. The failure was not reproduced.",
        explain="A program that loads such a library ends at once, with an error message or with exit code 132 or "
        "139. vLLM loads UCX when it imports NIXL, even if no setting uses NIXL. In a virtual machine, the CPU model "
        "is chosen by the host. For example, the model x86-64-v2-AES has no AVX.",
        patterns=INSTRUCTIONS,
        inputs=EVERYWHERE,
        variants=(
            Variant(
                INSTRUCTIONS,
                cause="{library} was compiled for CPUs with {feature}, which this virtual machine does not offer. "
                "Most likely, the CPU model of the virtual machine hides a feature of the host's CPU",
                applies=lambda evidence, service: evidence.is_virtual(service),
                condition="the machine is virtual, or the log names a hypervisor",
            ),
            Variant(
                compile_patterns(r"the cpu feature (?P<feature>\w+) was required at build time but isn't available"),
                cause="the program was compiled for CPUs with {feature}, which this machine does not offer. In a "
                "virtual machine, the CPU model of the virtual machine often hides the feature",
            ),
        ),
    ),
    Rule(
        "SG-D028",
        title="the command repeats the program that the image already starts",
        cause="the image's ENTRYPOINT already starts the engine. The command starts with the same program, so the "
        "engine got `{program}` as an argument",
        fix="in the Compose file or on the command line of `docker run`, begin the command with the engine's first "
        "argument (for vllm/vllm-openai: the model), or set `entrypoint` as well; in stack.yaml, remove the name of "
        "the program from extra_args; `docker image inspect IMAGE --format '{{.Config.Entrypoint}}'` prints what the "
        "image starts",
        source="The message comes from Python's argparse.py, and is quoted in vllm-project/vllm issues 37133 (2026-03) "
        "and 27389 (2025-10). opea-project/GenAIComps issue 336 quotes it for `bash`, and "
        "ggml-org/llama.cpp issue 14019 (2025-06) for `/bin/sh`. The ENTRYPOINT of "
        "vllm/vllm-openai is `vllm serve`, and was `python3 -m vllm.entrypoints.openai.api_server` in older versions "
        "(docker/Dockerfile). The failure was not reproduced.",
        explain="Docker appends the command to the ENTRYPOINT. The extra arguments are not flags, so the error does "
        "not mean that a flag is unknown or was removed.",
        find=_find_repeated_program,
        inputs=EVERYWHERE,
        variants=(
            Variant(
                compile_patterns(r"exec: \\?\"(?P<program>--?[a-z][\w-]*)\\?\": executable file not found"),
                title="the command starts with a flag, and the image starts no program",
                cause="the image has no ENTRYPOINT, or the Compose file removes it. So Docker tries to run the first "
                "argument {program} as a program",
                fix="start the command with the program (for example `vllm serve`), or remove `entrypoint` from the "
                "Compose file; `docker image inspect IMAGE --format '{{.Config.Entrypoint}}'` prints what the image "
                "starts",
            ),
            Variant(
                compile_patterns(
                    r"^[0-9a-f]{12} .{1,300}?\"(?:vllm serve|\S*python3? -m (?:vllm|sglang)\S*|\S*llama-server) "
                    r"(?P<program>tail|sleep|(?:/bin/)?(?:ba)?sh)\b[^\"]*\""
                ),
                title="the image's program got the name of another program as its model",
                cause="the image's ENTRYPOINT already starts the engine, so Docker appended `{program}` to it, and the "
                "engine takes this word as the name of a model. The engine then ends",
                fix="to get a shell or a container that only waits, replace the ENTRYPOINT: `docker run --entrypoint "
                "{program} IMAGE …` (in a Compose file: `entrypoint`), with the other words after the image; to serve "
                "a model, write the model's name after the image",
            ),
        ),
    ),
    Rule(
        "SG-D029",
        title="a package needs newer system libraries than the image has",
        cause="a compiled file[[ ({file})]] needs {version}, which {library} in this image does not have. The file "
        "was built on a newer Linux distribution",
        fix="if you installed the package into the image, use a build for the image's distribution, or the version "
        "that came with the image; otherwise set `image:` to a version whose packages were built "
        'together[[?extra_env.VLLM_ROCM_USE_AITER|; if the file belongs to AITER, set VLLM_ROCM_USE_AITER to "0": '
        "vLLM then starts without AITER, but is slower]]; don't copy the library from another system, because this "
        "breaks other programs in the image",
        source="The message comes from the dynamic linker of glibc (elf/dl-version.c), and is quoted in ROCm/aiter "
        "issues 2752 and 2870 (2026-04), llm-d/llm-d-kv-cache issue 445 (2026-03) and mudler/LocalAI issue 11370 "
        "(2026-08). The failure was not reproduced.",
        explain="`cat /etc/os-release` in the container names the distribution. Some packages only log the failed "
        "import, which leads to an ImportError later.",
        find=_find_old_library,
    ),
    Rule(
        "SG-A029",
        title="this build of llama.cpp can't download over HTTPS",
        cause="this build of llama.cpp contains no library for HTTPS, so it can't download the model. The network, "
        "the proxy and the certificates are not the cause",
        fix="download the file another way (stackgen's download service, or `hf download`), and set `model:` to its "
        "path; or set `image:` to a build with HTTPS, such as the official image",
        source="The messages come from llama.cpp (common/http.h and common/download.cpp; with CURL in older versions), "
        "and are quoted in lemonade-sdk/llamacpp-rocm issue 62 (2026-02) and ggml-org/llama.cpp issue 24421 (2026-06). "
        "The failure was not reproduced.",
        explain="llama-server itself downloads a model with -hf, --hf-repo or --model-url. A build without HTTPS "
        "contacts the Hub even if the file is in the cache. In stackgen's stacks, a separate service downloads the "
        "models.",
        patterns=compile_patterns(
            r"HTTPS is not supported\. Please rebuild",
            r"built without (?:CURL|SSL|OpenSSL|TLS)\b.{0,20}cannot download",
        ),
        engines=("llamacpp",),
    ),
)
