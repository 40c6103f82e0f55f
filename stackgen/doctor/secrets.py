"""Keys: there, no placeholder, hard to guess, and readable by their owner only. No value is ever repeated."""

from __future__ import annotations

import math
import re
from collections import Counter

from stackgen.doctor.finding import Case, Results, fail, good, warn
from stackgen.plan import EnvRef
from stackgen.stack.envfile import API_KEY, GENERATED

__all__ = ["complete", "is_placeholder", "mode", "present", "strength", "token_file"]

PLACEHOLDER = re.compile(
    # bounded where a random key may begin or end like that
    r"<.*>|\{\{.*\}\}|\$\{\w+.*\}|\$[A-Z_]+|\.+|…|[x*]{4,}|(your|my)[-_ ][\w -]{0,30}|123\w{0,12}|.*[-_ ]here|todo|"
    r".*(change|replace|insert|put|paste)[-_ ]?(me|with|this|here|by|your)\b.*|.*(placeholder|example|insert[-_ ]).*|"
    r"x+|(api[-_ ]?)?key|secret|password|none|null|empty|(token[-_ ]?)?(abc|api)[-_ ]?123|test|dummy|fake|demo",
    re.IGNORECASE,
)


def is_placeholder(value: str) -> bool:
    """Whether `value` stands for a key that nobody put in; `sk-` before it makes none of it."""
    return bool(PLACEHOLDER.fullmatch(value) or PLACEHOLDER.fullmatch(value.removeprefix("sk-")))


def present(case: Case) -> Results:
    """`.env` is there and can be read."""
    env = case.env
    if env is None:
        return
    if env.error:
        yield fail(".env can't be read", f"{env.path}: {env.error}", f"chown $USER {env.path}")
    elif env.exists:
        yield good(".env is there", env.path)
    elif env.values.get(API_KEY):
        yield good("the key comes from the environment", API_KEY)
    else:
        yield warn("there is no .env: `docker compose up` alone will refuse to start", env.path,
                   "`stackgen up` writes one with a new key; or copy .env.example")  # fmt: skip


def mode(case: Case) -> Results:
    """Only its owner may read `.env`."""
    env = case.env
    if env is None or env.mode is None:
        return
    if env.mode & 0o077:
        yield warn("others may read .env", f"{env.path} has mode {env.mode:04o}", f"chmod 600 {env.path}")
    else:
        yield good("only its owner may read .env", f"mode {env.mode:04o}")


def complete(case: Case) -> Results:
    """Every variable that the stack wants has a value of its own."""
    env = case.env
    if env is None or env.error or (not env.exists and not env.values.get(API_KEY)):
        return
    wanted = [v for s in case.services() for _, v in s.environment if isinstance(v, EnvRef) and v.required]
    for ref in dict.fromkeys(wanted):
        value = env.values.get(ref.name, "") or env.values.get(ref.other, "")
        if not value and ref.name in GENERATED and ref.name != API_KEY:
            yield warn(f"{ref.name} is not there yet", env.path, "`stackgen up` adds one; `docker compose up` refuses")
        elif not value:
            yield fail(f"{ref.name} is empty", env.path, f"put a value into .env: {_new(ref.name)}")
        elif is_placeholder(value):
            yield fail(f"{ref.name} still holds a placeholder", env.path, f"put your own value in: {_new(ref.name)}")
        else:
            yield good(f"{ref.name} is set")


def _new(name: str) -> str:
    return f'printf "{name}=sk-%s\\n" "$(openssl rand -hex 32)"' if name == API_KEY else name


def strength(case: Case) -> Results:
    """The API key can't be guessed."""
    value = case.env.values.get(API_KEY, "") if case.env else ""
    if not value or is_placeholder(value):
        return
    exposed = any(endpoint.exposed for endpoint in case.stack.plan.endpoints) if case.stack else False
    if re.search(r"[^\x21-\x7e]", value):
        yield fail("the API key holds blanks or characters that no HTTP header can carry", f"{len(value)} characters",
                   f"make a new one: {_new(API_KEY)}")  # fmt: skip
    elif (bits := _bits(value)) < 64:
        told = f"{len(value)} characters, at most {bits:.0f} bits; wanted 64 or more"
        say = fail if exposed else warn
        yield say("the API key is easy to guess" + (", and other machines reach the port" if exposed else ""), told,
                  f"make a new one: {_new(API_KEY)}")  # fmt: skip
    else:
        yield good("the API key is long enough", f"{len(value)} characters")


def _bits(value: str) -> float:
    """How much there is to guess, at most: Shannon's entropy of its characters, which no repetition raises."""
    value = value.removeprefix("sk-")
    counts = Counter(value)
    each = -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values()) if value else 0.0
    return each * len(value)


def token_file(case: Case) -> Results:
    """HF_TOKEN_FILE names a file that is there."""
    env = case.env
    if env is None or not env.values.get("HF_TOKEN_FILE"):
        return
    if env.values["HF_TOKEN_FILE"].startswith("hf_"):
        yield fail(
            "HF_TOKEN_FILE holds a token, and must name the file that holds it",
            env.path,
            "`hf auth login` writes it to ~/.cache/huggingface/token; put that whole path into .env",
        )
    elif "HF_TOKEN_FILE" in env.missing_files:
        yield fail(
            "HF_TOKEN_FILE names no file that can be read",
            env.values["HF_TOKEN_FILE"],
            "write the whole path (no ~), e.g. /home/you/.cache/huggingface/token; `hf auth login` makes it",
        )
    else:
        yield good("the token's file is there", env.values["HF_TOKEN_FILE"])
