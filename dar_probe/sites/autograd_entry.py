"""Where autograd starts recording a model whose parameters are frozen."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from dar_probe.errors import ProbeError


@contextmanager
def entrance(block: nn.Module, *, first: bool = False) -> Iterator[None]:
    """Let autograd record from the first block on, where nothing before it requires grad.

    What the model itself holds requires grad then, not a copy: the model may use it again beside
    the block, as the residual addition outside of a block or a long skip does. Call the model on
    ``entering`` arguments, so that those are no tensors of the caller.

    Args:
        block: the first block.
        first: before the hooks that others put on it already.
    """

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        begin(args, kwargs)

    handle = block.register_forward_pre_hook(hook, with_kwargs=True, prepend=first)
    try:
        yield
    finally:
        handle.remove()


def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Let autograd record what is made of these arguments."""
    for value in (*args, *kwargs.values()):
        if _unrecorded(value):
            value.requires_grad_()


def entering(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments that are not the caller's own tensors; the first one requires grad."""
    others = (v.detach() if _unrecorded(v) else v for v in args[1:])
    named = {name: v.detach() if _unrecorded(v) else v for name, v in kwargs.items()}
    return (*map(with_grad, args[:1]), *others), named


@contextmanager
def nothing_overwritten() -> Iterator[None]:
    """Refuse a model that overwrites in place what autograd holds.

    Raises:
        ProbeError: it does.
    """
    try:
        yield
    except RuntimeError as error:
        if not re.search("in-?place operation", str(error)):
            raise
        raise ProbeError(
            "the model overwrites in place what its gradient needs",
            hint="the probe needs x = x + f(x), not x += f(x)",
        ) from None


def with_grad(value: Any) -> Any:
    """Return floating tensors outside any graph as leaves that require grad."""
    return value.detach().requires_grad_() if _unrecorded(value) else value


def _unrecorded(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and not value.requires_grad
