"""Several processes that train one model together, each on its own core, meeting every few steps.

Between meetings each goes its own way; at a meeting all take the mean of their weights, as in Stich, "Local
SGD Converges Fast and Communicates Little" (2019). On a shared CPU this beats threads: nobody waits within
a step, and a core that another program borrows delays one meeting, not every matrix product.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn


class Peers:
    """One process of a group: `rank` 0 reports, saves and decides when to stop."""

    def __init__(self, rank: int, size: int, meet_every: int = 16) -> None:
        self.rank = rank
        self.size = size
        self.meet_every = meet_every

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace `tensors` in every process by their mean over the group."""
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = torch.split(flat.div_(self.size), [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.detach().copy_(part.view(tensor.shape))

    def agree(self, go_on: bool, seconds: float) -> tuple[bool, float]:
        """What rank 0 says: whether to go on, and how many seconds are spent."""
        said = torch.tensor([float(go_on), seconds], dtype=torch.float64)
        dist.broadcast(said, src=0)
        return bool(said[0]), float(said[1])


def _enter(
    rank: int, size: int, meeting_file: str, work: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting_file}", rank=rank, world_size=size)
    try:
        work(*arguments, Peers(rank, size))
    finally:
        dist.destroy_process_group()


def run_together(size: int, work: Callable[..., object], *arguments: Any) -> None:
    """Call `work(*arguments, peers)` in `size` single-threaded processes and wait for them."""
    with tempfile.TemporaryDirectory() as folder:
        meeting_file = str(Path(folder) / "meeting")
        spawn(_enter, (size, meeting_file, work, arguments), nprocs=size)
