"""What is checked: an endpoint of a stack, or any OpenAI-compatible base URL."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from stackgen.check.dialects import BUILTIN
from stackgen.check.topology import Observer
from stackgen.errors import StackgenError
from stackgen.plan import Dialect, Endpoint

__all__ = ["Target", "normal_url"]


@dataclass(frozen=True, slots=True)
class Target:
    """One endpoint to check.

    `base_url` ends in `/v1` (or whatever path the server has) without a slash; `models` are the served names that
    must be listed (empty: any); `dialect` is None where it must be recognized from responses. `exposed` tells that
    others can reach the endpoint, so that an open path is a failure and no warning; by default it is the opposite
    of `loopback`, but a server bound to 0.0.0.0 is exposed however it is addressed. `observer` shows the services
    behind it, where the stack is known. `ca_file` is the certificate that alone is trusted, where the stack made its
    own. `max_ttft` and `min_tokens_per_second` go before those of the options. `key_names` are the variables that may
    hold the key. The repr hides the key.
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
    key_names: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        # the HTTP client would refuse such a key as well, with the key in its message
        if self.api_key is not None and not re.fullmatch(r"[\x21-\x7e]+", self.api_key):
            raise StackgenError(
                f"{self.name}: the API key is empty or holds spaces, line ends or characters beyond ASCII",
                "an HTTP header can't carry them: look at the variable or file that the key comes from",
            )

    @classmethod
    def from_endpoint(cls, endpoint: Endpoint, key: str | None, *, exposed: bool | None = None) -> Target:
        """The target for an endpoint of a plan; raises StackgenError for a key that no header can carry."""
        url = normal_url(endpoint.base_url)
        # the URL of a server bound to 0.0.0.0 names 127.0.0.1, so the caller may know better
        seen = not is_loopback(url) if exposed is None else exposed
        return cls(endpoint.name, url, _clean(key), endpoint.models, endpoint.dialect, seen)

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
        """The target for any base URL; without `dialect_name` the dialect is recognized from responses.

        Raises StackgenError for a URL or key that can't be used, and for an unknown dialect.
        """
        url = normal_url(base_url)
        known = {**BUILTIN, **(dialects or {})}
        if dialect_name is not None and dialect_name not in known:
            raise StackgenError(f"unknown dialect {dialect_name!r}", f"known are: {', '.join(sorted(known))}")
        dialect = known[dialect_name] if dialect_name else None
        return cls(urlsplit(url).netloc, url, _clean(key), tuple(models), dialect, not is_loopback(url))

    @property
    def no_key_hint(self) -> str:
        """What to do where the server wants a key and none is given."""
        if self.key_names:
            return f"set {' or '.join(self.key_names)} in the environment or .env, or give the key by --api-key"
        return "give it by --api-key, a variable or .env: `stackgen providers` tells which"

    @property
    def root(self) -> str:
        """The server's root: the base URL without its `/v1`, where liveness and open paths hang."""
        return self.base_url.removesuffix("/v1")

    @property
    def host(self) -> str:
        """Host name or address, IPv6 without brackets."""
        return urlsplit(self.base_url).hostname or ""

    @property
    def port(self) -> int:
        """TCP port, also where the URL leaves it out."""
        parts = urlsplit(self.base_url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def loopback(self) -> bool:
        """Whether the URL names this machine's loopback interface; names are not resolved."""
        return is_loopback(self.base_url)


def normal_url(url: str) -> str:
    """`url` without trailing slashes, and with `/v1` where it has no path at all.

    Raises StackgenError where the scheme or host is missing, and where the URL holds credentials, a query or a
    fragment: a password there would end up in reports, so the message does not repeat the URL.
    """
    # pasted URLs come with spaces and line ends
    text = url.strip()
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise StackgenError("the base URL is not a URL", "it looks like http://127.0.0.1:8000/v1") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise StackgenError(
            "the base URL holds credentials, a query or a fragment", "give the key by --api-key or .env, not in the URL"
        )
    if parts.scheme not in ("http", "https") or "://" not in text:
        # 127.0.0.1:8000 parses as scheme "127.0.0.1" or none: say what is missing, and what it would be
        example = re.sub(r"^[a-z]*:?//", "", text) or "127.0.0.1:8000"
        raise StackgenError(f"the base URL {text!r} has no http:// or https://", f"did you mean http://{example}?")
    if not host or re.search(r"\s", text) or port == 0:
        raise StackgenError(f"the base URL {text!r} has no usable host", "it looks like http://127.0.0.1:8000/v1")
    # a path of one's own is kept as it is, as the OpenAI SDK keeps it
    path = parts.path.rstrip("/") or "/v1"
    # a URL writes the `%` before an interface's name as %25 (RFC 6874), and sockets and HTTP clients take the bare one
    netloc = parts.netloc.replace("%25", "%", 1) if parts.netloc.startswith("[") else parts.netloc
    return f"{parts.scheme}://{netloc}{path}"


def is_loopback(url: str) -> bool:
    """Whether the host of `url` is localhost or a loopback address (127.0.0.0/8, ::1, also IPv4-mapped)."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _clean(key: str | None) -> str | None:
    # keys come from files and variables, often with a line end
    return (key or "").strip() or None
