"""What stands between a process and its server, and spoils it: a proxy for any TCP, and one that reads S3.

Both run on an event loop in a thread of their own; `mode` may be changed at any moment from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

_CHUNK = 1 << 16
_SLOW_S = 5.0
_CLOSING_S = 0.01  # a closed transport lets go of its socket in a later turn of the loop
_HEAD_BYTES = 1 << 16


class Mode(StrEnum):
    """What a TCP proxy does with connections, those that exist and those to come."""

    PASS = "pass"
    REFUSE = "refuse"  # new connections are reset, old ones go on
    RESET = "reset"  # every connection is reset
    BLACK_HOLE = "black_hole"  # bytes vanish, nothing is closed: what half-open TCP looks like
    LATENCY = "latency"  # 200 ms each way
    THROTTLE = "throttle"  # 20 kB a second each way
    CUT = "cut"  # a connection ends after 1,000 more bytes


LATENCY_S = 0.2
THROTTLE_BYTES_S = 20_000
CUT_BYTES = 1_000


class Served:
    """An event loop in a thread with one listening socket; `port` is where to connect."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None] | None] = set()  # the loop alone would let them be collected
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Do with one connection what is to be done."""
        raise NotImplementedError

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._guarded, "127.0.0.1", 0, limit=_HEAD_BYTES)
        return int(self._server.sockets[0].getsockname()[1])

    async def _guarded(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(task := asyncio.current_task())
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                await self.serve(reader, writer)
        except asyncio.CancelledError:
            return
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(_CLOSING_S)


class TcpProxy(Served):
    """Passes bytes between its own port and the server's, as `mode` says."""

    def __init__(self, target_port: int) -> None:
        super().__init__()
        self.target_port = target_port
        self.mode = Mode.PASS
        self._forgotten = 0

    def forget(self) -> None:
        """Let every connection of now be dead for ever, and unclosed, as after a firewall lost its table."""
        self._forgotten += 1

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Open the other half and pump both ways until either ends."""
        if self.mode in (Mode.REFUSE, Mode.RESET):
            reset(writer)
            return
        there, back = await asyncio.open_connection("127.0.0.1", self.target_port)
        try:
            ways = [
                asyncio.create_task(self._pump(reader, back)),
                asyncio.create_task(self._pump(there, writer)),
            ]
            watch = asyncio.create_task(self._until_reset())
            done, left = await asyncio.wait([*ways, watch], return_when=asyncio.FIRST_COMPLETED)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, *done, return_exceptions=True)
            if watch in done:
                reset(writer)
        finally:
            back.close()

    async def _until_reset(self) -> None:
        while self.mode is not Mode.RESET:
            await asyncio.sleep(0.02)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left, known = CUT_BYTES, self._forgotten
        while data := await reader.read(_CHUNK):
            if self.mode is Mode.BLACK_HOLE or known != self._forgotten:
                continue
            if self.mode is Mode.LATENCY:
                await asyncio.sleep(LATENCY_S)
            if self.mode is Mode.THROTTLE:
                await asyncio.sleep(len(data) / THROTTLE_BYTES_S)
            if self.mode is Mode.CUT:
                data, left = data[:left], left - len(data)
            writer.write(data)
            await writer.drain()
            if left <= 0:
                return


class S3Fault(StrEnum):
    """What a call to S3 may come to."""

    NONE = "none"
    ERROR = "500"
    SLOW_DOWN = "503"
    RESET = "reset"  # before anything is answered
    SLOW = "slow"
    TRUNCATED = "truncated"  # half of the answer; of a PUT, which then did happen, none at all


_AWAY = (S3Fault.RESET, S3Fault.SLOW_DOWN, None)  # None: no answer ever


@dataclass(slots=True)
class _Call:
    """The head of one request."""

    lines: list[bytes]

    @property
    def expects(self) -> bool:
        """Whether the client waits for a word before it sends the body."""
        return any(line.lower().startswith(b"expect: 100-continue") for line in self.lines)

    @property
    def length(self) -> int:
        """How long the body is."""
        for line in self.lines:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                return int(value)
        return 0

    @property
    def head(self) -> bytes:
        """The request's head, asking for one answer on this connection."""
        kept = [line for line in self.lines if not line.lower().startswith(b"connection:")]
        return b"\r\n".join([*kept, b"Connection: close", b"", b""])


class S3Proxy(Served):
    """An HTTP proxy, one call a connection, that spoils a share of the calls, drawn from a seed.

    The n-th call of a run meets the same fault in each run of the seed. Signatures stay valid, because the
    server is told the host that the client asked for. While it is `away` every call fails: a third each is
    reset, answered 503, and never answered.
    """

    def __init__(self, target_port: int, *, seed: int, share: float, slow_s: float = _SLOW_S) -> None:
        super().__init__()
        self.target_port = target_port
        self.share = share
        self.away = False
        self.calls = 0
        self.faults = 0
        self._dice = random.Random(f"pixelkiln-s3-{seed}")
        self._slow_s = slow_s

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read one call, draw its fault, do it."""
        head = await reader.readuntil(b"\r\n\r\n")
        call, drawn = _Call(head[:-4].split(b"\r\n")), self._draw()
        fault: S3Fault | None = drawn
        if self.away:
            self.faults += 1
            fault = _AWAY[self.calls % len(_AWAY)]
        if fault is None:
            await _swallow(reader)
        elif fault is S3Fault.RESET:
            reset(writer)
        elif fault in (S3Fault.ERROR, S3Fault.SLOW_DOWN):
            await _refuse(call, fault, reader, writer)
        else:
            if fault is S3Fault.SLOW:
                await asyncio.sleep(self._slow_s)
            await self._pass_on(call, reader, writer, whole=fault is not S3Fault.TRUNCATED)

    def _draw(self) -> S3Fault:
        self.calls += 1
        spoiled, which = self._dice.random() < self.share, self._dice.randrange(1, len(S3Fault))
        self.faults += spoiled
        return list(S3Fault)[which] if spoiled else S3Fault.NONE

    async def _pass_on(
        self, call: _Call, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, whole: bool
    ) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.target_port)
        back.write(call.head)
        body = asyncio.create_task(_copy(reader, back, call.length))
        try:
            if whole:
                while data := await there.read(_CHUNK):
                    writer.write(data)
                    await writer.drain()
            else:
                if call.expects:
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                await body
                answer = await there.read()
                writer.write(answer[: len(answer) // 2])
                await writer.drain()
        finally:
            back.close()
            body.cancel()
            await asyncio.gather(body, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int) -> None:
    while length > 0 and (data := await reader.read(min(length, _CHUNK))):
        writer.write(data)
        await writer.drain()
        length -= len(data)


async def _swallow(reader: asyncio.StreamReader) -> None:
    """Take what comes and say nothing, until the client gives up."""
    while await reader.read(_CHUNK):
        continue


async def _refuse(
    call: _Call, fault: S3Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    if not call.expects:
        await reader.readexactly(call.length)
    code = "SlowDown" if fault is S3Fault.SLOW_DOWN else "InternalError"
    document = f"<Error><Code>{code}</Code><Message>the proxy says no</Message></Error>".encode()
    body = b"" if call.lines[0].startswith(b"HEAD ") else document
    head = f"HTTP/1.1 {fault} {code}\r\nContent-Length: {len(body)}\r\nContent-Type: application/xml\r\n"
    writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
    await writer.drain()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with RST instead of FIN."""
    held: socket.socket | None = writer.get_extra_info("socket")
    if held is not None:
        with contextlib.suppress(OSError):
            held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def wait_for_port(port: int, *, seconds: float = 10.0) -> None:
    """Wait until somebody listens on a port of loopback.

    Raises:
        TimeoutError: nobody did.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nobody listens on port {port}")
