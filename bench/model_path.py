"""The whole path of real models beside the bare batched loop over the same jobs.

The loop runs in a process of its own, so that neither side warms anything up for the other, with the same
device and number of threads. Both do the same jobs in batches of the same size; while one is measured, the
other waits for input.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.results import machine
from bench.stage import TENANT, Stage
from pixelkiln_shared.catalogue import ModelEntry
from pixelkiln_shared.jobs import JobSpec, Result
from pixelkiln_shared.keys import new_id
from pixelkiln_shared.kinds import INPUTS, Kind, ObjectRef, Role
from pixelkiln_shared.storage import open_storage

PATIENCE_S = 900.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    """What is measured at a time: `stages` are the jobs of each model, in step; `files` what the first reads.

    With two stages, job for job, the second works on the picture of the first.
    """

    name: str
    stages: tuple[tuple[JobSpec, ...], ...]
    files: tuple[Path, ...] = ()

    @property
    def specs(self) -> list[JobSpec]:
        """All jobs, those of the first stage first."""
        return [spec for stage in self.stages for spec in stage]


class BareLoop:
    """The process of `bench.bare_loop`."""

    def __init__(self, process: subprocess.Popen[str], orders: IO[str], answers: IO[str]) -> None:
        self.pid = process.pid
        self._orders, self._answers = orders, answers

    def seconds(self, mix: Mix) -> float:
        """Let the loop do the jobs; return how long it took.

        Raises:
            RuntimeError: the process ended; standard error says why.
        """
        stages = [[spec.model_dump(mode="json") for spec in stage] for stage in mix.stages]
        self._orders.write(json.dumps({"stages": stages, "pictures": list(map(str, mix.files))}) + "\n")
        self._orders.flush()
        answer = self._answers.readline()
        if not answer:
            raise RuntimeError("the bare loop ended early")
        return float(json.loads(answer)["seconds"])


@contextmanager
def bare_loop(environment: Mapping[str, str]) -> Iterator[BareLoop]:
    """Start the process with more settings as variables; it ends with the context."""
    command = [sys.executable, "-W", "ignore", "-m", "bench.bare_loop"]
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parents[1],
        env={**os.environ, **environment},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield BareLoop(process, process.stdin, process.stdout)
    finally:
        process.stdin.close()
        process.wait(PATIENCE_S)
        process.stdout.close()


# --------------------------------------------------------------------------------------------------- jobs


def generate_jobs(entry: ModelEntry, count: int, **given: object) -> tuple[JobSpec, ...]:
    """Return jobs that may share batches: the model's example prompts in turn, its defaults, PNG."""
    prompts = entry.example_prompts or ("a house on a hill",)
    shape = {"steps": 1, "guidance": 1.0, "count": 1, "format": "png"} | dict(entry.defaults) | given
    return tuple(
        _spec(Kind.GENERATE, entry, {"prompt": prompts[index % len(prompts)], "seed": index, **shape})
        for index in range(count)
    )


def segment_jobs(entry: ModelEntry, images: Sequence[ObjectRef], count: int) -> tuple[JobSpec, ...]:
    """Return jobs for stored pictures, in turn."""
    refs = [images[index % len(images)].model_dump(mode="json") for index in range(count)]
    return tuple(_spec(Kind.SEGMENT, entry, {"image": ref}) for ref in refs)


def segment_results(entry: ModelEntry, parents: Sequence[JobSpec]) -> tuple[JobSpec, ...]:
    """Return jobs for the pictures that other jobs will make."""
    return tuple(
        _spec(Kind.SEGMENT, entry, {"image": {"job": parent.id, "role": "image"}}) for parent in parents
    )


def renewed(mix: Mix) -> Mix:
    """Return the same jobs under new ids, to be done again."""
    names = {spec.id: new_id("job") for spec in mix.specs}
    return Mix(
        name=mix.name,
        stages=tuple(tuple(_again(spec, names) for spec in stage) for stage in mix.stages),
        files=mix.files,
    )


def _again(spec: JobSpec, names: Mapping[str, str]) -> JobSpec:
    image = spec.input.get("image") or {}
    given = spec.input | ({"image": image | {"job": names[image["job"]]}} if "job" in image else {})
    return spec.model_copy(update={"id": names[spec.id], "input": given})


def _spec(kind: Kind, entry: ModelEntry, given: Mapping[str, object]) -> JobSpec:
    known = INPUTS[kind].model_fields
    fields = {name: value for name, value in given.items() if name in known}
    return JobSpec(id=new_id("job"), kind=kind, model=entry.id, tenant=TENANT, input=fields)


def stored_pictures(
    ready: Stage, specs: Sequence[JobSpec], folder: Path
) -> tuple[list[ObjectRef], list[Path]]:
    """Return the pictures that finished jobs stored, as references and as copies in a folder."""
    storage = open_storage(ready.settings)
    refs: list[ObjectRef] = []
    files: list[Path] = []
    for record in ready.ledger.get_many([spec.id for spec in specs]):
        if record is None or record.result is None:
            raise RuntimeError("a job of the benchmark has no result")
        result = Result.model_validate_json(record.result)
        artifact = next(one for one in result.artifacts if one.role is Role.IMAGE)
        width, height = artifact.width or 0, artifact.height or 0
        refs.append(ObjectRef(object=artifact.key, sha256=artifact.sha256, width=width, height=height))
        files.append(folder / f"{len(files)}.png")
        files[-1].write_bytes(storage.get(artifact.key))
    return refs, files


# ------------------------------------------------------------------------------------------------ measuring


def ours_s(ready: Stage, mix: Mix) -> float:
    """Let the worker do the jobs; return the seconds from the first bell to the last publish."""
    ready.submit(mix.specs)
    began = time.time()
    ready.ring(mix.stages[0][0].lane, len(mix.stages[0]))
    records = ready.wait([spec.id for spec in mix.specs], limit_s=PATIENCE_S)
    return max(record.completed_at or 0.0 for record in records) - began


def warm(ready: Stage, loop: BareLoop, mix: Mix) -> None:
    """Do the jobs once on both sides: loading and the first sight of a shape count for neither."""
    loop.seconds(mix)
    ours_s(ready, renewed(mix))


def paired(ready: Stage, loop: BareLoop, mix: Mix, rounds: int) -> list[tuple[float, float]]:
    """Return `(ours, bare)` of each round, in the mix's jobs a second; a pipeline of two jobs counts once."""
    jobs = len(mix.stages[0])
    pairs = []
    for number in range(rounds):
        bare = jobs / loop.seconds(mix)
        cpu_s, began = ready.cpu_s(), time.monotonic()
        ours = jobs / ours_s(ready, renewed(mix))
        cores = (ready.cpu_s() - cpu_s) / (time.monotonic() - began)
        load = machine().partition("load ")[2].partition(",")[0]
        print(
            f"{mix.name}, round {number + 1}: bare {bare:.2f}/s, ours {ours:.2f}/s, ratio {ours / bare:.3f}, "
            f"worker used {cores:.2f} cores, load {load}",
            file=sys.stderr,
        )
        pairs.append((ours, bare))
    return pairs
