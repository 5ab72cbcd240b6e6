"""What people are told of the other end of a conversation: each trouble once, until it is over."""

from collections.abc import Callable

_AWAY = "away"


class Remarks:
    """Remarks on one uploader, which they call `peer`; `warn` says a line."""

    def __init__(self, peer: str, warn: Callable[[str], None]) -> None:
        self._peer = peer
        self._warn = warn
        self._said: set[str] = set()
        self._refusals: dict[str, str] = {}
        """In words, by what they are about."""
        self._rows_refused: set[str] = set()
        """Those of the refusals that a welcome does not lift."""

    @property
    def why_refused(self) -> str:
        """What the peer has said why it takes nothing, empty when it has taken something since."""
        return next(reversed(self._refusals.values()), "")

    def say(self, words: str) -> None:
        """Say something of the peer."""
        self._warn(f"{self._peer} {words}")

    def say_once(self, topic: str, words: str) -> None:
        """Say something of the peer unless something was said on this topic before."""
        if self._is_new(topic):
            self.say(words)

    def disk(self, error: Exception) -> None:
        """The file of undelivered samples cannot be used."""
        if self._is_new("disk"):
            self._warn(f"cannot use the file of undelivered samples: {error}; trying again")

    def refusal(self, topic: str, why: str, *, of_rows: bool = False) -> None:
        """The peer takes nothing, and this is why; `of_rows`: although it had welcomed the run."""
        self._refusals[topic] = why
        if of_rows:
            self._rows_refused.add(topic)
        self.say_once(topic, f"{why}; keeping the samples")

    def welcome(self) -> None:
        """The peer takes the run; its samples as well, unless it has refused such."""
        self._lift(self._refusals.keys() - self._rows_refused)

    def rows_taken(self) -> None:
        """The peer has taken samples."""
        if self._rows_refused:
            self._rows_refused.clear()
            self._lift(set(self._refusals))

    def away(self, silent_s: float) -> None:
        """The peer has said nothing for so many seconds."""
        if self._is_new(_AWAY):
            self._warn(f"no answer from {self._peer} for {silent_s:.0f} s; keeping the samples")

    def back(self, silent_s: float) -> None:
        """The peer has said something."""
        if _AWAY in self._said:
            self._said.discard(_AWAY)
            self.say(f"is back after {silent_s:.0f} s")

    def _lift(self, refusals: set[str]) -> None:
        for topic in refusals:
            del self._refusals[topic]
        self._said -= refusals
        if refusals and not self._refusals:
            self.say("takes samples again")

    def _is_new(self, topic: str) -> bool:
        is_new = topic not in self._said
        self._said.add(topic)
        return is_new
