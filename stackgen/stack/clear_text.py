"""Warnings about secrets that stack.yaml, and so compose.yaml, contains in clear text. No warning contains a value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stackgen.spec import StackSpec
from stackgen.stack.envfile import HUB_TOKENS
from stackgen.stack.redactor import SECRET_FORMATS
from stackgen.stack.secrets import HARMLESS_VALUE, is_secret_name

__all__ = ["find_clear_text"]


def find_clear_text(spec: StackSpec) -> Iterator[str]:
    """Yields one sentence for each secret in `extra_env` and `extra_args`, and what to write instead."""
    for index, model in enumerate(spec.models):
        for flag in _find_secret_flags(model.extra_args):
            yield (
                f"models[{index}].extra_args: the secret after {flag} is in clear text in stack.yaml, in "
                "compose.yaml and in the process list. If the engine also reads the secret from a variable, put the "
                "secret into .env, and read it in `extra_env` with from_env"
            )
        for name, value in model.extra_env.items():
            place = f"models[{index}].extra_env.{name}"
            # an EnvRef is read from .env
            if not isinstance(value, str):
                continue
            if _is_secret(name, value) and name in HUB_TOKENS:
                yield (
                    f"{place}: the token is in clear text in stack.yaml and compose.yaml. Engines don't need it: put "
                    "the path of a file with the token into .env, as HF_TOKEN_FILE. Only the download service gets it"
                )
            elif _is_secret(name, value):
                yield (
                    f"{place}: this secret is in clear text in stack.yaml and compose.yaml. Put {name}=… into .env, "
                    f"and write `{name}: {{from_env: {name}}}`"
                )


def _find_secret_flags(arguments: Sequence[str]) -> Iterator[str]:
    for argument, after in zip(arguments, (*arguments[1:], ""), strict=False):
        flag, equals, value = argument.partition("=")
        # a file with a secret is no secret
        if flag.startswith("-") and not flag.endswith("-file") and _is_secret(flag, value if equals else after):
            yield flag


def _is_secret(name: str, value: str) -> bool:
    if not value or value.startswith("-") or HARMLESS_VALUE.match(value):
        return False
    # a number is a limit or a switch: MAX_TOKEN=1
    named = is_secret_name(name) and not value.isdecimal()
    return named or any(pattern.search(value) for pattern, _ in SECRET_FORMATS)
