"""One forward of any module, watched: what may read its stream, and what its blocks hand on.

Every branch is cut off where it begins: its first module gets a detached input. What is left of
the graph is the stream alone, and autograd can say what reads it.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from dar_probe.runtime.sharded import class_of, gathering, is_dtensor, is_sharded
from dar_probe.sites.autograd_entry import entering, entrance
from dar_probe.sites.homes import Home, Homes
from dar_probe.sites.hooks import hooked
from dar_probe.sites.layout import PLAIN, Layout
from dar_probe.sites.operations import Call, Operation, Visited
from dar_probe.sites.packing import Item, elements, leaves

Judge = Callable[[Any], Tensor]  # the loss of an output
Meet = Callable[[Tensor], None]  # see ``gathering``


class State(NamedTuple):
    """A tensor of one sample, and which of its axes are what."""

    value: Tensor
    layout: Layout


@dataclass(frozen=True, kw_only=True, eq=False)
class Read:
    """A module that may read the stream, and what it got.

    Attributes:
        module, value: the module and its first input; with ``operation`` a block, and what these
            operations of its forward take.
        layout: of the value.
        normed: the module is a norm.
        home: the block it ran in; None outside of all blocks.
        at: position in ``Trace.calls``.
        cut: what it got instead.
        call: which call of the module it is, from 0.
        version: of the value, which an overwriting in place counts up.
    """

    module: nn.Module
    value: Tensor
    layout: Layout
    normed: bool
    home: Home | None
    at: int
    cut: Tensor
    call: int
    version: int
    operation: Operation | None = None

    @property
    def tokens(self) -> Tensor:
        """The value as (1, T, D)."""
        return self.layout.take(self.value)


@dataclass(kw_only=True, eq=False)
class Passed:
    """One call of a block: from where to where in ``Trace.calls``, and what went in and out.

    ``module`` is what returned ``gave``, in its ``call``: the block, or the last one in a list of
    modules.

    ``gave`` has the tensors by their place in the output; None is the output itself. ``versions``
    and ``layouts`` are theirs, as for a read.
    """

    home: Home
    module: nn.Module
    call: int = 0
    entered: int
    left: int = -1
    given: list[Tensor]
    gave: dict[Item, Tensor] = field(default_factory=dict)
    versions: dict[Item, int] = field(default_factory=dict)
    layouts: dict[Item, Layout] = field(default_factory=dict)

    def states(self) -> "dict[Item, State]":
        """Return what it gave that lies as states do."""
        return {item: State(self.gave[item], layout) for item, layout in self.layouts.items()}


@dataclass(kw_only=True)
class Trace:
    """What was seen.

    Attributes:
        layouts: of whatever blocks return and norms in them read, the first block's first.
        reads: in firing order.
        passed: one entry for each call of a block, in firing order.
        calls: every module that ran, with the block it ran in.
        outputs: per call of ``calls`` within blocks what it returned that is as wide as the stream.
        single: calls that returned one tensor, in no tuple.
        crossed: per call that returned one sequence, and got more than one, the others.
        dark: modules within blocks that ran while autograd recorded nothing.
        attended: where scaled dot-product attention ran, as positions in ``calls``; its keys, and
            what it returned.
        output: of the model, the first tensor that the loss depends on.
    """

    layouts: tuple[Layout, ...]
    reads: list[Read] = field(default_factory=list)
    passed: list[Passed] = field(default_factory=list)
    calls: list[tuple[nn.Module, Home | None]] = field(default_factory=list)
    outputs: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    single: set[int] = field(default_factory=set)
    crossed: dict[int, list[Tensor]] = field(default_factory=dict)
    dark: list[nn.Module] = field(default_factory=list)
    attended: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    output: Tensor | None = None

    @property
    def layout(self) -> Layout:
        """Of what the first block takes."""
        return self.layouts[0]

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The blocks that were called, in the order of their first calls."""
        return tuple(dict.fromkeys(passed.home[0] for passed in self.passed))

    def lies(self, value: Tensor) -> Layout | None:
        """Return how a state lies, by its shape; None where it is no state."""
        return next((layout for layout in self.layouts if layout.fits(value)), None)

    def count(self, module: nn.Module) -> int:
        """Return how often a module ran."""
        return sum(ran is module for ran, _ in self.calls)

    def call_of(self, passed: Passed) -> tuple[int, int]:
        """Return which of how many calls of its module one is."""
        return passed.call, self.count(passed.module)

    def first_of(self, passed: Passed) -> tuple[nn.Module, tuple[int, int]]:
        """Return with which module one begins, and which of how many calls of it this is."""
        module, _ = self.calls[passed.entered]
        number = sum(ran is module for ran, _ in self.calls[: passed.entered])
        return module, (number, self.count(module))

    def main(self) -> type[nn.Module]:
        """Return the kind of block that has the most parameters in all."""
        sizes: Counter[type[nn.Module]] = Counter()
        for passed in self.passed:
            block = passed.home[0]
            sizes[class_of(block)] += sum(p.numel() for p in block.parameters())
        return max(sizes, key=lambda kind: sizes[kind])


def trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    blocks: set[nn.Module],
    wanted: set[nn.Module] | None = None,
    layouts: tuple[Layout, ...] = (PLAIN,),
    operations: dict[Call, list[Operation]] | None = None,
    judge: Judge | None = None,
) -> Trace:
    """Watch one forward of one sample with every branch cut off.

    ``wanted`` are the modules to which the user limits what may read the stream; left out, these
    are all norms, and within blocks the outermost modules that no norm inside reads for.
    Features are on the last axis of what they read, whatever else ``layouts`` say. ``operations``
    are cut off, too. ``judge`` tells which of several outputs counts; left out, it is the first.
    """
    unnormed, expected = _look(model, args, kwargs, blocks)
    begins = unnormed if wanted is None else wanted
    watch = _Watch(blocks, begins, norms=wanted is None, expected=len(expected), layouts=layouts)
    if not expected:
        return watch.found
    with ExitStack() as stack:
        sharded = is_sharded(model)
        for module in set(expected):  # the first ones may run without gradients
            stack.enter_context(entrance(module, first=sharded))
        stack.enter_context(_watched(model, watch.enter, watch.leave, first=sharded))
        meet = stack.enter_context(gathering(model))
        if operations:
            visits = {
                call: [(one, partial(watch.take, one, meet)) for one in found]
                for call, found in operations.items()
            }
            stack.enter_context(Visited(visits).watching())
        stack.enter_context(_Attention(watch.found, meet))
        args, kwargs = entering(args, kwargs)
        output = model(*args, **kwargs)
    chosen = _judged(output, judge)
    watch.found.output = innermost(output) if chosen is None else chosen
    return watch.found


class _Watch:
    """Meets every module as it begins and ends, and writes down what ``trace`` returns.

    Args:
        blocks: the modules that count as blocks.
        begins: modules that are cut off where they begin.
        norms: whether norms are, too.
        expected: how many calls of blocks there will be.
        layouts: as for ``trace``.
    """

    def __init__(
        self,
        blocks: set[nn.Module],
        begins: set[nn.Module],
        *,
        norms: bool,
        expected: int,
        layouts: tuple[Layout, ...],
    ) -> None:
        self.blocks, self.begins, self.norms, self.expected = blocks, begins, norms, expected
        self.found = Trace(layouts=layouts)
        self._homes = Homes(blocks)
        self._count: Counter[nn.Module] = Counter()
        self._open: list[int] = []  # calls that have not ended

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        found, at = self.found, len(self.found.calls)
        given = [v for v in (*args, *kwargs.values()) if _is_whole(v)]
        value = given[0] if given else None
        number = self._count[module]
        self._count[module] += 1
        begins, home = self._homes.enter(module), self._homes.now
        if begins:
            assert home is not None
            found.passed.append(Passed(home=home, module=module, entered=at, given=given))
        if home is not None and not torch.is_grad_enabled():
            found.dark.append(module)
        self._open.append(at)
        if others := [v for v in given if self._is_sequence(v) and v is not value]:
            found.crossed[at] = others
        found.calls.append((module, home))
        normed = is_norm(module)
        may = module in self.begins or (self.norms and normed)
        if not may or value is None:
            return None
        # Behind the blocks samples are on the first axis again in most models.
        inside = [layout.last for layout in found.layouts]
        lies = [layout for layout in (*inside, PLAIN) if layout.fits(value)]
        # What is no state is cut off too: a branch may see its tokens in another order.
        if not lies and value.ndim < 3:
            return None
        if value.ndim > 3 and not _features_last(module, value):
            return None
        # After the last block nothing is cut: behind the head may come one more norm.
        over = home is None and len(found.passed) == self.expected
        cut = value.view_as(value) if over else value.detach().requires_grad_()
        found.reads.append(
            Read(
                module=module, value=value, layout=lies[0] if lies else PLAIN, normed=normed,
                home=home, at=at, cut=cut, call=number, version=value._version,
            )
        )  # fmt: skip
        return _replace(args, kwargs, value, cut)

    def take(self, operation: Operation, meet: Meet, value: Tensor) -> Tensor:
        """Cut off what operations of a block take."""
        found, home = self.found, self._homes.now
        meet(value)
        assert home is not None
        if (layout := found.lies(value)) is None:
            return value
        cut = value.detach().requires_grad_()
        found.reads.append(
            Read(
                module=home[0], value=value, layout=layout, normed=operation.normed,
                home=home, at=len(found.calls), cut=cut, call=home[1], version=value._version,
                operation=operation,
            )
        )  # fmt: skip
        return cut

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        found, at = self.found, self._open.pop()
        parts = elements(output)
        outputs = tuple(parts.values())
        if isinstance(output, Tensor):
            found.single.add(at)
        if sum(map(self._is_sequence, outputs)) != 1:
            found.crossed.pop(at, None)
        if self._homes.now:
            tensors = [value for value in outputs if isinstance(value, Tensor)]
            wide = [state for value in tensors if (state := self._as_wide(value)) is not None]
            if wide:
                found.outputs[at] = tuple(state.detach() for state in wide)
        if (home := self._homes.leave(module)) is None:
            return
        passed = next(p for p in reversed(found.passed) if p.home == home)
        passed.left, passed.module = len(found.calls), module
        passed.call = sum(ran is module for ran, _ in found.calls[:at])
        passed.gave = {
            item: value
            for item, value in leaves(output).items()
            if _is_whole(value)
            and (value.ndim >= 3 or found.lies(value) is not None)
            and value.requires_grad
        }
        passed.layouts = {
            item: layout
            for item, value in passed.gave.items()
            if (layout := found.lies(value)) is not None
        }
        passed.versions = {item: value._version for item, value in passed.gave.items()}

    def _as_wide(self, value: Tensor) -> Tensor | None:
        """Return an output as (1, T, D) if it is as wide as a state of the block, else None."""
        found = self.found
        given = found.passed[-1].given
        lies = ((v, found.lies(v)) for v in given)
        widths = {v.shape[how.features] for v, how in lies if how is not None}
        if is_dtensor(value):
            return None
        for layout in (*found.layouts, *(layout.last for layout in found.layouts)):
            if layout.fits(value) and value.shape[layout.features] in widths:
                return layout.take(value)
        if value.ndim > 3 and value.shape[1] in widths:
            return value.flatten(2).transpose(1, 2)  # a convolution's (1, D, h, w)
        return None

    def _is_sequence(self, value: Any) -> bool:
        """Tell whether a value is (1, T, D) in some layout, with several tokens and features."""
        if not _is_whole(value) or not value.is_floating_point() or value.ndim > 3:
            return False
        lies = [one.last for one in self.found.layouts if one.last.fits(value)]
        return any(min(one.take(value).shape[1:]) > 1 for one in lies)


class _Attention(TorchFunctionMode):
    """Notes where attention runs, whatever the module that runs it is called."""

    def __init__(self, found: Trace, meet: Meet) -> None:
        super().__init__()
        self._found, self._meet = found, meet

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if func is functional.scaled_dot_product_attention and not is_dtensor(made):
            key = args[1] if len(args) > 1 else kwargs["key"]
            self._meet(key)
            self._found.attended.append((len(self._found.calls), key, made))
        return made


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
    name = class_of(module).__name__.lower()
    # Norms over the batch or over groups of channels do not read tokens (N, T, D) by themselves.
    others = ("batch", "group", "instance")
    return "norm" in name and not list(module.children()) and not any(o in name for o in others)


def _is_whole(value: Any) -> bool:
    """Tell whether a value is a tensor; within branches, some are spread over processes."""
    return isinstance(value, Tensor) and not is_dtensor(value)


def first_tensor(values: Any) -> Tensor | None:
    """Return the first tensor among ``values``."""
    return next((value for value in values if isinstance(value, Tensor)), None)


def innermost(output: Any) -> Tensor | None:
    """Return the first tensor of an output, in whatever it is packed."""
    return next(tensors_in(output), None)


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of an output in order, in whatever it is packed."""
    if isinstance(output, Tensor):
        yield output
        return
    if isinstance(output, dict):
        output = list(output.values())
    elif is_dataclass(output) and not isinstance(output, type):
        output = [getattr(output, part.name) for part in fields(output)]
    if isinstance(output, tuple | list):
        for part in output:
            yield from tensors_in(part)


def _judged(output: Any, judge: Judge | None) -> Tensor | None:
    """Return the first of several tensors of an output that the loss depends on."""
    several = [value for value in tensors_in(output) if value.requires_grad]
    if judge is None or len(several) < 2 or not (loss := judge(output)).requires_grad:
        return None
    slopes = torch.autograd.grad(loss.sum(), several, retain_graph=True, allow_unused=True)
    return next((v for v, slope in zip(several, slopes, strict=True) if slope is not None), None)


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
    those that hand the stream on as it is, such as dropout, alone or beside what reads it, are left
    alone. The modules are those with which calls of blocks begin, in order.
    """
    inside = {part for block in blocks for part in block.modules()} - blocks
    through = {part for part in inside if any(child in blocks for child in part.modules())}
    inside -= through
    running: list[tuple[nn.Module, Tensor | None]] = []
    found: set[nn.Module] = set()
    normed: set[nn.Module] = set()
    calls: list[nn.Module] = []
    homes = Homes(blocks)

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        value = first_tensor((*args, *kwargs.values()))
        if homes.enter(module):
            calls.append(module)
        if is_norm(module):
            normed.update(other for other, held in running if held is value)
        running.append((module, value))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        _, value = running.pop()
        homes.leave(module)
        hands_on = value is not None and any(part is value for part in elements(output).values())
        if module in inside and not is_norm(module) and not hands_on:
            found.add(module)

    with _watched(model, enter, leave, first=is_sharded(model)), torch.no_grad():
        model(*args, **kwargs)
    return found - normed, calls


@contextmanager
def _watched(
    model: nn.Module, enter: Callable[..., Any], leave: Callable[..., None], *, first: bool
) -> Iterator[None]:
    """Call ``enter`` and ``leave`` at every module; ``first``: enter before the hooks of others."""
    with hooked() as handles:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=first))
            handles.append(module.register_forward_hook(leave))
        yield
