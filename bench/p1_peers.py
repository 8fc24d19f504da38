"""P1 beside the field: the same stub device and pictures, one worker process, for peers that can do it.

The device does one batch at a time: 40 ms and 5 ms a picture. Who makes one job a task pays the 40 ms for
every picture; who batches over HTTP pays them once for eight, but encodes while the device waits.
"""

from __future__ import annotations

from bench.peers.field import BENTOML, CELERY, LITSERVE, TUNED, Peer
from bench.peers.rounds import measure, rows
from bench.peers.running import ground
from bench.results import Result

PEERS = (CELERY, TUNED, LITSERVE, BENTOML)
PICTURES, FULL_PICTURES = 48, 240
GOAL_PLAIN, GOAL = 5.0, 1.0
_WARM_UP = 8
_NO_QUEUE = "It has no queue that outlives the server: what waits when it ends is lost. "


def beside(ours: list[float], *, size_px: int, rounds: int, full: bool) -> list[Result]:
    """Return a row a peer for our pictures a second; a short run measures each peer once."""
    pictures = FULL_PICTURES if full else PICTURES
    found = measure("p1", "pictures", PEERS, lambda peer: peer_per_s(peer, pictures), rounds if full else 1)
    made = []
    for peer in PEERS:
        made += rows(
            "p1",
            f"pictures a second, whole path, stub pictures of {size_px} px as PNG into a folder",
            ours,
            [peer],
            found,
            goal=lambda peer: GOAL_PLAIN if peer is CELERY else GOAL,
            caveat=f"{'' if peer.keeps else _NO_QUEUE}{pictures} pictures of the peer, as PNG of Pillow's "
            "default and stored inline; ours fills batches of 8, has a faster encoder, and encodes "
            "beside the device. The peer keeps no record, hash or manifest",
        )
    return made


def peer_per_s(peer: Peer, pictures: int) -> float:
    """Return a peer's pictures a second, from the first beginning to the last end."""
    with ground(peer, "pictures") as place, place.served():
        place.drive(0, _WARM_UP)
        place.until(_WARM_UP, limit_s=90)
        place.tally.reset()
        place.drive(_WARM_UP, pictures)
        place.until(pictures, limit_s=180)
        return pictures / place.tally.span_s
