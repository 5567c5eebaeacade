"""Models built without memory for their weights, which a file then brings."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_FILLS = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.zero_, Tensor.fill_})


@contextmanager
def without_weights() -> Iterator[None]:
    """Build modules on the meta device, and skip the initialisation that would fill nothing.

    A fill of a meta tensor does nothing but take time: the first one alone imports torch's Python
    decompositions, seconds of processor time.

    Example::

        with without_weights():
            model = nn.Linear(4, 4)  # every parameter is on the meta device
    """
    with torch.device("meta"), _Unfilled():
        yield


@contextmanager
def without_parameters() -> Iterator[None]:
    """Build modules with parameters on the meta device, and with buffers as they compute them.

    It takes accelerate, which puts each parameter there as soon as it is made.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _FILLS or getattr(func, "__module__", "") == nn.init.__name__:
            filled = args[0] if args else (kwargs or {}).get("tensor")
            if isinstance(filled, Tensor) and filled.device.type == "meta":
                return filled
        return func(*args, **(kwargs or {}))
