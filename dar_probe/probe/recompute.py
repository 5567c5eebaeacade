"""Blocks whose inner tensors are dropped in the forward and made again in the backward.

What is read and written stays, and the graph of one block at a time: less memory for one more
forward, and the same numbers bit for bit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dar_probe.errors import ProbeError, UsageError, out_of_memory
from dar_probe.probe.measure import Engine
from dar_probe.probe.recorder import Visitor
from dar_probe.runtime.sharded import class_of
from dar_probe.runtime.torch_private import made_again, unmet
from dar_probe.sites.homes import uncalled
from dar_probe.sites.packing import elements
from dar_probe.sites.subject import Subject

T = TypeVar("T")


def parts(subject: Subject) -> list[nn.Module]:
    """Return the modules that are run again: branches where a family names them, else blocks.

    Raises:
        UsageError: there are none.
    """
    branches = [branch.output for reader in subject.readers for branch in reader.branches]
    listed = [
        m for block in subject.blocks for m in (block.children() if uncalled(block) else (block,))
    ]
    found = list(dict.fromkeys([*branches, *listed]))
    if not found:
        raise UsageError(
            "no module of this model is known to be one that can be run again",
            hint="leave --recompute out",
        )
    return found


def recomputed(engine: Engine, subject: Subject) -> Engine:
    """Return an engine that keeps no inner tensor of the subject's blocks.

    Raises:
        UsageError: see ``parts``.
    """
    modules = parts(subject)

    def run(visitor: Visitor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with _recomputing(modules):
            return engine(visitor, args, kwargs)

    return run


class Careful:
    """Runs work with an engine; from where memory runs out, once more with recomputing.

    Attributes:
        engine: the one that runs now.
        recomputes: whether it recomputes.

    Args:
        engine: of hooks where ``recompute`` is not False.
        subject: the model and its sites.
        recompute: from the beginning; None: once memory has run out; False: never.

    Raises:
        UsageError: see ``parts``, where it is asked for.
    """

    def __init__(self, engine: Engine, subject: Subject, recompute: bool | None) -> None:
        self.recomputes = bool(recompute)
        self.engine = recomputed(engine, subject) if recompute else engine
        self._subject = subject if recompute is None else None

    def __call__(self, work: Callable[[Engine], T]) -> T:
        """Return what ``work`` returns, given the engine."""
        try:
            return work(self.engine)
        except Exception as error:  # allocators have no common error
            subject, self._subject = self._subject, None
            if subject is None or not out_of_memory(error):
                raise
            try:
                self.engine = recomputed(self.engine, subject)
            except UsageError:
                raise error from None
        self.recomputes = True
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return work(self.engine)


@contextmanager
def _recomputing(modules: list[nn.Module]) -> Iterator[None]:
    """Let the forward of modules run again in the backward; afterwards they are as they were."""
    if not torch.is_grad_enabled():
        yield
        return
    own = [(module, module.__dict__.get("forward")) for module in modules]
    try:
        for module in modules:
            module.__dict__["forward"] = _checked(module.forward, class_of(module).__name__)
        yield
    finally:
        for module, forward in own:
            del module.__dict__["forward"]
            if forward is not None:
                module.__dict__["forward"] = forward


def _checked(forward: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a forward that is made again, and must return the same then.

    Raises:
        ProbeError: in the backward, where it returns other numbers.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        returned: list[list[float]] = []

        def once(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            with torch.no_grad(), unmet():
                returned.append(
                    [float(v.double().sum()) for v in elements(output).values()
                     if isinstance(v, Tensor) and v.is_floating_point()]
                )  # fmt: skip
            if returned[0] != returned[-1]:
                raise ProbeError(
                    f"a {name} returns other numbers when it is run again: it keeps something "
                    "between its calls, or draws random numbers of its own",
                    hint="leave --recompute out",
                )
            return output

        return made_again(once, *args, **kwargs)

    return run
