"""Accounts for the part of the spool that each client's open runs take."""

from sentinel_uploader.spool.open_run import OpenRun


class ClientUsage:
    """Bytes and open runs of each client. Guarded by the spool's lock; a single number may be read without it."""

    def __init__(self) -> None:
        self._runs: dict[str, int] = {}
        self._bytes: dict[str, int] = {}

    @property
    def clients(self) -> int:
        """How many clients have open runs."""
        return len(self._runs)

    def open_runs(self, owner: str) -> int:
        """How many runs of the client are open."""
        return self._runs.get(owner, 0)

    def spool_bytes(self, owner: str) -> int:
        """About how many bytes of the spool the client's open runs take."""
        return self._bytes.get(owner, 0)

    def add(self, run: OpenRun) -> None:
        """Add a run that was opened or loaded."""
        owner = run.record.owner
        self._runs[owner] = self.open_runs(owner) + 1
        self.recompute(run)

    def recompute(self, run: OpenRun) -> None:
        """Account for a change of the run's size."""
        owner, size = run.record.owner, run.spool_bytes
        self._bytes[owner] = self.spool_bytes(owner) + size - run.accounted_bytes
        run.accounted_bytes = size

    def remove(self, run: OpenRun) -> None:
        """Remove a run that was closed."""
        owner = run.record.owner
        self._bytes[owner] -= run.accounted_bytes
        self._runs[owner] -= 1
        if not self._runs[owner]:
            del self._runs[owner], self._bytes[owner]
