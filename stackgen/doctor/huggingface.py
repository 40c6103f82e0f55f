"""What comes from the Hugging Face Hub: reachable, allowed, there; or in the storage already."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stackgen.check.huggingface import HubAnswer
from stackgen.doctor.finding import Case, Results, fail, good, size, unknown, warn
from stackgen.spec import is_local

__all__ = ["cached", "reachable", "repository", "token"]


def _asked(case: Case) -> Iterator[tuple[str, Any, HubAnswer]]:
    for place, model in case.specs():
        answer = case.hub.get(model.model)
        if answer is not None and not is_local(model.model):
            yield place, model, answer


def reachable(case: Case) -> Results:
    """The Hub answers, where something is to be fetched."""
    wanted = list(case.hub)
    if not wanted:
        return
    answers = [answer for answer in case.hub.values() if answer is not None]
    if not answers:
        yield unknown("the Hub was not asked", "--offline" if case.offline else "storage.offline")
    elif strange := next((one for one in answers if one.state in ("unreachable", "strange")), None):
        yield unknown(
            "the Hub can't be reached from here: what lies on it could not be looked at",
            strange.detail,
            "check the network, HTTPS_PROXY and storage.hub_endpoint; or storage.offline: true with all there",
        )
    elif limited := next((one for one in answers if one.state == "limited"), None):
        yield warn("the Hub limits this machine's requests", limited.detail, "wait some minutes, or set HF_TOKEN_FILE")
    else:
        yield good("the Hub answers")


def token(case: Case) -> Results:
    """The token is valid, and its account accepted the model's licence."""
    for place, model, answer in _asked(case):
        have = bool(case.env and case.env.values.get("HF_TOKEN_FILE"))
        if answer.state == "token":
            yield fail(
                "the Hub refuses the token",
                answer.detail,
                "`hf auth login` writes a new one; HF_TOKEN_FILE in .env names its file",
                f"{place}.model",
            )
        elif answer.state == "gated" and have:
            yield fail(f"the licence of {model.model} was not accepted by the token's account", answer.detail,
                       f"accept it at https://huggingface.co/{model.model}", f"{place}.model")  # fmt: skip
        elif answer.state == "gated":
            yield fail(f"{model.model} is gated: it needs a token", answer.detail,
                       f"accept the licence at https://huggingface.co/{model.model}, `hf auth login`, and put "
                       "HF_TOKEN_FILE=/the/path/of/the/token into .env", f"{place}.model")  # fmt: skip
        elif answer.state == "ok":
            yield good(f"{model.model} may be downloaded", "gated, and allowed" if answer.gated else "public", place)


def repository(case: Case) -> Results:
    """Repository, revision and file exist."""
    for place, model, answer in _asked(case):
        name = getattr(model, "file", None)
        if answer.state == "missing":
            yield fail(
                f"{model.model} is not on the Hub, or private",
                answer.detail,
                "check organization, name and case at https://huggingface.co/models",
                f"{place}.model",
            )
        elif answer.state == "revision":
            yield fail(f"{model.model} has no revision {model.revision}", answer.detail,
                       "take a branch, tag or commit that its page lists", f"{place}.revision")  # fmt: skip
        elif answer.state == "ok" and name and name not in answer.files:
            near = [one for one in answer.files if one.endswith(".gguf")][:5]
            yield fail(f"{model.model} holds no {name}", f"it holds {', '.join(near) or 'no GGUF at all'}",
                       "file: one of these", f"{place}.file")  # fmt: skip
        elif answer.state == "ok" and model.engine != "llamacpp" and "config.json" not in answer.files:
            yield fail(
                f"{model.model} holds no config.json: {model.engine} can't serve it",
                f"{len(answer.files)} files, e.g. {', '.join(answer.files[:3])}",
                "take the repository with safetensors, or engine: llamacpp for a GGUF",
                f"{place}.model",
            )
        elif answer.state == "ok":
            told = f"commit {answer.commit[:12]}" + (f", {size(answer.bytes)}" if answer.bytes else "")
            yield good(f"{model.model} is there", told, place)


def cached(case: Case) -> Results:
    """Offline, every model lies in the storage already."""
    if case.stack is None or not case.stack.spec.storage.offline:
        return
    for place, model in case.specs():
        if is_local(model.model):
            continue
        have = case.cached.get(model.model)
        if have is None:
            yield unknown(f"whether {model.model} lies in the storage can't be seen from here", "storage.offline: true",
                          place=f"{place}.model")  # fmt: skip
        elif have:
            yield good(f"{model.model} lies in the storage", place=place)
        else:
            yield fail(f"{model.model} is not in the storage, and storage.offline forbids to fetch it",
                       case.stack.spec.storage.path or f"volume {case.stack.spec.storage.volume}",
                       "start once with storage.offline: false, or copy it there", "storage.offline")  # fmt: skip
