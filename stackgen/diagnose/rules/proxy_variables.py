"""Rules for proxies that a program takes from its environment: http_proxy, https_proxy, all_proxy, no_proxy.

None of these failures was reproduced. `source` names the programs and the reports that quote the messages.
"""

from __future__ import annotations

from stackgen.diagnose.rule import Rule, Variant, compile_patterns

__all__ = ["RULES"]

VARIABLES = "http_proxy, https_proxy, all_proxy and no_proxy (in lower and in upper case)"

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-C021",
        title="a variable for proxies has a value that Python can't read",
        cause="the HTTP library httpx reads the proxies from the environment, and one of the variables is malformed: "
        "{problem}",
        fix=f"look at {VARIABLES} with `env | grep -i proxy`: a proxy needs a scheme (http://HOST:PORT), and no_proxy "
        "is a list of plain names and addresses, separated by commas; as a test, remove IPv6 addresses such as ::1 "
        "from no_proxy; Docker copies the values in ~/.docker/config.json into each container",
        source="The messages come from httpx 0.28 (_urlparse.py, _config.py and _utils.py). sgl-project/sglang pull "
        "request 28503 (2026-06) and issue 521 (2024-06) quote them. The failure was not reproduced.",
        explain="httpx reads the variables when a client is created, even for a request to the machine itself. So the "
        "program fails before it sends a request.",
        patterns=compile_patterns(
            r"httpx\.InvalidURL: (?P<problem>Invalid port: '[^']*')",
            r"(?P<problem>Proxy keys should use proper URL forms rather than plain scheme strings)",
        ),
        variants=(
            Variant(
                compile_patterns(r"ValueError: (?P<problem>Unknown scheme for proxy URL.{0,200})"),
                fix=f"look at {VARIABLES} with `env | grep -i proxy`: httpx knows http://, https:// and socks5://, but "
                "not socks://; change the value, or remove the variable",
            ),
            Variant(
                compile_patterns(r"(?P<problem>Using SOCKS proxy, but the 'socksio' package is not installed)"),
                title="a SOCKS proxy is set, but the image has no package for it",
                cause="an environment variable (usually all_proxy) names a SOCKS proxy, and the package that httpx "
                "needs for it is not installed",
                fix="remove all_proxy and ALL_PROXY from the environment of the container or shell, or set them to an "
                "HTTP proxy; or install `httpx[socks]` when you build the image",
            ),
        ),
    ),
    Rule(
        "SG-X010",
        title="a proxy answered SGLang's first request to itself",
        cause="after it had loaded the model, SGLang sent a request to its own address. A proxy answered this request "
        "with HTTP {status}, so SGLang exited",
        fix="add the addresses of the machine to no_proxy and NO_PROXY in extra_env or in the shell, including the "
        "address of `--host`: no_proxy=localhost,127.0.0.1,0.0.0.0; or start SGLang without http_proxy; to see the "
        "variables that are set, run `env | grep -i proxy`",
        source="The message comes from SGLang (entrypoints/http_server.py, _execute_server_warmup), and is quoted in "
        "sgl-project/sglang issues 16855 (2026-01), 9814 (2025-08) and 9155 (2025-08), whose threads name the proxy. "
        "The failure was not reproduced.",
        explain="The model was loaded, and the server worked. Memory and the GPU are not the cause. With "
        "`--host 0.0.0.0`, older versions request http://0.0.0.0, which is not in most lists of no_proxy.",
        patterns=compile_patterns(r"AssertionError: res=<Response \[(?P<status>403|407|50[234])\]>"),
        engines=("sglang",),
    ),
)
