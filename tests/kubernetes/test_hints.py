"""What a user of a cluster reads: counts of keys, and hints whose commands work there instead of those of Compose."""

from __future__ import annotations

import ast
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from stackgen.cli import main as cli
from stackgen.cli.commands.cluster import in_words_of
from stackgen.diagnose import Finding
from stackgen.stack.folder import open_stack
from stackgen.targets.commands import for_cluster
from tests.conftest import ROOT
from tests.kubernetes.test_access import folder, pids  # noqa: F401
from tests.kubernetes.test_commands import ENGINE

# where texts come from that `check`, `ask`, `up`, `doctor` and alerts print for a cluster
SOURCES = [
    *sorted((ROOT / "stackgen/check").rglob("*.py")),
    *sorted((ROOT / "stackgen/client").rglob("*.py")),
    ROOT / "stackgen/resolve/addons/monitoring_rules.py",
    *(ROOT / f"stackgen/doctor/{name}.py" for name in ("cluster", "secrets", "huggingface", "files", "flags")),
]
KEYS = "gateway: {keys: [{name: alice, tokens_per_day: 9}]}"
METRICS = """HTTP/1.0 200 OK
content-type: text/plain

stackgen_gateway_key_requests_total{key="default"} 4
stackgen_gateway_key_requests_total{key="alice"} 40
stackgen_gateway_key_tokens_today{key="alice"} 1200
"""


def texts(path: Path) -> Iterator[str]:
    """All texts in a module, each with the parts that it is written in; docstrings are for developers."""
    tree = ast.parse(path.read_text())
    docs = {id(node.body[0].value) for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and node.body
            and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(one.value) if isinstance(one, ast.Constant) else "{name}" for one in node.values)


def test_no_hint_names_a_command_of_compose() -> None:
    found = [text for path in SOURCES for text in texts(path)]
    assert any("docker compose" in text for text in found)
    wrong = [text for text in found if "docker compose" in for_cluster(text, "models")]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("see `docker compose ps` and `docker compose logs`", "see `kubectl -n n get pods` and `stackgen logs`"),
        ("run `docker compose restart exporter`", "run `kubectl -n n rollout restart deployment/exporter`"),
        ("`docker compose logs gateway` shows it", "`kubectl -n n logs deployment/gateway` shows it"),
        ("`docker compose logs vllm-a` shows it", "`stackgen logs vllm-a` shows it"),
        ("then `stackgen update`", "then `stackgen up`"),
        ("a text without a command", "a text without a command"),
    ],
)
def test_commands_are_those_that_work_in_a_cluster(text: str, wanted: str) -> None:
    assert for_cluster(text, "n") == wanted


@pytest.fixture
def failing_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server behind the forwarded port that answers 500 to each request."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_error(500)

        do_GET = BaseHTTPRequestHandler.send_error.__get__ if False else lambda self: self.send_error(500)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    monkeypatch.setenv("ENGINE_PORT", str(server.server_port))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("command", ["ask Hi", "check", "up --yes --timeout 1"])
def test_failed_requests_are_explained_with_commands_for_the_cluster(
    folder: Path,  # noqa: F811
    pids: object,  # noqa: F811
    failing_engine: None,
    command: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    word, *words = command.split()
    code = cli.main([word, *words, str(folder)])
    shown = "".join(capsys.readouterr())
    assert code == 1
    assert "stackgen logs" in shown and "docker" not in shown.lower(), shown


def test_usage_of_keys_is_the_sum_of_all_pods(
    folder: Path,  # noqa: F811
    pids: object,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = (folder / "stack.yaml").read_text()
    (folder / "stack.yaml").write_text(text.replace("gateway: true", KEYS))
    metrics = tmp_path / "metrics"
    metrics.write_text(METRICS)
    monkeypatch.setenv("LOADED", str(metrics))
    # the fake returns all recorded objects as pods, and each of them gives the same metrics
    states = json.loads((Path(__file__).parent / "recorded" / "states.json").read_text())
    pods = len(states["ready"]["objects"])
    capsys.readouterr()
    assert cli.main(["keys", "usage", str(folder), "--json"]) == 0
    shown = capsys.readouterr()
    found = {one["name"]: one for one in json.loads(shown.out)["keys"]}
    assert found["alice"]["requests"] == 40 * pods and found["alice"]["tokens_today"] == 1200 * pods
    assert found["default"]["requests"] == 4 * pods and found["default"]["tokens_today"] is None
    assert f"sums of {pods} pods" in shown.err
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert all("GET /keys" in one[-1] for one in calls if one[4:5] == ["exec"])
    metrics.write_text("HTTP/1.0 503 Service Unavailable\n")
    assert cli.main(["keys", "usage", str(folder)]) == 1
    assert "stackgen logs gateway" in capsys.readouterr().err


def test_a_stack_in_a_cluster_uses_nothing_of_this_machine(
    folder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    assert cli.main(["list", str(folder), "--json"]) == 0
    (entry,) = (one for one in json.loads(capsys.readouterr().out)["stacks"] if one["folder"] == str(folder.resolve()))
    assert (entry["state"], entry["runtime"], entry["gpus"]) == ("unknown", "kubernetes", {})
    assert "stackgen status" in entry["reason"] and entry["disk"] == {"weights": None, "own_volumes": None}
    assert cli.main(["list", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert f"{entry['urls'][0]} (inside)" in shown and "kubectl -n " in shown and "127.0.0.1:800" in shown


@pytest.mark.parametrize(
    ("command", "words"),
    [("bench", "in a pod"), ("fit --observe", "stackgen logs"), ("bundle create", "kubectl for everything else")],
)
def test_commands_that_need_one_machine_say_what_to_do_instead(
    folder: Path,  # noqa: F811
    command: str,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([*command.split(), str(folder)]) == 2
    shown = capsys.readouterr().err
    assert "target kubernetes" in shown and words in shown


def test_findings_name_commands_for_the_cluster(folder: Path) -> None:  # noqa: F811
    finding = Finding("SG-V000", "title", ENGINE, "cause", (), "compare with `docker compose ps`")
    assert in_words_of(open_stack(str(folder)), finding).fix == "compare with `kubectl -n rec get pods`"


@pytest.mark.parametrize("spelling", ["{name} --stack {folder}", "--stack {folder} {name}", "{name} {folder}"])
@pytest.mark.parametrize("action", ["new alice", "new --missing alice", "list", "remove alice"])
def test_keys_take_the_stack_in_the_same_spellings(
    folder: Path,  # noqa: F811
    pids: object,  # noqa: F811
    spelling: str,
    action: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    verb, *names = action.split()
    words = spelling.format(name=" ".join(names), folder=folder).split()
    if verb == "remove":
        assert cli.main(["keys", "new", "alice", "--stack", str(folder)]) == 1
    capsys.readouterr()
    # 1: nobody agreed to a change of the cluster, so the keys are saved only here
    assert cli.main(["keys", verb, *words]) == (0 if verb == "list" else 1)
    saved = (folder / "gateway" / "keys.map").read_text() if (folder / "gateway" / "keys.map").exists() else ""
    assert ("alice" in saved) == (verb == "new")


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("", "kubectl -n web port-forward service/gateway 8000`, and use http://127.0.0.1:8000/v1"),
        (
            "port: 443\ngateway: {tls: generate}\nkubernetes: {tls_secret: x}\n",
            "service/gateway-internal 8001`, and use http://127.0.0.1:8001/v1",
        ),
        ("port: 80\n", "service/gateway 8000:80`, and use http://127.0.0.1:8000/v1"),
        ("kubernetes: {service_type: LoadBalancer}\n", "kubectl -n web get service gateway` shows its address"),
    ],
)
def test_list_says_how_to_reach_a_stack_in_a_cluster(
    extra: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stack.yaml").write_text(
        f"name: web\ntarget: kubernetes\nmodels: [{{model: org/m, engine: vllm, gpus: 1, revision: abc}}]\n{extra}"
    )
    assert cli.main(["list", str(tmp_path)]) == 0 and words in capsys.readouterr().out
