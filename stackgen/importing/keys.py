"""API keys and tokens that the source contains in clear text: they go into `.env` or a file, and are never shown."""

from __future__ import annotations

from stackgen.importing.ledger import Item, Ledger, Secret, Word
from stackgen.importing.variables import is_reference
from stackgen.stack.envfile import API_KEY

__all__ = ["MIN_KEY", "TOKEN_FILE", "take_api_keys", "take_hub_token"]

# a key that people can guess protects nothing: `EMPTY`, `token-abc123`
MIN_KEY = 16
TOKEN_FILE = "hf-token.key"  # noqa: S105
WEAK = (
    "this key is so short that it can be guessed, so stackgen generates a new key. To keep your own key, write "
    f"{API_KEY}=… with this key into .env before the start"
)


def take_api_keys(words: list[Word], ledger: Ledger) -> None:
    """Takes the API keys of an engine. The first one becomes the stack's key."""
    for index, word in enumerate(words):
        if name := is_reference(word.text, word.unknown):
            word.item.hide("", f".env: {API_KEY}", f"the source reads the key from ${name}. stackgen generates a "
                           f"new key. To use your own key instead, write {API_KEY}=… into .env")  # fmt: skip
        elif word.unknown or not word.text:
            word.item.build_in("stackgen generates a key")
        elif len(word.text) < MIN_KEY:
            word.item.hide(word.text, f".env: {API_KEY}", WEAK)
            word.item.outcome = "dropped"
            ledger.warn(word.item.place, "the API key is so short that it can be guessed")
        elif index or not ledger.keep_secret(Secret(API_KEY, word.text)):
            word.item.hide(
                word.text, "", "a stack has one key in .env. `stackgen keys new NAME` creates one for each client"
            )
            word.item.outcome = "dropped"
        else:
            word.item.hide(word.text, f".env: {API_KEY}", "moved into .env, which only you can read")


def take_hub_token(value: str, unknown: tuple[str, ...], item: Item, ledger: Ledger) -> None:
    """Takes the token of the Hugging Face Hub, which only the download needs."""
    if not value or value.startswith("<") or value.lower() in ("your_token_here", "xxx", "hf_xxx"):
        item.build_in("no token is set")
    elif is_reference(value, unknown) or unknown:
        name = ", ".join(unknown)
        reason = (
            f"the source reads the token from {name}. For gated models, put the token into a file, and write its path "
            "into .env as HF_TOKEN_FILE=PATH. `hf auth login` writes the token to ~/.cache/huggingface/token"
        )
        item.hide("", ".env: HF_TOKEN_FILE", reason)
    else:
        fits = ledger.keep_secret(Secret("HF_TOKEN_FILE", value, TOKEN_FILE))
        reason = f"moved into the file {TOKEN_FILE}, which only you can read. Only the download gets it"
        item.hide(value, ".env: HF_TOKEN_FILE", reason)
        if not fits:
            item.hide(value, "", "a stack has one token for all downloads, but the source has two")
            item.outcome = "dropped"
