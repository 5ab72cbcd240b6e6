"""A job that runs until a test ends it, recorded by a real collector."""

import os
import subprocess
from collections.abc import Mapping
from typing import Any

from fakes.backend import Backend
from fakes.process_harness import COLLECTOR, DEADLINE_S, Home, rows_of_file, wait_until


class RecordedJob:
    """`sentinel-collector --connect` around a job; the rows that it has taken are in its `--output`.

    With `env` it finds or starts a local uploader instead, which inherits that.
    """

    def __init__(
        self,
        home: Home,
        *words: str,
        exit_code: int = 0,
        interval_s: float = 0.1,
        wait_s: float = DEADLINE_S,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.output = home.directory / "job.csv"
        fifo = home.directory / "job.fifo"
        os.mkfifo(fifo)
        # For reading as well, so that neither we nor the job have to wait for the other to open it.
        self._fifo = os.open(fifo, os.O_RDWR)
        self.process = home.start(
            COLLECTOR, *(("--connect", home.address) if env is None else ()), "--interval", str(interval_s),
            "--output", str(self.output), "--wait", str(wait_s), *words,
            "--", "sh", "-c", f'read _ < "$0"; exit {exit_code}', str(fifo), env=env,
        )  # fmt: skip
        self.exit_code = exit_code

    def rows(self) -> list[str]:
        """Return the CSV lines that were taken."""
        return rows_of_file(self.output)

    def wait_for_rows(self, count: int) -> None:
        """Wait until so many more rows have been taken."""
        wanted = self._lines() + count
        wait_until(lambda: self._lines() >= wanted, f"{count} rows")

    def _lines(self) -> int:
        # The header may be on its way.
        return max(1, self.output.read_bytes().count(b"\n")) if self.output.exists() else 1

    def let_job_end(self) -> None:
        """Let the job end."""
        os.write(self._fifo, b"\n")

    def end(self) -> str:
        """Let the job end and wait for its collector, which has to end with the same code; returns what it said."""
        self.let_job_end()
        try:
            _, said = self.process.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError("the collector does not end") from None
        finally:
            # Not before: what nobody has open for reading is gone with its writer.
            os.close(self._fifo)
        assert self.process.returncode == self.exit_code, said
        return str(said)


def assert_delivered(backend: Backend, recording: RecordedJob) -> None:
    """Every row that was taken is in exactly one object that `finish` names (or inline), and the run has ended well."""
    run = backend.only_run()
    assert backend.rows(run) == recording.rows()
    assert (run.finish["run_status"], run.finish["exit_code"]) == ("finished", 0)


def only_status(home: Home) -> dict[str, Any]:
    """Return what `status` says of the one run of the uploader of `Home.start_uploader`."""
    (run,) = home.status("--spool", str(home.directory / "spool"))
    return run
