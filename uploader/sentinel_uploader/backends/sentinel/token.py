"""Reads and checks the bearer token."""

import re
from collections.abc import Callable, Mapping

from sentinel_uploader.backends.sentinel.responses import SentinelAPIError
from sentinel_uploader.runs.delivery_error import RetryAction

_USABLE = re.compile(r"[\x21-\x7e]+")


class TokenError(SentinelAPIError):
    """There is no usable token. The text never contains the token."""

    def __init__(self, text: str) -> None:
        super().__init__(None, reason=text, retry_action=RetryAction.RETRY_SLOW)


def token_source(environ: Mapping[str, str]) -> Callable[[], str] | None:
    """Return a function that returns the token, or raises `TokenError`; `None` when no token is configured.

    `SENTINEL_API_TOKEN` wins over `SENTINEL_API_KEY`, and both over `SENTINEL_API_TOKEN_FILE`. The file is read on
    every call, so that a rotated token is used at once.
    """
    for variable in ("SENTINEL_API_TOKEN", "SENTINEL_API_KEY"):
        token = environ.get(variable, "").strip()
        if token:
            return lambda: check_token(token, variable)
    path = environ.get("SENTINEL_API_TOKEN_FILE", "")
    if path:
        return lambda: _read_token(path)
    return None


def check_token(token: str, where: str) -> str:
    """Return the token; raises `TokenError` that names `where` when it is empty or not valid in a header."""
    if not token:
        raise TokenError(f"{where}: the token is empty")
    if not _USABLE.fullmatch(token):
        raise TokenError(f"{where}: the token holds a space, a line break or another character that no token can have")
    return token


def _read_token(path: str) -> str:
    where = f"SENTINEL_API_TOKEN_FILE={path}"
    try:
        with open(path, encoding="utf-8") as file:
            token = file.read(64 << 10)
    except OSError as error:
        raise TokenError(f"{where}: cannot read the token: {error.strerror}") from error
    except UnicodeDecodeError:
        raise TokenError(f"{where}: the file is not text") from None
    return check_token(token.strip(), where)
