"""What people are told of the other end of a conversation: each trouble once, until it is over."""

from collections.abc import Callable

_UNREACHABLE = "away"


class ConnectionLog:
    """Remarks on one uploader, which they call `peer`; `warn` says a line."""

    def __init__(self, peer: str, warn: Callable[[str], None]) -> None:
        self._peer = peer
        self._warn = warn
        self._logged: set[str] = set()
        self._rejections: dict[str, str] = {}
        """In words, by what they are about."""
        self._row_rejections: set[str] = set()
        """Those of the refusals that a welcome does not lift."""

    @property
    def rejection_reason(self) -> str:
        """What the peer has said why it takes nothing, empty when it has taken something since."""
        return next(reversed(self._rejections.values()), "")

    def log(self, words: str) -> None:
        """Say something of the peer."""
        self._warn(f"{self._peer} {words}")

    def log_once(self, topic: str, words: str) -> None:
        """Say something of the peer unless something was said on this topic before."""
        if self._is_first(topic):
            self.log(words)

    def on_disk_error(self, error: Exception) -> None:
        """The file of undelivered samples cannot be used."""
        if self._is_first("disk"):
            self._warn(f"cannot use the file of undelivered samples: {error}; trying again")

    def on_rejected(self, topic: str, why: str, *, of_rows: bool = False) -> None:
        """The peer takes nothing, and this is why; `of_rows`: although it had welcomed the run."""
        self._rejections[topic] = why
        if of_rows:
            self._row_rejections.add(topic)
        self.log_once(topic, f"{why}; keeping the samples")

    def on_welcome(self) -> None:
        """The peer takes the run; its samples as well, unless it has refused such."""
        self._clear(self._rejections.keys() - self._row_rejections)

    def on_rows_accepted(self) -> None:
        """The peer has taken samples."""
        if self._row_rejections:
            self._row_rejections.clear()
            self._clear(set(self._rejections))

    def on_unreachable(self, silent_s: float) -> None:
        """The peer has said nothing for so many seconds."""
        if self._is_first(_UNREACHABLE):
            self._warn(f"no answer from {self._peer} for {silent_s:.0f} s; keeping the samples")

    def on_recovered(self, silent_s: float) -> None:
        """The peer has said something."""
        if _UNREACHABLE in self._logged:
            self._logged.discard(_UNREACHABLE)
            self.log(f"is back after {silent_s:.0f} s")

    def _clear(self, refusals: set[str]) -> None:
        for topic in refusals:
            del self._rejections[topic]
        self._logged -= refusals
        if refusals and not self._rejections:
            self.log("takes samples again")

    def _is_first(self, topic: str) -> bool:
        is_new = topic not in self._logged
        self._logged.add(topic)
        return is_new
