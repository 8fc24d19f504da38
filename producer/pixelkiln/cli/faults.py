"""From an exception to one line on stderr, the next thing to do, and an exit code."""

from __future__ import annotations

import json
import sys

import click

from pixelkiln.cli.screen import clean, hint
from pixelkiln_shared.errors import Misconfigured, PixelkilnError

FAILED, USAGE, TIMED_OUT, NO_KEY, NO_SERVER, INTERRUPTED = 1, 2, 3, 4, 5, 130


class Refused(click.ClickException):
    """The command line asks for what cannot be: one line, exit code 2."""

    exit_code = USAGE


_CHOICES = ("models", "known", "allowed")  # what a fault calls the values that would do


def exit_code_for(error: Exception, ctx: click.Context) -> int | None:
    """Report an error and return its exit code; None for a fault of our own, which deserves its traceback."""
    if isinstance(error, PixelkilnError):
        return _pixelkiln(error, as_json=bool(ctx.meta.get("pixelkiln.json")))
    if isinstance(error, BrokenPipeError):
        return FAILED
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"Error: {where}{error.strerror or error}", err=True)
        return FAILED
    return None


def _pixelkiln(error: PixelkilnError, *, as_json: bool) -> int:
    if isinstance(error, Misconfigured):
        code, advice = USAGE, ""
    elif "pixelkiln.client.errors" in sys.modules:
        code, advice = _client(error)
    else:
        code, advice = FAILED, ""
    if as_json:
        problem = getattr(error, "problem", None)
        facts = problem.model_dump() if problem else {"code": error.code, "detail": error.message}
        click.echo(json.dumps(facts))
    click.echo(f"Error: {clean(error.message)}", err=True)
    for fault in getattr(error, "errors", [])[:10]:
        if fault.get("pointer"):
            click.echo(f"  {clean(str(fault['pointer']))}: {clean(str(fault.get('detail', '')))}", err=True)
        known = next((fault[name] for name in _CHOICES if fault.get(name)), ())
        if known:
            click.echo(f"  one of: {clean(', '.join(map(str, known)))}", err=True)
    if advice:
        hint(advice)
    return code


def _client(error: PixelkilnError) -> tuple[int, str]:
    from pixelkiln.client import errors

    match error:
        case errors.WaitTimeout():
            return TIMED_OUT, "It goes on; `pixelkiln wait ID` waits again."
        case errors.AuthError(code="link_expired"):
            return FAILED, ""
        case errors.AuthError():
            return NO_KEY, "Put the API's key into PIXELKILN_API_KEY."
        case errors.ServerUnreachable():
            return NO_SERVER, "`pixelkiln up` starts a server here; PIXELKILN_URL names one elsewhere."
        case errors.NotFoundError():
            return FAILED, "`pixelkiln ls` lists your jobs."
        case errors.ValidationError(code="unknown_model"):
            return USAGE, "`pixelkiln models` lists the models."
        case errors.ValidationError():
            return USAGE, ""
        case _:
            return FAILED, ""
