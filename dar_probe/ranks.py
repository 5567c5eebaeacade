"""The processes of one job, started by torchrun; one process alone is a job of its own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dar_probe.errors import ProbeError


@dataclass(frozen=True)
class Ranks:
    """This process among its job's.

    Attributes:
        rank: its number; 0 leads, and alone touches files.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """True for the process that writes files and talks to the user."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return every process's ``value``, in order of rank, in every process."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist  # reports import this module without torch

        found: list[Any] = [None] * self.world
        with _alive():
            dist.all_gather_object(found, value)
        return found

    def from_leader(self, value: Any) -> Any:
        """Return the leader's ``value`` in every process."""
        return self.gather(value if self.leads else None)[0]

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Let the leader do the body before the others: it fills a cache that they read."""
        if not self.leads:
            self.gather(None)
        yield
        if self.leads:
            self.gather(None)


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Yield this process's place in the job that torchrun started, if it did."""
    if not _in_job():
        yield ALONE
        return
    import torch.distributed as dist

    with _alive():
        dist.init_process_group("gloo")  # small arrays on the CPU, whatever the device
    try:
        yield Ranks(rank=dist.get_rank(), world=dist.get_world_size())
    finally:
        dist.destroy_process_group()


def leads() -> bool:
    """Tell whether this process may talk to the user."""
    return not _in_job() or os.environ["RANK"] == "0"


def _in_job() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextmanager
def _alive() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's word for a connection that is gone
        raise ProbeError(
            "another process of this job has ended",
            hint="its own message says why; run the job again with --resume",
        ) from error
