"""Branches that begin with operations instead of a module, such as a norm that is a function.

A block's forward may write ``x + self.attn(F.rms_norm(x, (D,)))``: no module gets ``x`` itself.
Operations do, and these are counted in the order in which the block runs them.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from dar_probe.errors import ProbeError
from dar_probe.runtime.sharded import class_of
from dar_probe.sites.hooks import hooked

Call = tuple[nn.Module, int]  # a block and which of its calls
Visit = Callable[[Tensor], Tensor]
SCALE, SAME = 3.0, 1e-3  # a branch ignores scale if this factor changes its input by no more


@dataclass(frozen=True)
class Operation:
    """The operations by which a branch begins to read a state.

    Attributes:
        uses: which operations of one call of the block take the state, counted from 0; modules
            within the block, and what runs in them, do not count.
        place: which tensor that the first of them takes is the state.
        names: of ``uses``.
        normed: the first module of the branch gets the same whatever the scale of the state.
        features: the axis of the state that they normalise over, 1 or -1, the last one: each token
            may have a scale of its own. None: neither, or both.
    """

    uses: tuple[int, ...]
    place: int
    names: tuple[str, ...]
    normed: bool
    features: int | None = None


class Watched(TorchFunctionMode):
    """Meets every operation that blocks run themselves, and not a module within.

    ``meet`` gets the call of the block, the number of the operation and its arguments; it returns
    what the operation returns.
    """

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self._blocks = set(blocks)
        self._inside = {part for block in self._blocks for part in block.modules()}
        self._frames: list[nn.Module] = []
        self._calls: Counter[nn.Module] = Counter()
        self._counts: list[int] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count from here on; hooks that others have put on modules already are not counted."""
        with hooked() as handles:
            for part in self._inside:
                block = part in self._blocks
                handles.append(
                    part.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=not block)
                )
                handles.append(part.register_forward_hook(self._leave, prepend=block))
            with self:
                yield

    def begin(self) -> None:
        """Meet a block as it begins."""

    def end(self, call: Call, output: Any) -> None:
        """Meet a block as it ends."""

    def enter(self, module: nn.Module, given: list[Tensor]) -> None:
        """Meet a module that a block calls, as it begins."""

    def meet(self, call: Call, number: int, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run an operation and return what it returns."""
        raise NotImplementedError

    def _call(self) -> Call:
        block = self._frames[-1]
        return block, self._calls[block] - 1

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._frames and self._frames[-1] in self._blocks:
            self.enter(module, tensors_of(args, kwargs))
        self._frames.append(module)
        if module in self._blocks:
            self._calls[module] += 1
            self._counts.append(0)
            self.begin()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        call = self._call()
        self._frames.pop()
        if module in self._blocks:
            self._counts.pop()
            self.end(call, output)  # outside of the frame: what it runs does not count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._frames or self._frames[-1] not in self._blocks:
            return func(*args, **kwargs)
        number = self._counts[-1]
        self._counts[-1] += 1
        return self.meet(self._call(), number, func, args, kwargs)


class Visited(Watched):
    """Hands states to visitors where branches begin to read them.

    Args:
        visits: per call of a block the operations and who visits the state there.
        calls: how often each of the blocks is called; left out: not compared.
    """

    def __init__(
        self,
        visits: Mapping[Call, Sequence[tuple[Operation, Visit]]],
        calls: Mapping[nn.Module, int] | None = None,
    ) -> None:
        super().__init__({block for block, _ in visits})
        self._visits, self._wanted = visits, calls or {}
        # Per call and visit the state, and its stand-in.
        self._seen: dict[tuple[Call, int], tuple[Tensor, Tensor]] = {}

    def begin(self) -> None:
        """Refuse a call too many: nobody visits what it reads. One too few lacks its visits."""
        block, number = self._call()
        if number >= self._wanted.get(block, number + 1):
            raise ProbeError(
                f"a {class_of(block).__name__} runs more often than the {self._wanted[block]} "
                "times that it ran when its sites were found",
                hint="the forward must take the same way for all samples and noise levels",
            )

    def meet(self, call: Call, number: int, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run an operation, on what the visitor makes of the state."""
        for at, (operation, visit) in enumerate(self._visits.get(call, ())):
            if number not in operation.uses:
                continue
            step = operation.uses.index(number)
            if name_of(run) != operation.names[step]:
                raise ProbeError(
                    f"a {class_of(call[0]).__name__} runs {name_of(run)!r} where it ran "
                    f"{operation.names[step]!r} when its sites were found",
                    hint="the forward must take the same way for all samples and noise levels",
                )
            if step == 0:
                state = tensors_of(args, kwargs)[operation.place]
                self._seen[call, at] = state, visit(state)
            old, new = self._seen[call, at]
            args, kwargs = replaced(args, old, new), replaced(kwargs, old, new)
            if step == len(operation.uses) - 1:
                del self._seen[call, at]
        return run(*args, **kwargs)


@torch.no_grad()
def find(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    blocks: set[nn.Module],
    norms: set[nn.Module],
) -> dict[Call, list[Operation]]:
    """Return per call of a block the branches that begin with operations, in firing order.

    A state is what a module's input is made of by operations of the block, and what the block uses
    elsewhere too: in the residual addition.

    Args:
        model: in eval mode.
        args: of one sample.
        kwargs: of one sample.
        blocks: the modules that count as blocks.
        norms: modules that ignore the scale of what they read.
    """
    search = _Search(blocks, norms)
    with search.watching():
        model(*args, **kwargs)
    return search.found


@dataclass
class _Ran:
    """One operation: what it took and what it returned."""

    run: Callable[..., Any]
    args: Any
    kwargs: Any
    made: Any


@dataclass(frozen=True)
class _Began:
    """A module that a block calls: its input, and after how many operations it began."""

    module: nn.Module
    value: Tensor
    begins: int


@dataclass
class _Scene:
    """One call of a block."""

    ran: list[_Ran] = field(default_factory=list)
    began: list[_Began] = field(default_factory=list)
    output: Any = None


class _Search(Watched):
    def __init__(self, blocks: Iterable[nn.Module], norms: set[nn.Module]) -> None:
        super().__init__(blocks)
        self._norms = norms
        self.found: dict[Call, list[Operation]] = {}
        self._scenes: list[_Scene] = []

    def begin(self) -> None:
        self._scenes.append(_Scene())

    def enter(self, module: nn.Module, given: list[Tensor]) -> None:
        scene = self._scenes[-1]
        if given:
            scene.began.append(_Began(module, given[0], len(scene.ran)))

    def meet(self, call: Call, number: int, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        made = run(*args, **kwargs)
        self._scenes[-1].ran.append(_Ran(run, args, kwargs, made))
        return made

    def end(self, call: Call, output: Any) -> None:
        scene = self._scenes.pop()
        scene.output = output
        found: dict[tuple[int, ...], Operation] = {}
        for began in scene.began:
            if (operation := _begins(scene, began)) is not None:
                normed = operation.normed or began.module in self._norms
                found.setdefault(operation.uses, replace(operation, normed=normed))
        if found:
            self.found[call] = [found[uses] for uses in sorted(found)]


def _begins(scene: _Scene, began: _Began) -> Operation | None:
    """Return the operations between a state and a module's input, if there are any.

    A state is used elsewhere too, by operations that do not lead to the module, or returned.
    """
    taken: defaultdict[int, set[int]] = defaultdict(set)
    for number, ran in enumerate(scene.ran):
        for value in tensors_of(ran.args, ran.kwargs):
            taken[id(value)].add(number)
    makers = {
        id(made): number
        for number, ran in enumerate(scene.ran[: began.begins])
        for made in tensors_of((ran.made,), {})
    }
    returned = {id(value) for value in tensors_of((scene.output,), {})}
    chain, met = _leading_to(scene, began.value, None, makers)

    def is_state(value: Tensor) -> bool:
        same = value.numel() == began.value.numel()
        return same and (bool(taken[id(value)] - chain) or id(value) in returned)

    if taken[id(began.value)] or id(began.value) in returned:
        return None  # the module reads a state as it is
    states = [value for value in met if is_state(value)]
    if not states:
        return None
    state = max(states, key=lambda value: makers.get(id(value), -1))
    chain, _ = _leading_to(scene, began.value, state, makers)
    uses = tuple(sorted(chain & taken[id(state)]))
    first = scene.ran[uses[0]]
    values = tensors_of(first.args, first.kwargs)
    return Operation(
        uses=uses,
        place=next(place for place, value in enumerate(values) if value is state),
        names=tuple(name_of(scene.ran[number].run) for number in uses),
        normed=_ignores(scene, state, SCALE * state, began, sorted(chain)),
        features=_normalised(scene, state, began, sorted(chain)),
    )


def _leading_to(
    scene: _Scene, value: Tensor, state: Tensor | None, makers: dict[int, int]
) -> tuple[set[int], list[Tensor]]:
    """Return the operations that lead to a value, beginning at a state, and what they took."""
    asked, found, met = [value], set(), []
    for one in asked:
        number = makers.get(id(one))
        if one is state or number is None or number in found:
            continue
        found.add(number)
        before = tensors_of(scene.ran[number].args, scene.ran[number].kwargs)
        met += before
        asked += before
    return found, met


def _normalised(scene: _Scene, state: Tensor, began: _Began, chain: list[int]) -> int | None:
    """Return the axis, 1 or -1, along which alone the operations do not ignore factors."""

    def ignored(axis: int) -> bool:
        factors = torch.linspace(1, SCALE, state.shape[axis], device=state.device)
        shape = [-1 if at == axis else 1 for at in range(state.ndim)]
        changed = state * factors.to(state.dtype).reshape(shape)
        return _ignores(scene, state, changed, began, chain)

    axes = range(1, state.ndim)
    left = [axis for axis in axes if not ignored(axis)] if state.ndim > 2 else []
    return {1: 1, state.ndim - 1: -1}.get(left[0]) if len(left) == 1 else None


def _ignores(
    scene: _Scene, state: Tensor, changed: Tensor, began: _Began, chain: list[int]
) -> bool:
    """Run the operations again on a changed state, and compare what the module gets."""
    known: dict[int, Any] = {id(state): changed}
    for number in chain:
        ran = scene.ran[number]
        args, kwargs = ran.args, ran.kwargs
        for value in tensors_of(args, kwargs):
            if id(value) in known:
                args = replaced(args, value, known[id(value)])
                kwargs = replaced(kwargs, value, known[id(value)])
        made = ran.run(*args, **kwargs)
        old, new = tensors_of((ran.made,), {}), tensors_of((made,), {})
        known |= {id(a): b for a, b in zip(old, new, strict=True)}
    found = known.get(id(began.value))
    size = began.value.norm()
    return found is not None and bool((found - began.value).norm() <= SAME * size)


def name_of(run: Callable[..., Any]) -> str:
    """Return the plain name of an operation, such as "rms_norm"."""
    name = str(resolve_name(run) or getattr(run, "__name__", repr(run)))
    parts = [part for part in name.split(".") if part not in ("__get__", "__set__")]
    return parts[-1].strip("_")


def tensors_of(args: Any, kwargs: Any) -> list[Tensor]:
    """Return the tensors among arguments, those in lists and tuples too."""
    found: list[Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors_of(value, {})
    return found


def replaced(values: Any, old: Tensor, new: Tensor) -> Any:
    """Return arguments with one tensor in the place of another."""
    if values is old:
        return new
    if isinstance(values, dict):
        return {key: replaced(value, old, new) for key, value in values.items()}
    if type(values) in (list, tuple):
        return type(values)(replaced(value, old, new) for value in values)
    return values
