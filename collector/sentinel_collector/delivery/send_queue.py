"""What is not acknowledged yet: in memory, and in a file once the uploader has been away for some seconds.

Rows are a queue: those in the file first, those in memory after them. A row's sequence number is its place in the
run. A collector that continues a run learns from the uploader's `Welcome` where to go on counting; until then its
rows have no numbers, and none is sent. A number that was used once is never given to another row: the uploader may
have its row even though it has not said so. Memory is bounded: the file takes what memory does not hold, and where
no file can be written the oldest rows that were never sent give way, counted.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

from sentinel_collector.delivery.overflow_file.file import OverflowFile, Position
from sentinel_collector.delivery.overflow_file.header import OverflowFileError, OverflowHeader
from sentinel_protocol.common.errors import SentinelStreamError
from sentinel_protocol.wire.messages import Finish
from sentinel_protocol.wire.sample import decode_sample, shift_timestamp

SPILL_AFTER_S = 2.0
"""Age of the oldest row in memory at which all rows in memory go to the file."""
RETRY_SPILL_S = 30.0
MAX_MEMORY_ROWS = 50_000
"""About 15 MiB; reached only where no file can be written."""
MAX_FILE_BYTES = 1 << 30
"""About four million rows: a month and a half at one a second."""
_MAX_RECORD_ROWS = 128


class SendQueue:
    """The queue of one run; not thread-safe. Times are monotonic seconds, rows are encoded samples.

    `open_file` makes a new file for the run when there is none yet; `header` says whose rows these are at the moment.
    `disk_error_reported` says that somebody knows already that there is no place for a file.
    What reads or writes the file may raise `OSError` or `OverflowFileError`; nothing has changed then.
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
        self._make_header = header
        self._warn = warn
        self._file: OverflowFile | None = None
        self._head_position = Position(0, 0)
        self._file_rows = 0
        self._memory: deque[bytes] = deque()
        self._appended_at: deque[float] = deque()
        self._spill_not_before = 0.0
        self._spill_failed = disk_error_reported
        self._next_seq = 0
        """Sequence number of the oldest row, 0 while no row has one."""
        self._is_numbered = False
        """Whether rows that were never sent have their numbers."""
        self._assigned = 0
        """So many of the oldest rows have numbers that an uploader may know."""
        self._sent = 0
        self._cursor: Position | None = None
        self._reset_record_pending = False
        """The file does not say yet that its rows belong to another run now."""
        self._newest_row: bytes | None = None
        self.finish: Finish | None = None
        self.dropped_rows = 0
        if recovered is not None:
            self._load(recovered)

    @property
    def rows(self) -> int:
        """Rows held: not acknowledged."""
        return self._file_rows + len(self._memory)

    @property
    def memory_rows(self) -> int:
        """Rows held that are not in the file."""
        return len(self._memory)

    @property
    def unsent_rows(self) -> int:
        """Rows held that were not sent since the last `rewind`."""
        return self.rows - self._sent

    @property
    def sent_rows(self) -> int:
        """Rows sent since the last `rewind` and not acknowledged."""
        return self._sent

    @property
    def oldest_seq(self) -> int:
        """Sequence number of the oldest row held (of the next row where none is held), 0: not known yet."""
        return self._next_seq

    @property
    def last_seq(self) -> int | None:
        """Sequence number of the newest row, 0 where the run has none, `None` while numbers are not known."""
        return self._next_seq + self.rows - 1 if self._is_numbered else None

    @property
    def newest_timestamp(self) -> float:
        """Time stamp of the newest row that was ever held, UNIX seconds; 0 where there was none."""
        return 0.0 if self._newest_row is None else decode_sample(self._newest_row).timestamp

    def append(self, row: bytes, now: float) -> None:
        """Add the newest row."""
        self._memory.append(row)
        self._appended_at.append(now)
        self._newest_row = row
        if len(self._memory) > MAX_MEMORY_ROWS:
            self._drop_oldest_unsent()

    def rewind(self, next_seq: int, last_timestamp: float = 0.0) -> int:
        """Take up the uploader's `Welcome`: go on sending from `next_seq`.

        Rows that were never sent are stamped later, all by as much, where they would not come after `last_timestamp`.
        Returns how many rows it asks for that are not here any more.
        """
        missing = max(0, self._next_seq - next_seq) if self._next_seq else 0
        if not self._is_numbered:
            self._assign_seq(next_seq, last_timestamp)
        elif next_seq > self._next_seq + self._assigned:
            self._reassign_seq(next_seq)
        else:
            self._drop(max(0, next_seq - self._next_seq))
        self._sent = 0
        self._cursor = None
        return missing

    def next_chunk(self, *, max_rows: int, max_bytes: int) -> tuple[int, list[bytes]] | None:
        """Return the next rows to send with the sequence number of the first, or `None` when all are sent.

        `sent` has to be called once they were handed over.
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
        return self._next_seq + self._sent, chunk

    def mark_sent(self, count: int) -> None:
        """Note that the rows of the last `next_chunk` are on their way."""
        if self._sent < self._file_rows and self._file is not None:
            in_file = min(count, self._file_rows - self._sent)
            self._cursor = self._file.advance(self._position_of_cursor(self._file), in_file)
        self._sent += count
        self._assigned = max(self._assigned, self._sent)

    def acknowledge(self, seq: int) -> int:
        """Drop everything up to and including `seq`; returns how many rows that were.

        No more than was ever sent: an uploader cannot hold what it never got.
        """
        count = min(seq - self._next_seq + 1, self._assigned)
        if count <= 0:
            return 0
        self._drop(count)
        return count

    def maybe_spill(self, now: float) -> None:
        """Move what is in memory to the file when its oldest row has waited for long enough.

        At once when older rows are there already: the uploader is known to be away, and a kill would cost the row.
        """
        if not self._memory or now < self._spill_not_before:
            return
        if self._file_rows or now - self._appended_at[0] >= SPILL_AFTER_S:
            self.overflow(now)

    def overflow(self, now: float, *, is_last: bool = False) -> bool:
        """Move what is in memory to the file; False (and a warning, once) when it cannot be written.

        What memory holds is bounded: the last time it may go beyond the file's limit.
        """
        try:
            overflow = self._file_for_writing()
            if overflow.size_bytes > MAX_FILE_BYTES and not is_last:
                raise OverflowFileError(f"{overflow.path} has reached {MAX_FILE_BYTES >> 20} MiB")
            while self._memory:
                rows = list(islice(self._memory, _MAX_RECORD_ROWS))
                first = self._next_seq + self._file_rows if self._is_numbered else 0
                place = overflow.end
                overflow.append_rows(rows, first)
                if not self._file_rows:
                    self._head_position = place
                self._drop_from_memory(len(rows))
                self._file_rows += len(rows)
                # Rows that were sent from memory lie in the file now: the place to read on is looked up again.
                self._cursor = None
        except (OSError, SentinelStreamError) as error:
            self._spill_not_before = now + RETRY_SPILL_S
            if not self._spill_failed:
                self._spill_failed = True
                self._warn(f"cannot write undelivered samples to disk, keeping them in memory: {error}")
            return False
        self._spill_failed = False
        return True

    def persist_all(self, finish: Finish | None, now: float) -> bool:
        """Write everything to the file, durably, for a later collector; False when it cannot be written."""
        if not self.overflow(now, is_last=True):
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
        """Turn what is held into the first rows of another run (the old one was closed): numbers start anew.

        `header` names the new run already. One record in the file says so; where it cannot be written now, it is
        before the next row.
        """
        self._next_seq = self._assigned = self._sent = 0
        self._is_numbered = False
        self._cursor = None
        self._reset_record_pending = self._file is not None
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file_for_writing()

    @property
    def never_sent_rows(self) -> int:
        """Rows held that no uploader can know."""
        return self.rows - self._assigned

    def ambiguous_rows(self) -> tuple[int, list[bytes]]:
        """Return the rows whose numbers an uploader may know, with the number of the first: it may hold any of them."""
        return self._next_seq, list(islice(self.all_rows(), self._assigned))

    def drop_ambiguous(self) -> None:
        """Forget those rows, which are kept elsewhere; the others are the first ones of another run."""
        self._drop(self._assigned)
        self.start_new_run()

    def rewrite_header(self) -> None:
        """Write the head anew for a collector that may come after this one; without a place it is left."""
        if self._file is not None and not self._reset_record_pending:
            with contextlib.suppress(OSError):
                self._file.write_header(self._make_header())

    def all_rows(self) -> Iterator[bytes]:
        """Yield every row that is held, oldest first."""
        if self._file is not None and self._file_rows:
            rows = self._file.rows_from(self._head_position)
            yield from islice((row for row, _ in rows), self._file_rows)
        yield from self._memory

    def touch(self) -> None:
        """Let the file's age say that its collector lives; without a file nothing is done."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.touch()

    @property
    def path(self) -> str | None:
        """Path of the file, when there is one."""
        return None if self._file is None else self._file.path

    def discard_file(self) -> None:
        """Remove the file: everything is delivered or kept elsewhere. Raises `OSError`."""
        if self._file is not None:
            self._file.unlink()
            self._file.close()
            self._file = None
            self._file_rows = 0

    def close(self) -> None:
        """Leave the file to whoever comes next."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _load(self, overflow: OverflowFile) -> None:
        self._file = overflow
        self._head_position = overflow.start
        self._file_rows = overflow.numbered_rows + overflow.unnumbered_rows
        self._assigned = overflow.numbered_rows
        self._next_seq = overflow.first_seq if overflow.numbered_rows else 0
        self._newest_row = overflow.last_row
        self.finish = overflow.finish

    def _assign_seq(self, next_seq: int, last_timestamp: float) -> None:
        """Give the rows their numbers; those of recovered rows are fixed, the others follow them."""
        used = self._assigned
        delivered, base = used, next_seq
        if self._next_seq and next_seq <= self._next_seq + used:
            delivered, base = max(0, next_seq - self._next_seq), self._next_seq + used
        shift_ms = self._shift_ms(last_timestamp)
        if self._file_rows > used:
            overflow = self._file_for_writing()
            overflow.write_seq_base(base, start=overflow.advance(self._head_position, used), shift_ms=shift_ms)
        if shift_ms:
            self._shift_memory(shift_ms)
        self._next_seq = base - used
        self._is_numbered = True
        self._drop(delivered)

    def _reassign_seq(self, next_seq: int) -> None:
        """Numbers that we have not used belong to somebody's rows: ours go behind them, none is lost."""
        self._drop(self._assigned)
        if self._file is not None and self._file_rows:
            self._reset_record_pending = True
            self._file_for_writing().write_seq_base(next_seq, start=self._head_position)
        self._next_seq = next_seq

    def _shift_ms(self, last_timestamp: float) -> int:
        """By how much rows that were never sent have to move: the clock was set back between two collectors."""
        if not last_timestamp or self.rows == self._assigned:
            return 0
        if self._file is not None and self._file_rows > self._assigned:
            oldest, _ = next(self._file.rows_from(self._file.advance(self._head_position, self._assigned)))
        else:
            oldest = self._memory[0]
        return max(0, round(last_timestamp * 1000) + 1 - round(decode_sample(oldest).timestamp * 1000))

    def _shift_memory(self, shift_ms: int) -> None:
        self._memory = deque(shift_timestamp(row, shift_ms) for row in self._memory)
        if self._newest_row is not None:
            self._newest_row = shift_timestamp(self._newest_row, shift_ms)
        self._warn(
            f"the clock was set back since the run's last sample: {self.rows - self._assigned} samples that wait are "
            f"stamped {shift_ms / 1000:.3f} s later"
        )

    def _file_for_writing(self) -> OverflowFile:
        if self._file is None:
            self._file = self._open_file()
        if self._reset_record_pending:
            self._file.write_reset(self._make_header(), self._head_position if self._file_rows else self._file.end)
            self._reset_record_pending = False
        if self._file.header is None:
            self._file.write_header(self._make_header())
        return self._file

    def _unsent(self) -> Iterator[bytes]:
        if self._sent < self._file_rows and self._file is not None:
            rows = self._file.rows_from(self._position_of_cursor(self._file))
            yield from islice((row for row, _ in rows), self._file_rows - self._sent)
        yield from islice(self._memory, max(0, self._sent - self._file_rows), None)

    def _position_of_cursor(self, overflow: OverflowFile) -> Position:
        if self._cursor is None:
            self._cursor = overflow.advance(self._head_position, self._sent)
        return self._cursor

    def _drop(self, count: int) -> None:
        """Forget the oldest `count` rows and move the sequence number of the oldest on."""
        from_file = min(count, self._file_rows)
        if from_file and self._file is not None:
            self._head_position = self._file.advance(self._head_position, from_file)
            self._file_rows -= from_file
            if not self._file_rows:
                self._truncate_file(self._file)
        self._drop_from_memory(count - from_file)
        self._next_seq += count
        self._assigned = max(0, self._assigned - count)
        if count > self._sent:
            self._cursor = None
        self._sent = max(0, self._sent - count)

    def _truncate_file(self, overflow: OverflowFile) -> None:
        # Where that fails the rows stay on disk: the uploader's next `Welcome` says that they are delivered.
        with contextlib.suppress(OSError):
            overflow.truncate(self._make_header())
            self._reset_record_pending = False
        self._cursor = None

    def _drop_from_memory(self, count: int) -> None:
        for _ in range(min(count, len(self._memory))):
            self._memory.popleft()
            self._appended_at.popleft()

    def _drop_oldest_unsent(self) -> None:
        """Drop the oldest row that was never sent: those behind it take its number, nothing else moves."""
        if not self.dropped_rows:
            self._warn(f"{MAX_MEMORY_ROWS} undelivered samples in memory and no disk to put them: dropping the oldest")
        self.dropped_rows += 1
        index = max(0, self._assigned - self._file_rows)
        del self._memory[index]
        del self._appended_at[index]
