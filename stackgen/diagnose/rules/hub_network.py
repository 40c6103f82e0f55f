"""Rules for the network between a download and the Hub: proxies, certificates, Xet storage, folders of the image.

None of these failures was reproduced. `source` names the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import lines_since_ready, strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns

__all__ = ["RULES"]

WITHOUT_XET = 'for downloads that stackgen does not start, HF_HUB_DISABLE_XET="1" uses plain HTTP instead of Xet'

# requests, and httpx of newer versions
REFUSED = (
    r"(?P<status>403|407|451|50[0-4]) (?:Client|Server) Error\b.{0,80}for url: https?://",
    r"(?:Client|Server) error '(?P<status>403|407|451|50[0-4]) [^']{1,60}' for url 'https?://",
)
# the Hub, or the paths of a mirror; both libraries print the same for any other server, such as images in requests
HUB = (r"(?P<where>(?:[\w-]+\.)*(?:huggingface\.co|hf\.co))\b",
       r"(?P<where>[^/\s]+)/(?:api/(?:models|whoami)|\S{1,200}/resolve/)")  # fmt: skip
NOT_FOUND = compile_patterns(r"error: GET failed \((?P<status>404)\)")
# the first exception of a request to the Hub; the Hub's own exception, with its reason, follows it
RAW = (
    r"{} Client Error: [\w ]{{1,30}} for url: https?://{}",
    r"Client error '{} [^']{{1,40}}' for url 'https?://{}",
)
OF_MODEL = (
    r"(?:[\w-]+\.)*(?:huggingface\.co|hf\.co)/(?:api/models/)?(?P<repo>(?!api/)[\w.-]+/[\w.-]+)/"
    r"(?:resolve|revision)/"
)
EXPLAINED = re.compile(r"(?:Entry|Revision|Repository)NotFound|GatedRepo|does not appear to have a file")
RAW_401, RAW_404 = (compile_patterns(*(text.format(one, OF_MODEL) for text in RAW)) for one in (401, 404))
MIRROR = re.compile(r"HF_ENDPOINT|MODEL_ENDPOINT|GET /api/models/\S+ HTTP/1\.[01]\" 404")


def _uses_mirror(evidence: Evidence, service: str) -> bool:
    """Whether stack.yaml or a log shows that another server answers in place of the Hub."""
    model = (evidence.find_model(service) or (0, None))[1]
    is_set = model is not None and "HF_ENDPOINT" in model.extra_env
    return is_set or any(MIRROR.search(one.log) for one in evidence.services)


NOT_THERE = Variant(
    (),
    title="the Hub does not have what is requested",
    cause="the Hub answered HTTP 404 for {repo}: it has no such repository, no such revision, or no such file in it",
    fix="open the model's page on the Hub, and verify that the name, the revision and the file exist there; if one of "
    "them does not exist, correct `model`, `revision` or `file` in stack.yaml",
    condition="the log has HTTP 404 for a model, but not the Hub's own exception, which names the reason",
)


def _find_not_there(evidence: Evidence) -> Iterator[Hit]:
    """The Hub answered HTTP 404 for a model, and the log does not have the Hub's own exception."""
    for service in evidence.services:
        log = service.log
        if service.is_working or "huggingface.co/" not in log or "404" not in log or EXPLAINED.search(log):
            continue
        for line in reversed(lines_since_ready(log)):
            text = strip_prefix(line)
            if found := next((one for raw in RAW_404 if (one := raw.search(text))), None):
                yield Hit(service.service, (text.strip(),), {"repo": found["repo"]}, found[0], variant=NOT_THERE)
                break


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-H011",
        title="the Hub's Xet storage rejected hf-xet's own token",
        cause="hf-xet sent its own short-lived token to the Xet storage, which rejected it (HTTP 401). This is a bug "
        "of old versions of hf-xet. Your own token is not the cause",
        fix=f"use an image with hf-xet 1.1.7 or newer; {WITHOUT_XET}",
        source="The message comes from hf-xet, and is quoted in huggingface/xet-core issue 404 (2025-07), which was "
        "fixed in hf-xet 1.1.7. The failure was not reproduced.",
        explain="The Hub had already listed the files, so your token is not the problem. The files that are already "
        "downloaded are not damaged.",
        patterns=compile_patterns(r"40[13] \w+\)?.{0,40}domain: https://[\w.-]*xethub\.hf\.co"),
    ),
    Rule(
        "SG-H012",
        title="the certificate of the download server is not trusted",
        cause="the container does not trust the authority that issued the server's certificate. Usually, a proxy on "
        "this network intercepts TLS",
        fix="set ca_certificates in stack.yaml to a PEM file with your network's authority; use a version of hf-xet "
        f"that reads the system's authorities; {WITHOUT_XET}",
        source="The messages come from rustls (hf-xet) and OpenSSL (Python's ssl), and are quoted in "
        "huggingface/xet-core issues 389 and 399 (2025-06). The failure was not reproduced.",
        explain="The files that are already downloaded are not damaged. Do not turn off the verification of "
        "certificates, because anybody on the network could then replace the model.",
        patterns=compile_patterns(
            r"InvalidCertificate\(UnknownIssuer\)|invalid peer certificate: UnknownIssuer",
            r"CERTIFICATE_VERIFY_FAILED",
            r"unable to get local issuer certificate|self[- ]signed certificate",
        ),
        # a client of the stack's own server downloads nothing
        unless=compile_patterns(r"\A(?![\s\S]*litellm)[\s\S]*\bopenai\.APIConnectionError: "),
        variants=(
            Variant(
                compile_patterns(
                    r"certificate verify failed: (?P<problem>certificate (?:has expired|is not yet valid))",
                    r"invalid peer certificate: (?P<problem>certificate (?:expired|not valid yet))|"
                    r"InvalidCertificate\((?P<reason>Expired|NotValidYet)",
                ),
                title="the server's certificate is expired or not yet valid",
                cause="the server's certificate is not valid at this time[[: {problem}]]. Either the clock of this "
                "machine is wrong, or the server (or a proxy in front of it) has an old certificate",
                fix="check the clock (`timedatectl`); if it is right, look at the certificate (`openssl s_client "
                "-connect HOST:443`), and inform the operator of the server or proxy",
            ),
            Variant(
                compile_patterns(
                    r"certificate verify failed: (?P<problem>Hostname mismatch, certificate is not valid for '[^']+')",
                    r"InvalidCertificate\((?P<reason>NotValidForName)",
                ),
                title="another server answers instead of the download server",
                cause="the certificate belongs to another server[[: {problem}]]. A proxy, a login page of the "
                "network, or DNS leads to this other server",
                fix="check the address of the name (`getent hosts HOST`) and the certificate (`openssl s_client "
                "-connect HOST:443`); behind a proxy, set `proxy:` in stack.yaml",
            ),
        ),
    ),
    Rule(
        "SG-H013",
        title="the network blocks a server of the Hub",
        cause="the connection to a server of the Hub failed[[ ({problem})]], because a firewall, a proxy or DNS "
        "blocks it",
        fix="allow HTTPS to huggingface.co and *.hf.co (including cas-server.xethub.hf.co and "
        f"transfer.xethub.hf.co); behind a proxy, set `proxy:` in stack.yaml; {WITHOUT_XET}",
        source="The messages come from reqwest (hf-xet) and requests, and are quoted in huggingface/xet-core issue 407 "
        "(2025-07). The failure was not reproduced.",
        explain="The Hub's pages and the files of a model come from different servers. So the list of files may work "
        "although the download fails.",
        patterns=compile_patterns(
            r"Reqwest.{0,200}Error\(Connect, .{0,200}(?P<problem>tcp connect error|dns error|timed out)",
            r"(?P<problem>Failed to resolve|NameResolutionError|Temporary failure in name resolution).{0,80}"
            r"(?:huggingface\.co|hf\.co)",
            r"(?:huggingface\.co|hf\.co).{0,300}(?P<problem>Connection refused|Network is unreachable|ConnectTimeout|"
            r"Read timed out|Temporary failure in name resolution)",
        ),
        # the Hub's own answer, or an untrusted certificate, shows that the network works
        consequence_of=("SG-H001", "SG-H002", "SG-H003", "SG-H005", "SG-H007", "SG-H011", "SG-H012"),
        variants=(
            Variant(
                compile_patterns(r"ProxyError\('?(?P<problem>[^',)]+)"),
                cause="the proxy for connections to the Hub does not work: {problem}",
                fix="check the address and port in `proxy:` in stack.yaml and in HTTPS_PROXY in extra_env; check "
                "that the container can reach the proxy (in a container, 127.0.0.1 is the container itself)",
            ),
        ),
    ),
    Rule(
        "SG-H014",
        title="a library writes into the image's own folders",
        cause="a library writes to {path}, a folder of the image's Python packages. The container's user has no "
        "permission to write there ({problem})",
        fix="set `user:` to the user for which the image was made (root for most images), or use an image in which "
        "this folder is writable; leave caches and the model's folder as they are, because they are not the cause",
        source="The message comes from FlashInfer (jit/cubin_loader.py) with the package flashinfer_cubin, in a public "
        "report on vLLM (2026-08, tests/diagnose/reports). The failure was not reproduced.",
        explain="FLASHINFER_CUBIN_DIR has no effect if the package flashinfer_cubin is installed. The failure also "
        "occurs if the root file system is read-only (`read_only: true`).",
        patterns=compile_patterns(
            r"\[Errno (?:13|30)\] (?P<problem>Permission denied|Read-only file system): "
            r"'(?P<path>/[^']*/(?:site|dist)-packages/[^']+)'"
        ),
    ),
    Rule(
        "SG-H015",
        title="the Hub refuses llama.cpp's request",
        cause="llama.cpp asked the Hub for the list of the repository's files, and the Hub answered HTTP {status}. "
        "Either the repository does not exist, or it is private or gated and the token is missing or has no access",
        fix="check the spelling of the repository; for a gated repository, accept its license on the model's page; "
        "for a private or gated repository, set the token (HF_TOKEN_FILE in .env)",
        source="The message comes from llama.cpp (common/download.cpp), and is quoted with status 429 in "
        "ggml-org/llama.cpp issue 21677 (2026-04). The failure was not reproduced.",
        explain="The Hub answers 401 if a repository does not exist, and also if you have no access to it.",
        patterns=compile_patterns(r"error: GET failed \((?P<status>401|403)\)"),
        variants=(
            Variant(
                NOT_FOUND,
                title="a mirror of the Hub does not have the repository",
                cause="the mirror in HF_ENDPOINT answered HTTP 404. Either the mirror does not have this repository, "
                "or it does not support llama.cpp's request for the list of files",
                fix="request the address from the log with `curl -I`, and then the same path on huggingface.co; if "
                "only the mirror fails, download the file with `hf download` or without HF_ENDPOINT, and set "
                "`model:` to the folder of the file",
                applies=_uses_mirror,
                condition="HF_ENDPOINT is set, or another service of the log answers the Hub's requests",
            ),
            Variant(
                NOT_FOUND,
                title="the Hub does not have the repository or revision",
                cause="llama.cpp asked the server for the list of the repository's files, and the server answered "
                "HTTP 404. Either the server has no repository with this name, or it is a mirror (HF_ENDPOINT) that "
                "does not support this request",
                fix="check the spelling of `model:` (organization/name); if HF_ENDPOINT is set, check whether the "
                "mirror has the repository",
            ),
        ),
    ),
    Rule(
        "SG-H016",
        title="a download was cut off",
        cause="the connection ended before the whole file had arrived: {problem}",
        fix="start the service again, which continues the download where it stopped; if the download is cut off "
        "again, look for a proxy or firewall that limits the size or duration of downloads",
        source="The messages come from huggingface_hub 2.4 (file_download.py) and Python (http/client.py, "
        "IncompleteRead, also in urllib3's response.py). The failure was not reproduced.",
        explain="The files that have arrived completely are not damaged, and are not downloaded again.",
        patterns=compile_patterns(
            r"(?P<problem>Consistency check failed: file should be of size \d+ but has size \d+)",
            r"(?P<problem>IncompleteRead\(\d+ bytes read, \d+ more expected\))",
        ),
        consequence_of=("SG-H008",),
    ),
    Rule(
        "SG-H017",
        title="fast downloads are enabled, but their package is missing",
        cause="HF_HUB_ENABLE_HF_TRANSFER is set, but the image does not contain the package hf_transfer",
        fix="remove HF_HUB_ENABLE_HF_TRANSFER from the environment",
        source="The message comes from huggingface_hub before 1.0 (file_download.py), and is quoted in "
        "vllm-project/vllm-omni pull request 1264 (2026-02). The failure was not reproduced.",
        explain="Some base images set the variable. hf-xet has replaced hf_transfer, and newer versions of "
        "huggingface_hub ignore the variable.",
        patterns=compile_patterns(r"'hf_transfer' package is not available"),
    ),
    Rule(
        "SG-H018",
        title="the Hub, or a proxy in front of it, refuses a request",
        cause="{where} answered HTTP {status}. Either the token has no access, or a proxy or firewall answered "
        "instead of the Hub, or the Hub itself is failing",
        fix="open the address in the message with the same token (`curl -H`); with HTTP 403, check the token's "
        "permissions, and ask who runs the proxy; with HTTP 500 to 504, wait, and see status.huggingface.co",
        source="The messages come from huggingface_hub 0.36 and 2.4 (utils/_http.py), requests (models.py) and httpx "
        "(_models.py, raise_for_status). opea-project/GenAIExamples issue 2237 (2025-09) reports HTTP 401. The "
        "failure was "
        "not reproduced.",
        explain="Transformers also advises to check the internet connection, but Transformers prints this advice after "
        "every failed request.",
        patterns=compile_patterns(*(text + server for text in REFUSED for server in HUB)),
        consequence_of=("SG-H001", "SG-H002", "SG-H003", "SG-H004", "SG-H005"),
        find=_find_not_there,
        variants=(
            Variant(
                RAW_401,
                title="the Hub requires a token for the model",
                cause="the Hub answered HTTP 401 for {repo}: the request had no token, or one that the Hub does not "
                "accept. The model is gated or private, or it does not exist",
                fix="check the spelling of {repo}; if the model is gated, accept the license on its page; then set "
                "`HF_TOKEN_FILE=/path/to/token` in .env; outside stackgen, set HF_TOKEN in the container: the Hub's "
                "library does not read names such as HUGGINGFACEHUB_API_TOKEN, and a variable of your shell reaches a "
                "container only if the Compose file passes it on",
            ),
            NOT_THERE,
        ),
    ),
    Rule(
        "SG-H020",
        title="a download from the Hub's Xet storage failed",
        cause="hf-xet could not read or write data of the Xet storage: {problem}. The message does not say whether "
        "the network or the service is the cause",
        fix="try again, because the files that have arrived are kept; if it fails again, check that the machine "
        f"reaches cas-server.xethub.hf.co and transfer.xethub.hf.co; {WITHOUT_XET}",
        source="The message comes from hf-xet, and is quoted in meta-pytorch/torchforge pull request 109 (2025-09). "
        "The failure was not reproduced.",
        explain="The lines of hf-xet before this message often show the reason, for example a proxy or a certificate.",
        patterns=compile_patterns(
            # not an error of the machine's own files, whose numbers are below 100
            r"CAS service error ?: (?!IO Error: .{0,80}\(os error \d\d?\))(?P<problem>.{3,200})"
        ),
        # every reason of a failed transfer ends with this message
        consequence_of=("*",),
        fallback=True,
        variants=(
            Variant(
                compile_patterns(
                    r"CAS service error ?: (?P<problem>.{0,200}(?:407|[Pp]roxy [Aa]uthentication).{0,60})"
                ),
                title="a proxy refuses the download from the Hub's Xet storage",
                cause="a proxy between this machine and the Xet storage requires a login ({problem})",
                fix="set https_proxy in the container to a URL with the name and password "
                "(http://NAME:PASSWORD@PROXY:PORT, with special characters encoded, for example @ as %40), or ask for "
                "an exception for *.xethub.hf.co; keep the value in a secret, not in stack.yaml",
            ),
        ),
    ),
)
