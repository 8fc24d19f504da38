"""Receivers of webhooks on loopback: real servers that answer as they are told, and note what they got."""

from __future__ import annotations

import socket
import socketserver
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


def status(code: int, *headers: str) -> bytes:
    """An answer without a body."""
    lines = [f"HTTP/1.1 {code} As told", "Content-Length: 0", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


@dataclass
class Got:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)


class Receiver(socketserver.ThreadingTCPServer):
    """Answers each request with the next of `answers`, the last one again and again.

    An answer is bytes to send; or "reset", "never", "endless" (a body without end), "silent" (connection
    closed without a word).
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, *answers: bytes | str, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.answers = list(answers) or [OK]
        self.got: list[Got] = []
        self.connections = 0
        self.sent_bytes = 0
        self.closing = threading.Event()
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}/hook"

    def answer_to(self, got: Got) -> bytes | str:
        """Return what to answer a request."""
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def wait_for(self, count: int, *, within_s: float = 20.0) -> list[Got]:
        """Wait until so many requests have come, and return all."""
        deadline = time.monotonic() + within_s
        while len(self.got) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(self.got) >= count, f"{len(self.got)} of {count} requests came"
        return list(self.got)

    def get_request(self) -> tuple[Any, Any]:
        """Accept, with a handshake where it speaks TLS."""
        connection, address = super().get_request()
        return (self._tls.wrap_socket(connection, server_side=True) if self._tls else connection), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that hang up are what is tested."""


class _Handler(socketserver.StreamRequestHandler):
    server: Receiver

    def handle(self) -> None:
        self.server.connections += 1
        line = self.rfile.readline().decode()
        headers: dict[str, str] = {}
        while (text := self.rfile.readline().decode().strip()) != "":
            name, _, value = text.partition(":")
            headers[name.lower()] = value.strip()
        body = self.rfile.read(int(headers.get("content-length", 0)))
        got = Got(path=line.split(" ")[1], headers=headers, body=body)
        self.server.got.append(got)
        self._answer(self.server.answer_to(got))

    def _answer(self, answer: bytes | str) -> None:
        if isinstance(answer, bytes):
            self.wfile.write(answer)
        elif answer == "reset":
            linger = struct.pack("ii", 1, 0)
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.request.close()
        elif answer == "never":
            self.server.closing.wait(60)
        elif answer == "endless":
            with suppress(OSError):
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
                while not self.server.closing.is_set():
                    self.wfile.write(b"x" * 65_536)
                    self.server.sent_bytes += 65_536


@contextmanager
def receiving(*answers: bytes | str, port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Run a receiver."""
    receiver = Receiver(*answers, port=port, tls=tls)
    with serving(receiver):
        yield receiver


@contextmanager
def serving(receiver: Receiver) -> Iterator[None]:
    """Let a receiver answer, and close it afterwards."""
    thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        receiver.closing.set()
        receiver.shutdown()
        receiver.server_close()
        thread.join()
