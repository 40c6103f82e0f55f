"""Runs the stand-in for vLLM (tests/standin/vllm.py) as a process of this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.conftest import ROOT

__all__ = ["standin_engine"]


@contextmanager
def standin_engine(port: int, key: str, *models: str) -> Iterator[None]:
    """Within the block, the stand-in serves `models` at 127.0.0.1:`port`, and accepts only `key`."""
    environment = {
        **os.environ, "VLLM_API_KEY": key, "STANDIN_FLAGS": str(ROOT / "stackgen" / "flags" / "vllm-0.32.0.json")
    }  # fmt: skip
    program = str(ROOT / "tests" / "standin" / "vllm.py")
    words = [program, "serve", models[0], "--host", "127.0.0.1", "--port", str(port), "--served-model-name", *models]
    with subprocess.Popen([sys.executable, *words], env=environment) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        try:
            yield
        finally:
            process.terminate()
