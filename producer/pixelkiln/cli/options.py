"""Options that several commands share, and the client they all use."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pixelkiln.client import Client

F = TypeVar("F", bound=Callable[..., Any])
_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


class Duration(click.ParamType[float]):
    """A time such as `90`, `90s`, `10m` or `2h`; seconds inside."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse, or fail as wrong usage."""
        if isinstance(value, int | float):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", value)
        if match is None:
            self.fail(f"{value!r} is not a time such as 90s, 10m or 2h", param, ctx)
        return float(match[1]) * _UNITS_S[match[2]]


class Words(click.ParamType[list[str]]):
    """Words or phrases with commas between them."""

    name = "words"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        """Split, without the blanks around each."""
        parts = value.split(",") if isinstance(value, str) else value
        return [part.strip() for part in parts if part.strip()]


class Pair(click.ParamType[tuple[str, str]]):
    """A `NAME=VALUE`."""

    name = "name=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Parse, or fail as wrong usage."""
        if isinstance(value, tuple):
            return value
        name, equals, rest = value.partition("=")
        if not (name and equals):
            self.fail(f"{value!r} is not of the form NAME=VALUE", param, ctx)
        return name, rest


class Numbers(click.ParamType[tuple[float, ...]]):
    """A fixed number of comma-separated numbers."""

    name = "numbers"

    def __init__(self, count: int) -> None:
        self.count = count

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Parse, or fail as wrong usage."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != self.count:
            self.fail(f"{value!r} is not {self.count} numbers separated by commas", param, ctx)
        return numbers


def _remember_json(ctx: click.Context, _param: click.Parameter, value: bool) -> bool:
    ctx.meta["pixelkiln.json"] = value
    return value


def output_options(command: F) -> F:
    """Add `--json` and `-q`."""
    command = click.option(
        "--json", "as_json", is_flag=True, callback=_remember_json, is_eager=True, help="Print JSON."
    )(command)
    return click.option("-q", "--quiet", is_flag=True, help="Print ids only, one per line.")(command)


def wait_options(command: F) -> F:
    """Add `--wait` and `--timeout`."""
    command = click.option("--timeout", type=Duration(), help="Give up waiting after this time (90s, 10m).")(
        command
    )
    return click.option("--wait", "wait", is_flag=True, help="Wait until the work is done.")(command)


def _told(_ctx: click.Context, _param: click.Parameter, url: str | None) -> dict[str, str] | None:
    return None if url is None else {"url": url}


def job_options(command: F) -> F:
    """Add the envelope's options."""
    command = click.option(
        "--webhook", metavar="URL", callback=_told, help="Tell this URL when the work has ended."
    )(command)
    command = click.option(
        "--priority", type=click.Choice(["interactive", "standard", "bulk"]), help="Class of service."
    )(command)
    return click.option("--label", "tags", type=Pair(), multiple=True, help="A tag KEY=VALUE; repeatable.")(
        command
    )


def connect(ctx: click.Context) -> Client:
    """Return the client, closed when the command ends."""
    from pixelkiln.client import Client

    client = Client(ctx.meta.get("pixelkiln.url"))
    ctx.call_on_close(client.close)
    return client


def literal(value: str) -> str | int | float | bool:
    """Read an option's value as what it looks like: a number, true or false, else text."""
    if value.lower() in {"true", "false"}:
        return value.lower() == "true"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
