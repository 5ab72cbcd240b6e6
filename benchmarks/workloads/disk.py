"""Bytes that reach the disk."""

import os
import tempfile
import time

_TOTAL_BYTES = 200 << 20
_CHUNK_BYTES = 4 << 20
_RUN_S = 2.5


def write() -> dict[str, float]:
    """200 MiB, written over some seconds and made durable with fsync. The file is in `TMPDIR`."""
    chunk = os.urandom(_CHUNK_BYTES)
    chunks = _TOTAL_BYTES // _CHUNK_BYTES
    with tempfile.TemporaryFile() as file:
        for _ in range(chunks):
            file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
            time.sleep(_RUN_S / chunks)
    return {"written_bytes": _TOTAL_BYTES}


WORKLOADS = {"write": write}
