"""Reads rows out of the spool without keeping those who write waiting."""

import threading
from collections.abc import Sequence

from sentinel_uploader.spool.database import Database
from sentinel_uploader.spool.types import UnbatchedFrames

_SLICE = 256
"""So many frames are read at a time."""


def read_frames(
    database: Database, lock: threading.RLock, ids: Sequence[int], *, max_rows: int
) -> UnbatchedFrames | None:
    """Return the first of these frames, those with at most `max_rows` rows together but one at least."""
    payloads: list[bytes] = []
    first_seq = last_seq = rows = 0
    for start in range(0, len(ids), _SLICE):
        with lock:
            for frame_id in ids[start : start + _SLICE]:
                ((seq, count, payload),) = database.query(
                    "SELECT first_seq, rows, payload FROM frames WHERE id = ?", (frame_id,)
                )
                if payloads and rows + count > max_rows:
                    return UnbatchedFrames(first_seq, last_seq, payloads)
                first_seq = first_seq or seq
                last_seq = seq + count - 1
                rows += count
                payloads.append(payload)
    return UnbatchedFrames(first_seq, last_seq, payloads) if payloads else None
