"""Looks for planted secrets, in every form in which a text may hold them."""

import base64
import gzip
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

Secret = str | bytes


def forms(secret: Secret) -> list[bytes]:
    """Return the secret as it may be written: plain, for a URL, in JSON, base64 at each of its three offsets, hex."""
    plain = secret.encode() if isinstance(secret, str) else secret
    found = [plain, quote(plain, safe="").encode(), plain.replace(b"/", b"\\/"), plain.hex().encode()]
    for offset in range(3):
        encoded = base64.b64encode(b"x" * offset + plain)
        # Both ends hang together with what is written before and after.
        found.append(encoded[4 if offset else 0 : -4])
    return list(dict.fromkeys(found))


def held(data: bytes, secrets: Iterable[Secret]) -> list[Secret]:
    """Return those of the secrets that the data hold."""
    if data[:2] == b"\x1f\x8b":
        data += gzip.decompress(data)
    return [secret for secret in secrets if any(form in data for form in forms(secret))]


def files_with(directory: Path, secrets: Collection[Secret], *, but: Collection[Path] = ()) -> dict[str, list[Secret]]:
    """Return the files below the directory that hold a secret; sockets and `but` are not looked into."""
    found = {}
    for path in directory.rglob("*"):
        if path.is_file() and path not in but and (here := held(path.read_bytes(), secrets)):
            found[str(path)] = here
    return found


def processes_with(mark: bytes, secrets: Collection[Secret], *, environ: bool) -> dict[str, list[Secret]]:
    """Return the processes with the mark in their environment whose command line (or `environ`) has a secret in it."""
    found = {}
    for pid in _marked(mark):
        for name in ("cmdline", "comm", *(["environ"] if environ else [])):
            try:
                data = Path(f"/proc/{pid}/{name}").read_bytes()
            except OSError:
                continue
            if here := held(data, secrets):
                found[f"{pid}/{name}"] = here
    return found


def _marked(mark: bytes) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark in (entry / "environ").read_bytes():
                    yield int(entry.name)
            except OSError:
                continue
