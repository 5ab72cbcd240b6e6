"""A client of the uploader that shares no code with ours: pyzmq, msgpack, and what the documentation says."""

import threading
import time
from typing import Any

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

PATIENCE_S = 20.0
OUT = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
_IN = zmq.EVENT_HANDSHAKE_SUCCEEDED


class IndependentClient:
    """One connection; `public`, `secret` and `server` are CURVE keys. It is where the context's threads are."""

    def __init__(
        self, context: "zmq.Context[zmq.Socket[bytes]]", url: str, *, public: bytes, secret: bytes, server: bytes
    ) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.CURVE_SERVERKEY, server)
        self._socket.setsockopt(zmq.CURVE_PUBLICKEY, public)
        self._socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
        self._monitor = self._socket.get_monitor_socket(_IN | OUT)
        self._socket.connect(url)
        self.heard: list[Any] = []

    def wait_for(self, events: int) -> float:
        """Wait for one of these events of the connection; return when we heard of it, in UNIX seconds."""
        while True:
            assert self._monitor.poll(round(PATIENCE_S * 1000)), "it did not happen"
            if recv_monitor_message(self._monitor)["event"] & events:
                return time.time()

    def is_in(self) -> bool:
        """Whether the handshake succeeds; waits until that is decided."""
        while True:
            if not self._monitor.poll(round(PATIENCE_S * 1000)):
                return False
            event = recv_monitor_message(self._monitor)["event"]
            if event & (_IN | OUT):
                return bool(event == _IN)

    def say(self, *message: Any) -> None:
        """Send one message: its tag and its fields; raises `zmq.Again` when the connection is given up."""
        self._socket.send(msgspec.msgpack.encode(message), zmq.DONTWAIT)

    def hear(self, wait_s: float = PATIENCE_S) -> Any:
        """Return the next message as a list, `None` when none comes in time."""
        if not self._socket.poll(round(wait_s * 1000)):
            return None
        self.heard.append(msgspec.msgpack.decode(self._socket.recv()))
        return self.heard[-1]

    def hear_until(self, tag: str) -> Any:
        """Return the next message with this tag."""
        while (message := self.hear()) is not None:
            if message[0] == tag:
                return message
        raise AssertionError(f"no {tag} came, but {self.heard}")

    def has_events(self) -> bool:
        """Whether something has happened to the connection since the last look."""
        return bool(self._monitor.poll(0))

    def close(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)


class Chatter:
    """Sends a row every few milliseconds from a thread of its own, come what may."""

    def __init__(self, client: IndependentClient) -> None:
        self._client = client
        self._stop = threading.Event()
        self.sent: list[float] = []
        """When each row was sent, UNIX seconds; the first is number 1."""
        self.acknowledged = 0
        self.is_cut_off = False
        """Whether there is nobody any more to send to."""
        client.say("hello", 1, "chatter", "first", 1.0)
        client.hear_until("welcome")
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            now = time.time()
            try:
                self._client.say("s", len(self.sent) + 1, [[now, len(self.sent) + 1]])
                self.sent.append(now)
            except zmq.Again:
                self.is_cut_off = True
            while (message := self._client.hear(0.0)) is not None:
                if message[0] == "ack":
                    self.acknowledged = message[1]

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
