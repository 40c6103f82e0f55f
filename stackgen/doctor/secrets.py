"""Checks that keys exist, are no placeholders, are hard to guess, and only their owner can read them.

No finding contains the value of a key.
"""

from __future__ import annotations

import math
import re
from collections import Counter

from stackgen.doctor.finding import DoctorInputs, Results, fail, ok, rendered_folder, warn
from stackgen.plan import EnvRef
from stackgen.stack.envfile import API_KEY, GENERATED_SECRETS, HUB_TOKENS
from stackgen.stack.keys import MAP

__all__ = [
    "check_env_complete", "check_env_mode", "check_env_present", "check_key_accepted", "check_key_strength",
    "check_token_file",
    "is_placeholder",
]  # fmt: skip

PLACEHOLDER = re.compile(
    # bounded lengths: a random key may begin or end like this too
    r"<.*>|\{\{.*\}\}|\$\{\w+.*\}|\$[A-Z_]+|\.+|…|[x*]{4,}|(your|my)[-_ ][\w -]{0,30}|123\w{0,12}|.*[-_ ]here|todo|"
    r".*(change|replace|insert|put|paste)[-_ ]?(me|with|this|here|by|your)\b.*|.*(placeholder|example|insert[-_ ]).*|"
    r"x+|(api[-_ ]?)?key|secret|password|none|null|empty|(token[-_ ]?)?(abc|api)[-_ ]?123|test|dummy|fake|demo",
    re.IGNORECASE,
)


def is_placeholder(value: str) -> bool:
    """Whether `value` is an example that nobody replaced, with or without `sk-` in front."""
    return bool(PLACEHOLDER.fullmatch(value) or PLACEHOLDER.fullmatch(value.removeprefix("sk-")))


def check_env_present(inputs: DoctorInputs) -> Results:
    """`.env` exists and is readable."""
    # None: doctor runs without a stack, so there is no .env
    env = inputs.env
    if env is None:
        return
    if env.error:
        yield fail(".env can't be read", evidence=f"{env.path}: {env.error}", fix=f"run `sudo chown $USER {env.path}`")
    elif env.exists:
        yield ok(".env exists", evidence=env.path)
    # Compose also reads the shell's environment, so .env is not needed if the key is set there
    elif env.values.get(API_KEY):
        yield ok("the key comes from the environment", evidence=API_KEY)
    elif env.kept.values or env.kept.lost:
        yield warn(f".env is lost: {_refusal(inputs)}", evidence=env.path,
                   fix="SG-P072 shows how to get each value back")  # fmt: skip
    else:
        yield warn(
            f".env does not exist: {_refusal(inputs)}",
            evidence=env.path,
            fix=f"`stackgen render {rendered_folder(inputs)}` writes .env with a new key",
        )


def _refusal(inputs: DoctorInputs) -> str:
    if inputs.cluster:
        return "`stackgen up` takes the keys of the Secrets from .env"
    return "`docker compose up` will refuse to start without .env"


def check_env_mode(inputs: DoctorInputs) -> Results:
    """Only the owner can read `.env`."""
    env = inputs.env
    if env is None or env.mode is None:
        return
    if env.mode & 0o077:
        yield warn(
            "other users can read .env",
            evidence=f"{env.path} has mode {env.mode:04o}",
            fix=f"run `chmod 600 {env.path}`",
        )
    else:
        yield ok("only the owner can read .env", evidence=f"mode {env.mode:04o}")


def check_env_complete(inputs: DoctorInputs) -> Results:
    """Every variable that the stack requires has a value that is not a placeholder."""
    env = inputs.env
    # a missing or unreadable file is reported once, by SG-P070
    if env is None or env.error:
        return
    for lost in env.kept.lost:
        yield fail(f"{lost.name} is lost: {lost.reason}", evidence=f"{env.path} has no value", fix=lost.remedy)
    if env.kept.values:
        yield warn(
            f"{', '.join(env.kept.values)} {'is' if len(env.kept.values) == 1 else 'are'} missing in .env",
            evidence=f"{env.kept.source} still have the old values",
            fix=f"`stackgen up {rendered_folder(inputs)}` and `stackgen render` restore them",
        )
    # without a file, the values that nobody has lost are written by the next command
    if not env.exists and not env.values.get(API_KEY):
        return
    known = {*env.kept.values, *(one.name for one in env.kept.lost)}
    required = [v for s in inputs.services() for _, v in s.environment if isinstance(v, EnvRef) and v.required]
    for ref in dict.fromkeys(ref for ref in required if ref.name not in known):
        value = env.values.get(ref.name, "") or env.values.get(ref.alternative, "")
        # stackgen generates these itself, e.g. the engines' key behind a gateway
        if not value and ref.name in GENERATED_SECRETS and ref.name != API_KEY:
            yield warn(
                f"{ref.name} is not set yet",
                evidence=env.path,
                fix=f"`stackgen up` adds {ref.name} to .env"
                + ("" if inputs.cluster else f", but `docker compose up` refuses to start without {ref.name}"),
            )
        elif not value:
            yield fail(f"{ref.name} is empty", evidence=env.path, fix=_set_value(ref.name))
        elif is_placeholder(value):
            yield fail(
                f"{ref.name} is still a placeholder",
                evidence=env.path,
                fix=_set_value(ref.name, "your own value"),
            )
        else:
            yield ok(f"{ref.name} is set")


def _new_value(name: str) -> str:
    """A command that prints a new line for `.env`; for other variables, just the name."""
    return f'printf "{name}=sk-%s\\n" "$(openssl rand -hex 32)"' if name == API_KEY else name


def _set_value(name: str, value: str = "a value") -> str:
    # only stackgen's own key can be generated
    if name == API_KEY:
        return f"add the output of this command to .env: {_new_value(name)}"
    return f"set {name} to {value} in .env"


def check_key_strength(inputs: DoctorInputs) -> Results:
    """The API key is hard to guess."""
    value = inputs.env.values.get(API_KEY, "") if inputs.env else ""
    # SG-P072 reports missing keys and placeholders
    if not value or is_placeholder(value):
        return
    exposed = any(endpoint.exposed for endpoint in inputs.stack.plan.endpoints) if inputs.stack else False
    fix = f"create a new key: {_new_value(API_KEY)}"
    # clients send it in the Authorization header, which carries visible ASCII only
    if re.search(r"[^\x21-\x7e]", value):
        yield fail(
            "the API key has spaces or other characters that an HTTP header can't contain",
            evidence=f"{len(value)} characters",
            fix=fix,
        )
    elif (bits := _entropy_bits(value)) < 64:
        # on 127.0.0.1 only users of this machine can try keys
        report = fail if exposed else warn
        yield report(
            "the API key is easy to guess" + (", and other machines can reach the port" if exposed else ""),
            evidence=f"the key has {len(value)} characters and at most {bits:.0f} bits of entropy, but needs at least "
            "64 bits",
            fix=fix,
        )
    else:
        yield ok("the API key is long enough", evidence=f"{len(value)} characters")


def check_key_accepted(inputs: DoctorInputs) -> Results:
    """The gateway accepts the key in `.env`."""
    env = inputs.env
    gateway = next((service.name for service in inputs.services() if service.role == "gateway"), None)
    if env is None or gateway is None or not env.values.get(API_KEY):
        return
    if env.key_refused:
        yield fail(
            "the gateway refuses the key in .env: it is not one of the keys in gateway/keys.map",
            evidence=f"{env.path}, and {rendered_folder(inputs) / MAP}",
            fix="restore .env from a backup, or run `stackgen keys rotate default`, which writes a valid key into .env",
        )
    else:
        yield ok("the gateway accepts the key in .env", evidence="compared with gateway/keys.map, if it exists")


def _entropy_bits(value: str) -> float:
    """An upper bound of the bits to guess: the Shannon entropy of the characters, which repetition can't raise."""
    # the prefix is the same in every key
    value = value.removeprefix("sk-")
    counts = Counter(value)
    each = -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values()) if value else 0.0
    return each * len(value)


def check_token_file(inputs: DoctorInputs) -> Results:
    """The file in HF_TOKEN_FILE exists and is readable."""
    env = inputs.env
    if env is None:
        return
    if not env.values.get("HF_TOKEN_FILE"):
        if name := next((one for one in HUB_TOKENS if env.values.get(one)), None):
            yield warn(f"the download does not read {name} from .env", evidence=env.path,
                       fix="put the token into a file (`hf auth login` writes ~/.cache/huggingface/token), and set "
                       "HF_TOKEN_FILE=~/.cache/huggingface/token")  # fmt: skip
        return
    # here the value is a token, so the evidence must not contain it
    if env.values["HF_TOKEN_FILE"].startswith("hf_") and "HF_TOKEN_FILE" in env.missing_files:
        yield fail(
            "HF_TOKEN_FILE contains a token, but must contain the path of the token's file",
            evidence=env.path,
            fix="put the absolute path of the token's file into .env. `hf auth login` writes the token to "
            "~/.cache/huggingface/token",
        )
    elif "HF_TOKEN_FILE" in env.missing_files:
        yield fail(
            "HF_TOKEN_FILE is not the path of a readable file",
            evidence=env.values["HF_TOKEN_FILE"],
            fix="correct the path. For example, `hf auth login` creates the file ~/.cache/huggingface/token",
        )
    elif "HF_TOKEN_FILE" in env.empty_files:
        yield warn(
            "the token's file is empty, so downloads use no token", evidence=env.values["HF_TOKEN_FILE"],
            fix="run `hf auth login`, and copy its file ~/.cache/huggingface/token, or set HF_TOKEN_FILE to its path",
        )  # fmt: skip
    else:
        yield ok("the token's file exists", evidence=env.values["HF_TOKEN_FILE"])
