"""`python -m pixelkiln_worker.models verify|pull|bench`, started by `pixelkiln models`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pixelkiln_shared import logs
from pixelkiln_shared.catalogue import Catalogue, ModelEntry
from pixelkiln_shared.errors import PixelkilnError
from pixelkiln_shared.settings import Settings, load


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns 0, 1 when a model is bad, 2 when asked for what cannot be."""
    asked = _parser().parse_args(arguments)
    try:
        settings = load()
        _hush()
        return _do(asked, settings, Catalogue.load(settings.catalogue, stub=settings.stub))
    except PixelkilnError as error:
        print(f"Error: {error.message}", file=sys.stderr)
        return 2 if error.code == "unknown_model" or error.code == "misconfigured" else 1


def _do(asked: argparse.Namespace, settings: Settings, catalogue: Catalogue) -> int:
    if asked.command == "verify":
        from pixelkiln_worker.models.verify import verify

        entries = [catalogue.get(name) for name in asked.ids] or list(catalogue)
        return 0 if verify(entries, settings if asked.load else None) else 1
    entry: ModelEntry = catalogue.get(asked.id)
    if asked.command == "pull":
        os.environ["HF_HUB_OFFLINE"] = "0"  # before the hub's library is imported, which reads it once
        from pixelkiln_worker.models.pull import pull

        pull(entry, asked.write)
        return 0
    from pixelkiln_worker.models.bench import bench, report

    sizes = [int(part) for part in asked.batch.split(",")]
    report(bench(entry, settings, sizes, asked.steps), as_json=asked.json)
    return 0


def _hush() -> None:
    """Keep the libraries quiet, what matters is printed; and as in a worker, waiting threads sleep."""
    logs.configure(load(log_level="CRITICAL"))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pixelkiln_worker.models")
    commands = parser.add_subparsers(dest="command", required=True)
    verify = commands.add_parser("verify")
    verify.add_argument("ids", nargs="*")
    verify.add_argument("--load", action="store_true")
    pull = commands.add_parser("pull")
    pull.add_argument("id")
    pull.add_argument("--write", type=Path)
    bench = commands.add_parser("bench")
    bench.add_argument("id")
    bench.add_argument("--batch", default="1,2,4,8")
    bench.add_argument("--steps", type=int)
    bench.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
