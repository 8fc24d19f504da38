"""The proxies do to a connection what they say, and nothing when told to pass."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.chaos.proxy import CUT_BYTES, LATENCY_S, Mode, S3Proxy, TcpProxy

BODY = bytes(range(256)) * 40


class Objects(BaseHTTPRequestHandler):
    """Answers every GET with the same body, and every PUT after reading it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(BODY)

    def do_PUT(self) -> None:
        length = int(self.headers["Content-Length"])
        self.answer(str(len(self.rfile.read(length))).encode())

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Objects) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made.server_port
        made.shutdown()
        thread.join()


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    threading.Thread(target=reflect, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


def reflect(connection: socket.socket) -> None:
    with contextlib.suppress(OSError), connection:
        while data := connection.recv(1 << 16):
            connection.sendall(data)


def exchange(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        return exchange_on(connection, data)


def exchange_on(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    got = b""
    while len(got) < len(data) and (more := connection.recv(1 << 16)):
        got += more
    return got


def test_a_proxy_that_passes_changes_nothing(echo: int) -> None:
    with TcpProxy(echo) as proxy:
        assert exchange(proxy.port, BODY) == BODY


@pytest.mark.parametrize("mode", [Mode.REFUSE, Mode.RESET])
def test_new_connections_are_reset(echo: int, mode: Mode) -> None:
    with TcpProxy(echo) as proxy:
        proxy.mode = mode
        with pytest.raises(ConnectionResetError):
            exchange(proxy.port, b"hello")


def test_a_reset_ends_old_connections_and_a_refusal_does_not(echo: int) -> None:
    with TcpProxy(echo) as proxy, socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as old:
        assert exchange_on(old, b"one") == b"one"
        proxy.mode = Mode.REFUSE
        assert exchange_on(old, b"two") == b"two"
        proxy.mode = Mode.RESET
        with pytest.raises(ConnectionResetError):
            old.recv(1)


def test_a_black_hole_swallows_and_closes_nothing(echo: int) -> None:
    with TcpProxy(echo) as proxy, socket.create_connection(("127.0.0.1", proxy.port), timeout=0.3) as held:
        proxy.mode = Mode.BLACK_HOLE
        held.sendall(b"hello")
        with pytest.raises(TimeoutError):
            held.recv(1)


def test_a_forgotten_connection_is_dead_and_a_new_one_is_not(echo: int) -> None:
    with TcpProxy(echo) as proxy, socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as old:
        assert exchange_on(old, b"x") == b"x"
        proxy.forget()
        old.sendall(b"x")
        old.settimeout(0.3)
        with pytest.raises(TimeoutError):
            old.recv(1)
        assert exchange(proxy.port, b"y") == b"y"


def test_latency_delays_both_ways(echo: int) -> None:
    with TcpProxy(echo) as proxy:
        proxy.mode = Mode.LATENCY
        began = time.monotonic()

        assert exchange(proxy.port, b"hello") == b"hello"
        assert time.monotonic() - began >= 2 * LATENCY_S


def test_a_cut_lets_so_many_bytes_pass(echo: int) -> None:
    with TcpProxy(echo) as proxy:
        proxy.mode = Mode.CUT

        with contextlib.suppress(ConnectionResetError):
            assert len(exchange(proxy.port, BODY)) <= CUT_BYTES


def test_an_s3_proxy_without_faults_passes_calls_on(server: int) -> None:
    with S3Proxy(server, seed=1, share=0.0) as proxy:
        assert [call(proxy.port, "GET"), call(proxy.port, "PUT", BODY)] == [BODY, str(len(BODY)).encode()]
        assert (proxy.calls, proxy.faults) == (2, 0)


def test_an_s3_proxy_spoils_every_call_when_told(server: int) -> None:
    with S3Proxy(server, seed=1, share=1.0, slow_s=0.01) as proxy:
        came = [call(proxy.port, "GET") for _ in range(40)]

        assert proxy.faults == 40
        assert {500, 503, "cut", BODY} == set(came)  # what was slow came whole


def test_a_store_that_is_away_takes_no_call(server: int) -> None:
    with S3Proxy(server, seed=1, share=0.0) as proxy:
        proxy.away = True
        came = [call(proxy.port, "GET", timeout_s=0.3) for _ in range(6)]
        proxy.away = False

        assert set(came) == {503, "cut"}
        assert call(proxy.port, "GET") == BODY


def test_a_seed_spoils_the_same_calls_again(server: int) -> None:
    runs = []
    for _ in range(2):
        with S3Proxy(server, seed=5, share=0.5, slow_s=0.0) as proxy:
            runs.append([call(proxy.port, "PUT", BODY) for _ in range(30)])

    assert runs[0] == runs[1]


def call(port: int, method: str, body: bytes | None = None, timeout_s: float = 5.0) -> bytes | int | str:
    """The body of a good answer, the status of another, or `cut`, also where none came in time."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request(method, "/bucket/key", body=body)
        answer = connection.getresponse()
        read = answer.read()
        return read if answer.status == 200 else answer.status
    except (http.client.HTTPException, ConnectionError, TimeoutError):
        return "cut"
    finally:
        connection.close()
