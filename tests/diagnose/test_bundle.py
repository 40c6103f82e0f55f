"""The report for others holds what is known, and no secret, wherever one was planted."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from stackgen.diagnose import Evidence, ServiceEvidence, diagnose
from stackgen.diagnose.bundle import pack
from stackgen.diagnose.secrets import Scrubber

KEY = "sk-PlantedKeyOfTheStack0123456789"
TOKEN = "hf_" + "PlantedTokenOfTheHub0123456789ABCD"
ODD = 'p@ss w/"quotes" & more'
PLANTED = (KEY, TOKEN, ODD, "hunter2hunter2")


def text(number: int) -> str:
    return (
        f"line {number} key {KEY} token={TOKEN} password: hunter2hunter2 Authorization: Bearer {KEY}\n"
        f"https://user:hunter2hunter2@host/x?X-Amz-Signature=hunter2hunter2&a=1 {json.dumps(ODD)} {ODD}\n"
        f"ValueError: api_key='hunter2hunter2' --api-key hunter2hunter2 {TOKEN}\n"
        "stackgen: the service ended with code 1 after 5s and was never healthy\n"
    )


def evidence() -> Evidence:
    service = ServiceEvidence(
        "vllm-a", engine="vllm", state="exited", exit_code=1, error=text(1), health_log=text(2), log=text(3),
        command=("vllm", "serve", "--api-key", "hunter2hunter2", "--hf-token", TOKEN), metrics=text(4),
    )  # fmt: skip
    return Evidence((service,), text(5), checks=(("chat", text(6)),), secrets=(KEY, ODD))


def unpacked(data: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        return {one.name: tar.extractfile(one).read().decode() for one in tar.getmembers()}  # type: ignore[union-attr]


def test_planted_secrets_are_nowhere_in_the_report() -> None:
    files = {
        ".env": f"STACKGEN_API_KEY={KEY}\n# OLD={TOKEN}\nODD='{ODD}'\nEMPTY=\n",
        "stack.yaml": f"models:\n  - extra_env:\n      MY_PASSWORD: hunter2hunter2\n      HF_TOKEN: {TOKEN}\n",
        "compose.yaml": f"environment:\n  API_KEY: '{KEY}'\n  {text(7)}",
    }
    known = evidence()
    found = unpacked(pack(known, diagnose(known), files, {"docker": text(8)}))
    for name, content in found.items():
        for secret in (*PLANTED, json.dumps(ODD)[1:-1]):
            assert secret not in content, f"{secret!r} in {name}"
    env = found["stackgen-report/files/.env"]
    assert "STACKGEN_API_KEY=set" in env and "EMPTY=\n" in env and "OLD" not in env


def test_the_report_holds_what_is_known() -> None:
    known = evidence()
    found = unpacked(pack(known, diagnose(known), {"compose.yaml": "a: 1\n"}, {"stackgen": "1"}))
    assert set(found) == {
        f"stackgen-report/{name}"
        for name in ("README.txt", "findings.txt", "findings.json", "evidence.json", "versions.json",
                     "logs/vllm-a.log", "metrics/vllm-a.txt", "logs/compose-up.txt", "files/compose.yaml")
    }  # fmt: skip
    assert json.loads(found["stackgen-report/evidence.json"])["services"][0]["state"] == "exited"
    assert json.loads(found["stackgen-report/findings.json"])


def test_findings_show_no_secret() -> None:
    for finding in diagnose(evidence()):
        shown = json.dumps(finding.to_json(), ensure_ascii=False)
        for secret in PLANTED:
            assert secret not in shown


@pytest.mark.parametrize(
    "line",
    [
        "max_tokens=16, num_tokens: 2048, prompt_tokens_total 7, --max-num-batched-tokens 6144",
        'File "/opt/venv/lib/python3.11/site-packages/huggingface_hub/file_download.py", in hf_hub_download',
        "tokenizer='/models/tiny', skip_tokenizer_init=False, tokenizer_mode=auto, tokenizer_revision=None",
        "ValueError: Couldn't instantiate the backend tokenizer from one of:",
        "GPU KV cache size: 46,592 tokens, Maximum concurrency for 2,048 tokens per request: 22.75x",
        "bearer of bad news",
    ],
)
def test_an_engines_own_words_stay(line: str) -> None:
    assert Scrubber()(line) == line


@pytest.mark.parametrize(
    "line",
    [
        "HF_TOKEN=SECRETVALUE", "hf_token: 'SECRETVALUE'", '"api_key": "SECRETVALUE"', "--api-key SECRETVALUE",
        "--api-key=SECRETVALUE", "Authorization: Bearer SECRETVALUE", "password=SECRETVALUE",
        "DB_PASSWORD: SECRETVALUE",
        "https://me:SECRETVALUE@example.org/", "?token=SECRETVALUE&x=1", "aws_secret_access_key = SECRETVALUE",
        "'api_key': ['SECRETVALUE']", "api_key=['SECRETVALUE', 'SECRETVALUE']",
        "-----BEGIN PRIVATE KEY-----\nSECRETVALUE\n-----END PRIVATE KEY-----", "'--api-key', 'SECRETVALUE'",
        "Basic SECRETVALUE=",
    ],
)  # fmt: skip
def test_what_looks_like_a_secret_is_taken_out(line: str) -> None:
    assert "SECRETVALUE" not in Scrubber()(line)
