"""`up` and `open`. (`monitor` is a command of its own module.)"""

from __future__ import annotations

from pathlib import Path

import click

from pixelkiln import monitor


@click.command()
@click.option(
    "--data", type=click.Path(path_type=Path), default=Path("pixelkiln-data"), show_default=True,
    help="Everything is kept in this folder.",
)  # fmt: skip
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=8_700, show_default=True, help="0: any free one."
)
@click.option("--workers", type=click.IntRange(0, 64), default=1, show_default=True, help="Worker launchers.")
def up(data: Path, port: int, workers: int) -> None:
    """Run everything here: Redis, the API and workers, until Ctrl-C.

    Uses the Redis of PIXELKILN_REDIS_URL or REDIS_URL, or starts one of its own.
    """
    from pixelkiln import local

    raise click.exceptions.Exit(local.run(data, port=port, workers=workers))


@click.command(name="open")
@click.pass_context
def open_page(ctx: click.Context) -> None:
    """Open the server's page in a browser."""
    import webbrowser

    from pixelkiln.cli.options import connect

    url = connect(ctx).url
    click.echo(url)
    webbrowser.open(url)


COMMANDS = {"up": up, "monitor": monitor.command, "open": open_page}
