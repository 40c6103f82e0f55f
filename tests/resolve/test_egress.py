"""Proxy and certificates reach the services that leave the machine; all others get NO_PROXY."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from requests.utils import should_bypass_proxies

from stackgen.cli.main import main
from stackgen.errors import SpecError
from stackgen.resolve.pipeline import resolve
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite
from stackgen.targets.process import ProcessSite

PROXY = "http://proxy.example.com:3128"
FASTCHAT = {"engine": "fastchat", "model": "org/f"}
VLLM = {"engine": "vllm", "model": "org/v"}


def services(folder: Path, *models: dict[str, Any], **fields: Any) -> dict[str, dict[str, Any]]:
    """The services of the rendered Compose file, by name."""
    (folder / "stack.yaml").write_text(json.dumps({"name": "n", "models": models, **fields}), encoding="utf-8")
    assert main(["render", str(folder), "--no-validate"]) == 0
    found: dict[str, dict[str, Any]] = yaml.safe_load((folder / "compose.yaml").read_text("utf-8"))["services"]
    return found


def test_only_the_download_gets_the_proxy_and_the_certificates(tmp_path: Path) -> None:
    made = services(tmp_path, VLLM, FASTCHAT, proxy=PROXY, ca_certificates="./corp.pem", monitoring=True)
    for name, service in made.items():
        environment = service.get("environment", {})
        leaves = name == "download"
        assert ("HTTPS_PROXY" in environment) == ("HTTP_PROXY" in environment) == leaves, name
        assert (environment.get("SSL_CERT_FILE") == "/srv/corp.pem") == leaves, name
        assert any(mount["target"] == "/srv/corp.pem" for mount in service.get("volumes", ())) == leaves, name
        assert service["cap_drop"] == ["ALL"]
    assert made["download"]["environment"]["HTTPS_PROXY"] == f"${{STACKGEN_PROXY:-{PROXY}}}"


def test_no_request_inside_the_stack_goes_through_the_proxy(tmp_path: Path) -> None:
    made = services(tmp_path, VLLM, FASTCHAT, proxy=PROXY, monitoring=True)
    for name, service in made.items():
        environment = service["environment"]
        assert environment["NO_PROXY"] == environment["no_proxy"], name
        # requests is what FastChat's worker and Hugging Face's libraries use
        for host in ("localhost", "127.0.0.1", *(made if name != "download" else ())):
            assert should_bypass_proxies(f"http://{host}:8000/v1", environment["NO_PROXY"]), (name, host)
    assert not should_bypass_proxies("https://huggingface.co", made["download"]["environment"]["NO_PROXY"])


def test_scaling_keeps_the_environment_of_the_other_services(tmp_path: Path) -> None:
    one, two = (services(tmp_path, VLLM, FASTCHAT | {"replicas": count}, proxy=PROXY) for count in (1, 2))
    assert {name: two[name]["environment"] for name in one} == {name: one[name]["environment"] for name in one}


def test_fastchat_ignores_the_proxy_of_dockers_client(tmp_path: Path) -> None:
    # Docker puts the `proxies` of ~/.docker/config.json into containers that don't set these variables
    made = services(tmp_path, FASTCHAT)
    for name in ("fastchat-controller", "fastchat-f", "fastchat-api"):
        assert should_bypass_proxies("http://fastchat-controller:21001", made[name]["environment"]["NO_PROXY"])
    assert "NO_PROXY" not in made["download"]["environment"]


def test_variables_of_the_stack_file_take_precedence(tmp_path: Path) -> None:
    made = services(tmp_path, VLLM | {"extra_env": {"NO_PROXY": "mine"}}, proxy=PROXY)
    assert made["vllm-v"]["environment"]["NO_PROXY"] == "mine"


def test_a_password_in_the_proxy_is_refused_and_never_rendered() -> None:
    with pytest.raises(SpecError) as caught:
        build_spec({"name": "n", "models": [VLLM], "proxy": "http://me:secret@proxy:3128"}, "test")
    (mistake,) = caught.value.mistakes
    assert mistake.path == "proxy"


def test_compose_reads_the_proxy_with_its_password_from_the_env_file(tmp_path: Path) -> None:
    services(tmp_path, VLLM, proxy=PROXY)
    (tmp_path / ".env").write_text("STACKGEN_API_KEY=sk-a\nSTACKGEN_PROXY=http://me:pw@proxy:1\n")
    done = subprocess.run(["docker", "compose", "-f", str(tmp_path / "compose.yaml"), "config", "--format", "json"],
                          capture_output=True, text=True, check=True, timeout=60)  # fmt: skip
    assert json.loads(done.stdout)["services"]["download"]["environment"]["HTTPS_PROXY"] == "http://me:pw@proxy:1"


def test_local_processes_keep_the_users_environment() -> None:
    spec = build_spec({"name": "n", "models": [VLLM], "proxy": PROXY}, "test")
    made = resolve(spec, ProcessSite(Path("/stack"), Path("/state")), "test")
    assert not any("PROXY" in name for service in made.services for name, _ in service.environment)


def test_a_fallback_does_not_use_the_proxy_and_render_says_so() -> None:
    model = VLLM | {"fallback": "together:org/m"}
    made = resolve(
        build_spec({"name": "n", "models": [model], "gateway": True, "proxy": PROXY}, "test"), ComposeSite(), "test"
    )
    assert any("fallback" in text and "directly" in text for text in made.warnings)


LLAMACPP = {"engine": "llamacpp", "model": "org/g", "file": "g.gguf"}
ENV = {"STACKGEN_API_KEY": "sk-a", "STACKGEN_ENGINE_KEY": "sk-b"}


def test_builds_of_images_get_the_proxy_and_the_certificates(tmp_path: Path) -> None:
    fields = {"proxy": PROXY, "ca_certificates": "./corp.pem", "monitoring": True, "gateway": True}
    made = services(tmp_path, FASTCHAT, LLAMACPP, **fields)
    built = {name: service["build"] for name, service in made.items() if "build" in service}
    assert len(built) == 3
    for name, build in built.items():
        assert build["args"]["HTTP_PROXY"] == build["args"]["HTTPS_PROXY"] == f"${{STACKGEN_PROXY:-{PROXY}}}", name
        assert build["secrets"] == ["pip_ca"]
    compose = yaml.safe_load((tmp_path / "compose.yaml").read_text())
    assert compose["secrets"]["pip_ca"] == {"file": "./corp.pem"}
    # every Dockerfile that installs packages trusts the certificates of this secret
    for build in built.values():
        assert "--mount=type=secret,id=pip_ca" in (tmp_path / build["context"] / "Dockerfile").read_text()


def test_builds_without_proxy_and_certificates_get_nothing(tmp_path: Path) -> None:
    made = services(tmp_path, FASTCHAT, LLAMACPP, monitoring=True, gateway=True)
    text = json.dumps([service.get("build", {}) for service in made.values()])
    assert "PROXY" not in text and "secrets" not in text
    assert "pip_ca" not in (tmp_path / "compose.yaml").read_text()


def test_the_chat_page_leaves_through_the_proxy_but_reaches_the_gateway_directly(tmp_path: Path) -> None:
    page = services(tmp_path, VLLM, gateway=True, ui="open-webui", proxy=PROXY, ca_certificates="./c.pem")["open-webui"]
    environment = page["environment"]
    assert environment["HTTPS_PROXY"] == f"${{STACKGEN_PROXY:-{PROXY}}}"
    assert environment["SSL_CERT_FILE"] == environment["REQUESTS_CA_BUNDLE"] == "/srv/c.pem"
    assert should_bypass_proxies(environment["OPENAI_API_BASE_URL"], environment["NO_PROXY"])
    assert not should_bypass_proxies("https://huggingface.co", environment["NO_PROXY"])


def test_a_fallback_trusts_the_certificates(tmp_path: Path) -> None:
    model = VLLM | {"fallback": "together:org/m"}
    made = services(tmp_path, model, gateway=True, ca_certificates="./corp.pem")
    assert "/srv/corp.pem" in [mount["target"] for mount in made["gateway"]["volumes"]]
    config = (tmp_path / "gateway/haproxy.cfg").read_text()
    assert "ca-file /srv/corp.pem" in config and "@system-ca" not in config


def test_the_warning_about_a_fallback_behind_a_proxy_names_the_host_to_allow() -> None:
    model = VLLM | {"fallback": "together:org/m"}
    spec = build_spec({"name": "n", "models": [model], "gateway": True, "proxy": PROXY}, "test")
    made = resolve(spec, ComposeSite(), "test")
    assert any("together" in text and ":443" in text and "fallback.base_url" in text for text in made.warnings)


@pytest.mark.docker
def test_haproxy_loads_the_certificates_for_a_fallback(tmp_path: Path, haproxy_image: str) -> None:
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=x"
    made = tmp_path / "corp.pem"
    subprocess.run([*command.split(), "-keyout", str(tmp_path / "key.pem"), "-out", str(made)], check=True,
                   capture_output=True, timeout=30)  # fmt: skip
    services(tmp_path, VLLM | {"fallback": "together:org/m"}, gateway=True, ca_certificates="./corp.pem")
    for path in (tmp_path, tmp_path / "gateway"):
        path.chmod(0o755)
    made.chmod(0o644)
    run = ["docker", "run", "--rm", "--network", "none", "-v", f"{tmp_path}/gateway:/gateway:ro"]
    check = ["-e", "STACKGEN_KEY_HASH=0", "-e", "STACKGEN_ENGINE_KEY=k", "-e", "TOGETHER_API_KEY=k", haproxy_image,
             "haproxy", "-c", "-f", "/gateway/haproxy.cfg"]  # fmt: skip
    for mount, code in (["-v", f"{made}:/srv/corp.pem:ro"], 0), ([], 1):
        assert subprocess.run([*run, *mount, *check], capture_output=True, timeout=60).returncode == code


@pytest.mark.parametrize(("fields", "field"), [
    ({"proxy": "http://127.0.0.1:3128"}, "proxy"), ({"proxy": "http://LocalHost:3128"}, "proxy"),
    ({"storage": {"hub_endpoint": "http://[::1]:8765"}}, "storage.hub_endpoint"),
    ({"storage": {"hub_endpoint": "http://0.0.0.0:8765"}, "target": "kubernetes"}, "storage.hub_endpoint"),
    ({"proxy": PROXY, "storage": {"hub_endpoint": "http://10.0.0.7:8765"}}, ""),
])  # fmt: skip
def test_a_proxy_or_mirror_inside_the_container_itself_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: dict[str, Any], field: str
) -> None:
    (tmp_path / "stack.yaml").write_text(json.dumps({"name": "n", "models": [VLLM | {"gpus": 1}], **fields}))
    assert main(["render", str(tmp_path), "--no-validate", "--json"]) == 0
    found = [one for one in json.loads(capsys.readouterr().out)["warnings"] if "the container itself" in one]
    assert len(found) == (field != "")
    for one in found:
        assert f": {field}: in the container of download, " in one
        assert ("pods can reach" if "target" in fields else "this machine's IP address") in one


def test_a_local_process_may_use_a_proxy_on_the_loopback_address(tmp_path: Path) -> None:
    spec = build_spec({"name": "n", "models": [VLLM], "proxy": "http://127.0.0.1:3128"}, "test")
    made = resolve(spec, ProcessSite(tmp_path, tmp_path), "test")
    assert not [one for one in made.warnings if one.startswith("proxy")]
