"""What the Hugging Face Hub says about a model: whether it is there, whether this token may have it, and its size.

As `huggingface_hub` asks it, without that library: the model's info with file sizes, then config.json, since the list
of a gated model is public and its files aren't.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import quote

__all__ = ["HUB", "HubAnswer", "ask_hub"]

HUB = "https://huggingface.co"
# weights in other formats, which the download leaves out where safetensors are there
OTHER_FORMATS = (".bin", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".ot", ".gguf")


@dataclass(frozen=True, slots=True)
class HubAnswer:
    """`state`: ok, or what is in the way. `bytes` is what would be downloaded, `commit` what the revision names.

    `unreachable` is no answer at all, `strange` one that nobody expected; `detail` says which. `files` are all names,
    `config` is config.json.
    """

    state: Literal["ok", "unreachable", "token", "gated", "missing", "revision", "limited", "strange"]
    detail: str = ""
    gated: bool = False
    bytes: int | None = None
    commit: str = ""
    files: tuple[str, ...] = ()
    config: dict[str, Any] | None = field(default=None, hash=False)


def ask_hub(
    model: str, revision: str | None = None, token: str = "", endpoint: str = HUB, timeout: float = 5.0, file: str = ""
) -> HubAnswer:
    """One or two requests about `model`; never raises. `file` is the only one that would be downloaded."""
    import httpx2

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    base, revision = endpoint.rstrip("/"), quote(revision or "main", safe="")
    try:
        with httpx2.Client(headers=headers, timeout=timeout) as client:
            url = f"{base}/api/models/{quote(model)}/revision/{revision}"
            answer = client.get(url, params={"blobs": "true"}, follow_redirects=True)
            if answer.status_code != 200:
                return _refused(answer, bool(token))
            found = _read(answer.json(), file)
            place = f"{base}/{quote(model)}/resolve/{revision}"
            if "config.json" in found.files:
                got = client.get(f"{place}/config.json", follow_redirects=True)
                if got.status_code != 200:
                    return _refused(got, bool(token))
                config = got.json()
                return replace(found, config=config if isinstance(config, dict) else None)
            if found.gated and found.files:
                probe = client.head(f"{place}/{quote(found.files[0])}")
                return found if probe.status_code < 400 else _refused(probe, bool(token))
            return found
    except httpx2.HTTPError as error:
        return HubAnswer("unreachable", f"{type(error).__name__}: {error}"[:200])
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        return HubAnswer("strange", f"{base} answers what no Hub would: {error}"[:200])


def _refused(answer: Any, token: bool) -> HubAnswer:
    status, code = answer.status_code, answer.headers.get("X-Error-Code", "")
    said = f"HTTP {status} {code}: {answer.headers.get('X-Error-Message', '')}".rstrip(": ")[:200]
    if code == "GatedRepo":
        return HubAnswer("gated", said, gated=True)
    if code == "RevisionNotFound":
        return HubAnswer("revision", said)
    # strangers can't tell a private repository from none: both are 401
    if code == "RepoNotFound" or status == 404 or (status == 401 and not token):
        return HubAnswer("missing", said)
    if status in (401, 403):
        return HubAnswer("token", said)
    return HubAnswer("limited" if status == 429 else "strange", said)


def _read(info: Any, file: str) -> HubAnswer:
    rows = [
        row for row in info.get("siblings") or () if isinstance(row, dict) and isinstance(row.get("rfilename"), str)
    ]
    names = tuple(row["rfilename"] for row in rows)
    safe = any(name.endswith(".safetensors") for name in names)
    total = 0
    for row in rows:
        name, count = row["rfilename"], row.get("size")
        left_out = name != file if file else safe and (name.endswith(OTHER_FORMATS) or "original/" in name)
        if isinstance(count, int) and not left_out:
            total += count
    commit = info.get("sha")
    gated = bool(info.get("gated"))
    return HubAnswer("ok", "", gated, total or None, commit if isinstance(commit, str) else "", names)
