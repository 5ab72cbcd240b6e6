"""The processes that play the collectors, as one."""

import itertools
import multiprocessing
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.load.latency import Latencies
from benchmarks.load.player import Part, Report, play
from benchmarks.measure import CpuMeter
from benchmarks.workspace import BenchmarkError, Workspace

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

_ANSWER_S = 60.0
_LOOK_S = 0.1


class Crowd:
    """All collectors; a context manager that ends their processes."""

    def __init__(self, workspace: Workspace, part: Part, processes: int) -> None:
        """Divide a part among processes."""
        spawn = multiprocessing.get_context("spawn")
        self._controls: list[Connection] = []
        self._processes: list[BaseProcess] = []
        firsts = [part.first + part.collectors * index // processes for index in range(processes + 1)]
        for first, after in itertools.pairwise(firsts):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(
                target=play, args=(part._replace(first=first, collectors=after - first), theirs), daemon=True
            )
            process.start()
            theirs.close()
            self._controls.append(ours)
            self._processes.append(process)
        self.meter = CpuMeter(workspace, [process.pid or 0 for process in self._processes])

    def __enter__(self) -> "Crowd":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def tell(self, command: str, value: float = 0.0) -> None:
        """Send a command to all."""
        for control in self._controls:
            control.send((command, value))

    def tell_share(self, command: str, value: float) -> None:
        """Send a command whose figure is that of all collectors together."""
        self.tell(command, value / len(self._controls))

    def ask(self, command: str) -> list[Any]:
        """Send a command that is answered, and return the answers; raises `BenchmarkError` when one does not come."""
        self.tell(command)
        answers = []
        for control in self._controls:
            if not control.poll(_ANSWER_S):
                raise BenchmarkError("a process of the load generator does not answer")
            try:
                answers.append(control.recv())
            except EOFError:
                raise BenchmarkError("a process of the load generator has ended") from None
        return answers

    def report(self) -> Report:
        """Return what has come of all collectors."""
        return _total(self.ask("report"))

    def last_seqs(self) -> dict[int, int]:
        """Return the last sequence number of each collector's rows."""
        return {number: last for part in self.ask("last-seqs") for number, last in part.items()}

    def wait_until(
        self, reached: Callable[[Report], bool], *, within_s: float, meanwhile: Callable[[], None]
    ) -> tuple[Report, float]:
        """Wait for the collectors to get somewhere; return the last report, with all latencies, and the seconds.

        Returns when the time is over, too.
        """
        began = time.monotonic()
        latencies = Latencies()
        while True:
            report = self.report()
            latencies.merge(report.latencies)
            passed_s = time.monotonic() - began
            if reached(report) or passed_s > within_s:
                return report._replace(latencies=latencies), passed_s
            meanwhile()
            time.sleep(_LOOK_S)


def _total(reports: list[Report]) -> Report:
    latencies = Latencies()
    for each in reports:
        latencies.merge(each.latencies)
    return Report(
        opened=sum(each.opened for each in reports),
        welcome=sum(each.welcome for each in reports),
        made=sum(each.made for each in reports),
        acked=sum(each.acked for each in reports),
        finish_durable=sum(each.finish_durable for each in reports),
        finished=sum(each.finished for each in reports),
        hellos=sum(each.hellos for each in reports),
        rejects=sum(each.rejects for each in reports),
        refusals=[refusal for each in reports for refusal in each.refusals],
        latencies=latencies,
    )
