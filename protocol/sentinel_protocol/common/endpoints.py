"""ZeroMQ addresses of users, checked before a socket gets them."""

import re
from collections import namedtuple

from sentinel_protocol.common.errors import AddressError, InsecureAddressError

TYPE_CHECKING = False  # `typing` and `ipaddress` would delay the job's start by milliseconds
if TYPE_CHECKING:
    from typing import NamedTuple

    class Address(NamedTuple):
        """A checked address. With `is_local`, no traffic leaves the machine."""

        url: str
        is_local: bool

else:
    Address = namedtuple("Address", ("url", "is_local"))

_KEYS_FOR = {
    "bind": "make keys (sentinel-uploader keys init)",
    "connect": "give --server-key and --key (from sentinel-uploader keys add)",
}
MAX_UNIX_PATH_BYTES = 107
"""`sun_path` of `unix(7)` is 108 bytes with its final zero."""

_TCP = re.compile(r"(?P<host>\[[^\]\s;]+\]|[^\[\]:/;\s]+):(?P<port>[0-9]{1,5}|\*)")


def parse_address(url: str, *, bind: bool) -> Address:
    """Parse `ipc://PATH` or `tcp://HOST:PORT`; raises `AddressError`.

    `*` as host or port means "any". It is allowed for binding only.
    """
    if not url.isprintable():
        raise AddressError(f"address {url!r} holds characters that cannot be printed")
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in {"ipc", "tcp"}:
        raise AddressError(f"address {url!r}: expected tcp://HOST:PORT or ipc:///PATH/TO/SOCKET")
    if scheme == "ipc":
        return _parse_ipc(url, rest)
    match = _TCP.fullmatch(rest)
    if match is None:
        raise AddressError(f"address {url!r}: expected tcp://HOST:PORT (an IPv6 host in brackets)")
    host, port = match["host"], match["port"]
    if not bind and "*" in {host, port}:
        raise AddressError(f"address {url!r}: '*' is for --bind; name the host and the port to connect to")
    if port != "*" and not (0 if bind else 1) <= int(port) <= 65535:
        raise AddressError(f"address {url!r}: the port must be {0 if bind else 1} to 65535")
    return Address(url, _is_loopback(host))


def require_encryption(address: Address, *, has_keys: bool, insecure: bool, role: str) -> None:
    """Raise `InsecureAddressError` for an address beyond this machine without CURVE keys, unless `insecure`.

    `role` is `bind` or `connect`.
    """
    if address.is_local or has_keys or insecure:
        return
    raise InsecureAddressError(
        f"{role} address {address.url!r} is beyond this machine and has no keys: anybody on the way could read "
        f"and change the samples; {_KEYS_FOR[role]}, use loopback or ipc://, or say --insecure if the network itself "
        "is trusted"
    )


def _parse_ipc(url: str, path: str) -> Address:
    if not path.startswith("/"):
        raise AddressError(f"address {url!r}: an ipc:// path must be absolute (ipc:///run/…)")
    length = len(path.encode())
    if length > MAX_UNIX_PATH_BYTES:
        raise AddressError(
            f"address {url!r}: a Unix socket's path is limited to {MAX_UNIX_PATH_BYTES} bytes, this one has "
            f"{length}; choose a shorter directory"
        )
    return Address(url, is_local=True)


def _is_loopback(host: str) -> bool:
    if host.lower() in {"localhost", "127.0.0.1", "[::1]"}:
        return True
    import ipaddress

    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
