"""Where autograd starts recording a model whose parameters are frozen."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def entrance(block: nn.Module) -> Iterator[None]:
    """Let autograd record from the first block on, where nothing before it requires grad."""

    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(map(with_grad, args)), {name: with_grad(v) for name, v in kwargs.items()}

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def with_grad(value: Any) -> Any:
    """Return floating tensors outside any graph as leaves that require grad."""
    if isinstance(value, Tensor) and value.is_floating_point() and not value.requires_grad:
        return value.detach().requires_grad_()
    return value
