"""A bundle contains the evidence and no secret, wherever one was planted."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stackgen.diagnose import Evidence, ServiceEvidence, diagnose
from stackgen.diagnose.bundle import build_bundle
from stackgen.stack.folder import open_stack
from stackgen.stack.redactor import SecretRedactor

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


STACK = """\
name: s
models:
  - model: org/m
    engine: vllm
    gpus: none
    extra_args:
      - --hf-token
      - hunter2hunter2
      - --auth-token=hunter3hunter3
      - --tokenizer
      - keep-this-name
    extra_env:
      MY_SECRET_KEY: hunter4hunter4
      WANDB_KEY: hunter5hunter5
      DB_PASS: hunter6hunter6
      PASSPHRASE: hunter7hunter7
      DB_PASSWORD: "correct hunter8hunter8 horse's $tail"
      PEM_KEY: |
        first hunter9hunter9
        last hunter0hunter0
      NVIDIA: nvapi-hunter1hunter1
      PAD_TOKEN: <pad>
      VLLM_LOGGING_LEVEL: DEBUG
"""


def unpack(data: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        return {one.name: tar.extractfile(one).read().decode() for one in tar.getmembers()}  # type: ignore[union-attr]


def test_a_bundle_contains_no_planted_secret() -> None:
    files = {
        ".env": f"STACKGEN_API_KEY={KEY}\n# OLD={TOKEN}\nODD='{ODD}'\nEMPTY=\n",
        "stack.yaml": f"models:\n  - extra_env:\n      MY_PASSWORD: hunter2hunter2\n      HF_TOKEN: {TOKEN}\n",
        "compose.yaml": f"environment:\n  API_KEY: '{KEY}'\n  {text(7)}",
    }
    known = evidence()
    found = unpack(build_bundle(known, diagnose(known), files, {"docker": text(8)}))
    for name, content in found.items():
        for secret in (*PLANTED, json.dumps(ODD)[1:-1]):
            assert secret not in content, f"{secret!r} in {name}"
    env = found["stackgen-report/files/.env"]
    assert "STACKGEN_API_KEY=set" in env and "EMPTY=\n" in env and "OLD" not in env


def test_a_bundle_contains_findings_evidence_logs_and_files() -> None:
    known = evidence()
    found = unpack(build_bundle(known, diagnose(known), {"compose.yaml": "a: 1\n"}, {"stackgen": "1"}))
    assert set(found) == {
        f"stackgen-report/{name}"
        for name in ("README.txt", "findings.txt", "findings.json", "evidence.json", "versions.json",
                     "logs/vllm-a.log", "metrics/vllm-a.txt", "logs/compose-up.txt", "files/compose.yaml")
    }  # fmt: skip
    assert json.loads(found["stackgen-report/evidence.json"])["services"][0]["state"] == "exited"
    assert json.loads(found["stackgen-report/findings.json"])


def test_findings_contain_no_secret() -> None:
    for finding in diagnose(evidence()):
        shown = json.dumps(finding.to_json(), ensure_ascii=False)
        for secret in PLANTED:
            assert secret not in shown


def test_a_bundle_contains_no_secret_from_the_stack_file(tmp_path: Path) -> None:
    """People put secrets there although none belongs there; engines log them without a name next to them."""
    (tmp_path / "stack.yaml").write_text(STACK)
    stack = open_stack(str(tmp_path))
    log = "".join(f"{word}\n" for word in STACK.split()) + "connecting with correct hunter8hunter8 horse's $tail now\n"
    service = ServiceEvidence("vllm-m", engine="vllm", state="exited", exit_code=1, log=log,
                              command=stack.plan.services[0].command)  # fmt: skip
    known = Evidence((service,), log, spec=stack.spec, plan=stack.plan)
    files = {"stack.yaml": STACK} | {one.path: one.text for one in stack.files()}
    found = unpack(build_bundle(known, diagnose(known), files, {}))
    assert "stackgen-report/files/compose.yaml" in found
    for name, content in found.items():
        for secret in re.findall(r"hunter\d", content):
            assert not secret, f"{secret} in {name}: {content}"
        assert "correct" not in content and "$tail" not in content, content
    kept = found["stackgen-report/files/stack.yaml"]
    for word in ("keep-this-name", "PAD_TOKEN: <pad>", "VLLM_LOGGING_LEVEL: DEBUG", "MY_SECRET_KEY", "--hf-token"):
        assert word in kept
    assert json.loads(found["stackgen-report/evidence.json"])["spec"]["models"][0]["extra_env"]["DB_PASS"] == "[secret]"


def test_a_multi_line_value_in_env_is_not_taken_for_a_name() -> None:
    text = 'PEM="-----BEGIN X-----\nSECRETVALUE==\nSECRETVALUE=\n-----END X-----"\nexport A=1\n'
    found = unpack(build_bundle(Evidence(), (), {".env": text}, {}))["stackgen-report/files/.env"]
    assert found == "PEM=set\nA=set\n"


@pytest.mark.parametrize(
    "line",
    [
        "max_tokens=16, num_tokens: 2048, prompt_tokens_total 7, --max-num-batched-tokens 6144",
        'File "/opt/venv/lib/python3.11/site-packages/huggingface_hub/file_download.py", in hf_hub_download',
        "tokenizer='/models/tiny', skip_tokenizer_init=False, tokenizer_mode=auto, tokenizer_revision=None",
        "ValueError: Couldn't instantiate the backend tokenizer from one of:",
        "GPU KV cache size: 46,592 tokens, Maximum concurrency for 2,048 tokens per request: 22.75x",
        "bearer of bad news",
        '"pad_token": "<|endoftext|>", "eos_token": "</s>", "bos_token_id": 128000, "image_token": "<image>"',
        "num_key_value_heads: 8, num_attention_heads=32, head_dim=128, key_value_projection_size 64",
        "'pad_token': '[PAD]', 'unk_token': 'abcdef', pad_token=unknown",
        "missing_keys=['lm_head.weight'], unexpected_keys: []",
        "KeyError: 'model.layers.0.self_attn.k_proj.weight'",
        "api_key=None, hf_token=null, 'token': False, api_keys=[]",
        "      HF_TOKEN_PATH: /run/secrets/hf_token",
        "secrets: [hf_token, server_cert]",
        "secrets:\n  hf_token:\n    file: ${HF_TOKEN_FILE:-/dev/null}",
        "  STACKGEN_API_KEY: ${STACKGEN_API_KEY:?`stackgen up` writes one}",
        "--api-key-file /run/secrets/key --tokenizer-mode auto --max-num-batched-tokens 2048",
        "FastChat reads API_KEYS: plain text is refused; VLLM_API_KEY: required variable STACKGEN_API_KEY is missing",
        "docker run --user 2000:0 -u 1000:1000 image",
        "vllm: error: argument --api-key: expected at least one argument",
        "POST http://127.0.0.1:8000/v1/chat/completions 200 from me@example.org",
        "image vllm/vllm-openai@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "commit 0123456789abcdef0123456789abcdef01234567, prefix cache_key=0123456789abcdef, PWD=/home/me",
        "npm_config_registry, gsk, hf_overrides={'a': 1}, fw_forward_pass, 1 pass: 12, token: 1234",
    ],
)
def test_ordinary_engine_output_is_not_redacted(line: str) -> None:
    assert SecretRedactor()(line) == line


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
        "- --api-key\n  - SECRETVALUE", "      - '--hf-token'\n      - 'SECRETVALUE'", '["--api-key", "SECRETVALUE"]',
        '"--api-key",\n      "SECRETVALUE"', "MY_SECRET_KEY: SECRETVALUE", "WANDB_KEY=SECRETVALUE",
        "DB_PASS: SECRETVALUE",
        "PASSPHRASE: SECRETVALUE", 'DB_PASSWORD: "correct SECRETVALUE horse"', "DB_PASSWORD: correct SECRETVALUE horse",
        "password: 'it''s SECRETVALUE'", 'password = "a\\"SECRETVALUE"', "MYSQL_PWD=SECRETVALUE",
        "cache_salt=SECRETVALUE",
        r'{"body": "{\"api_key\": \"SECRETVALUE\"}"}', r'"{\"a\": \"{\\\"token\\\": \\\"SECRETVALUE\\\"}\"}"',
        "TLS_KEY: |\n  SECRETVALUE\n  SECRETVALUE\nA: 1", "  - token: >-\n      first\n      SECRETVALUE",
        "api_keys:\n  - SECRETVALUE\n  - SECRETVALUE", "API-KEYS: [a, SECRETVALUE]", "[('x-api-key', b'SECRETVALUE')]",
        "(b'authorization', b'SECRETVALUE')", "Cookie: session=SECRETVALUE; other=SECRETVALUE",
        "dbPassword=SECRETVALUE", "AccountKey=SECRETVALUE==;EndpointSuffix=x", "curl -u me:SECRETVALUE http://x",
        "-H 'Authorization: token SECRETVALUE'",
        "{'set-cookie': 'sid=SECRETVALUE; Path=/'}", "https://s.org/a?X-Goog-Signature=SECRETVALUE&b=1",
        "https://me:pa/SECRETVALUE@host/", "https://me:pa@SECRETVALUE@host/x", "password=abc&SECRETVALUE",
        "\x1b[33mapi_key\x1b[0m=\x1b[31mSECRETVALUE\x1b[0m", "sk-\x1b[1mSECRETVALUE",
        "pad_token: x api_key=SECRETVALUE",
        "tgp_v1_SECRETVALUE", "gsk_SECRETVALUE", "glpat-SECRETVALUE", "nvapi-SECRETVALUE", "dckr_pat_SECRETVALUE",
        "npm_SECRETVALUE0123456789", "AIzaSECRETVALUE0123456789", "ASIASECRETVALUE01234", "glsa_SECRETVALUE_01234567",
        "https://hooks.slack.com/services/T0/B0/SECRETVALUE", "AGE-SECRET-KEY-1SECRETVALUESECRETVALUE",
        "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nSECRETVALUE\n-----END PGP PRIVATE KEY BLOCK-----",
        "password: True-SECRETVALUE", "token = 1234567-SECRETVALUE", "pwd=SECRETVALUE", "Uid=me;Pwd=SECRETVALUE;",
    ],
)  # fmt: skip
def test_values_that_look_like_secrets_are_redacted(line: str) -> None:
    assert "SECRETVALUE" not in SecretRedactor()(line)


@pytest.mark.parametrize("value", ["p", "12", "1234"])
def test_short_passwords_are_redacted(value: str) -> None:
    assert SecretRedactor()(f"DB_PASSWORD: {value}") == "DB_PASSWORD: [secret]"


@pytest.mark.parametrize(
    "unit",
    ["deadbeef", "pad_token=", "token ", "api_key=", "cache_key='", '\\"token', "a://b:c", "[('key',", "password:[",
     "a.", "--token ", "'", "key: |", "- "],
)  # fmt: skip
def test_redacting_a_long_line_takes_no_quadratic_time(unit: str) -> None:
    """The first unit once took minutes at a twentieth of this length; then the test's timeout would end it."""
    assert SecretRedactor()(unit * (400_000 // len(unit)))


# no deadline: the first call on a busy machine takes long
@settings(deadline=None)
@given(st.text(), st.text(st.characters(categories=("L", "N")), min_size=8, max_size=20))
def test_a_known_secret_is_redacted_in_any_text(around: str, secret: str) -> None:
    assert secret not in SecretRedactor([secret])(f"{around}{secret}{around}{json.dumps(secret)}")
