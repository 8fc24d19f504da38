"""Start-up: the command's help, a worker until it is ready, a checkpoint of more than a gigabyte in memory.

The checkpoint has a real library's form and numbers without meaning. It is loaded by the code that loads
every model, in a process that has the libraries already, from a page cache that holds the file, and every
page of it is touched: a map of a file alone is no loaded model. Beside it the file is read into memory.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.results import Result, compared
from bench.stage import free_port, redis_server
from pixelkiln_shared.fleet import Fleet
from pixelkiln_shared.ledger import redis_client
from pixelkiln_shared.settings import Settings

HELP_GOAL_S = 0.2
CHANNELS = (384, 768, 1_152)  # of a U-Net with about 350 million numbers
_PAGE = mmap.PAGESIZE
_LIBRARIES = "import celery, torch, diffusers, transformers"
_PLAIN_CELERY = """
import celery, os, sys
app = celery.Celery("plain", broker=sys.argv[1])
@celery.signals.worker_ready.connect
def ready(**_): os.write(1, b"ready\\n")  # what is printed, Celery takes for its log
app.worker_main(["worker", "--pool", "threads", "--concurrency", "4", "--loglevel", "ERROR"])
"""


def run(rounds: int, full: bool) -> list[Result]:
    """Measure help, readiness and loading."""
    return [_help(rounds), *_readiness(rounds), *_loading(rounds)]


# ------------------------------------------------------------------------------------------------ the command


def _help(rounds: int) -> Result:
    _seconds("-m", "pixelkiln", "--help")  # compiles what is not compiled yet
    times = [_seconds("-m", "pixelkiln", "--help") for _ in range(3 * rounds)]
    bare = min(_seconds("-c", "pass") for _ in range(3 * rounds))
    return compared(
        "start-help",
        "seconds until `pixelkiln --help` has ended",
        [(took, HELP_GOAL_S) for took in times],
        peer_name=f"the goal of {HELP_GOAL_S} s",
        goal=1.0,
        caveat=f"of it, Python's own start and end are {bare:.3f} s (`python -c pass`)",
        less_is_better=True,
    )


def _seconds(*arguments: str) -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


# ------------------------------------------------------------------------------------------------ the worker


def _readiness(rounds: int) -> list[Result]:
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    with tempfile.TemporaryDirectory(prefix="pixelkiln-bench-") as name, redis_server(Path(name), port):
        light = [(_ready_s(Path(name), url, "classical-otsu"), _plain_celery_s(url)) for _ in range(rounds)]
        heavy = [(_ready_s(Path(name), url, "toyworld"), _seconds("-c", _LIBRARIES)) for _ in range(rounds)]
    versions = {name: version(name) for name in ("celery", "torch", "diffusers", "transformers")}
    return [
        compared(
            "start-worker",
            "seconds until a worker without networks is ready",
            light,
            peer_name="plain Celery worker",
            goal=0.5,
            caveat="ours starts a launcher that starts a child, checks Redis and the store and loads a model",
            versions=versions,
            less_is_better=True,
        ),
        compared(
            "start-worker-networks",
            "seconds until a worker with `toyworld` loaded is ready",
            heavy,
            peer_name="importing celery, torch, diffusers, transformers",
            goal=0.7,
            caveat="the peer does nothing after the imports, and leaves out what pipelines import when used",
            versions=versions,
            less_is_better=True,
        ),
    ]


def _ready_s(folder: Path, url: str, models: str) -> float:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PIXELKILN_")},
        "PIXELKILN_REDIS_URL": url,
        "PIXELKILN_STORAGE_URL": f"file://{folder}/objects",
        "PIXELKILN_WORKER_MODELS": models,
        "PIXELKILN_LOG_LEVEL": "ERROR",
    }
    with redis_client(Settings(redis_url=url)) as client, (folder / "log").open("ab") as log:
        began = time.monotonic()
        worker = subprocess.Popen(
            [sys.executable, "-m", "pixelkiln_worker"], env=environment, stdout=log, stderr=log
        )
        fleet = Fleet(client)
        try:
            while not any(info.state == "ready" for info in fleet.workers()):
                if worker.poll() is not None:
                    raise RuntimeError("the worker ended instead of becoming ready")
                time.sleep(0.01)
            return time.monotonic() - began
        finally:
            worker.terminate()
            worker.wait()


def _plain_celery_s(url: str) -> float:
    began = time.monotonic()
    command = [sys.executable, "-c", _PLAIN_CELERY, url]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert worker.stdout is not None
    try:
        while (line := worker.stdout.readline()) and "ready" not in line:
            pass
        return time.monotonic() - began
    finally:
        worker.terminate()
        worker.communicate()


# ------------------------------------------------------------------------------------------------ the weights


def _loading(rounds: int) -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="pixelkiln-bench-") as name:
        folder = Path(name) / "model"
        _in_a_process("write", folder)
        told = [_in_a_process("load", folder) for _ in range(rounds)]
        gigabytes = told[0]["bytes"] / 1e9
    hashed, passed = (min(one[name] for one in told) for name in ("hash_s", "pass_s"))
    versions = {name: version(name) for name in ("torch", "diffusers", "safetensors")}
    caveat = (
        f"{gigabytes:.2f} GB in fp32, loaded at that dtype on the CPU, page cache warm; its SHA-256 alone "
        f"takes {hashed:.2f} s; a worker then runs one step, to see that the numbers are finite, which takes "
        f"another {passed:.2f} s"
    )
    return [
        compared(
            f"start-{name}",
            what,
            [(gigabytes / one[field], gigabytes / one["read_s"]) for one in told],
            peer_name="read() of the file into memory",
            goal=0.8,
            caveat=caveat,
            versions=versions,
        )
        for name, field, what in (
            ("load", "load_s", "GB/s of a checkpoint loaded for the first time in a process, with its hash"),
            ("reload", "reload_s", "GB/s of the same loaded again, after it was evicted"),
        )
    ]


def _in_a_process(verb: str, folder: Path) -> dict[str, Any]:
    script = f"from bench import startup; startup.{verb}({str(folder)!r})"
    told = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return found


def write(folder: str) -> None:
    """Write the checkpoint as the library does; in a process of its own, which gives its memory back."""
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    with torch.device("meta"):  # no time is spent on random numbers that are overwritten
        network = UNet2DModel(
            sample_size=64,
            block_out_channels=CHANNELS,
            down_block_types=("DownBlock2D",) * 3,
            up_block_types=("UpBlock2D",) * 3,
            layers_per_block=2,
        )
    network.to_empty(device="cpu")
    for tensor in network.parameters():
        torch.nn.init.uniform_(tensor.data, -0.02, 0.02)
    DDPMPipeline(unet=network, scheduler=DDPMScheduler()).save_pretrained(folder)
    for path in Path(folder).rglob("*"):
        os.utime(path, (time.time() - 60,) * 2)
    print(json.dumps({}))


def load(folder: str) -> None:
    """Read, hash and load the checkpoint, and print how long each took, in seconds."""
    from pixelkiln_shared.catalogue import ModelEntry
    from pixelkiln_shared.kinds import Kind
    from pixelkiln_worker import device, families
    from pixelkiln_worker.families import pipelines

    entry = ModelEntry(
        id="big", family="unconditional", kinds=(Kind.GENERATE,), title="big", source=folder, prompt="ignored"
    )
    families.family(entry)
    cpu = device.pick(Settings(device="cpu"))
    [path] = Path(folder).rglob("*.safetensors")
    _read_s(path)
    facts: dict[str, float] = {"bytes": path.stat().st_size}
    facts["read_s"] = min(_read_s(path) for _ in range(3))
    facts["hash_s"] = _hash_s(path)
    time.sleep(max(0.0, path.stat().st_ctime + 3.0 - time.time()))  # a younger file is hashed again each time
    for name in ("load_s", "reload_s"):
        began = time.monotonic()
        opened = pipelines.open_folder(entry, cpu, pipelines.one_of("DDPMPipeline"))
        for tensor in opened.base.unet.parameters():
            tensor.view(-1)[:: _PAGE // tensor.element_size()].sum()
        facts[name] = time.monotonic() - began
        opened.close()
        del opened, tensor
    began = time.monotonic()
    families.load(entry, cpu)
    facts["pass_s"] = time.monotonic() - began - facts["reload_s"]
    print(json.dumps(facts))


def _read_s(path: Path) -> float:
    began = time.monotonic()
    with path.open("rb", buffering=0) as file:
        file.readall()
    return time.monotonic() - began


def _hash_s(path: Path) -> float:
    import hashlib

    began = time.monotonic()
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")
    return time.monotonic() - began
