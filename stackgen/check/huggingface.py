"""Looks up a model on the Hugging Face Hub: whether the model exists, its size, and whether this token may download it.

The requests are the same as those of `huggingface_hub`, without that library. The first one gets the model's info with
file sizes. The second one gets config.json: the file list of a gated model is public, but its files are not.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from stackgen.lazy import LazyModule
from stackgen.spec.sources import gguf_parts

if TYPE_CHECKING:
    import httpx2
else:
    httpx2 = LazyModule("httpx2")

__all__ = ["HUB", "HubLookup", "look_up_model"]

HUB = "https://huggingface.co"
# weights in other formats, which the download skips if the repository has safetensors
OTHER_FORMATS = (".bin", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".ot", ".gguf")


@dataclass(frozen=True, slots=True)
class HubLookup:
    """The Hub's answer about a model.

    - `state`: `ok`, or the reason why the model can't be downloaded. `unreachable`: there was no answer; `unexpected`:
      the answer was not from a Hub. `detail` has the error text.
    - `download_bytes`: the size of the download. `commit`: the commit that the revision points to.
    - `license`: as the model's page names it, such as `apache-2.0`; "" if it names none.
    - `files`: the names of all files. `config`: the content of config.json, or of a LoRA adapter's
      adapter_config.json.
    """

    state: Literal["ok", "unreachable", "token", "gated", "missing", "revision", "rate_limited", "unexpected"]
    detail: str = ""
    gated: bool = False
    download_bytes: int | None = None
    commit: str = ""
    files: tuple[str, ...] = ()
    config: dict[str, Any] | None = field(default=None, hash=False)
    license: str = ""


def look_up_model(
    model: str, revision: str | None = None, token: str = "", endpoint: str = HUB, timeout: float = 5.0, file: str = ""
) -> HubLookup:
    """Asks the Hub about `model` in one or two requests of at most `timeout` seconds each; never raises.

    If `file` is given, only this file, with all its parts, counts as the download.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    # a branch name may contain a slash, which must not become a path separator of the URL
    base, revision = endpoint.rstrip("/"), quote(revision or "main", safe="")
    try:
        with httpx2.Client(headers=headers, timeout=timeout) as client:
            url = f"{base}/api/models/{quote(model)}/revision/{revision}"
            response = client.get(url, params={"blobs": "true"}, follow_redirects=True)
            if response.status_code != 200:
                return _classify_refusal(response, bool(token))
            lookup = _parse_model_info(response.json(), file)
            files_url = f"{base}/{quote(model)}/resolve/{revision}"
            # the second one belongs to a LoRA adapter
            name = next((one for one in ("config.json", "adapter_config.json") if one in lookup.files), "")
            if name:
                config_response = client.get(f"{files_url}/{name}", follow_redirects=True)
                if config_response.status_code != 200:
                    return _classify_refusal(config_response, bool(token))
                config = config_response.json()
                return replace(lookup, config=config if isinstance(config, dict) else None)
            if lookup.gated and lookup.files:
                # any file shows whether the license was accepted; a redirect to the CDN means that it was
                probe = client.head(f"{files_url}/{quote(lookup.files[0])}")
                return lookup if probe.status_code < 400 else _classify_refusal(probe, bool(token))
            return lookup
    except httpx2.HTTPError as error:
        return HubLookup("unreachable", f"{type(error).__name__}: {error}"[:200])
    # a proxy or login page may answer 200 with anything
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        return HubLookup("unexpected", f"{base} does not answer like a Hub: {error}"[:200])


def _classify_refusal(response: Any, token: bool) -> HubLookup:
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    detail = f"HTTP {status} {code}: {response.headers.get('X-Error-Message', '')}".rstrip(": ")[:200]
    if code == "GatedRepo":
        return HubLookup("gated", detail, gated=True)
    if code == "RevisionNotFound":
        return HubLookup("revision", detail)
    # without a token, private and nonexistent repositories both answer 401
    if code == "RepoNotFound" or status == 404 or (status == 401 and not token):
        return HubLookup("missing", detail)
    if status in (401, 403):
        return HubLookup("token", detail)
    return HubLookup("rate_limited" if status == 429 else "unexpected", detail)


def _parse_model_info(info: Any, file: str) -> HubLookup:
    rows = [
        row for row in info.get("siblings") or () if isinstance(row, dict) and isinstance(row.get("rfilename"), str)
    ]
    names = tuple(row["rfilename"] for row in rows)
    has_safetensors = any(name.endswith(".safetensors") for name in names)
    total = 0
    for row in rows:
        name, size = row["rfilename"], row.get("size")
        # as templates/images/common/download.py, which downloads the weights in only one format
        other = has_safetensors and (name.endswith(OTHER_FORMATS) or "original/" in name)
        skipped = not fnmatchcase(name, gguf_parts(file)) if file else other
        if isinstance(size, int) and not skipped:
            total += size
    commit = info.get("sha")
    return HubLookup(
        "ok", gated=bool(info.get("gated")), download_bytes=total or None,
        commit=commit if isinstance(commit, str) else "", files=names, license=_find_license(info.get("tags")),
    )  # fmt: skip


def _find_license(tags: Any) -> str:
    # the tag repeats `license` of the model card (huggingface.co/docs/hub/repositories-licenses)
    found = (one.partition(":")[2] for one in tags or () if isinstance(one, str) and one.startswith("license:"))
    return next(found, "")[:60]
