"""The functions that a user writes: called as they expect, checked, and blamed where they fail."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dar_probe.errors import ProbeError, UsageError, blamed
from dar_probe.models.diffusers.model import dtype_of
from dar_probe.models.offload import device_of
from dar_probe.probe.measure import Batch, Loss, check_losses
from dar_probe.probe.recorder import Visitor
from dar_probe.runtime.sharded import class_of

PURE_HINT = (
    "make it a function of each sample's id: torch.randn(shape, "
    "generator=torch.Generator().manual_seed(int(i))) for i in sample_ids"
)


def batch_of(batch: Batch, module: nn.Module) -> Batch:
    """Return a user's batch function as the probe calls it.

    The user's gets noise levels of the type and on the device of the module's weights, so that
    ``(1 - noise_level) * x`` stays what the module takes. What it raises names its own file and
    line.
    """
    place, dtype = device_of(module), dtype_of(module)

    def called(sample_ids: Tensor, noise_level: Tensor, /) -> tuple[Any, dict[str, Any]]:
        with _blamed_on("batch function", sample_ids):
            made = batch(sample_ids, noise_level.to(place, dtype))
        kinds = tuple(map(type, made)) if isinstance(made, tuple) else ()
        if kinds != (tuple, dict):
            raise UsageError(
                f"the batch function returned a {type(made).__name__}, expected (args, kwargs)",
                hint="return (x,), {} for a module that is called as module(x)",
            )
        return made

    return called


def loss_of(loss: Loss, module: nn.Module) -> Loss:
    """Return a user's loss as the probe calls it; levels and errors are as for ``batch_of``."""
    place, dtype = device_of(module), dtype_of(module)

    def called(output: Any, sample_ids: Tensor, noise_level: Tensor, /) -> Tensor:
        with _blamed_on("loss function", sample_ids):
            return loss(output, sample_ids, noise_level.to(place, dtype))

    return called


def forward_of(engine: Callable[..., Any]) -> Callable[..., Any]:
    """Return an engine that blames a user's module for what its forward raises."""

    def run(visitor: Visitor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = class_of(visitor.subject.model).__name__
        with blamed(lambda why: UsageError(f"the forward of {name} fails: {why}"), ours=False):
            return engine(visitor, args, kwargs)

    return run


def check_batch(batch: Batch, level: float, samples: int) -> None:
    """Call a batch function several times for the same samples, and compare what it returns.

    Only the ids below ``samples`` are asked for: a table of one row has no second one.

    Raises:
        UsageError: it is no pure function of each (sample id, noise level).
    """

    def call(*ids: int) -> list[Tensor]:
        wanted = torch.tensor(ids)
        return list(tensors(batch(wanted, torch.full((len(ids),), level, dtype=torch.float64))))

    once = call(0)
    if not _equal(once, call(0)):
        raise UsageError(
            "the batch function is not pure: called twice for sample 0 it returned different "
            "numbers",
            hint=PURE_HINT,
        )
    if samples < 2:
        return
    pair = call(0, 1)
    for row, alone in enumerate((once, call(1))):
        if len(alone) != len(pair):
            continue  # a list of one tensor for each sample, say
        both = [
            (one, two[row : row + 1])
            for one, two in zip(alone, pair, strict=True)
            if one.ndim and two.shape == (2, *one.shape[1:]) and len(one) == 1
        ]
        if not all(_close(one, two) for one, two in both):
            raise UsageError(
                f"the batch function gives sample {row} other numbers when samples 0 and 1 are "
                "asked for together than when it is asked for alone",
                hint=PURE_HINT,
            )


def check_loss(loss: Loss, output: Any, sample_ids: Tensor, noise_level: Tensor) -> None:
    """Call a loss twice on one output.

    Raises:
        ProbeError: it does not return one number for each sample, or other ones the second time.
    """
    first = loss(output, sample_ids, noise_level)
    check_losses(first, sample_ids)
    if not _equal([first], [loss(output, sample_ids, noise_level)]):
        raise ProbeError(
            "the loss function is not pure: called twice on one output it returned different "
            "numbers",
            hint=PURE_HINT,
        )


def _blamed_on(name: str, sample_ids: Tensor) -> Any:
    first, last = int(sample_ids[0]), int(sample_ids[-1])
    hint = f"it was called with the sample ids {first} to {last}"
    return blamed(lambda why: UsageError(f"the {name} fails: {why}", hint=hint))


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield every tensor of nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors(part)


def _equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(_same, one, other))


def _same(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors are equal, NaN for NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(torch.equal(one.nan_to_num(), other.nan_to_num()))


def _close(one: Tensor, other: Tensor) -> bool:
    """Tell the same up to rounding: products of a batch may be summed in another order."""
    if not one.is_floating_point():
        return bool(torch.equal(one, other))
    return bool(torch.allclose(one.float(), other.float(), rtol=1e-2, atol=1e-3, equal_nan=True))
