"""The address of the HTTP server. Apart from the server because the settings need only this."""

import ipaddress
import re
from typing import NamedTuple

LOOPBACK = "127.0.0.1"
_ADDRESS = re.compile(r"(?:(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)?:)?(?P<port>[0-9]{1,5})")


class HttpAddress(NamedTuple):
    """A host without brackets, and a port (0: any free one)."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it. Of host names, only `localhost` counts."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"

    @property
    def url(self) -> str:
        """`http://HOST:PORT`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def http_address(value: object) -> HttpAddress:
    """Parse `PORT`, `:PORT` (both at 127.0.0.1) or `HOST:PORT`; raises `ValueError`."""
    match = _ADDRESS.fullmatch(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else None
    if match is None or int(match["port"]) > 65535:
        raise ValueError("must be PORT (at 127.0.0.1) or HOST:PORT (an IPv6 host in brackets)")
    return HttpAddress((match["host"] or LOOPBACK).strip("[]"), int(match["port"]))
