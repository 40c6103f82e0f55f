"""Fixtures: fake servers that stop after the test, dialects like those of the engines, a certificate."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from stackgen.check import check
from stackgen.check.options import Options
from stackgen.check.report import EndpointReport, Result
from stackgen.check.target import Target
from stackgen.plan import Deviation, Dialect

from .fake import KEY, Fake, serve

# written out instead of imported from stackgen.engines: the check must work from the data of a dialect alone
VLLM = Dialect(
    "vllm", liveness_path="/health", open_paths=("/invocations", "/tokenize", "/version"), unknown_model=(404, 404)
)
FASTCHAT = Dialect(
    "fastchat",
    open_paths=("/api/v1/chat/completions",),
    stream_usage=False,
    unknown_model=(400, 40301),
    error_path=("message",),
    ignores=("tools", "json-schema", "seed"),
    deviations=(
        Deviation("stream", r"(object|created): field required", "sends object and created in the last chunk only"),
        Deviation(
            "chat",
            r"completion_tokens is \d+, but the answer reached its limit of \d+ tokens",
            "counts one token too few at the limit",
        ),
    ),
)
DIALECTS = {"vllm": VLLM, "fastchat": FASTCHAT}


@pytest.fixture
def start() -> Iterator[Callable[..., Fake]]:
    """`start(engine, key, certificate)` runs a fake until the test ends."""
    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(serve(*args, **kwargs))


@pytest.fixture
def vllm(start: Callable[..., Fake]) -> Fake:
    return start("vllm")


@pytest.fixture
def fastchat(start: Callable[..., Fake]) -> Fake:
    return start("fastchat")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key, in one file."""
    if not shutil.which("openssl"):
        pytest.skip("the openssl program is missing (it makes the certificate of the TLS tests)")
    folder = tmp_path_factory.mktemp("tls")
    arguments = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    out = [
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        str(folder / "key.pem"),
        "-out",
        str(folder / "cert.pem"),
    ]
    subprocess.run([*arguments.split(), *out], check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    return both


def target(fake: Fake, dialect: Dialect | None = VLLM, *, models: tuple[str, ...] = ("tiny",), key: str | None = KEY,
           exposed: bool = False) -> Target:  # fmt: skip
    return Target("fake", fake.url, key, models, dialect, exposed)


def run_check(one: Target, wait: float = 0.0, **options: Any) -> EndpointReport:
    """The report on one target, with short timeouts."""
    report = check([one], Options(**{"timeout": 5.0, **options}), wait=wait, dialects=DIALECTS)
    return report.endpoints[0]


def result(report: EndpointReport, name: str) -> Result:
    """The only result of a check."""
    found = [one for one in report.results if one.name == name]
    assert len(found) == 1, found
    return found[0]
