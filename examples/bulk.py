"""Submit a file of prompts and save pictures as they come: `python examples/bulk.py prompts.jsonl out/`.

The file is read as it is sent, so it may be of any length. The same from the shell:
`pixelkiln submit prompts.jsonl --wait`, then `pixelkiln download GROUP -o out/`.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pixelkiln import Client


def rows(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def main(file: Path, folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    with Client() as client:
        group = client.submit_many(rows(file), name=file.stem)
        print(f"{group.id}: {group.total} jobs", file=sys.stderr)
        for job in group.as_completed(timeout_s=3_600):
            if job.status != "succeeded":
                failed += 1
                print(f"{job.id} {job.status}: {job.error.message if job.error else ''}", file=sys.stderr)
                continue
            for image in job.result().images:
                print(image.save(folder / image.filename()))
    return 1 if failed else 0


if __name__ == "__main__":
    here = Path(__file__).parent
    sys.exit(
        main(
            file=Path(sys.argv[1]) if len(sys.argv) > 1 else here / "prompts.jsonl",
            folder=Path(sys.argv[2] if len(sys.argv) > 2 else "out"),
        )
    )
