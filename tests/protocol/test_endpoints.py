"""Addresses as people write them: what is wrong is said before a socket sees it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_protocol.common.endpoints import MAX_UNIX_PATH_BYTES, Address, parse_address, require_encryption
from sentinel_protocol.common.errors import AddressError, InsecureAddressError


@pytest.mark.parametrize(
    ("url", "is_local"),
    [
        ("tcp://127.0.0.1:5555", True),
        ("tcp://127.8.9.1:1", True),
        ("tcp://localhost:65535", True),
        ("tcp://LOCALHOST:5555", True),
        ("tcp://[::1]:5555", True),
        ("ipc:///run/user/1000/x.sock", True),
        ("tcp://10.0.0.1:5555", False),
        ("tcp://[fd00::1]:5555", False),
        ("tcp://[fe80::1%eth0]:5555", False),
        ("tcp://uploader.example.com:5555", False),
        ("tcp://localhost.example.com:5555", False),
        ("tcp://127.0.0.1.example.com:5555", False),
        ("tcp://0.0.0.0:5555", False),
        ("tcp://[::]:5555", False),
    ],
)
def test_good_addresses(url: str, is_local: bool) -> None:
    for bind in (False, True):
        assert parse_address(url, bind=bind) == Address(url, is_local)


@pytest.mark.parametrize("url", ["tcp://*:5555", "tcp://127.0.0.1:*", "tcp://127.0.0.1:0", "tcp://*:*"])
def test_any_host_and_port_are_for_binding(url: str) -> None:
    assert parse_address(url, bind=True).is_local is ("127.0.0.1" in url)
    with pytest.raises(AddressError):
        parse_address(url, bind=False)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:5555",
        "http://127.0.0.1:5555",
        "inproc://x",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:",
        "tcp://:5555",
        "tcp://::1:5555",
        "tcp://127.0.0.1:65536",
        "tcp://127.0.0.1:\u0665\u0665",
        "tcp://127.0.0.1:5555/x",
        "tcp://127.0.0.1:5555\n",
        "tcp://127.0.0.1;10.0.0.1:5555",
        "tcp://eth0;127.0.0.1:5555",
        "tcp://a b:5555",
        "tcp://\udcff:5555",
        "ipc://relative/path",
        "ipc://@abstract",
        "ipc://",
        "ipc:///run/\0x",
        "ipc:///run/\udcffx",
        "ipc:///" + "x" * MAX_UNIX_PATH_BYTES,
    ],
)
def test_bad_addresses_are_named(url: str) -> None:
    for bind in (False, True):
        with pytest.raises(AddressError, match="address "):
            parse_address(url, bind=bind)


def test_the_limit_of_a_path_is_counted_in_bytes() -> None:
    assert parse_address("ipc:///" + "x" * (MAX_UNIX_PATH_BYTES - 1), bind=True).is_local
    with pytest.raises(AddressError, match="limited to 107 bytes, this one has 109"):
        parse_address("ipc:///" + "é" * (MAX_UNIX_PATH_BYTES // 2 + 1), bind=True)


@given(url=st.text(max_size=40) | st.from_regex(r"(tcp|ipc)://.{0,30}", fullmatch=True))
def test_whatever_is_written_is_an_address_or_an_error_of_ours(url: str) -> None:
    for bind in (False, True):
        try:
            assert parse_address(url, bind=bind).url == url
        except AddressError:
            continue


def test_beyond_this_machine_needs_keys_or_a_word() -> None:
    far = Address("tcp://10.0.0.1:5555", is_local=False)
    with pytest.raises(InsecureAddressError, match=r"connect address 'tcp://10.0.0.1:5555'.*--insecure"):
        require_encryption(far, has_keys=False, insecure=False, role="connect")
    require_encryption(far, has_keys=True, insecure=False, role="bind")
    require_encryption(far, has_keys=False, insecure=True, role="bind")
    require_encryption(Address("ipc:///x", is_local=True), has_keys=False, insecure=False, role="bind")
