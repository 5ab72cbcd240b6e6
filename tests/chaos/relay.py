"""A TCP relay between collectors and an uploader that resets, holds back or delays what passes through it."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable

from fakes.background_thread import BackgroundThread

from chaos.traffic_recorder import Conversation, TrafficRecorder

_CHUNK_BYTES = 1 << 16


class Relay(BackgroundThread):
    """Listens on a loopback port of its own and forwards to `target_port`; `with` starts and stops it.

    Without a recorder (encrypted traffic) nothing is recorded. The methods may be called from any thread.
    `connections` counts what was accepted; `cut`, `held` and `delayed` count the connections that were reset and the
    pieces of data that met a black hole or latency.
    """

    def __init__(self, target_port: int, recorder: TrafficRecorder | None, *, target_host: str = "127.0.0.1") -> None:
        self._recorder = recorder
        self._target_port = target_port
        self._target_host = target_host
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"tcp://127.0.0.1:{self.port}"
        self.connections = self.cut = self.held = self.delayed = 0
        self._latency_s = 0.0
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._stop = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def work(self) -> None:
        """Pass on what comes."""
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    def end(self) -> None:
        """Cut every connection and listen no more."""
        self._call(self._stop.set)

    def reset(self) -> None:
        """Cut every connection with RST."""
        self._call(self._reset)

    def hold(self) -> None:
        """Be a black hole: connections stay open and nothing passes, until `release`."""
        self._call(self._open.clear)

    def release(self) -> None:
        """Let everything pass again, what was held back first."""
        self._call(self._open.set)

    def forget(self) -> None:
        """Be a black hole for the connections of now, for ever, as a NAT that has lost its table; new ones pass."""
        self._call(self._forget)

    def delay(self, latency_s: float) -> None:
        """Add so many seconds to the way of each piece of data; 0 ends it."""
        self._call(lambda: setattr(self, "_latency_s", latency_s))

    def _reset(self) -> None:
        self.cut += len(self._writers)
        self._abort_all()

    def _forget(self) -> None:
        self._open.clear()
        self._open = asyncio.Event()
        self._open.set()

    def _call(self, action: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(action)

    async def _serve(self) -> None:
        self._open.set()
        server = await asyncio.start_server(self._accepted, sock=self._listener)
        await self._stop.wait()
        server.close()
        self._abort_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # Aborted transports close in the loop's next round.
        await asyncio.sleep(0)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            # A reset, a peer that is not there, and the relay's own end all leave the same: two closed sockets.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._join(reader, writer)
        finally:
            self._tasks.discard(task)
            self._drop(writer)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gate = self._open
        await gate.wait()
        far_reader, far_writer = await asyncio.open_connection(self._target_host, self._target_port)
        self._writers.add(far_writer)
        said, answered = _unheard, _unheard
        if self._recorder is not None:
            conversation = Conversation(self._recorder, self._target_port)
            said, answered = conversation.said, conversation.answered
        directions = [
            asyncio.ensure_future(self._forward(reader, far_writer, said, gate)),
            asyncio.ensure_future(self._forward(far_reader, writer, answered, gate)),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            self._drop(far_writer)

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        overhear: Callable[[bytes], None],
        gate: asyncio.Event,
    ) -> None:
        while piece := await reader.read(_CHUNK_BYTES):
            overhear(piece)
            if self._latency_s:
                self.delayed += 1
                await asyncio.sleep(self._latency_s)
            self.held += not gate.is_set()
            await gate.wait()
            writer.write(piece)
            await writer.drain()

    def _abort_all(self) -> None:
        for writer in list(self._writers):
            self._drop(writer)

    def _drop(self, writer: asyncio.StreamWriter) -> None:
        if writer not in self._writers:
            return
        self._writers.discard(writer)
        # With a linger time of zero, closing sends RST.
        with contextlib.suppress(OSError):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


def _unheard(piece: bytes) -> None:
    """Listen to nothing."""
