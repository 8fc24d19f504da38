"""The `pixelkiln` command. Sub-commands live in their own modules and are imported when called.

Exit codes: 0 done, 1 a job failed or the server erred, 2 wrong usage, 3 the wait timed out, 4 no valid key,
5 no server, 130 interrupted.
"""

from __future__ import annotations

import os
from importlib import import_module

import click

from pixelkiln.cli.faults import exit_code_for

COMMANDS = {
    "generate": "make",
    "segment": "make",
    "edit": "pictures",
    "cutout": "pictures",
    "upscale": "pictures",
    "depth": "pictures",
    "stereo": "pictures",
    "classify": "pictures",
    "submit": "submit",
    "ls": "look",
    "show": "look",
    "watch": "follow",
    "wait": "follow",
    "cancel": "change",
    "retry": "change",
    "rerun": "change",
    "download": "download",
    "models": "models",
    "workers": "workers",
    "stats": "look",
    "webhooks": "webhooks",
    "keys": "keys",
    "up": "services",
    "worker": "workers",
    "monitor": "services",
    "doctor": "doctor",
    "import": "backup",
    "open": "services",
}
"""Where each command lives: a module of this package. The order is that of the help."""


class LazyCommands(click.Group):
    """A group that imports a command's module when it is asked for, and turns errors into exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, or None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"pixelkiln.cli.{COMMANDS[cmd_name]}")
        command: click.Command = module.COMMANDS[cmd_name]
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; what goes wrong becomes one line on stderr and an exit code."""
        if "NO_COLOR" in os.environ:
            ctx.color = False
        try:
            return super().invoke(ctx)
        except (click.exceptions.ClickException, click.exceptions.Exit):
            raise
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            raise click.exceptions.Exit(130) from None
        except Exception as error:
            code = exit_code_for(error, ctx)
            if code is None:
                raise
            raise click.exceptions.Exit(code) from error


@click.group(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--url", envvar="PIXELKILN_URL", help="The API's address.", show_envvar=True)
@click.version_option(package_name="pixelkiln")
@click.pass_context
def main(ctx: click.Context, url: str | None) -> None:
    """Pictures generated and segmented, one or a hundred thousand.

    Begin with `pixelkiln up` in one terminal and, in another,
    `pixelkiln generate "a red house in the snow" -o out/`.
    """
    ctx.meta["pixelkiln.url"] = url
