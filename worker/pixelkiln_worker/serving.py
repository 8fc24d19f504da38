"""What a worker serves, and how it says why it ended: known to the launcher and its children alike."""

from __future__ import annotations

import socket

from pixelkiln_shared.catalogue import Catalogue, ModelEntry
from pixelkiln_shared.jobs import SPEC_VERSION, lane_suffix
from pixelkiln_shared.settings import Settings
from pixelkiln_worker.families import servable

EXIT_MISCONFIGURED = 2  # a restart would say the same
EXIT_UNAVAILABLE = 69  # Redis or the store does not answer yet
EXIT_HUNG = 70  # a forward pass never ended
EXIT_DEAF = 71  # jobs wait, and an idle worker takes none: it hears no bell, or bells bring nothing
EXIT_POISONED = 72  # the device's context is broken; a new process gets a sane one
EXIT_LOAD_HUNG = 74  # a model never ended loading; the next process leaves it alone for a while
EXIT_SWOLLEN = 75  # more memory than allowed, and nothing at hand gave any back
EXIT_DRAINED = 73  # somebody asked this worker to end: no new one is wanted

BIRTH = "_PIXELKILN_BIRTH"  # variable by which the launcher names a child; no setting, hence the underscore


def worker_id(pid: int, birth: str) -> str:
    """Return the name of a worker process in the fleet.

    Host and process id alone are not enough: containers that share a host's name count processes anew.
    """
    return f"{socket.gethostname()}-{pid}-{birth}"


def served(settings: Settings) -> dict[str, ModelEntry]:
    """Return what a worker with these settings serves, by lane.

    Raises:
        Misconfigured: the catalogue or the wished models are wrong.
    """
    catalogue = Catalogue.load(settings.catalogue, stub=settings.stub)
    entries = servable(catalogue, settings.worker_models)
    suffixes = [lane_suffix(version) for version in range(1, SPEC_VERSION + 1)]
    return {
        f"{kind}.{entry.id}{suffix}": entry
        for entry in entries
        for kind in entry.kinds
        for suffix in suffixes
    }
