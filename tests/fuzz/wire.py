"""What the intake knows of a socket, without one: messages are laid down, answers picked up."""

from collections import defaultdict, deque
from collections.abc import Sequence

from sentinel_protocol.wire.messages import UploaderMessage, decode_from_uploader
from sentinel_uploader.server.zmq_server import ReceivedMessage


class Wire:
    """Has the methods of `sentinel_uploader.server.zmq_server.ZmqServer` that the intake uses.

    An identity that was disconnected receives nothing.
    """

    def __init__(self) -> None:
        self._coming: deque[ReceivedMessage] = deque()
        self._answers: dict[bytes, list[UploaderMessage]] = defaultdict(list)
        self.cut_off: set[bytes] = set()
        self.connections = 0

    def lay_down(self, identity: bytes, key: bytes, frame: bytes) -> None:
        """Have a message come in."""
        self._coming.append(ReceivedMessage(identity, frame, key))

    def pick_up(self, identity: bytes) -> Sequence[UploaderMessage]:
        """Return what a peer has been told since the last call."""
        return self._answers.pop(identity, ())

    def lose_everything(self) -> None:
        """What is under way is lost, in both directions."""
        self._coming.clear()
        self._answers.clear()
        self.cut_off.clear()

    def receive(self, *, limit: int, timeout_s: float) -> tuple[list[ReceivedMessage], int]:  # noqa: ARG002 -- the server's
        """Return what was laid down."""
        return [self._coming.popleft() for _ in range(min(limit, len(self._coming)))], 0

    def send(self, identity: bytes, frame: bytes) -> bool:
        """Keep an answer, which has to be one that a collector understands."""
        if identity in self.cut_off:
            return False
        self._answers[identity].append(decode_from_uploader(frame))
        return True

    def disconnect(self, identity: bytes) -> None:
        """End a connection."""
        self.cut_off.add(identity)

    def wake(self) -> None:
        """Nobody waits."""
