"""How much of the spool each client's open runs take."""

from sentinel_uploader.spool.run_record import Run


class Holdings:
    """Kept up to date run by run; guarded by the spool's lock, single figures may be read without it."""

    def __init__(self) -> None:
        self._runs: dict[str, int] = {}
        self._bytes: dict[str, int] = {}

    @property
    def clients(self) -> int:
        """How many clients have open runs."""
        return len(self._runs)

    def runs_of(self, owner: str) -> int:
        """How many runs of the client are open."""
        return self._runs.get(owner, 0)

    def bytes_of(self, owner: str) -> int:
        """About how many bytes of the spool the client's open runs take."""
        return self._bytes.get(owner, 0)

    def add(self, run: Run) -> None:
        """A run was opened, or found in the spool."""
        owner = run.record.owner
        self._runs[owner] = self.runs_of(owner) + 1
        self.count(run)

    def count(self, run: Run) -> None:
        """What the run has in the spool has changed."""
        owner, size = run.record.owner, run.spool_bytes
        self._bytes[owner] = self.bytes_of(owner) + size - run.counted_bytes
        run.counted_bytes = size

    def remove(self, run: Run) -> None:
        """The run is over."""
        owner = run.record.owner
        self._bytes[owner] -= run.counted_bytes
        self._runs[owner] -= 1
        if not self._runs[owner]:
            del self._runs[owner], self._bytes[owner]
