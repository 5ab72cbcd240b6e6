"""CURVE keys: 32 raw bytes in memory, pyzmq's certificate format in files.

A secret file that other users could read is refused. The collector reads its key before its job starts, so nothing
heavy is imported here.
"""

import base64
import os
import re
import stat

from sentinel_protocol.common.errors import KeyFileError

KEY_BYTES = 32
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_BASE85 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
"""The same digits in the alphabet of `base64`."""
_Z85_CHARS = 40
_MAX_FILE_BYTES = 16 << 10
_LINE = re.compile(r'^\s*(public-key|secret-key)\s*=\s*"([^"\n]*)"\s*$', re.MULTILINE)


class KeyPair:
    """A CURVE key pair; its `repr` has the public key only."""

    __slots__ = ("public", "secret")

    def __init__(self, public: bytes, secret: bytes) -> None:
        self.public = public
        self.secret = secret

    def __repr__(self) -> str:
        return f"KeyPair({self.public.hex()})"


class ClientCurveKeys:
    """Keys of a connection to one uploader: the collector's own pair, and the uploader's public key."""

    __slots__ = ("own", "server")

    def __init__(self, own: KeyPair, server: bytes) -> None:
        self.own = own
        self.server = server


def z85(key: bytes) -> str:
    """Encode 4n bytes as Z85 text (ZeroMQ RFC 32)."""
    return base64.b85encode(key).decode().translate(str.maketrans(_BASE85, _Z85))


def decode_key(text: str) -> bytes | None:
    """Decode 64 hexadecimal digits or 40 characters of Z85; returns `None` for other text."""
    try:
        if len(text) == 2 * KEY_BYTES:
            return bytes.fromhex(text)
        if len(text) == _Z85_CHARS and set(text) <= set(_Z85):
            return base64.b85decode(text.translate(str.maketrans(_Z85, _BASE85)))
    except ValueError:
        pass
    return None


def load_server_key(text: str) -> bytes:
    """Return the public key that `text` is, or that the file of this name holds; raises `KeyFileError`."""
    if not os.path.exists(text):
        key = decode_key(text.strip("'\""))
        if key is not None:
            return key
    return read_public(text)


def read_public(path: str) -> bytes:
    """Return the public key in a file; raises `KeyFileError`, also if others may change the file."""
    return _read(path, secret=False).public


def read_key_pair(path: str) -> KeyPair:
    """Return the key pair in a secret file.

    Raises `KeyFileError` if the file cannot be read, holds no pair, or is accessible to other users.
    """
    return _read(path, secret=True)


def format_certificate(public: bytes, secret: bytes | None = None) -> str:
    """Return the text of a secret key file, or of a public one without `secret`."""
    what = "public" if secret is None else "SECRET, for its owner alone"
    lines = [f"# CURVE key of sentinel-stream: {what}", "metadata", "curve", f'    public-key = "{z85(public)}"']
    if secret is not None:
        lines.append(f'    secret-key = "{z85(secret)}"')
    return "\n".join(lines) + "\n"


def _read(path: str, *, secret: bool) -> KeyPair:
    try:
        # O_NONBLOCK: opening a named pipe would wait otherwise.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise KeyFileError(f"key file {path}: is not a file")
            _check_file_mode(path, facts, secret=secret)
            content = os.read(descriptor, _MAX_FILE_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise KeyFileError(f"key file {path}: cannot be read: {error.strerror}") from error
    found = {name: decode_key(value) for name, value in _LINE.findall(content.decode("utf-8", "replace"))}
    public, private = found.get("public-key"), found.get("secret-key")
    # Does not quote the content: it may be another secret.
    if public is None or (secret and private is None):
        raise KeyFileError(f"key file {path}: holds no {'secret' if secret else 'public'} CURVE key")
    return KeyPair(public, private or b"")


def _check_file_mode(path: str, facts: os.stat_result, *, secret: bool) -> None:
    """Apply PostgreSQL's rule for secret files: mode 0600, or a group's file that root owns, as containers get it."""
    if facts.st_uid not in {0, os.geteuid()} and os.geteuid() != 0:
        raise KeyFileError(f"key file {path}: belongs to another user (uid {facts.st_uid})")
    is_given = facts.st_uid == 0 and os.geteuid() != 0
    forbidden = stat.S_IWGRP | stat.S_IWOTH
    if secret:
        forbidden |= stat.S_IRWXO | (0 if is_given else stat.S_IRWXG)
    if facts.st_mode & forbidden:
        what = "read" if secret else "change"
        mode = stat.S_IMODE(facts.st_mode)
        raise KeyFileError(f"key file {path}: others may {what} it (mode {mode:04o}); chmod 600 {path}")
