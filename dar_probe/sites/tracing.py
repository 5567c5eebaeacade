"""One forward of any module, watched: what may read its stream, and what its blocks hand on.

Every branch is cut off where it begins: its first module gets a detached input. What is left of
the graph is the stream alone, and autograd can say what reads it.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dar_probe.sites.autograd_entry import entrance, with_grad
from dar_probe.sites.hooks import hooked
from dar_probe.sites.packing import Item, elements
from dar_probe.sites.subject import WHOLE, View, tokens_of

Home = tuple[nn.Module, int]  # a block and which of its calls


@dataclass(frozen=True, kw_only=True, eq=False)
class Read:
    """A module that may read the stream, and what it got.

    Attributes:
        module, value: the module and its first input, (1, ..., D); where frames or places of a
            video are rows of their own, (K, T / K, D).
        view: which tokens these are.
        normed: the module is a norm.
        home: the block it ran in; None outside of all blocks.
        at: position in ``Trace.calls``.
        cut: what it got instead.
        call: which call of the module it is, from 0.
        version: of the value, which an overwriting in place counts up.
    """

    module: nn.Module
    value: Tensor
    view: View
    normed: bool
    home: Home | None
    at: int
    cut: Tensor
    call: int
    version: int

    @property
    def stream(self) -> Tensor:
        """The value as tokens (1, T, D)."""
        return self.view.take(self.value)


@dataclass(kw_only=True, eq=False)
class Passed:
    """One call of a block: from where to where in ``Trace.calls``, and what went in and out.

    ``gave`` has the tensors (1, ..., D) by their position or name; None is the output itself.
    ``versions`` and ``views`` are theirs, as for a read.
    """

    home: Home
    entered: int
    left: int = -1
    given: list[Tensor]
    gave: dict[Item, Tensor] = field(default_factory=dict)
    versions: dict[Item, int] = field(default_factory=dict)
    views: dict[Item, View] = field(default_factory=dict)


@dataclass(kw_only=True)
class Trace:
    """What was seen.

    Attributes:
        reads: in firing order.
        passed: one entry for each call of a block, in firing order.
        calls: every module that ran, with the block it ran in.
        outputs: per call of ``calls`` within blocks what it returned, if as wide as the stream.
        single: calls that returned one tensor, in no tuple.
        crossed: per call that returned one sequence, and got more than one, the others.
        dark: modules within blocks that ran while autograd recorded nothing.
        output: of the model, its first tensor.
        rows: frames and places, where the first block gets one row for each frame of a video or
            the other way round, (K, T / K, D); None where it gets one for each sample.
    """

    reads: list[Read] = field(default_factory=list)
    passed: list[Passed] = field(default_factory=list)
    calls: list[tuple[nn.Module, Home | None]] = field(default_factory=list)
    outputs: dict[int, Tensor] = field(default_factory=dict)
    single: set[int] = field(default_factory=set)
    crossed: dict[int, list[Tensor]] = field(default_factory=dict)
    dark: list[nn.Module] = field(default_factory=list)
    output: Tensor | None = None
    rows: tuple[int, int] | None = None

    def view_of(self, value: Tensor) -> View:
        """Return which tokens of the stream a tensor (K, ..., D) holds, to judge by its shape."""
        shape = tuple(tokens_of(value).shape[:2])
        if self.rows is None or shape not in (self.rows, self.rows[::-1]):
            return WHOLE
        return View(rows=shape[0], across=shape != self.rows)

    def count(self, module: nn.Module) -> int:
        """Return how often a module ran."""
        return sum(ran is module for ran, _ in self.calls)

    def call_of(self, passed: Passed) -> tuple[int, int]:
        """Return which of how many calls of its block one is."""
        block, number = passed.home
        return number, self.count(block)

    def main(self) -> type[nn.Module]:
        """Return the kind of block that has the most parameters in all."""
        sizes: Counter[type[nn.Module]] = Counter()
        for passed in self.passed:
            block = passed.home[0]
            sizes[type(block)] += sum(p.numel() for p in block.parameters())
        return max(sizes, key=lambda kind: sizes[kind])


def trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    blocks: set[nn.Module],
    wanted: set[nn.Module] | None = None,
) -> Trace:
    """Watch one forward of one sample with every branch cut off.

    ``wanted`` are the modules to which the user limits what may read the stream; left out, these
    are all norms, and within blocks the outermost modules that no norm inside reads for.
    """
    unnormed, expected = _look(model, args, kwargs, blocks)
    watch = _Watch(blocks, unnormed if wanted is None else wanted, wanted is None, len(expected))
    if not expected:
        return watch.found
    with ExitStack() as stack:
        stack.enter_context(_watched(model, watch.enter, watch.leave))
        for block in set(expected):  # the first ones may run without gradients
            stack.enter_context(entrance(block))
        output = model(*map(with_grad, args[:1]), *args[1:], **kwargs)
    watch.found.output = innermost(output)
    return watch.found


class _Watch:
    """Meets every module as it begins and ends, and writes down what ``trace`` returns.

    Args:
        blocks: the modules that count as blocks.
        begins: modules that are cut off where they begin.
        norms: whether norms are, too.
        expected: how many calls of blocks there will be.
    """

    def __init__(
        self, blocks: set[nn.Module], begins: set[nn.Module], norms: bool, expected: int
    ) -> None:
        self.blocks, self.begins, self.norms, self.expected = blocks, begins, norms, expected
        self.found = Trace()
        self._homes: list[Home] = []
        self._count: Counter[nn.Module] = Counter()
        self._open: list[int] = []  # calls that have not ended

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        found, at = self.found, len(self.found.calls)
        given = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        value = given[0] if given else None
        number = self._count[module]
        self._count[module] += 1
        if module in self.blocks:
            self._homes.append((module, number))
            if not found.passed and value is not None and value.ndim == 3:
                found.rows = _rows(value)
            found.passed.append(Passed(home=self._homes[-1], entered=at, given=given))
        home = self._homes[-1] if self._homes else None
        if home is not None and not torch.is_grad_enabled():
            found.dark.append(module)
        self._open.append(at)
        if others := [v for v in given if _is_sequence(v) and v is not value]:
            found.crossed[at] = others
        found.calls.append((module, home))
        normed = is_norm(module)
        may = module in self.begins or (self.norms and normed)
        if not may or value is None or value.ndim < 3:
            return None
        if value.ndim > 3 and not _features_last(module, value):
            return None
        # After the last block nothing is cut: behind the head may come one more norm.
        over = home is None and len(found.passed) == self.expected
        cut = value.view_as(value) if over else value.detach().requires_grad_()
        found.reads.append(
            Read(
                module=module, value=value, view=found.view_of(value), normed=normed, home=home,
                at=at, cut=cut, call=number, version=value._version,
            )
        )  # fmt: skip
        return _replace(args, kwargs, value, cut)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        found, at = self.found, self._open.pop()
        parts = elements(output)
        outputs = tuple(parts.values())
        if isinstance(output, Tensor):
            found.single.add(at)
        if sum(map(_is_sequence, outputs)) != 1:
            found.crossed.pop(at, None)
        if self._homes and (state := self._as_wide(first_tensor(outputs))) is not None:
            found.outputs[at] = state.detach()
        if module not in self.blocks:
            return
        home = self._homes.pop()
        passed = next(p for p in reversed(found.passed) if p.home == home)
        passed.left = len(found.calls)
        passed.gave = {
            item: value
            for item, value in parts.items()
            if isinstance(value, Tensor) and value.ndim >= 3 and value.requires_grad
        }
        passed.versions = {item: value._version for item, value in passed.gave.items()}
        passed.views = {item: found.view_of(value) for item, value in passed.gave.items()}

    def _as_wide(self, value: Tensor | None) -> Tensor | None:
        """Return an output as (1, T, D) if it is as wide as the stream, else None."""
        width = next((v.shape[-1] for v in self.found.passed[-1].given if v.ndim >= 3), None)
        if value is not None and value.ndim > 3 and value.shape[-1] == width:
            value = tokens_of(value)
        if value is not None and value.ndim > 3 and value.shape[1] == width:
            value = value.flatten(2).transpose(1, 2)  # a convolution's (1, D, h, w)
        if value is None or value.ndim != 3 or value.shape[-1] != width:
            return None
        return self.found.view_of(value).take(value)


def _rows(value: Tensor) -> tuple[int, int] | None:
    """Return the sizes (K, T / K) of one sample's tensor that has several rows.

    Of as many rows as tokens in each nobody could tell which are which, and (T, 1, D) has its
    tokens first.
    """
    rows, tokens, _ = value.shape
    return (rows, tokens) if min(rows, tokens) > 1 and rows != tokens else None


def _features_last(module: nn.Module, value: Tensor) -> bool:
    """Tell whether a module reads a grid (1, ..., D) token by token, its features last.

    A norm of images may as well have them first; its own parameters are as many as features.
    """
    if isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.Linear | nn.MultiheadAttention):
        return True
    sizes = {parameter.numel() for parameter in module.parameters(recurse=False)}
    return value.shape[-1] in sizes and value.shape[1] not in sizes


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises the features of each token by itself."""
    name = type(module).__name__.lower()
    # Norms over the batch or over groups of channels do not read tokens (N, T, D) by themselves.
    others = ("batch", "group", "instance")
    return "norm" in name and not list(module.children()) and not any(o in name for o in others)


def first_tensor(values: Any) -> Tensor | None:
    """Return the first tensor among ``values``."""
    return next((value for value in values if isinstance(value, Tensor)), None)


def innermost(output: Any) -> Tensor | None:
    """Return the first tensor of an output, in whatever it is packed."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict):
        output = list(output.values())
    elif is_dataclass(output) and not isinstance(output, type):
        output = [getattr(output, part.name) for part in fields(output)]
    if not isinstance(output, tuple | list):
        return None
    return next((v for v in map(innermost, output) if v is not None), None)


def _is_sequence(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.ndim == 3
        and min(value.shape[1:]) > 1
    )


def _replace(
    args: tuple[Any, ...], kwargs: dict[str, Any], old: Tensor, new: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with ``new`` in the place of ``old``."""
    for at, value in enumerate(args):
        if value is old:
            return (*args[:at], new, *args[at + 1 :]), kwargs
    name = next(name for name, value in kwargs.items() if value is old)
    return args, {**kwargs, name: new}


def _look(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], blocks: set[nn.Module]
) -> tuple[set[nn.Module], list[nn.Module]]:
    """Return the modules within blocks whose first input no norm inside of them reads; and calls.

    Cut off where they begin, those that read a normed state are cut twice, which does no harm;
    those that hand the stream on as it is, such as dropout, are left alone. The calls are those of
    blocks, in order.
    """
    inside = {part for block in blocks for part in block.modules()} - blocks
    through = {part for part in inside if any(child in blocks for child in part.modules())}
    inside -= through
    running: list[tuple[nn.Module, Tensor | None]] = []
    found: set[nn.Module] = set()
    normed: set[nn.Module] = set()
    calls: list[nn.Module] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        value = first_tensor((*args, *kwargs.values()))
        if module in blocks:
            calls.append(module)
        if is_norm(module):
            normed.update(other for other, held in running if held is value)
        running.append((module, value))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        _, value = running.pop()
        if module in inside and not is_norm(module) and output is not value:
            found.add(module)

    with _watched(model, enter, leave), torch.no_grad():
        model(*args, **kwargs)
    return found - normed, calls


@contextmanager
def _watched(
    model: nn.Module, enter: Callable[..., Any], leave: Callable[..., None]
) -> Iterator[None]:
    with hooked() as handles:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave))
        yield
