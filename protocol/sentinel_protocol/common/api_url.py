"""Checks the URL of the Sentinel API, and removes secrets from it for display.

The collector imports this before its job starts, so it imports nothing.
"""

API_URL_VARIABLE = "SENTINEL_API_URL"
EXPECTED = "expected https://HOST[:PORT][/PREFIX]"
_SCHEMES = frozenset({"http", "https"})


def api_url_error(url: str) -> str:
    """Return why the URL cannot be used, `""` if it may be; the text never quotes the URL."""
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
    """Return the URL with user information, query and fragment replaced by `…`: they may be secrets."""
    before, at, rest = url.rpartition("@")
    hidden = f"{before.partition('://')[0]}://…@{rest}" if at and "://" in before else f"…@{rest}" if at else url
    for mark in "?#":
        beginning, found, _ = hidden.partition(mark)
        hidden = f"{beginning}{found}…" if found else beginning
    return hidden
