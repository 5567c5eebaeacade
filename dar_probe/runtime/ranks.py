"""The processes of one job, started by torchrun; one process alone is a job of its own."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dar_probe.errors import ProbeError, UsageError, lost_connection

AGAIN = "the message of that process says why; run the job again with --resume"


@dataclass(frozen=True)
class Ranks:
    """This process among its job's.

    Attributes:
        rank: its number; 0 leads, and alone touches files.
        world: how many there are.
        in_step: all do the same work at the same time: they share one module, not the work.
    """

    rank: int = 0
    world: int = 1
    in_step: bool = False

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
        with alive():
            dist.all_gather_object(found, value)
        return found

    def sum(self, value: float) -> float:
        """Return the sum of every process's ``value``, in order of rank, in every process."""
        return float(sum(self.gather(value)))

    def from_leader(self, value: Any) -> Any:
        """Return the leader's ``value`` in every process."""
        return self.gather(value if self.leads else None)[0]

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Let one process after the other do the body."""
        for _ in range(self.rank):
            self.gather(None)
        yield
        for _ in range(self.rank, self.world):
            self.gather(None)

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Let the leader do the body before the others: it fills a cache that they read.

        In step all do it together.
        """
        if self.in_step:
            yield
            return
        if not self.leads:
            self.gather(None)
        yield
        if self.leads:
            self.gather(None)


ALONE = Ranks()


@contextmanager
def joined(*, in_step: bool = False) -> Iterator[Ranks]:
    """Yield this process's place in the job that torchrun started, if it did.

    Args:
        in_step: the processes share one model, and not the work.

    Raises:
        UsageError: they are to share a model, and torchrun has started none.
    """
    if in_step and "RANK" not in os.environ:
        raise UsageError(
            "--shard shares the model out over the processes of torchrun, and this is a process of "
            "its own",
            hint="torchrun --nproc-per-node 2 -m dar_probe.cli analyze ... --shard",
        )
    if not _in_job() and not in_step:
        yield ALONE
        return
    import torch.distributed as dist

    with _told_to_end():
        with alive():
            # Small arrays cross on the CPU, whatever the device; gradients where they are.
            dist.init_process_group("cpu:gloo,cuda:nccl" if _nccl() else "gloo")
        try:
            yield Ranks(rank=dist.get_rank(), world=dist.get_world_size(), in_step=in_step)
        finally:
            dist.destroy_process_group()


def leads() -> bool:
    """Tell whether this process may talk to the user."""
    return not _in_job() or os.environ["RANK"] == "0"


def _in_job() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def _nccl() -> bool:
    import torch

    return torch.cuda.is_available() and torch.distributed.is_nccl_available()


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Leave with a sentence on SIGTERM: torchrun sends it to what is left of a job."""

    def leave(number: int, frame: object) -> None:
        raise ProbeError(
            "this job was told to end, most often because another of its processes has ended",
            hint=AGAIN,
        )

    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets only the main thread listen
        return
    before = signal.signal(signal.SIGTERM, leave)
    after = before
    try:
        yield
    except ProbeError:
        # What it says must still be said: the signal most often comes a moment later.
        after = signal.SIG_IGN
        raise
    finally:
        signal.signal(signal.SIGTERM, after)


@contextmanager
def alive() -> Iterator[None]:
    """Raise ProbeError where another process of the job is gone in the middle of a collective."""
    try:
        yield
    except RuntimeError as error:
        if not lost_connection(error):
            raise
        raise ProbeError(
            "another process of this job has ended",
            hint=AGAIN,
        ) from error
