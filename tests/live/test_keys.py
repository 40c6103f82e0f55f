"""`stackgen keys` on a running gateway: no request is lost when keys change. And its TLS certificates."""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from stackgen.runtimes.compose.certificate import ensure_certificate
from stackgen.runtimes.compose.gateway import reload_if_changed, running_gateway
from stackgen.stack.envfile import read_env
from stackgen.stack.folder import open_stack
from tests.live.containers import wait_until
from tests.live.gateway import FakeEngineStack
from tests.live.load import Load

pytestmark = pytest.mark.docker

PORT, TLS_PORT = 18820, 18821


def stackgen(stack: FakeEngineStack, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stackgen", "--debug", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def keys(stack: FakeEngineStack, *args: str) -> str:
    """Returns the standard output of `stackgen keys`, which must not print a key anywhere else."""
    done = stackgen(stack, "keys", *args, "--stack", str(stack.folder))
    assert "sk-" not in done.stderr
    return done.stdout.strip()


def write_stack_file(stack: FakeEngineStack) -> None:
    (stack.folder / "stack.yaml").write_text(yaml.safe_dump(stack.data))


@pytest.fixture(scope="module")
def stack(
    fastchat_image: str, haproxy_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeEngineStack]:
    model = {"model": "./a", "engine": "vllm", "replicas": 2, "served_names": ["alpha"]}
    gateway = {"image": haproxy_image, "keys": [{"name": "team"}]}
    data = {"name": "roll-keys", "port": PORT, "gateway": gateway, "models": [model]}
    # the gateway runs as another user, and must read what is mounted into it
    before = os.umask(0o077)
    try:
        with FakeEngineStack(tmp_path_factory.mktemp("keys"), data, fastchat_image) as running:
            write_stack_file(running)
            yield running
    finally:
        os.umask(before)


def test_with_a_strict_umask_only_containers_read_what_is_mounted(stack: FakeEngineStack) -> None:
    # HAProxy itself, which reads the files again when it reloads, has no special rights
    assert stack.run("gateway", "bash", "-c", "id -u && cat /gateway/*.map >/dev/null && ls /stackgen").startswith("99")
    for name in ("", ".env", "compose.yaml", "stackgen.lock"):
        assert (stack.folder / name).stat().st_mode & 0o077 == 0, name


def test_a_key_is_created_rotated_and_removed(stack: FakeEngineStack) -> None:
    first = keys(stack, "new", "team")
    assert stack.chat("alpha", first).status == 200
    assert stack.chat("alpha").status == 200  # the key in .env stays valid
    second = keys(stack, "rotate", "team")
    assert first != second
    assert [stack.chat("alpha", key).status for key in (first, second)] == [200, 200]
    keys(stack, "remove", "team", "--older")
    assert [stack.chat("alpha", key).status for key in (first, second)] == [401, 200]
    keys(stack, "remove", "team")
    assert stack.chat("alpha", second).status == 401
    log = stack.compose("logs", "gateway").stdout
    assert '"team"' in log
    assert first not in log and second not in log


def test_the_default_key_is_rotated_in_the_env_file(stack: FakeEngineStack) -> None:
    old = stack.key
    new = keys(stack, "rotate", "default")
    assert read_env(stack.folder)["STACKGEN_API_KEY"] == new != old
    assert (stack.folder / ".env").stat().st_mode & 0o777 == 0o600
    assert [stack.chat("alpha", key).status for key in (old, new)] == [200, 200]
    keys(stack, "remove", "default", "--older")
    assert [stack.chat("alpha", key).status for key in (old, new)] == [401, 200]


def test_key_reloads_lose_no_request(stack: FakeEngineStack, capsys: pytest.CaptureFixture[str]) -> None:
    with Load(PORT, [stack.key], "alpha", clients=8, pause=0.01, fake_engines=True) as traffic:
        for _ in range(4):
            name = "brief"
            keys(stack, "new", name)
            stack.reload()
            traffic.keys = [stack.key, keys(stack, "rotate", name)]
            traffic.wait_for_requests(40)
            traffic.keys = [stack.key]
            traffic.wait_for_requests(20)
            keys(stack, "remove", name)
    with capsys.disabled():
        print(f"\n  {traffic.summary('12 changes of keys and 4 reloads')}")
    assert (traffic.failures, traffic.interrupted) == ([], 0)


def test_keys_commands_at_once_lose_no_request(stack: FakeEngineStack, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"at-once-{number}" for number in range(4)]

    def create(name: str) -> int:
        # the key is valid as soon as its command returns
        return stack.chat("alpha", keys(stack, "new", name)).status

    with Load(PORT, [stack.key], "alpha", clients=8, pause=0.01, fake_engines=True) as traffic:
        with ThreadPoolExecutor(6) as pool:
            # as other commands do at the same time
            reloads = [pool.submit(stack.reload) for _ in range(2)]
            assert list(pool.map(create, names)) == [200] * 4
            assert [one.result() for one in reloads] == [None, None]
        traffic.wait_for_requests(20)
    with capsys.disabled():
        print(f"\n  {traffic.summary('4 keys commands and 2 reloads at once')}")
    assert (traffic.failures, traffic.interrupted) == ([], 0)


def drain_and_die() -> None:
    """Drains the replica in a process that is then killed."""
    code = "from stackgen.runtimes.compose.gateway import running_gateway as find; import time;"
    code += "print(find('roll-keys').drain('vllm-alpha-2', 10), flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "0\n"
        process.kill()


def drain_metrics(stack: FakeEngineStack, name: str) -> dict[str, int]:
    """Returns a metric of the gateway by replica. Prometheus is in the same network."""
    ask = "import urllib.request as u; print(u.urlopen('http://gateway:8405/keys').read().decode())"
    text = stack.run("vllm-alpha", "python3", "-c", ask)
    found = re.findall(rf'(?m)^stackgen_gateway_{name}_timestamp_seconds{{replica="(\S+)"}} (\d+)$', text)
    return {replica: int(value) for replica, value in found}


def test_the_gateway_enables_a_replica_whose_command_was_killed(stack: FakeEngineStack) -> None:
    # no stackgen command is needed: Docker runs the gateway's health check every 10 s
    before = int(time.time())
    drain_and_die()
    gateway = running_gateway("roll-keys")
    assert gateway
    stack.run("gateway", "bash", "/stackgen/gateway_health.sh")
    assert [one.replica for one in gateway.drained()] == ["vllm-alpha-2"]
    since, until = drain_metrics(stack, "drained_since"), drain_metrics(stack, "drain_lease")
    assert before <= since["vllm-alpha-2"] <= time.time() and since["vllm-alpha"] == until["vllm-alpha"] == 0
    assert since["vllm-alpha-2"] + 60 <= until["vllm-alpha-2"] <= time.time() + 60
    gateway.reload()
    assert (drain_metrics(stack, "drained_since"), drain_metrics(stack, "drain_lease")) == (since, until)
    # the lease, which the command would have renewed, has expired
    stack.run("gateway", "bash", "-c", "echo 1 >/tmp/drained/vllm-alpha-2")
    stack.run("gateway", "bash", "/stackgen/gateway_health.sh")
    assert gateway.drained() == []
    assert (
        set(drain_metrics(stack, "drained_since").values()) == set(drain_metrics(stack, "drain_lease").values()) == {0}
    )
    assert_both_answer(stack)


def test_a_read_only_command_enables_a_replica_whose_command_was_killed(stack: FakeEngineStack) -> None:
    drain_and_die()
    done = stackgen(stack, "logs", "gateway", "--tail", "1", "--stack", str(stack.folder))
    assert "vllm-alpha-2 was still drained since 20" in done.stderr
    assert "left drained" not in done.stdout and "forced drain" in done.stdout
    gateway = running_gateway("roll-keys")
    assert gateway and gateway.drained() == []
    # also the metrics, although the lease would not have expired yet
    assert set(drain_metrics(stack, "drained_since").values()) == {0}


def test_the_metrics_show_a_replica_that_was_drained_by_hand(stack: FakeEngineStack) -> None:
    api = "exec 3<>/dev/tcp/127.0.0.1/8406 && printf '%s\\n' \"$1\" >&3 && cat <&3"
    gateway = running_gateway("roll-keys")
    assert gateway
    (server,) = gateway.servers("vllm-alpha-2")
    before = int(time.time())
    stack.run("gateway", "bash", "-c", api, "-", f"set server {server.backend}/vllm-alpha-2 state drain")
    since = drain_metrics(stack, "drained_since")
    assert before <= since["vllm-alpha-2"] <= time.time() and since["vllm-alpha"] == 0
    assert drain_metrics(stack, "drain_lease") == {"vllm-alpha": 0, "vllm-alpha-2": 0}
    # it stays the time of the first scrape
    assert drain_metrics(stack, "drained_since") == since
    gateway.enable("vllm-alpha-2")
    assert drain_metrics(stack, "drained_since") == {"vllm-alpha": 0, "vllm-alpha-2": 0}


def test_a_drained_replica_stays_drained_after_a_reload(stack: FakeEngineStack) -> None:
    gateway = running_gateway("roll-keys")
    assert gateway
    assert gateway.drain("vllm-alpha-2", 10) == 0
    keys(stack, "new", "third")
    gateway.reload()
    assert {stack.chat("alpha").replica for _ in range(6)} == {"vllm-alpha"}
    assert gateway.is_last_up("vllm-alpha")
    gateway.enable("vllm-alpha-2")
    assert_both_answer(stack)
    assert not gateway.is_last_up("vllm-alpha")


def assert_both_answer(stack: FakeEngineStack) -> None:
    """Sends requests until both replicas have answered: the gateway chooses between idle ones at random."""
    found: set[str] = set()

    def is_complete() -> bool:
        found.add(stack.chat("alpha").replica)
        return found == {"vllm-alpha", "vllm-alpha-2"}

    wait_until(is_complete, 20, lambda: found)


class TlsStack(FakeEngineStack):
    """With a generated certificate, which the client trusts."""

    def render(self) -> None:
        super().render()
        write_stack_file(self)
        stack = open_stack(str(self.folder))
        ensure_certificate(stack.spec, stack.plan, self.folder)

    def connect(self) -> http.client.HTTPConnection:
        context = ssl.create_default_context(cafile=self.folder / "gateway" / "tls" / "site.crt")
        return http.client.HTTPSConnection("127.0.0.1", self.data["port"], timeout=60, context=context)


class OwnCertificateStack(TlsStack):
    """With the user's own certificate: the last one that `renew` created."""

    def render(self) -> None:
        self.renew()
        super().render()

    def renew(self) -> None:
        """Writes a new certificate and key into the existing files."""
        for name, text in self.create_certificate().items():
            (self.folder / name).write_text(text)

    def create_certificate(self) -> dict[str, str]:
        args = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
                 "/CN=localhost", "-keyout", "new.key", "-out", "new.crt"]  # fmt: skip
        subprocess.run(["openssl", *args], cwd=self.folder, capture_output=True, check=True)
        return {f"own.{one}": (self.folder / f"new.{one}").read_text() for one in ("crt", "key")}

    def connect(self) -> http.client.HTTPConnection:
        context = ssl._create_unverified_context()
        return http.client.HTTPSConnection("127.0.0.1", self.data["port"], timeout=60, context=context)

    def serves_certificate_on_disk(self) -> bool:
        """Returns whether the gateway presents the certificate on disk."""
        served = ssl.get_server_certificate(("127.0.0.1", self.data["port"]), timeout=20)
        return ssl.PEM_cert_to_DER_cert(served) == ssl.PEM_cert_to_DER_cert((self.folder / "own.crt").read_text())


def test_a_renewed_own_certificate_is_loaded(fastchat_image: str, haproxy_image: str, tmp_path: Path) -> None:
    model = {"model": "./a", "engine": "vllm", "served_names": ["alpha"]}
    gateway = {"image": haproxy_image, "tls": {"certificate": "./own.crt", "key": "./own.key"}}
    data = {"name": "roll-own", "port": TLS_PORT + 2, "gateway": gateway, "models": [model]}
    with OwnCertificateStack(tmp_path, data, fastchat_image) as stack:
        assert stack.serves_certificate_on_disk()
        container = stack.compose("ps", "--quiet", "gateway").stdout
        stack.renew()
        assert reload_if_changed(stack.plan, tmp_path) and stack.serves_certificate_on_disk()
        # replaced files of the same names, which the container doesn't see
        for name, text in stack.create_certificate().items():
            (tmp_path / "new").write_text(text)
            (tmp_path / "new").replace(tmp_path / name)
        assert not stack.serves_certificate_on_disk()
        assert reload_if_changed(stack.plan, tmp_path) and stack.serves_certificate_on_disk()
        assert stack.compose("ps", "--quiet", "gateway").stdout == container


def test_a_generated_certificate_serves_https_and_redirects_http(
    fastchat_image: str, haproxy_image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"model": "./a", "engine": "vllm", "served_names": ["alpha"]}
    gateway = {"image": haproxy_image, "tls": {"redirect_port": TLS_PORT + 1}}
    data = {"name": "roll-tls", "port": TLS_PORT, "gateway": gateway, "models": [model]}
    with TlsStack(tmp_path, data, fastchat_image) as stack:
        assert stack.chat("alpha").status == 200
        plain = http.client.HTTPConnection("127.0.0.1", TLS_PORT + 1, timeout=20)
        plain.request("POST", "/v1/chat/completions?x=1", "{}")
        moved = plain.getresponse()
        assert moved.status == 308
        assert moved.headers["location"] == f"https://127.0.0.1:{TLS_PORT}/v1/chat/completions?x=1"
        plain.close()
        for host in ("[::1]:8080", "[::1]", "example.org"):
            plain = http.client.HTTPConnection("127.0.0.1", TLS_PORT + 1, timeout=20)
            plain.request("GET", "/v1/models", headers={"Host": host})
            where = host.removesuffix(":8080")
            assert plain.getresponse().headers["location"] == f"https://{where}:{TLS_PORT}/v1/models"
            plain.close()
        plain = http.client.HTTPConnection("127.0.0.1", TLS_PORT + 1, timeout=20)
        plain.putrequest("GET", "/v1/models", skip_host=True)
        plain.endheaders()
        assert plain.getresponse().status == 400
        plain.close()
        # services in the stack's network use plain HTTP on a port that isn't published
        inner = "import urllib.request as u; print(u.urlopen('http://gateway:8001/health').status)"
        assert stack.run("vllm-alpha", "python3", "-c", inner).strip() == "200"
        # only the stack's own commands trust it
        report = json.loads(stackgen(stack, "check", str(tmp_path), "--json", "--select", "tls,models").stdout)
        assert {one["status"] for one in report["endpoints"][0]["results"]} == {"pass"}
        url = ("--base-url", f"https://127.0.0.1:{TLS_PORT}/v1")
        assert "certificate" in stackgen(stack, "check", *url, "--quick", code=1).stdout
        # a reload starts a new worker, which can read the key but has no other rights
        first = keys(stack, "new", "team")
        assert stack.chat("alpha", first).status == 200
        user = stack.run("gateway", "bash", "-c", "stat -c %U /proc/[0-9]*/ | sort | uniq")
        assert "haproxy" in user
