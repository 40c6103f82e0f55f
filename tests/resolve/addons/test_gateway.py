"""The gateway in the plan, its rendered files, and `haproxy -c` on all of them. tests/live runs it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stackgen.errors import SpecError
from stackgen.plan import Bind, EnvRef, Plan
from stackgen.render.templating import render
from stackgen.resolve.addons.gateway import ENGINE_KEY, is_enabled
from stackgen.resolve.pipeline import resolve
from stackgen.runtimes.compose.certificate import ensure_certificate
from stackgen.stack.folder import open_stack
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite
from stackgen.targets.haproxy import quote
from stackgen.targets.process import ProcessSite

EXAMPLES = sorted(folder.parent for folder in (Path(__file__).parents[3] / "compose").glob("*/stack.yaml"))
FC = {"engine": "fastchat"}


def spec(*models: dict[str, Any], **fields: Any) -> Any:
    entries = [{"model": f"org/m{index}", "engine": "vllm"} | model for index, model in enumerate(models)]
    return build_spec({"name": "demo", "models": entries} | fields, "test")


def plan(*models: dict[str, Any], **fields: Any) -> Plan:
    return resolve(spec(*models, **fields), ComposeSite(), "test")


def files(made: Plan) -> dict[str, str]:
    return {file.path: file.text for file in render(made)}


def lines(text: str) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))


def test_no_backend_leaves_out_a_replica_that_refused_a_request() -> None:
    # leastconn of HAProxy 3.2 does: findings/haproxy-leastconn-skips-server.sh
    config = files(plan({"replicas": 3}, FC, gateway=True))["gateway/haproxy.cfg"]
    settings = [line.strip() for line in config.splitlines() if line.strip().startswith("balance ")]
    assert len(settings) >= 2 and set(settings) == {"balance random(8)"}


@pytest.mark.parametrize(
    ("models", "fields", "there"),
    [
        ([{}], {}, False),
        ([{}, {}], {}, True),
        ([{"replicas": 2}], {}, True),
        ([{}, FC], {}, True),
        ([{}], {"bind": "0.0.0.0"}, True),
        ([{}], {"bind": "192.168.1.5"}, True),
        ([{}], {"bind": "127.0.0.5"}, False),
        ([{}], {"bind": "::1"}, False),
        ([{}], {"gateway": True}, True),
        ([{}], {"gateway": {"timeout": 60}}, True),
        ([{}, {}], {"gateway": False}, False),
        ([{"replicas": 3}], {"bind": "0.0.0.0", "gateway": {"enabled": False}}, False),
    ],
)
def test_gateway_is_added_for_replicas_or_an_open_address(
    models: list[Any], fields: dict[str, Any], there: bool
) -> None:
    made = plan(*models, **fields)
    assert ("gateway" in {service.name for service in made.services}) == there
    assert ("gateway/haproxy.cfg" in files(made)) == there


def test_disabling_the_gateway_warns_about_open_paths() -> None:
    (warning,) = [text for text in plan({}, FC, gateway=False).warnings if "gateway: false" in text]
    for path in ("/invocations", "/version"):
        assert path in warning
    # stackgen's image of FastChat requires the key on every path
    assert "/api/v1/chat/completions" not in warning


def test_local_processes_warn_if_a_gateway_was_requested(tmp_path: Path) -> None:
    site = ProcessSite(tmp_path, tmp_path)
    assert not is_enabled(spec({}, {}), site)
    assert [one.name for one in resolve(spec({"model": "./m"}, {"model": "./n"}), site, "t").services] == [
        "vllm-m",
        "vllm-n",
    ]
    asked = resolve(spec({"model": "./m"}, gateway=True), site, "t")
    assert any("without the gateway" in text for text in asked.warnings)


def test_only_the_gateway_is_published_and_has_both_keys() -> None:
    made = plan({"replicas": 2, "gpus": 1}, FC, {"engine": "llamacpp", "file": "x.gguf"}, bind="0.0.0.0", port=9000)
    assert {s.name: [(p.address, p.host) for p in s.ports] for s in made.services if s.ports} == {
        "gateway": [("0.0.0.0", 9000)]
    }
    for service in made.services:
        names = {value.name for _, value in service.environment if isinstance(value, EnvRef)}
        if service.name == "gateway":
            assert names == {"STACKGEN_API_KEY", "STACKGEN_ENGINE_KEY"}
        else:
            assert names <= {"STACKGEN_ENGINE_KEY"}
    assert sum(ENGINE_KEY in dict(s.environment).values() for s in made.services) == 5
    assert {endpoint.base_url for endpoint in made.endpoints} == {"http://127.0.0.1:9000/v1"}
    assert all(endpoint.exposed for endpoint in made.endpoints)


def test_each_model_has_one_endpoint_with_all_replicas() -> None:
    made = plan({"replicas": 3}, FC | {"served_names": ["a", "b"], "replicas": 2}, FC | {"served_names": ["c"]}, {})
    found = {one.name: (one.models, one.replicas, one.dialect.name) for one in made.endpoints}
    assert found == {
        "vllm-m0": (("org/m0",), ("vllm-m0", "vllm-m0-2", "vllm-m0-3"), "vllm"),
        "vllm-m3": (("org/m3",), ("vllm-m3",), "vllm"),
        "fastchat-a": (("a", "b"), ("fastchat-api",), "fastchat"),
        "fastchat-c": (("c",), ("fastchat-api",), "fastchat"),
    }
    config = files(made)["gateway/haproxy.cfg"]
    for service in ("vllm-m0-2", "vllm-m3"):
        assert config.count(f"    server {service} {service}:8000") == 1
    assert config.count("    server fastchat-api fastchat-api:8000") == 2


def test_engines_without_a_liveness_path_are_probed_with_one_token() -> None:
    config = files(plan({}, FC | {"served_names": ["c'est", "x"], "worker_concurrency": 3, "replicas": 2}))[
        "gateway/haproxy.cfg"
    ]
    vllm, fastchat = config.split("\nbackend vllm-m0\n")[1].split("\nbackend fastchat-")
    assert "uri /health" in vllm and "max_tokens" not in vllm
    assert '"max_tokens":1' in fastchat.replace(" ", "") and "c\\u0027est" in fastchat
    # one slot is kept for the probe, so that load alone never looks like a hang
    assert "maxconn 5 " in fastchat and "maxconn 256 " in vllm


def test_gateway_settings_are_in_the_configuration() -> None:
    made = plan(
        {"max_num_seqs": 7},
        gateway={"max_body": "8m", "timeout": 99, "max_queue": 5, "queue_timeout": 7, "allow": ["/tokenize"],
                 "keys": [{"name": "a", "requests_per_minute": 3}, {"name": "b", "concurrent_requests": 2}]},
    )  # fmt: skip
    rendered = files(made)
    config = rendered["gateway/haproxy.cfg"]
    size = 8 * 2**20
    large = rendered["gateway/large.cfg"]
    for text in (f"tune.bufsize {size + 65536}", f"tune.memory.hot-size {8 * (size + 65536)}",
                 f"req.body_len gt {size}", f"timeout server {3 * (99 + 7) + 5}s"):  # fmt: skip
        assert text in large, text
    for text in (f"-m int gt {size} }}", "timeout server 99s", "timeout queue 7s", "queue ge 5", " /tokenize",
                 "maxconn 7 "):  # fmt: skip
        assert text in config, text
    assert lines(rendered["gateway/rates.map"]) == {"a": "3"}
    assert lines(rendered["gateway/concurrency.map"]) == {"b": "2"}
    assert [rendered["gateway/keys.prom"].count(f'key="{name}"') for name in ("default", "a", "b")] == [5, 5, 5]
    # the configuration contains no keys: the engine key is read from the environment
    assert "%[env(STACKGEN_ENGINE_KEY)]" in config and "sk-" not in "".join(rendered.values())


@pytest.mark.parametrize(
    ("models", "size", "connections"),
    # 8 GiB of full buffers, but at least all running and queued requests
    [
        ([{}], "1m", 2048),
        ([{}], "4m", 2016),
        ([{}], "255m", 512),
        ([{"replicas": 4}], "255m", 1280),
        ([{}] * 9, "4m", 2048),
    ],
)
def test_number_of_large_connections_depends_on_buffer_size(models: list[Any], size: str, connections: int) -> None:
    rendered = files(plan(*models, gateway={"max_body": size}))
    assert f"\n    maxconn {connections + 16}\n" in rendered["gateway/large.cfg"]
    # the first process has small buffers, and connections for requests that return from the second one
    config = rendered["gateway/haproxy.cfg"]
    assert f"\n    server large 127.0.0.1:8407 maxconn {connections}\n" in config
    assert f"\n    maxconn {6144 + connections + 64}\n" in config and "\n    maxconn 6144\n" in config
    assert "reject if { sc1_conn_cur gt 4608 }" in config


def test_kept_large_buffers_are_limited_to_128_mib() -> None:
    assert "tune.memory.hot-size 134217728\n" in files(plan({}, gateway={"max_body": "255m"}))["gateway/large.cfg"]


def test_streams_survive_a_reload_longer_than_the_timeout() -> None:
    assert "hard-stop-after 86400s" in files(plan({}, gateway={"timeout": 5}))["gateway/haproxy.cfg"]


def test_tls_certificate_and_redirect_are_rendered() -> None:
    own = plan({}, gateway={"tls": {"certificate": "./c.pem", "key": "/k.pem", "redirect_port": 8080}})
    service = own.service("gateway")
    sources = {mount.target: mount.source for mount in service.mounts if isinstance(mount, Bind)}
    assert (sources["/tls/site.crt"], sources["/tls/site.crt.key"]) == ("./c.pem", "/k.pem")
    assert [(port.host, port.container) for port in service.ports] == [(8000, 8000), (8080, 8080)]
    assert own.endpoints[0].base_url == "https://127.0.0.1:8000/v1"
    config = files(own)["gateway/haproxy.cfg"]
    assert "ssl-min-ver TLSv1.2" in config and "redirect code 308" in config
    assert "redirect code 308" not in files(plan({}, gateway={"tls": "generate"}))["gateway/haproxy.cfg"]


@pytest.mark.parametrize(
    ("addresses", "address", "target"),
    [
        ({}, "127.0.0.1", 8000),
        # only the chat page can be reached from other machines
        ({"ui": {"bind": "0.0.0.0", "port": 3443}}, "0.0.0.0", 3443),
        ({"ui": {"bind": "0.0.0.0", "port": 3443}, "bind": "0.0.0.0"}, "0.0.0.0", 8000),
        ({"ui": {"port": 3443}}, "127.0.0.1", 8000),
    ],
)
def test_plain_http_is_redirected_to_what_other_machines_reach(
    addresses: dict[str, Any], address: str, target: int
) -> None:
    made = plan({}, gateway={"tls": {"redirect_port": 8080}}, **addresses)
    (port,) = (one for one in made.service("gateway").ports if one.host == 8080)
    assert port.address == address
    assert f"regsub(:[0-9]*$,)]:{target}%[pathq]" in files(made)["gateway/haproxy.cfg"]


@pytest.mark.parametrize(
    ("models", "fields", "message"),
    [
        ([{"port": 9000}, {}], {}, r"models\[0\].port: has no effect behind the gateway"),
        ([{"served_names": ["x"]}, FC | {"served_names": ["x"]}], {}, r"'x' is already served by models\[0\]"),
        ([{"served_names": ["modèle"]}, {}], {}, "is not ASCII"),
        ([{}], {"gateway": {"keys": [{"name": "a"}, {"name": "a"}]}}, r"gateway.keys: 'a' is listed twice"),
        ([{}], {"gateway": {"keys": [{"name": "A b"}]}}, r"gateway.keys\[0\].name"),
        ([{}], {"gateway": {"tls": {"certificate": "./c"}}}, "needs both `certificate` and `key`"),
        ([{}], {"gateway": {"tls": {"redirect_port": 8000}}}, "gateway's own port"),
        ([{}], {"gateway": {"max_body": "1g"}}, r"gateway.max_body: must be a size from 1m to 255m \(m: MiB\)"),
        ([{}], {"gateway": {"max_body": "256m"}}, r"gateway.max_body: must be a size from 1m to 255m \(m: MiB\)"),
        ([{}], {"gateway": {"tls": {"names": []}}}, "gateway.tls.names"),
        (
            [FC | {"worker_concurrency": 1}, {}],
            {},
            r"models\[0\].worker_concurrency: is too low: the gateway's health check can't run",
        ),
        ([{}], {"gateway": {"allow": ["tokenize"]}}, r"gateway.allow\[0\]"),
        ([{"fallback": "together:a/b"}], {}, r"models\[0\].fallback: needs the gateway"),
    ],
)
def test_invalid_gateway_settings_are_rejected(models: list[Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        plan(*models, **fields)


names = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=40).filter(
    lambda name: not name.startswith("-") and name.strip()
)


@given(st.lists(names, min_size=1, max_size=6, unique=True))
@settings(deadline=None, max_examples=60)
def test_any_served_name_is_in_the_maps(served: list[str]) -> None:
    rendered = files(plan({"served_names": served}, {}))
    found = lines(rendered["gateway/models.map"])
    backend = next(iter(found.values()))
    assert {bytes.fromhex(key).decode() for key, value in found.items() if value == backend} == set(served)
    # the configuration contains no served names, except in a probe
    config = rendered["gateway/haproxy.cfg"]
    assert len(config.splitlines()) == len(files(plan({"served_names": ["a"]}, {}))["gateway/haproxy.cfg"].splitlines())


@given(st.text(st.characters(exclude_characters="\n\r\0"), min_size=0, max_size=50))
def test_quoted_text_is_one_haproxy_argument(text: str) -> None:
    argument = quote(text)
    # as HAProxy parses it: plain text, single quotes, and an escaped quote outside of them
    read, inside, index = "", False, 0
    while index < len(argument):
        ch = argument[index]
        if ch == "'":
            inside = not inside
        elif ch == "\\" and not inside:
            index += 1
            read += argument[index]
        else:
            assert inside or ch.isalnum() or ch in "_./:@+=-"
            read += ch
        index += 1
    assert read == text and not inside


def check(rendered: dict[str, str], folder: Path, image: str, *more: str) -> str:
    """Output of `haproxy -c` on the rendered files; "" if it accepts them. `more` are arguments of docker run."""
    for path, text in rendered.items():
        if path.startswith("gateway/"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
    (folder / "gateway").chmod(0o755)
    folder.chmod(0o755)
    command = ["docker", "run", "--rm", "--network", "none", "-v", f"{folder}/gateway:/gateway:ro", *more,
             "-e", "STACKGEN_KEY_HASH=0", "-e", "STACKGEN_ENGINE_KEY=k", image,
             "sh", "-c", "haproxy -c -q -f /gateway/haproxy.cfg && haproxy -c -q -f /gateway/large.cfg"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout + done.stderr if done.returncode or "WARNING" in done.stderr else ""


@pytest.mark.docker
@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_haproxy_accepts_every_example(folder: Path, tmp_path: Path, haproxy_image: str) -> None:
    made = open_stack(str(folder)).plan
    if "gateway" in {service.name for service in made.services}:
        assert check(files(made), tmp_path, haproxy_image) == ""
    else:
        assert not [path for path in files(made) if path.startswith("gateway/")]


@pytest.mark.docker
@pytest.mark.parametrize("tls", [{}, {"redirect_port": 8080}])
def test_haproxy_accepts_tls(tls: dict[str, Any], tmp_path: Path, haproxy_image: str) -> None:
    stack = spec({}, FC, gateway={"tls": tls})
    made = resolve(stack, ComposeSite(tmp_path, tmp_path), "test")
    certificate = ensure_certificate(stack, made, tmp_path)
    assert certificate is not None
    # as in the service: root reads the private key, then drops its privileges
    mounts = [f"-v={certificate}:/tls/site.crt:ro", f"-v={certificate.with_suffix('.key')}:/tls/site.crt.key:ro"]
    assert check(files(made), tmp_path, haproxy_image, "--user=0:0", *mounts) == ""


@pytest.mark.docker
@pytest.mark.parametrize("size", ["1m", "99m", "100m", "255m"])
def test_haproxy_accepts_every_allowed_body_size(size: str, tmp_path: Path, haproxy_image: str) -> None:
    assert check(files(plan({}, gateway={"max_body": size})), tmp_path, haproxy_image) == ""


ENTRIES = st.fixed_dictionaries(
    {"engine": st.sampled_from(["vllm", "fastchat", "llamacpp"]), "replicas": st.integers(1, 4)},
)


@pytest.mark.docker
@given(
    st.lists(st.tuples(ENTRIES, names), min_size=1, max_size=5, unique_by=lambda pair: pair[1]),
    st.lists(st.from_regex(r"\A[a-z0-9][a-z0-9_-]{0,31}\Z"), max_size=4, unique=True),
)
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_haproxy_accepts_any_stack(
    tmp_path: Path, haproxy_image: str, models: list[tuple[dict[str, Any], str]], keys: list[str]
) -> None:
    entries = []
    for index, (entry, name) in enumerate(models):
        served = name.replace(",", ";") if entry["engine"] == "fastchat" else name
        more = {"file": "x.gguf"} if entry["engine"] == "llamacpp" else {}
        entries.append({"served_names": [f"{index}{served}"]} | entry | more)
    made = plan(*entries, gateway={"keys": [{"name": key, "requests_per_minute": 9} for key in keys]})
    assert check(files(made), tmp_path, haproxy_image) == ""
