"""Messages about the connection to an uploader: each problem is logged once, until it is over."""

from collections.abc import Callable

from sentinel_collector.console import pluralize

_UNREACHABLE = "away"


class ConnectionLog:
    """Logs about one uploader, named `peer` in the messages, through `warn`."""

    def __init__(self, peer: str, warn: Callable[[str], None]) -> None:
        self._peer = peer
        self._warn = warn
        self._logged: set[str] = set()
        self._rejections: dict[str, str] = {}
        """Reasons by topic, newest last."""
        self._row_rejections: set[str] = set()
        """Topics that a welcome does not clear."""

    @property
    def rejection_reason(self) -> str:
        """Why the peer rejects samples; empty when it accepts them."""
        return next(reversed(self._rejections.values()), "")

    def log(self, message: str) -> None:
        """Log a message that follows the peer's name."""
        self._warn(f"{self._peer} {message}")

    def log_once(self, topic: str, message: str) -> None:
        """Do as `log` unless there was a message on the topic."""
        if self._is_first(topic):
            self.log(message)

    def on_disk_error(self, error: Exception) -> None:
        """Log that the overflow file cannot be used."""
        if self._is_first("disk"):
            self._warn(f"cannot use the file of undelivered samples: {error}; trying again")

    def on_rejected(self, topic: str, why: str, *, of_rows: bool = False) -> None:
        """Log why the peer rejects the run, or with `of_rows` the samples of a run that it has welcomed."""
        self._rejections[topic] = why
        if of_rows:
            self._row_rejections.add(topic)
        self.log_once(topic, f"{why}; keeping the samples")

    def on_welcome(self) -> None:
        """Clear the rejections of the run; rejections of samples stay."""
        self._clear(self._rejections.keys() - self._row_rejections)

    def on_rows_accepted(self) -> None:
        """Clear all rejections: the peer has accepted samples."""
        if self._row_rejections:
            self._row_rejections.clear()
            self._clear(set(self._rejections))

    def on_unreachable(self, silent_s: float) -> None:
        """Log that the peer has not answered for `silent_s` seconds."""
        if self._is_first(_UNREACHABLE):
            self._warn(f"no answer from {self._peer} for {silent_s:.0f} s; keeping the samples")

    def on_recovered(self, silent_s: float) -> None:
        """Log that the peer answers again, if its silence was logged."""
        if _UNREACHABLE in self._logged:
            self._logged.discard(_UNREACHABLE)
            self.log(f"is back after {silent_s:.0f} s")

    def _clear(self, topics: set[str]) -> None:
        for topic in topics:
            del self._rejections[topic]
        self._logged -= topics
        if topics and not self._rejections:
            self.log("accepts samples again")

    def _is_first(self, topic: str) -> bool:
        is_new = topic not in self._logged
        self._logged.add(topic)
        return is_new


def kept_message(why: str, rows: int, path: str | None) -> str:
    """Return the message when everything is in the run's file."""
    what = pluralize(rows, "sample", ("waits", "wait")) if rows else "the end of the run waits"
    return f"{why}; {what} in {path}; the next collector delivers it"


def lost_message(why: str, rows: int, state_dir: str, also_in: str) -> str:
    """Return the message when nothing could be written to the run's file; `also_in` is the user's `--output`."""
    if also_in:
        return f"{why}; {pluralize(rows, 'sample', ('is', 'are'))} not delivered, and only in {also_in}"
    return f"{pluralize(rows, 'sample', ('is', 'are'))} lost: {why}, and nothing can be written to {state_dir}"
