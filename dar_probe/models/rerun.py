"""Blocks that run again in the backward, and keep none of their inner tensors until then.

torch.utils.checkpoint keeps what it made again and nobody asked for as long as the graph lives;
discovery asks for parts of a graph many times, so that the weights of every block would stay.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from dar_probe.errors import ProbeError
from dar_probe.runtime.torch_private import unmet
from dar_probe.sites.packing import elements


class Rerun:
    """Runs calls whose inner tensors are made again; those of one call are here at a time.

    Args:
        place: the device that calls run on.
    """

    def __init__(self, place: torch.device) -> None:
        self._place = place
        self._last: _Call | None = None

    def run(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Return what ``forward`` returns; its graph holds the arguments alone."""
        self.forget()
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        with unmet():  # what watches the functions of a model must not count ours
            call = _Call(forward, args, kwargs, self._place)
        with saved_tensors_hooks(call.leave_out, partial(self._back, call)):
            output = forward(*args, **kwargs)
        call.returned = _sums(output)
        return output

    def forget(self) -> None:
        """Let go of what was made again last."""
        if self._last is not None:
            self._last.made = []
            self._last = None

    def _back(self, call: "_Call", number: int) -> Tensor:
        if self._last is not call:
            self.forget()
            call.make_again()
            self._last = call
        return call.made[number]


class _Call:
    """One call of a block.

    Attributes:
        made: its inner tensors in the order of its forward, where they were made again.
        returned: sums of what it returned.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        place: torch.device,
    ) -> None:
        self.made: list[Tensor] = []
        self.returned: list[float] = []
        self._run = partial(forward, *args, **kwargs)
        self._shapes: list[torch.Size] = []
        self._versions = _versions(args, kwargs)
        self._given = args, kwargs
        self._circumstances = _circumstances(place)

    def leave_out(self, tensor: Tensor) -> int:
        """Return the number of an inner tensor in its place."""
        self._shapes.append(tensor.shape)
        return len(self._shapes) - 1

    def make_again(self) -> None:
        """Run the call once more, and keep its inner tensors.

        Raises:
            ProbeError: it does not return the same.
        """
        made: list[Tensor] = []

        def keep(tensor: Tensor) -> int:
            made.append(tensor.detach())
            return len(made) - 1

        with (
            self._circumstances(), torch.enable_grad(),
            saved_tensors_hooks(keep, made.__getitem__),
        ):  # fmt: skip
            output = self._run()
        same = [one.shape for one in made] == self._shapes and _sums(output) == self.returned
        if not same or _versions(*self._given) != self._versions:
            raise ProbeError(
                "a block returns other numbers when it is run again: it keeps something between "
                "its calls, or its input was overwritten",
                hint="leave --offload out",
            )
        self.made = made


def _sums(output: Any) -> list[float]:
    """Return the sum of every real tensor in a nest."""
    with torch.no_grad(), unmet():
        return [
            float(value.double().nansum())
            for value in elements(output).values()
            if isinstance(value, Tensor) and value.is_floating_point()
        ]


def _versions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    """Return how often each tensor among the arguments was overwritten."""
    return [one._version for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]


def _circumstances(place: torch.device) -> Callable[[], Any]:
    """Return what brings back the random states and autocast of now."""
    state = torch.get_rng_state()
    own = torch.cuda.get_rng_state(place) if place.type == "cuda" else None
    casts = [
        (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        for kind in {"cpu", place.type}
    ]

    @contextmanager
    def again() -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng([] if own is None else [place]))
            torch.set_rng_state(state)
            if own is not None:
                torch.cuda.set_rng_state(own, place)
            for kind, enabled, dtype in casts:
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
            yield

    return again
