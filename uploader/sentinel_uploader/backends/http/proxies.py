"""Proxies and certificate authorities from environment variables, none of which urllib3 reads.

The rules are those of `urllib.request.getproxies_environment` and `proxy_bypass_environment`, applied to a given
mapping, and networks such as `10.0.0.0/8` in `no_proxy`.
"""

import functools
import ipaddress
import os
import ssl
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from urllib3.exceptions import LocationParseError
from urllib3.util import Url, make_headers, parse_url

from sentinel_protocol.common.errors import UsageError


class Proxy(NamedTuple):
    """A proxy's address without the password, and the header with the password."""

    url: str
    headers: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Proxy(url={self.url!r})"


class Proxies:
    """Chooses the proxy of a destination; raises `UsageError` for an unusable proxy."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        variables = _proxy_variables(environ)
        self._no_proxy = variables.get("no", "")
        self._by_scheme: dict[str, Proxy] = {
            scheme: _parse_proxy(variables[scheme], f"{scheme}_proxy")
            for scheme in ("http", "https")
            if scheme in variables
        }

    def choose(self, scheme: str, host: str, port: int) -> Proxy | None:
        """Return the proxy for this destination, `None` for a direct connection."""
        proxy = self._by_scheme.get(scheme)
        if proxy is None or _is_bypassed(host.strip("[]").lower(), port, self._no_proxy):
            return None
        return proxy


def certificate_authorities(environ: Mapping[str, str], variables: Sequence[str]) -> str | None:
    """Return the file or directory that the first set variable names, `None` for the system's authorities.

    Raises `UsageError` when it cannot be read or contains no certificate.
    """
    for variable in variables:
        path = environ.get(variable, "")
        if not path:
            continue
        try:
            tls_context(path)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = getattr(error, "strerror", None) or "it holds no certificate"
            raise UsageError(f"{variable}={path}: cannot read certificate authorities: {reason}") from error
        return path
    return None


@functools.lru_cache(maxsize=8)
def tls_context(authorities: str | None) -> ssl.SSLContext:
    """Return a verifying client context that trusts a file's or directory's authorities, or the system's.

    Cached: loading the system's authorities takes 20 ms and a few MiB.
    """
    if authorities is None:
        return ssl.create_default_context()
    if os.path.isdir(authorities):
        return ssl.create_default_context(capath=authorities)
    return ssl.create_default_context(cafile=authorities)


def _proxy_variables(environ: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    # Names in lower case come last: they win, and an empty one removes the proxy.
    for name, value in sorted(environ.items(), key=lambda variable: variable[0].endswith("_proxy")):
        scheme, _, suffix = name.lower().rpartition("_")
        if suffix != "proxy":
            continue
        is_lower_case = name.endswith("_proxy")
        # In a CGI program HTTP_PROXY is the client's `Proxy:` header (CVE-2016-5385, "httpoxy").
        is_header = scheme == "http" and not is_lower_case and "REQUEST_METHOD" in environ
        if value and not is_header:
            found[scheme] = value
        elif is_lower_case:
            found.pop(scheme, None)
    return found


def _parse_proxy(value: str, variable: str) -> Proxy:
    # The value may contain a password: no message quotes it.
    try:
        url = parse_url(value if "://" in value else f"http://{value}")
    except LocationParseError:
        raise UsageError(f"{variable}: not a proxy address (expected http://HOST:PORT)") from None
    if url.scheme not in {"http", "https"}:
        raise UsageError(
            f"{variable}: proxies of the kind {url.scheme}:// are not supported (http:// and https:// are)"
        )
    if not url.host:
        raise UsageError(f"{variable}: the proxy address names no host")
    headers = make_headers(proxy_basic_auth=unquote(url.auth)) if url.auth else {}
    return Proxy(Url(scheme=url.scheme, host=url.host, port=url.port).url, headers)


def _is_bypassed(host: str, port: int, no_proxy: str) -> bool:
    for entry in (part.strip().lower() for part in no_proxy.split(",")):
        if not entry:
            continue
        if entry == "*" or _in_network(host, entry):
            return True
        name = entry.lstrip(".")
        for candidate in (host, f"{host}:{port}"):
            if candidate == name or candidate.endswith(f".{name}"):
                return True
    return False


def _in_network(host: str, entry: str) -> bool:
    # As curl and requests do; urllib does not.
    try:
        return "/" in entry and ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
