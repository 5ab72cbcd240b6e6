"""What goes back to collectors: counted, and never waited for."""

from sentinel_protocol.wire.messages import Reject, UploaderMessage, encode
from sentinel_uploader.server.zmq_server import ZmqServer
from sentinel_uploader.telemetry.counters import Counters


class ResponseSender:
    """Sends answers through the socket; belongs to the thread that owns it."""

    def __init__(self, server: ZmqServer, counters: Counters) -> None:
        self._server = server
        self._counters = counters

    def send(self, identity: bytes, message: UploaderMessage) -> None:
        """Answer one connection, if it is there and reads."""
        if isinstance(message, Reject):
            self._counters.rejected.add(1, message.code)
        if not self._server.send(identity, encode(message)):
            # Gone or not reading; a lost answer is asked for again.
            self._counters.answers_lost.add()
