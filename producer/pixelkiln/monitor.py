"""Flower on Pixelkiln's queues: `pixelkiln monitor`, or `python -m pixelkiln.monitor` in a container.

Flower shows what Celery knows: worker processes, the bells in each queue, firings with their batch size. It
never sees a job record, so it could not change one; its control buttons are off (`--read_only`) all the same.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import sys

import click

from pixelkiln_shared.errors import Misconfigured, PixelkilnError

# A firing can outlast Flower's default buckets, which end at 10 s.
BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
GENERATED_BYTES = 18


def run(
    *, host: str = "127.0.0.1", port: int = 5_555, user: str = "pixelkiln", password: str | None = None
) -> int:
    """Serve Flower until a signal stops it; returns the exit status.

    Args:
        host: address to listen on. Beyond loopback a password must be given.
        port: TCP port; 0 lets the system choose.
        user: name for HTTP basic authentication.
        password: left out: one is generated and printed once, on standard error.

    Raises:
        Misconfigured: Flower is not installed, or the address, user or password cannot be used.
    """
    if password is None and not _is_loopback(host):
        raise Misconfigured(f"listening on {host} needs a password of your own: set FLOWER_PASSWORD")
    credentials = _credentials(user, password or secrets.token_urlsafe(GENERATED_BYTES))
    try:
        import flower  # noqa: F401 - Celery finds the command by its entry point
    except ImportError as error:
        raise Misconfigured("Flower is not installed; `pip install pixelkiln[monitor]` adds it") from error
    from pixelkiln_shared.bells import lane_queue, make_app
    from pixelkiln_shared.catalogue import Catalogue
    from pixelkiln_shared.settings import settings

    app = make_app(settings())
    # Flower asks live workers which queues there are; without one it would know none.
    lanes = Catalogue.load(settings().catalogue, stub=settings().stub).lanes
    app.conf.task_queues = [lane_queue(lane) for lane in lanes]
    if password is None:
        click.echo(f"user and password for this run: {credentials}", err=True)
    click.echo(f"monitor: http://{host}:{port}", err=True)
    return int(app.start(argv=_arguments(host, port, credentials)) or 0)


def _arguments(host: str, port: int, credentials: str) -> list[str]:
    """Return the arguments Flower parses itself; they never reach the process list."""
    return [
        "flower",
        f"--address={host}",
        f"--port={port}",
        f"--basic_auth={credentials}",
        "--read_only=True",
        "--enable_events=True",
        "--natural_time=False",
        f"--task_runtime_metric_buckets={','.join(map(str, BUCKETS_S))}",
    ]


def _credentials(user: str, password: str) -> str:
    """Return `user:password` as Flower compares it: ASCII, and a comma would start a second pair.

    Raises:
        Misconfigured: Flower could not take it.
    """
    if not user or not password:
        raise Misconfigured("the monitor's user and password must not be empty")
    for what, value, forbidden in (("user", user, ",:"), ("password", password, ",")):
        if not (value.isascii() and value.isprintable()) or set(value) & set(forbidden):
            raise Misconfigured(f"the monitor's {what} must be printable ASCII without any of {forbidden!r}")
    return f"{user}:{password}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@click.command("monitor")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=5_555, show_default=True, type=click.IntRange(0, 65_535))
@click.option("--user", default="pixelkiln", show_default=True, envvar="FLOWER_USER")
def command(host: str, port: int, user: str) -> None:
    """Start Flower, read-only, on the queues of PIXELKILN_REDIS_URL.

    FLOWER_PASSWORD gives the password (an option would show it in the process list); left out, one is
    generated and printed once.
    """
    try:
        sys.exit(run(host=host, port=port, user=user, password=os.environ.get("FLOWER_PASSWORD") or None))
    except PixelkilnError as error:
        raise click.ClickException(error.message) from error


if __name__ == "__main__":
    command()
