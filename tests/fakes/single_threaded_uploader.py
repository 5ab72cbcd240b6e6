"""A whole uploader without its process and its threads, which may die at any moment, within a transaction too.

Real spool file, intake, scheduler and steps; time, turns and the wire are the test's.
"""

import shutil
from collections import deque
from collections.abc import Callable
from pathlib import Path

from fakes.scripted_backend import SteppedClock
from fakes.strict_backend import StrictAPI, StrictBackend, StrictStore
from fakes.uploader_harness import UploaderHarness
from sentinel_protocol.wire.messages import UploaderMessage, decode_from_uploader
from sentinel_uploader.runs.ports import Backend
from sentinel_uploader.runs.schedule import Policy
from sentinel_uploader.server.zmq_server import ReceivedMessage, ZmqServer
from sentinel_uploader.spool.database import database_path

MOST_TURNS = 400
"""Far more than a few runs need at one instant: what takes longer goes round in circles."""


class Wire(ZmqServer):
    """The uploader's end of the wire: what was said lies ready, what it answers is kept."""

    def __init__(self, heard: Callable[[bytes, UploaderMessage], None]) -> None:
        super().__init__([])
        self._heard = heard
        self.said: deque[ReceivedMessage] = deque()

    def receive(self, *, limit: int, timeout_s: float) -> tuple[list[ReceivedMessage], int]:  # noqa: ARG002 -- nothing is waited for
        return [self.said.popleft() for _ in range(min(limit, len(self.said)))], 0

    def send(self, identity: bytes, frame: bytes) -> bool:
        self._heard(identity, decode_from_uploader(frame))
        return True


class Turns:
    """In the place of worker threads: tasks lie ready until they are given their turn."""

    def __init__(self) -> None:
        self.tasks: list[Callable[[], None]] = []

    def submit(self, task: Callable[[], None]) -> None:
        self.tasks.append(task)


class SingleThreadedUploader:
    """An uploader over the spool in `directory`."""

    def __init__(
        self,
        directory: Path,
        *,
        backend: StrictBackend,
        clock: SteppedClock,
        policy: Policy,
        heard: Callable[[bytes, UploaderMessage], None],
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._wire = Wire(heard)
        api, store = StrictAPI(backend, inline_limit_bytes=policy.inline_limit_bytes), StrictStore(backend)
        self._parts = UploaderHarness(
            directory,
            policy=policy,
            clock=clock,
            target=Backend(api=api, store=store, needs_credentials=True),
            server=self._wire,
        )
        self.spool = self._parts.spool
        self.scheduler = self._parts.scheduler
        self._turns = Turns()
        # Who has the next turn is the test's choice, and the same again when it is repeated.
        self.scheduler._io_pool = self.scheduler._cpu_pool = self._turns  # type: ignore[assignment]
        self.spool._database.connection.set_trace_callback(backend.moment)

    def say(self, identity: bytes, *frames: bytes) -> None:
        """Let the intake take these messages in one group."""
        self._wire.said.extend(ReceivedMessage(identity, frame, b"") for frame in frames)
        self._parts.intake.poll_once(0.0)

    def turn(self, index: int = 0) -> None:
        """Let one step that is under way come to its end."""
        tasks = self._turns.tasks
        if tasks:
            tasks.pop(index % len(tasks))()

    def settle(self) -> float:
        """Do what is due until nothing is; return when (monotonic) there is more."""
        for _ in range(MOST_TURNS):
            self.scheduler.wakeup.clear()
            self._parts.intake.poll_once(0.0)
            due = self.scheduler.run_due()
            if self._turns.tasks:
                self.turn()
            elif due > self._clock.monotonic() and not self.scheduler.wakeup.is_set():
                return due
        raise AssertionError("something is done again and again without a pause")

    def advance(self, seconds: float) -> None:
        """Let time pass, and do all that becomes due at the time at which it becomes due."""
        until = self._clock.monotonic() + seconds
        while (due := self.settle()) <= until:
            self._parts.let_pass(due - self._clock.monotonic())
        self._parts.let_pass(until - self._clock.monotonic())

    def wait_without_working(self, seconds: float) -> None:
        """Let time pass in which nothing is done, but the intake listens."""
        self._parts.let_pass(seconds)

    def copy_to(self, directory: Path) -> None:
        """Copy the spool's files as a kill at this moment would leave them: shared memory dies with the process."""
        directory.mkdir()
        path = Path(database_path(str(self._directory)))
        for file in (path, path.with_name(f"{path.name}-wal")):
            if file.exists():
                shutil.copy(file, directory)

    def close(self) -> None:
        self.scheduler.abandon_steps()
        self.spool._database.connection.set_trace_callback(None)
        self._parts.close()
