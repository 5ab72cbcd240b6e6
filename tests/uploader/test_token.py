import os

import pytest

from sentinel_uploader.backends.sentinel.token import TokenError, check_token, token_source
from sentinel_uploader.runs.delivery_error import RetryAction


def test_no_token_is_configured() -> None:
    assert token_source({}) is None
    assert token_source({"SENTINEL_API_TOKEN": "", "SENTINEL_API_KEY": " ", "SENTINEL_API_TOKEN_FILE": ""}) is None


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"SENTINEL_API_TOKEN": "first", "SENTINEL_API_KEY": "second", "SENTINEL_API_TOKEN_FILE": "/x"}, "first"),
        ({"SENTINEL_API_TOKEN": "", "SENTINEL_API_KEY": "second", "SENTINEL_API_TOKEN_FILE": "/x"}, "second"),
        ({"SENTINEL_API_TOKEN": "from-an-echo\n"}, "from-an-echo"),
    ],
)
def test_the_first_variable_that_is_set_wins(environ: dict[str, str], expected: str) -> None:
    source = token_source(environ)
    assert source is not None
    assert source() == expected


def test_a_token_file_is_read_again_on_every_use(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "token")
    source = token_source({"SENTINEL_API_TOKEN_FILE": path})
    assert source is not None
    with pytest.raises(TokenError, match="No such file") as caught:
        source()
    assert caught.value.retry_action is RetryAction.RETRY_SLOW
    for token in ("one", "two"):
        with open(path, "w", encoding="utf-8") as file:
            file.write(f" {token}\n")
        assert source() == token
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n")
    with pytest.raises(TokenError, match="empty"):
        source()
    with open(path, "wb") as binary:
        binary.write(b"\xff\xfe")
    with pytest.raises(TokenError, match="not text"):
        source()


@pytest.mark.parametrize(
    "token", ["secret\nX-Other: 1", "secret\r", "sec ret", "secret\x00", "secr\u00e9t", "secret\x7f"]
)
def test_a_token_that_cannot_stand_in_a_header_is_refused_without_being_shown(token: str) -> None:
    with pytest.raises(TokenError) as caught:
        check_token(token, "SENTINEL_API_TOKEN")
    assert "SENTINEL_API_TOKEN" in str(caught.value)
    assert "sec" not in str(caught.value)
