"""What an analysis will need, from one measured block: time, memory and disk."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dar_probe.probe.measure import Batch
from dar_probe.probe.recorder import untouched
from dar_probe.probe.sharding import Grid
from dar_probe.sites.autograd_entry import entering, entrance
from dar_probe.sites.homes import uncalled
from dar_probe.sites.subject import Subject

# Of a block's forward: its backward to inputs alone costs about as much as the forward itself.
BACKWARD = 1.2
KEPT = 3  # tensors that are kept of every reader's state: itself, and gradients of tap and state


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What measuring a grid will take.

    Attributes:
        cells: pairs of sample and noise level.
        batch_size: of them in one pass.
        seconds: of the bare forward and backward of all cells.
        seconds_again: with recomputing.
        weights: bytes of the model.
        states: bytes of what is kept of the stream, for one cell.
        inner: bytes of inner tensors of all blocks, for one cell.
        block: bytes of those of one block, for one cell.
        disk: bytes of the dataset.
    """

    cells: int
    batch_size: int
    seconds: float
    seconds_again: float
    weights: int
    states: int
    inner: int
    block: int
    disk: int

    def memory(self, *, recompute: bool, batch_size: int | None = None) -> int:
        """Return the bytes that a pass takes beside the weights."""
        each = self.states + (self.block if recompute else self.inner)
        return each * (batch_size or self.batch_size)

    def cells_within(self, available: int, *, recompute: bool) -> int:
        """Return how many cells a pass can have in so many bytes; 0: not even one."""
        return available // self.memory(recompute=recompute, batch_size=1)


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """An estimate beside what the machine has.

    Attributes:
        estimate: what measuring takes.
        available: bytes that can be had where the model runs, beside its weights.
    """

    estimate: Estimate
    available: int

    @property
    def sentence(self) -> str:
        """Whether it fits, and what to do where it does not."""
        one, room = self.estimate, self.available
        if one.memory(recompute=False) <= room:
            return "It fits into memory as it is."
        cells = one.cells_within(room, recompute=True)
        if cells >= one.batch_size:
            return "It fits with --recompute, which large models take by themselves."
        if cells:
            return f"It fits with --recompute --batch-size {cells}."
        return (
            "Not even one cell fits: --dtype bfloat16 halves it, --offload disk leaves the weights "
            "of a diffusers folder in its files, --shard shares the model out under torchrun."
        )

    rests_on = (
        "From one block, measured here. Time is that of the bare passes: the diagnosis adds to it, "
        "most in narrow models. Memory is rather too much. Loading the model, drawing samples, "
        "pictures and files are not counted."
    )

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers, seconds and bytes, for programs."""
        one = self.estimate
        return {
            **asdict(one),
            "memory": one.memory(recompute=False),
            "memory_again": one.memory(recompute=True),
            "available": self.available,
            "sentence": self.sentence,
        }


def estimate(subject: Subject, batch: Batch, grid: Grid) -> Estimate:
    """Return what measuring a subject on a grid will take, from one block on one cell.

    Where blocks are not known, all of the forward is measured. Blocks are taken to cost what their
    parameters say.

    Args:
        subject: the model, which is left as it was, and its sites.
        batch: inputs of cells.
        grid: samples and noise levels.
    """
    model = subject.model
    blocks = [m for one in subject.blocks for m in (one.children() if uncalled(one) else (one,))]
    watched = blocks[0] if blocks else model
    ids, levels = grid.cell_ids(), grid.cell_levels()
    with untouched(model):
        # Time as many cells as a pass has: one alone takes longer than its share.
        seconds, _ = _block(
            subject, watched, batch(ids[: grid.batch_size], levels[: grid.batch_size])
        )
        _, inner = _block(subject, watched, batch(ids[:1], levels[:1]), kept=True)
    seconds /= min(grid.batch_size, grid.cells)
    share = _parameters(model) / max(_parameters(watched), 1)
    if blocks:
        share = sum(map(_parameters, blocks)) / max(_parameters(watched), 1)
    parameter = next(model.parameters())
    streams = [subject, *([subject.second] if subject.second else [])]
    element = parameter.element_size()
    states = sum(
        KEPT * len(one.readers) * one.facts["tokens"] * one.facts["width"] * element
        for one in streams
    )
    cells = grid.cells
    whole = seconds * share * cells
    readers = sum(len(one.readers) for one in streams)
    sources = max(len(one.sources) for one in streams)
    return Estimate(
        cells=cells,
        batch_size=min(grid.batch_size, cells),
        seconds=whole * (1 + BACKWARD),
        seconds_again=whole * (2 + BACKWARD),
        weights=sum(p.numel() * p.element_size() for p in model.parameters()),
        states=states,
        inner=round(inner * share),
        block=inner,
        # Two arrays over pairs, and some twenty over readers or blocks.
        disk=4 * cells * readers * (3 * sources + 20) + 2**16,
    )


class _Done(Exception):
    """The block has been measured."""


def _block(
    subject: Subject,
    watched: nn.Module,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    *,
    kept: bool = False,
) -> tuple[float, int]:
    """Return the seconds of a block's forward, and with ``kept`` the bytes that autograd keeps."""
    storages: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in subject.model.parameters()}
    began = [0.0]
    taken: list[float] = []

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return value

    def run(context: Callable[[], Any]) -> None:
        def enter(module: nn.Module, args: Any) -> None:
            began[0] = time.perf_counter()

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            _wait(next(subject.model.parameters()).device)
            taken.append(time.perf_counter() - began[0])
            if watched is not subject.model:
                raise _Done

        handles = [
            watched.register_forward_pre_hook(enter),
            watched.register_forward_hook(leave),
        ]
        args, kwargs = entering(*inputs)
        try:
            with entrance(watched), context():
                subject.model(*args, **kwargs)
        except _Done:
            pass
        finally:
            for handle in handles:
                handle.remove()

    if kept:
        run(lambda: torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value))
    else:
        run(torch.no_grad)  # the first call of a process is slower
        run(torch.no_grad)
    return taken[-1], sum(storages.values())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
