"""The guarded fetcher: which addresses it never calls, and how little of an answer it takes."""

from __future__ import annotations

import asyncio
import ipaddress
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest

from pixelkiln.fetch import (
    MAX_ANSWER_BYTES,
    AddressRefused,
    Answer,
    CallFailed,
    Fetcher,
    Guard,
    Unresolved,
    is_public,
    place_of,
)
from tests.receivers import OK, receiving, status

NO_URLS = [
    "file:///etc/passwd", "ftp://a.example/", "gopher://a.example/", "data:text/plain,x", "s3://bucket/key",
    "//a.example/x", "javascript:alert(1)", "", "http://", "http:///x", "http://a.example:0/",
    "http://a.example:65536/", "http://a.example:99999999/", "http://user:secret@a.example/",
    "http://user@a.example/", "http://a.example\\@b.example/", "http://a.example/\r\nX: y",
    "http://a b.example/",
    "http://a.example/#fragment", "http://ä.example/", "http://a.example /", " http://a.example/",
    "http://[fe80::1%25lo]/", "http://[::1", "http://a.example/\x00",
]  # fmt: skip

# The port of a listener on loopback takes the place of PORT.
PRIVATE = [
    "http://127.0.0.1:PORT/", "http://localhost:PORT/", "http://localhost.:PORT/", "http://LOCALHOST:PORT/",
    "http://a.localhost:PORT/", "http://0.0.0.0:PORT/", "http://0:PORT/", "http://2130706433:PORT/",
    "http://0x7f.1:PORT/", "http://0x7f000001:PORT/", "http://017700000001:PORT/", "http://127.1:PORT/",
    "http://127.0.0.1.:PORT/", "http://[::1]:PORT/", "http://[::]:PORT/", "http://[::ffff:127.0.0.1]:PORT/",
    "http://[::ffff:7f00:1]:PORT/", "http://[::127.0.0.1]:PORT/", "http://[64:ff9b::7f00:1]:PORT/",
    "http://[64:ff9b:1::7f00:1]:PORT/", "http://[2002:7f00:1::]:PORT/", "http://[2001:0:7f00:1::]:PORT/",
    "http://[fd00::1]:PORT/", "http://[fe80::1]:PORT/", "http://[ff02::1]:PORT/", "http://[fec0::1]:PORT/",
    "http://[2001:db8::1]:PORT/", "http://169.254.169.254/", "http://metadata.google.internal/",
    "http://100.100.100.200/", "http://168.63.129.16/", "http://10.0.0.1/", "http://172.16.0.1/", "http://172.31.255.255/",
    "http://192.168.1.1/", "http://100.64.0.1/", "http://192.0.0.1/", "http://198.18.0.1/",
    "http://224.0.0.1/", "http://239.255.255.255/", "http://240.0.0.1/", "http://255.255.255.255/",
    "http://printer.local/", "http://router.home.arpa/",
]  # fmt: skip

PUBLIC = ["8.8.8.8", "93.184.216.34", "172.15.0.1", "172.32.0.1", "100.63.0.1", "2606:4700::1111", "2a00::1"]


@pytest.mark.parametrize("url", NO_URLS)
def test_what_is_no_plain_http_url_is_refused_before_any_name_is_asked(url: str) -> None:
    guard = Guard(resolver=lambda host, port: pytest.fail("a name was asked"))
    with pytest.raises(AddressRefused):
        guard.check(url)


@pytest.mark.parametrize("url", PRIVATE)
def test_what_is_not_public_is_refused_and_never_connected_to(url: str) -> None:
    with receiving() as canary:
        here = url.replace("PORT", str(canary.server_address[1]))
        with pytest.raises(AddressRefused):
            Guard().check(here)
        with pytest.raises(AddressRefused):
            call(Guard(), here)
        assert canary.connections == 0


@pytest.mark.parametrize("address", PUBLIC)
def test_the_public_internet_may_be_called(address: str) -> None:
    assert is_public(address)
    url = f"https://[{address}]/" if ":" in address else f"https://{address}/"
    assert Guard().check(url)[1] == [address]


def test_no_address_is_public_that_the_standard_library_calls_private() -> None:
    spread = [ipaddress.ip_address(number << 12) for number in range(1 << 20)]
    wrong = [ip for ip in spread[::7] if is_public(str(ip)) and (not ip.is_global or ip.is_multicast)]
    assert wrong == []


def test_a_name_with_one_private_address_is_refused_whole() -> None:
    answers: dict[str, list[str]] = {
        "private.example": ["10.1.2.3"],
        "both.example": ["93.184.216.34", "127.0.0.1"],
        "mapped.example": ["93.184.216.34", "::ffff:127.0.0.1"],
        "nothing.example": [],
    }
    guard = Guard(resolver=lambda host, port: answers[host])
    for name in answers:
        with pytest.raises(AddressRefused) as refused:
            guard.check(f"https://{name}/hook")
        assert "10.1.2.3" not in str(refused.value)


def test_a_name_is_resolved_once_and_that_address_called() -> None:
    """The second answer of a rebinding name server would be the canary; nobody asks for it."""
    with receiving() as canary, receiving() as meant:
        asked: list[str] = []

        def rebinding(host: str, port: int) -> list[str]:
            asked.append(host)
            return ["127.0.0.1"] if len(asked) == 1 else pytest.fail("asked twice")

        port = meant.server_address[1]
        guard = Guard([f"pinned.example:{port}"], resolver=rebinding)
        assert call(guard, f"http://pinned.example:{port}/hook?a=b") == 200
        assert asked == ["pinned.example"]
        assert canary.connections == 0
        (got,) = meant.got
        assert got.headers["host"] == f"pinned.example:{port}"
        assert got.path == "/hook?a=b"


def test_an_allowed_host_is_called_wherever_it_is_and_only_at_its_port() -> None:
    with receiving() as meant, receiving() as other:
        guard = Guard([f"127.0.0.1:{meant.server_address[1]}"])
        assert call(guard, meant.url) == 200
        with pytest.raises(AddressRefused):
            call(guard, other.url)
        assert other.connections == 0
        assert call(Guard(["127.0.0.1"]), other.url) == 200


def test_a_name_server_that_is_away_is_no_refusal() -> None:
    def away(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    with pytest.raises(Unresolved):
        Guard(resolver=away).check("https://a.example/")

    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    with pytest.raises(AddressRefused):
        Guard(resolver=unknown).check("https://a.example/")


def test_a_redirect_is_an_answer_and_not_followed() -> None:
    with receiving() as canary, receiving(status(302, f"Location: {canary.url}")) as receiver:
        assert call(Guard(["127.0.0.1"]), receiver.url) == 302
        assert canary.connections == 0


def test_an_endless_answer_is_read_a_little_and_dropped() -> None:
    with receiving("endless") as receiver:
        began = time.monotonic()
        assert call(Guard(["127.0.0.1"]), receiver.url) == 200
        assert time.monotonic() - began < 10
        time.sleep(0.2)
        sent = receiver.sent_bytes
        assert sent < 200 * MAX_ANSWER_BYTES  # what the sockets' buffers took
        time.sleep(0.2)
        assert receiver.sent_bytes == sent


@pytest.mark.parametrize(
    ("answer", "word"), [("never", "timeout"), ("reset", "broken"), ("silent", "broken")]
)
def test_a_receiver_that_does_not_answer_is_a_failed_call(answer: str, word: str) -> None:
    with receiving(answer) as receiver, pytest.raises(CallFailed, match=word):
        call(Guard(["127.0.0.1"]), receiver.url, timeout_s=0.5)


def test_nobody_there_is_a_failed_call() -> None:
    with receiving() as receiver:
        url = receiver.url
    with pytest.raises(CallFailed, match="connect"):
        call(Guard(["127.0.0.1"]), url)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("0", 0), ("999999", 3_600), ("-1", 0), ("soon", 0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0)],
)
def test_a_receiver_may_ask_to_be_left_alone_for_a_while(header: str, seconds: float) -> None:
    with receiving(status(503, f"Retry-After: {header}")) as receiver:
        answer = answer_of(Guard(["127.0.0.1"]), receiver.url)
    assert (answer.status, answer.retry_after_s) == (503, seconds)


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as proxy, receiving(OK) as receiver:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        assert call(Guard(["127.0.0.1"]), receiver.url) == 200
        assert proxy.connections == 0


def test_a_url_keeps_its_parts() -> None:
    place = place_of("HTTPS://Shop.Example.:8443?x=1")
    assert (place.scheme, place.host, place.port, place.path) == ("https", "shop.example", 8443, "/?x=1")
    assert place.at("2606:4700::1111") == "https://[2606:4700::1111]:8443/?x=1"
    assert place_of("http://[2606:4700::1111]/a").authority == "[2606:4700::1111]"


def test_the_name_is_what_a_certificate_must_have(tmp_path: Path) -> None:
    """Though the connection goes to an address; and the name is what the server hears (SNI, Host)."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    names = ["-subj", "/CN=test", "-addext", "subjectAltName=DNS:right.example", "-days", "2"]
    subprocess.run([*make, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    heard: list[str | None] = []
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    server.sni_callback = lambda socket, name, context: heard.append(name)
    trusting = ssl.create_default_context(cafile=certificate)
    guard = Guard(["right.example", "wrong.example"], resolver=lambda host, port: ["127.0.0.1"])
    with receiving(tls=server) as receiver:
        port = receiver.server_address[1]
        assert call(guard, f"https://right.example:{port}/", verify=trusting) == 200
        assert receiver.got[0].headers["host"] == f"right.example:{port}"
        with pytest.raises(CallFailed, match="tls"):
            call(guard, f"https://wrong.example:{port}/", verify=trusting)
        with pytest.raises(CallFailed, match="tls"):
            call(guard, f"https://right.example:{port}/")
    assert heard == ["right.example", "wrong.example", "right.example"]
    assert len(receiver.got) == 1


def call(guard: Guard, url: str, *, timeout_s: float = 5.0, verify: ssl.SSLContext | bool = True) -> int:
    """POST once; the status."""
    return answer_of(guard, url, timeout_s=timeout_s, verify=verify).status


def answer_of(
    guard: Guard, url: str, *, timeout_s: float = 5.0, verify: ssl.SSLContext | bool = True
) -> Answer:
    """POST once; what came back."""

    async def once() -> Answer:
        fetcher = Fetcher(guard, timeout_s=timeout_s, verify=verify)
        try:
            return await fetcher.post(url, b"{}", {"Content-Type": "application/json"})
        finally:
            await fetcher.aclose()

    return asyncio.run(once())
