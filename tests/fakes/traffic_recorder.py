"""A relay that writes down what passes, byte by byte, in both directions."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class Tap:
    """Listens at `url` and forwards to `target`; its sockets are where the thread that makes it is."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.said: list[bytearray] = []
        """What came from each client, by connection."""
        self.answered: list[bytearray] = []
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._serve)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in list(self._threads):
            thread.join(20)
            assert not thread.is_alive(), "the tap outlives its test"

    def _start(self, target: object, *arguments: object) -> None:
        assert callable(target)
        self._threads.append(threading.Thread(target=target, args=arguments))
        self._threads[-1].start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                self.said.append(bytearray())
                self.answered.append(bytearray())
                self._start(self._pass, near, far, self.said[-1])
                self._start(self._pass, far, near, self.answered[-1])

    def _pass(self, source: socket.socket, sink: socket.socket, record: bytearray) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                record += piece
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)
