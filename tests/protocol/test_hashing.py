"""SHA-256 from the interpreter's own module, or from OpenSSL: names of files and runs must not depend on which."""

import hashlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_protocol.common.hashing import sha256


@given(data=st.binary(max_size=300))
def test_it_is_what_hashlib_says(data: bytes) -> None:
    assert sha256(data) == hashlib.sha256(data).digest()


@pytest.mark.parametrize("hidden", [(), ("_sha2", "_sha256")])
def test_an_interpreter_without_digests_of_its_own_takes_openssl_s(hidden: tuple[str, ...]) -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({hidden!r}))\n"
        "from sentinel_protocol.common.hashing import sha256\nprint('_hashlib' in sys.modules, sha256(b'abc').hex())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(bool(hidden)), hashlib.sha256(b"abc").hexdigest()]
