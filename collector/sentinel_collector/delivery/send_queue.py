"""The queue of unacknowledged rows: in memory, and in an overflow file while the uploader does not answer.

The rows in the file come first, those in memory after them. A row's sequence number is its position in the run. A
collector that resumes a run gets the next number from the uploader's `Welcome`; until then its rows have no numbers
and are not sent. A number that was sent is never reused for another row: the uploader may have the first row though
it has not acknowledged it. Memory is bounded: rows beyond the limit go to the file. When no file can be written, the
oldest rows that were never sent are dropped and counted.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

from sentinel_collector.delivery.overflow_file.file import OverflowFile, Position
from sentinel_collector.delivery.overflow_file.format import MAX_RECORD_ROWS, OverflowFileError, OverflowHeader
from sentinel_protocol.common.errors import SentinelStreamError
from sentinel_protocol.wire.messages import Finish
from sentinel_protocol.wire.sample import decode_sample, shift_timestamp

SPILL_AFTER_S = 2.0
"""Age of the oldest row in memory at which all rows in memory are written to the file."""
RETRY_SPILL_S = 30.0
MAX_MEMORY_ROWS = 50_000
"""About 15 MiB; reached only when no file can be written."""
MAX_FILE_BYTES = 1 << 30
"""About four million rows: a month and a half at one a second."""


class SendQueue:
    """The queue of one run; not thread-safe. Times are monotonic seconds, rows are encoded samples.

    `open_file` makes the run's file when there is none; `header` returns the file's current header.
    `disk_error_reported` suppresses the first warning about the file. Methods that read or write the file may raise
    `OSError` or `OverflowFileError`; the queue is unchanged then.
    """

    def __init__(
        self,
        *,
        open_file: Callable[[], OverflowFile],
        header: Callable[[], OverflowHeader],
        warn: Callable[[str], None],
        recovered: OverflowFile | None = None,
        disk_error_reported: bool = False,
    ) -> None:
        self._open_file = open_file
        self.make_header = header
        """Returns the file's current header; replaced when the rows become another run's."""
        self._warn = warn
        self._file: OverflowFile | None = None
        self._head_position = Position(0, 0)
        self._file_rows = 0
        self._memory: deque[bytes] = deque()
        self._appended_at: deque[float] = deque()
        self._spill_not_before = 0.0
        self._spill_failed = disk_error_reported
        self.oldest_seq = 0
        """Sequence number of the oldest row (of the next row if the queue is empty), 0 while unknown."""
        self._is_numbered = False
        """Whether rows that were never sent have numbers."""
        self._assigned = 0
        """Count of the oldest rows whose numbers an uploader may know."""
        self.sent_rows = 0
        """Unacknowledged rows that were sent since the last `rewind`."""
        self._cursor: Position | None = None
        self._reset_record_pending = False
        """The file lacks the record that its rows belong to another run now."""
        self._newest_row: bytes | None = None
        self.finish: Finish | None = None
        self.dropped_rows = 0
        if recovered is not None:
            self._load(recovered)

    @property
    def rows(self) -> int:
        """Unacknowledged rows."""
        return self._file_rows + len(self._memory)

    @property
    def memory_rows(self) -> int:
        """Unacknowledged rows that are not in the file."""
        return len(self._memory)

    @property
    def unsent_rows(self) -> int:
        """Unacknowledged rows that were not sent since the last `rewind`."""
        return self.rows - self.sent_rows

    @property
    def last_seq(self) -> int | None:
        """Sequence number of the newest row, 0 if the run has none, `None` while unknown."""
        return self.oldest_seq + self.rows - 1 if self._is_numbered else None

    @property
    def newest_timestamp(self) -> float:
        """Time stamp of the newest row so far, UNIX seconds; 0 without rows."""
        return 0.0 if self._newest_row is None else decode_sample(self._newest_row).timestamp

    def append(self, row: bytes, now: float) -> None:
        """Add the newest row."""
        self._memory.append(row)
        self._appended_at.append(now)
        self._newest_row = row
        if len(self._memory) > MAX_MEMORY_ROWS:
            self._drop_oldest_unsent()

    def rewind(self, next_seq: int, last_timestamp: float = 0.0) -> int:
        """Continue from the `next_seq` of the uploader's `Welcome`; return how many rows it asks for that are gone.

        If rows that were never sent are not later than `last_timestamp`, their time stamps all move by the same time.
        """
        missing = max(0, self.oldest_seq - next_seq) if self.oldest_seq else 0
        if not self._is_numbered:
            self._assign_seq(next_seq, last_timestamp)
        elif next_seq > self.oldest_seq + self._assigned:
            self._reassign_seq(next_seq)
        else:
            self._drop(max(0, next_seq - self.oldest_seq))
        self.sent_rows = 0
        self._cursor = None
        return missing

    def next_chunk(self, *, max_rows: int, max_bytes: int) -> tuple[int, list[bytes]] | None:
        """Return the first sequence number and the next rows to send, or `None` when all are sent.

        Call `mark_sent` once they are handed over.
        """
        if not self._is_numbered or not self.unsent_rows:
            return None
        chunk: list[bytes] = []
        size = 0
        for row in self._unsent():
            size += len(row)
            if chunk and (len(chunk) == max_rows or size > max_bytes):
                break
            chunk.append(row)
        return self.oldest_seq + self.sent_rows, chunk

    def mark_sent(self, count: int) -> None:
        """Count the rows of the last `next_chunk` as sent."""
        if self.sent_rows < self._file_rows and self._file is not None:
            in_file = min(count, self._file_rows - self.sent_rows)
            self._cursor = self._file.advance(self._position_of_cursor(self._file), in_file)
        self.sent_rows += count
        self._assigned = max(self._assigned, self.sent_rows)

    def acknowledge(self, seq: int) -> int:
        """Drop the rows up to and including `seq` and return their count.

        Rows that were never sent stay: the uploader cannot have them.
        """
        count = min(seq - self.oldest_seq + 1, self._assigned)
        if count <= 0:
            return 0
        self._drop(count)
        return count

    def maybe_spill(self, now: float) -> None:
        """Write the rows in memory to the file when the oldest has waited for `SPILL_AFTER_S`.

        At once when the file has older rows: the uploader does not answer, and a kill would lose the rows in memory.
        """
        if not self._memory or now < self._spill_not_before:
            return
        if self._file_rows or now - self._appended_at[0] >= SPILL_AFTER_S:
            self.spill(now)

    def spill(self, now: float, *, is_last: bool = False) -> bool:
        """Write the rows in memory to the file; False, with one warning, when it cannot be written.

        The last call may exceed the file's limit: memory is bounded.
        """
        try:
            file = self._file_for_writing()
            if file.size_bytes > MAX_FILE_BYTES and not is_last:
                raise OverflowFileError(f"{file.path} has reached {MAX_FILE_BYTES >> 20} MiB")
            while self._memory:
                rows = list(islice(self._memory, MAX_RECORD_ROWS))
                first = self.oldest_seq + self._file_rows if self._is_numbered else 0
                place = file.end
                file.append_rows(rows, first)
                if not self._file_rows:
                    self._head_position = place
                self._drop_from_memory(len(rows))
                self._file_rows += len(rows)
                # Sent rows may have moved to the file: find the position of the next unsent row again.
                self._cursor = None
        except (OSError, SentinelStreamError) as error:
            self._spill_not_before = now + RETRY_SPILL_S
            if not self._spill_failed:
                self._spill_failed = True
                self._warn(f"cannot write undelivered samples to disk; keeping them in memory: {error}")
            return False
        self._spill_failed = False
        return True

    def persist_all(self, finish: Finish | None, now: float) -> bool:
        """Write everything durably to the file for a later collector; False when it cannot be written."""
        if not self.spill(now, is_last=True):
            return False
        try:
            if finish is not None:
                self._file_for_writing().write_finish(finish)
            elif self._file is not None:
                self._file.sync()
        except (OSError, OverflowFileError) as error:
            self._warn(f"cannot write undelivered samples to disk: {error}")
            return False
        return True

    def start_new_run(self) -> None:
        """Make the held rows the first rows of another run, without numbers; `header` names the new run already.

        If the file's record of that cannot be written now, it is written before the next row.
        """
        self.oldest_seq = self._assigned = self.sent_rows = 0
        self._is_numbered = False
        self._cursor = None
        self._reset_record_pending = self._file is not None
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file_for_writing()

    @property
    def never_sent_rows(self) -> int:
        """Unacknowledged rows that no uploader can have."""
        return self.rows - self._assigned

    def ambiguous_rows(self) -> tuple[int, list[bytes]]:
        """Return the first number and the rows that an uploader may have without having acknowledged them."""
        return self.oldest_seq, list(islice(self.all_rows(), self._assigned))

    def drop_ambiguous(self) -> None:
        """Drop the `ambiguous_rows`, which the caller has saved, and make the others another run."""
        self._drop(self._assigned)
        self.start_new_run()

    def rewrite_header(self) -> None:
        """Write the changed header for a later collector; a failure is ignored."""
        if self._file is not None and not self._reset_record_pending:
            with contextlib.suppress(OSError):
                self._file.write_header(self.make_header())

    def all_rows(self) -> Iterator[bytes]:
        """Yield all rows, oldest first."""
        if self._file is not None and self._file_rows:
            yield from islice(self._file.rows_from(self._head_position), self._file_rows)
        yield from self._memory

    def touch(self) -> None:
        """Renew the file's modification time, if there is a file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.touch()

    @property
    def path(self) -> str | None:
        """Path of the file, if there is one."""
        return None if self._file is None else self._file.path

    def discard_file(self) -> None:
        """Remove the file, whose rows are delivered or saved elsewhere. Raises `OSError`."""
        if self._file is not None:
            self._file.unlink()
            self._file.close()
            self._file = None
            self._file_rows = 0

    def close(self) -> None:
        """Close and unlock the file for a later collector."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _load(self, file: OverflowFile) -> None:
        self._file = file
        self._head_position = file.start
        self._file_rows = file.numbered_rows + file.unnumbered_rows
        self._assigned = file.numbered_rows
        self.oldest_seq = file.first_seq if file.numbered_rows else 0
        self._newest_row = file.last_row
        self.finish = file.finish

    def _assign_seq(self, next_seq: int, last_timestamp: float) -> None:
        """Assign numbers to the rows after those of recovered rows, which have theirs."""
        used = self._assigned
        delivered, base = used, next_seq
        if self.oldest_seq and next_seq <= self.oldest_seq + used:
            delivered, base = max(0, next_seq - self.oldest_seq), self.oldest_seq + used
        shift_ms = self._shift_ms(last_timestamp)
        if self._file_rows > used:
            file = self._file_for_writing()
            file.write_seq_base(base, start=file.advance(self._head_position, used), shift_ms=shift_ms)
        if shift_ms:
            self._shift_memory(shift_ms)
        self.oldest_seq = base - used
        self._is_numbered = True
        self._drop(delivered)

    def _reassign_seq(self, next_seq: int) -> None:
        """Number the unsent rows from `next_seq` on: the uploader has rows of another collector under our numbers."""
        self._drop(self._assigned)
        if self._file is not None and self._file_rows:
            self._reset_record_pending = True
            self._file_for_writing().write_seq_base(next_seq, start=self._head_position)
        self.oldest_seq = next_seq

    def _shift_ms(self, last_timestamp: float) -> int:
        """Return by how much unsent rows have to move because the clock was set back between two collectors."""
        if not last_timestamp or self.rows == self._assigned:
            return 0
        if self._file is not None and self._file_rows > self._assigned:
            oldest = next(self._file.rows_from(self._file.advance(self._head_position, self._assigned)))
        else:
            oldest = self._memory[0]
        return max(0, round(last_timestamp * 1000) + 1 - round(decode_sample(oldest).timestamp * 1000))

    def _shift_memory(self, shift_ms: int) -> None:
        self._memory = deque(shift_timestamp(row, shift_ms) for row in self._memory)
        if self._newest_row is not None:
            self._newest_row = shift_timestamp(self._newest_row, shift_ms)
        self._warn(
            f"the clock was set back since the run's last sample: {self.rows - self._assigned} waiting samples are "
            f"stamped {shift_ms / 1000:.3f} s later"
        )

    def _file_for_writing(self) -> OverflowFile:
        if self._file is None:
            self._file = self._open_file()
        if self._reset_record_pending:
            self._file.write_reset(self.make_header(), self._head_position if self._file_rows else self._file.end)
            self._reset_record_pending = False
        if self._file.header is None:
            self._file.write_header(self.make_header())
        return self._file

    def _unsent(self) -> Iterator[bytes]:
        if self.sent_rows < self._file_rows and self._file is not None:
            rows = self._file.rows_from(self._position_of_cursor(self._file))
            yield from islice(rows, self._file_rows - self.sent_rows)
        yield from islice(self._memory, max(0, self.sent_rows - self._file_rows), None)

    def _position_of_cursor(self, file: OverflowFile) -> Position:
        if self._cursor is None:
            self._cursor = file.advance(self._head_position, self.sent_rows)
        return self._cursor

    def _drop(self, count: int) -> None:
        from_file = min(count, self._file_rows)
        if from_file and self._file is not None:
            self._head_position = self._file.advance(self._head_position, from_file)
            self._file_rows -= from_file
            if not self._file_rows:
                self._truncate_file(self._file)
        self._drop_from_memory(count - from_file)
        self.oldest_seq += count
        self._assigned = max(0, self._assigned - count)
        if count > self.sent_rows:
            self._cursor = None
        self.sent_rows = max(0, self.sent_rows - count)

    def _truncate_file(self, file: OverflowFile) -> None:
        # On failure the rows stay on disk: the uploader's next `Welcome` tells that they are delivered.
        with contextlib.suppress(OSError):
            file.truncate(self.make_header())
            self._reset_record_pending = False
        self._cursor = None

    def _drop_from_memory(self, count: int) -> None:
        for _ in range(min(count, len(self._memory))):
            self._memory.popleft()
            self._appended_at.popleft()

    def _drop_oldest_unsent(self) -> None:
        """Drop the oldest row that was never sent; the rows after it move up by one number."""
        if not self.dropped_rows:
            self._warn(f"{MAX_MEMORY_ROWS} undelivered samples in memory, no file can be written: dropping the oldest")
        self.dropped_rows += 1
        index = max(0, self._assigned - self._file_rows)
        del self._memory[index]
        del self._appended_at[index]
