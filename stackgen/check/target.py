"""The target of a check: an endpoint of a stack, or any OpenAI-compatible base URL."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from stackgen.check.dialects import BUILTIN
from stackgen.check.topology import Observer
from stackgen.errors import StackgenError
from stackgen.plan import Dialect, Endpoint

__all__ = ["Target", "normalize_url"]


@dataclass(frozen=True, slots=True)
class Target:
    """One endpoint to check.

    - `base_url` ends in `/v1` (or the server's own path) without a slash.
    - `models`: the model names that the server must list; empty if any list is fine.
    - `dialect`: None if the dialect must be detected from responses.
    - `exposed`: other machines can reach the endpoint, so an open path is a failure and not a warning. The constructors
      set `exposed` to the opposite of `loopback`. A server bound to 0.0.0.0 is exposed whatever its URL.
    - `observer`: observes the services behind the endpoint, if the stack is known.
    - `max_ttft` (s), `min_tokens_per_second`: override the limits of the options.
    - `ca_file`: the only certificate to trust, for a stack with its own CA.
    - `server_name`: the name that the server's certificate must contain, if this is not the host of the URL.
    - `key_names`: the environment variables that may contain the key.
    - `reword`: changes texts about the server, whose commands are those of Compose. None: they are right.
    - `secrets`: other values that no report may contain, because the server may know and repeat them.

    The repr hides the key and the secrets. Raises StackgenError for a key that no HTTP header can carry.
    """

    name: str
    base_url: str
    api_key: str | None = field(default=None, repr=False)
    models: tuple[str, ...] = ()
    dialect: Dialect | None = None
    exposed: bool = False
    observer: Observer | None = field(default=None, repr=False, compare=False)
    max_ttft: float | None = None
    min_tokens_per_second: float | None = None
    ca_file: str | None = None
    server_name: str | None = None
    key_names: tuple[str, ...] = field(default=(), compare=False)
    secrets: tuple[str, ...] = field(default=(), repr=False, compare=False)
    reword: Callable[[str], str] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        # the HTTP client would reject such a key too, but with the key in its message
        if self.api_key is not None and not re.fullmatch(r"[\x21-\x7e]+", self.api_key):
            raise StackgenError(
                f"{self.name}: the API key is empty, or contains spaces, line breaks or non-ASCII characters",
                hint="an HTTP header can't contain such a key. Check the variable or file that the key comes from",
            )

    @classmethod
    def from_endpoint(cls, endpoint: Endpoint, key: str | None, *, exposed: bool | None = None) -> Target:
        """The target for an endpoint of a plan. Raises StackgenError for a key that no header can carry."""
        url = normalize_url(endpoint.base_url)
        # a server bound to 0.0.0.0 has a URL with 127.0.0.1, so the caller may know better
        is_exposed = not is_loopback(url) if exposed is None else exposed
        return cls(endpoint.name, url, _strip_key(key), endpoint.models, endpoint.dialect, is_exposed)

    @classmethod
    def from_url(
        cls,
        base_url: str,
        key: str | None,
        models: Sequence[str] = (),
        dialect_name: str | None = None,
        *,
        dialects: Mapping[str, Dialect] | None = None,
    ) -> Target:
        """The target for any base URL; without `dialect_name` the dialect is detected from responses.

        Raises StackgenError for an invalid URL or key, and for an unknown dialect.
        """
        url = normalize_url(base_url)
        known = {**BUILTIN, **(dialects or {})}
        if dialect_name is not None and dialect_name not in known:
            raise StackgenError(f"unknown dialect {dialect_name!r}", hint=f"known dialects: {', '.join(sorted(known))}")
        dialect = known[dialect_name] if dialect_name else None
        # a bare URL has no name, so host and port identify it in reports
        return cls(urlsplit(url).netloc, url, _strip_key(key), tuple(models), dialect, not is_loopback(url))

    @property
    def no_key_hint(self) -> str:
        """What to do if the server requires a key and none was given."""
        if self.key_names:
            return f"set {' or '.join(self.key_names)} in the environment or .env, or pass --api-key"
        return (
            "pass --api-key, or set the key's variable in the environment or .env. `stackgen providers` lists the"
            " variables"
        )

    @property
    def root(self) -> str:
        """The base URL without `/v1`: liveness paths and open paths are relative to it."""
        return self.base_url.removesuffix("/v1")

    @property
    def host(self) -> str:
        """The host name or address; an IPv6 address has no brackets."""
        return urlsplit(self.base_url).hostname or ""

    @property
    def port(self) -> int:
        """The TCP port; the default port of the scheme if the URL has no port."""
        parts = urlsplit(self.base_url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def loopback(self) -> bool:
        """Whether the URL names this machine's loopback interface; names are not resolved."""
        return is_loopback(self.base_url)


def normalize_url(url: str) -> str:
    """`url` without trailing slashes, and with `/v1` if it has no path at all.

    Raises StackgenError if the scheme or host is missing, or if the URL contains credentials, a query or a fragment.
    Credentials in the URL would appear in reports, so that message does not repeat the URL.
    """
    # pasted URLs come with spaces and line breaks
    text = url.strip()
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise StackgenError("the base URL is not a valid URL", hint="use the form http://127.0.0.1:8000/v1") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise StackgenError(
            "the base URL contains credentials, a query or a fragment",
            hint="pass the key with --api-key or in .env, not in the URL",
        )
    if parts.scheme not in ("http", "https") or "://" not in text:
        # 127.0.0.1:8000 parses as scheme "127.0.0.1" or none, so the error shows the complete URL
        example = re.sub(r"^[a-z]*:?//", "", text) or "127.0.0.1:8000"
        raise StackgenError(f"the base URL {text!r} has no http:// or https://", hint=f"did you mean http://{example}?")
    if not host or re.search(r"\s", text) or port == 0:
        raise StackgenError(f"the base URL {text!r} has no usable host", hint="use the form http://127.0.0.1:8000/v1")
    # any other path stays as it is, as in the OpenAI SDK
    path = parts.path.rstrip("/") or "/v1"
    # RFC 6874: URLs write the `%` before an IPv6 zone as %25, but sockets and HTTP clients expect a bare `%`
    netloc = parts.netloc.replace("%25", "%", 1) if parts.netloc.startswith("[") else parts.netloc
    return f"{parts.scheme}://{netloc}{path}"


def is_loopback(url: str) -> bool:
    """Whether the host of `url` is localhost or a loopback address (127.0.0.0/8, ::1, also IPv4-mapped)."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    # RFC 6761: every name under .localhost is loopback
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # some Python versions do not count an IPv4-mapped 127.0.0.1 as loopback
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _strip_key(key: str | None) -> str | None:
    # keys come from files and variables, often with a line break at the end
    return (key or "").strip() or None
