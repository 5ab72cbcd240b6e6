"""SHA-256 without OpenSSL if possible: `hashlib` would load it, for 3 ms and 3 MiB of the collector."""

import sys

try:
    if sys.version_info >= (3, 12):
        from _sha2 import sha256 as _sha256
    else:
        from _sha256 import sha256 as _sha256  # type: ignore[import-not-found]  # typeshed leaves it out
except ImportError:
    # Some interpreters are built with the digests of OpenSSL alone.
    from hashlib import sha256 as _sha256


def sha256(data: bytes) -> bytes:
    """Return the 32 bytes of the digest."""
    return bytes(_sha256(data).digest())
