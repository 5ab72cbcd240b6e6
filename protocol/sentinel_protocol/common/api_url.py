"""The Sentinel API's address as somebody wrote it: what is certainly wrong with it, and how it may be shown.

Imports nothing: a job waits for it.
"""

API_URL_VARIABLE = "SENTINEL_API_URL"
EXPECTED = "expected https://HOST[:PORT][/PREFIX]"
_SCHEMES = frozenset({"http", "https"})


def api_url_error(url: str) -> str:
    """Return what is certainly wrong with the address, `""` where nothing is; never a secret that stands in it."""
    scheme, separator, rest = url.partition("://")
    host = rest.partition("/")[0]
    if not separator or scheme.lower() not in _SCHEMES or not host:
        return f"not an http:// or https:// address ({EXPECTED})"
    if "@" in host or "?" in rest or "#" in rest:
        return "must not hold a user name, a query or a fragment"
    if any(char.isspace() or not char.isprintable() for char in url):
        return f"not an address ({EXPECTED})"
    return ""


def redact_url(url: str) -> str:
    """Return the address without what may be a secret: user information, query, fragment."""
    before, at, place = url.rpartition("@")
    hidden = f"{before.partition('://')[0]}://…@{place}" if at and "://" in before else f"…@{place}" if at else url
    for mark in "?#":
        beginning, found, _ = hidden.partition(mark)
        hidden = f"{beginning}{found}…" if found else beginning
    return hidden
