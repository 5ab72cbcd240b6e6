"""What is not acknowledged yet: in memory, and in a file once the uploader has been away for some seconds.

Rows are a queue: those in the file first, those in memory after them. A row's sequence number is its place in the
run. A collector that continues a run learns from the uploader's `Welcome` where to go on counting; until then its
rows have no numbers, and none is sent. Memory is bounded: the file takes what memory does not hold, and where no
file can be written the oldest rows give way, counted.
"""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

from collector.spill import Position, SpillError, SpillFile, SpillHead
from protocol.messages import Finish

SPILL_AFTER_S = 2.0
"""Age of the oldest row in memory at which all rows in memory go to the file."""
RETRY_SPILL_S = 30.0
MAX_MEMORY_ROWS = 50_000
"""About 15 MiB; reached only where no file can be written."""
MAX_FILE_BYTES = 1 << 30
"""About four million rows: a month and a half at one a second."""
_ROWS_A_RECORD = 128


class Backlog:
    """The queue of one run; not thread-safe. Times are monotonic seconds, rows are encoded samples."""

    def __init__(
        self,
        *,
        open_file: Callable[[], SpillFile],
        head: Callable[[], SpillHead],
        warn: Callable[[str], None],
        recovered: SpillFile | None = None,
    ) -> None:
        self._open_file = open_file
        self._head = head
        self._warn = warn
        self._file: SpillFile | None = None
        self._front = Position(0, 0)
        self._file_rows = 0
        self._memory: deque[bytes] = deque()
        self._appended_at: deque[float] = deque()
        self._spill_not_before = 0.0
        self._spill_broken = False
        self._next_seq: int | None = None
        self._numbered_rows = 0
        self._recovered_first_seq = 0
        self._sent = 0
        self._cursor: Position | None = None
        self.finish: Finish | None = None
        self.dropped_rows = 0
        if recovered is not None:
            self._adopt(recovered)

    @property
    def rows(self) -> int:
        """Rows held: not acknowledged."""
        return self._file_rows + len(self._memory)

    @property
    def unsent_rows(self) -> int:
        """Rows held that were not sent since the last `resume`."""
        return self.rows - self._sent

    @property
    def sent_rows(self) -> int:
        """Rows sent since the last `resume` and not acknowledged."""
        return self._sent

    @property
    def oldest_seq(self) -> int:
        """Sequence number of the oldest row held (of the next row where none is held), 0: not known yet."""
        return self._recovered_first_seq if self._next_seq is None else self._next_seq

    @property
    def last_seq(self) -> int | None:
        """Sequence number of the newest row, 0 where the run has none, `None` while numbers are not known."""
        return None if self._next_seq is None else self._next_seq + self.rows - 1

    def append(self, row: bytes, now: float) -> None:
        """Add the newest row."""
        self._memory.append(row)
        self._appended_at.append(now)
        if len(self._memory) > MAX_MEMORY_ROWS:
            self._give_way()

    def resume(self, next_seq: int) -> int:
        """Take up the uploader's `Welcome`: go on sending from `next_seq`.

        Returns how many rows it asks for that are not here any more.
        """
        missing = 0
        if self._next_seq is None:
            missing = self._number(next_seq)
        elif next_seq > self._next_seq + self._sent:
            # Numbers that we have not used belong to somebody's rows: ours go behind them, none is lost.
            self._drop(self._sent)
            self._renumber(next_seq)
        elif next_seq >= self._next_seq:
            self._drop(next_seq - self._next_seq)
        else:
            missing = self._next_seq - next_seq
        self._sent = 0
        self._cursor = None
        return missing

    def next_chunk(self, *, max_rows: int, max_bytes: int) -> tuple[int, list[bytes]] | None:
        """Return the next rows to send with the sequence number of the first, or `None` when all are sent.

        `sent` has to be called once they were handed over.
        """
        if self._next_seq is None or not self.unsent_rows:
            return None
        chunk: list[bytes] = []
        size = 0
        for row in self._unsent():
            size += len(row)
            if chunk and (len(chunk) == max_rows or size > max_bytes):
                break
            chunk.append(row)
        return self._next_seq + self._sent, chunk

    def sent(self, count: int) -> None:
        """Note that the rows of the last `next_chunk` are on their way."""
        if self._sent < self._file_rows and self._file is not None:
            in_file = min(count, self._file_rows - self._sent)
            self._cursor = self._file.advance(self._position_of_cursor(self._file), in_file)
        self._sent += count

    def acknowledge(self, seq: int) -> int:
        """Drop everything up to and including `seq`; returns how many rows that were."""
        if self._next_seq is None:
            return 0
        # No more than was sent: an uploader cannot hold what it never got.
        count = min(seq - self._next_seq + 1, self._sent)
        if count <= 0:
            return 0
        self._drop(count)
        self._sent -= count
        return count

    def spill_when_due(self, now: float) -> None:
        """Move what is in memory to the file when its oldest row has waited for long enough."""
        if self._memory and now - self._appended_at[0] >= SPILL_AFTER_S and now >= self._spill_not_before:
            self.spill(now)

    def spill(self, now: float) -> bool:
        """Move what is in memory to the file; False (and a warning, once) when it cannot be written."""
        try:
            spill_file = self._file_for_writing()
            while self._memory:
                rows = list(islice(self._memory, _ROWS_A_RECORD))
                first = 0 if self._next_seq is None else self._next_seq + self._file_rows
                spill_file.append_rows(rows, first)
                self._forget_memory(len(rows))
                self._file_rows += len(rows)
                # Rows that were sent from memory lie in the file now: the place to read on is looked up again.
                self._cursor = None
        except (OSError, SpillError) as error:
            self._spill_not_before = now + RETRY_SPILL_S
            if not self._spill_broken:
                self._spill_broken = True
                self._warn(f"cannot write undelivered samples to disk, keeping them in memory: {error}")
            return False
        self._spill_broken = False
        return True

    def keep(self, finish: Finish | None, now: float) -> bool:
        """Write everything to the file, durably, for a later collector; False when it cannot be written."""
        if not self.spill(now):
            return False
        try:
            if finish is not None:
                self._file_for_writing().write_finish(finish)
            elif self._file is not None:
                self._file.sync()
        except (OSError, SpillError) as error:
            self._warn(f"cannot write undelivered samples to disk: {error}")
            return False
        return True

    def start_new_run(self) -> None:
        """Turn what is held into the first rows of another run (the old one was closed): numbers start anew."""
        self._sent = 0
        self._cursor = None
        self._next_seq = None
        self._recovered_first_seq = 0
        self._numbered_rows = 0
        if self._file is not None:
            self._rewrite(0)

    def all_rows(self) -> Iterator[bytes]:
        """Yield every row that is held, oldest first."""
        if self._file is not None and self._file_rows:
            rows = self._file.rows_from(self._front)
            yield from islice((row for row, _ in rows), self._file_rows)
        yield from self._memory

    @property
    def path(self) -> str | None:
        """Path of the file, when there is one."""
        return None if self._file is None else self._file.path

    def discard_file(self) -> None:
        """Remove the file: everything is delivered or kept elsewhere."""
        if self._file is not None:
            self._file.remove()
            self._file = None
            self._file_rows = 0

    def close(self) -> None:
        """Leave the file to whoever comes next."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _adopt(self, spill_file: SpillFile) -> None:
        self._file = spill_file
        self._front = spill_file.start
        self._file_rows = spill_file.numbered_rows + spill_file.unnumbered_rows
        self._numbered_rows = spill_file.numbered_rows
        self._recovered_first_seq = spill_file.first_seq if spill_file.numbered_rows else 0
        self.finish = spill_file.finish

    def _number(self, next_seq: int) -> int:
        """Give the rows their numbers; those of recovered rows are fixed, the others follow them."""
        first, count = self._recovered_first_seq, self._numbered_rows
        if count and next_seq <= first + count:
            self._next_seq, unnumbered_from = first, first + count
        else:
            # What had numbers is durable already, or nothing had.
            self._drop(count)
            self._next_seq = unnumbered_from = next_seq
            count = 0
        if self._file is not None and self._file_rows > count:
            self._file.write_base(unnumbered_from)
        self._numbered_rows = 0
        missing = max(0, self._next_seq - next_seq)
        self._drop(max(0, next_seq - self._next_seq))
        return missing

    def _renumber(self, first_seq: int) -> None:
        self._next_seq = first_seq
        if self._file is not None and self._file_rows:
            self._rewrite(first_seq)

    def _rewrite(self, first_seq: int) -> None:
        """Write the file's rows anew under the current head, numbered from `first_seq` (0: without numbers)."""
        assert self._file is not None
        old, count = self._file, self._file_rows
        self._file = None
        self._file_rows = 0
        rows = islice((row for row, _ in old.rows_from(self._front)), count)
        new = self._file_for_writing(aside=old.path)
        while chunk := list(islice(rows, _ROWS_A_RECORD)):
            new.append_rows(chunk, first_seq and first_seq + self._file_rows)
            self._file_rows += len(chunk)
        new.sync()
        old.remove()

    def _file_for_writing(self, aside: str | None = None) -> SpillFile:
        if self._file is None:
            spill_file = self._open_file()
            if spill_file.path == aside:
                raise SpillError(f"{aside} is still in use")
            spill_file.write_head(self._head())
            self._file = spill_file
            self._front = Position(spill_file.size_bytes, 0)
        if self._file.size_bytes > MAX_FILE_BYTES:
            raise SpillError(f"{self._file.path} has reached {MAX_FILE_BYTES >> 20} MiB")
        return self._file

    def _unsent(self) -> Iterator[bytes]:
        if self._sent < self._file_rows and self._file is not None:
            rows = self._file.rows_from(self._position_of_cursor(self._file))
            yield from islice((row for row, _ in rows), self._file_rows - self._sent)
        yield from islice(self._memory, max(0, self._sent - self._file_rows), None)

    def _position_of_cursor(self, spill_file: SpillFile) -> Position:
        if self._cursor is None:
            self._cursor = spill_file.advance(self._front, self._sent)
        return self._cursor

    def _drop(self, count: int) -> None:
        """Forget the oldest `count` rows and move the sequence number of the oldest on."""
        from_file = min(count, self._file_rows)
        if from_file and self._file is not None:
            self._front = self._file.advance(self._front, from_file)
            self._file_rows -= from_file
            if not self._file_rows:
                self._file.clear()
                self._front = Position(self._file.size_bytes, 0)
                self._cursor = None
        self._forget_memory(count - from_file)
        if self._next_seq is not None:
            self._next_seq += count

    def _forget_memory(self, count: int) -> None:
        for _ in range(min(count, len(self._memory))):
            self._memory.popleft()
            self._appended_at.popleft()

    def _give_way(self) -> None:
        """Drop the oldest row that was not sent yet: those behind it take its number, nothing else moves."""
        if not self.dropped_rows:
            self._warn(f"{MAX_MEMORY_ROWS} undelivered samples in memory and no disk to put them: dropping the oldest")
        self.dropped_rows += 1
        index = max(0, self._sent - self._file_rows)
        del self._memory[index]
        del self._appended_at[index]
