"""Watches one forward at the sites of a subject, and leaves no trace."""

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dar_probe.errors import ProbeError
from dar_probe.probe.statistics import Rounding
from dar_probe.runtime.sharded import Origins, own_part, resharded
from dar_probe.runtime.torch_private import without_checkpointing
from dar_probe.sites.autograd_entry import begin
from dar_probe.sites.direct_calls import heard
from dar_probe.sites.hooks import hooked
from dar_probe.sites.operations import Call, Operation, Visited
from dar_probe.sites.packing import element, replaced
from dar_probe.sites.subject import Site, Subject


class Visitor:
    """Stands at every site of a subject during one forward.

    ``read``, ``write``, ``see`` and ``remember`` are what an engine calls: hooks while this
    context is open, or ``dar_probe.probe.nnsight_engine``.

    Attributes:
        subject: the model and its sites.
        begins: what it sees must require grad, from the entrance on.
    """

    begins = False

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._hooks = ExitStack()
        self._origins = Origins()
        self._calls: dict[tuple[nn.Module, str], _Calls] = {}
        self._operations: dict[Call, list[tuple[Operation, Callable[[Tensor], Tensor]]]] = {}

    def read(self, index: int, value: Tensor) -> Tensor:
        """Meet what stands at reader ``index`` (from 0), and return what it gets.

        ``value`` is the whole tensor, of which the reader's view is the stream (N, T, D).
        """
        raise NotImplementedError

    def write(self, index: int, value: Tensor) -> None:
        """Meet write ``index`` (N, T, D); 0 is the embedding."""
        raise NotImplementedError

    def see(self, source: int, value: Tensor) -> None:
        """Meet the whole tensor at the passage before the fusion that is ``source``."""
        raise NotImplementedError

    def remember(self, state: tuple[Any, ...]) -> None:
        """Meet the positional arguments of the state site."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        subject = self.subject
        for source, passage in subject.passages.items():
            self._stand(passage, partial(self._on_passage, source))
        for index, reader in enumerate(subject.readers):
            self._stand(reader, partial(self.read, index))
        with ExitStack() as stack:
            if subject.direct:
                stack.enter_context(heard(subject.model))
            handles = stack.enter_context(hooked())
            if subject.sharded:
                handles.extend(self._origins.watch(subject.model))
            for calls in self._calls.values():
                handles.append(calls.watch(first=subject.sharded))
            if self._operations:
                often = {r.module: r.call[1] for r in subject.readers if r.operation is not None}
                stack.enter_context(Visited(self._operations, often).watching())
            for index, writer in enumerate(subject.writers or ()):
                handles.append(writer.register_forward_hook(partial(self._on_write, index)))
            if subject.state_site is not None:
                handles.append(subject.state_site.register_forward_pre_hook(self._on_state))
            self._hooks = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.close()
        # It refers to this visitor: a circle, in which every state would outlive its batch.
        self._calls, self._operations = {}, {}

    def _stand(self, site: Site, visit: Callable[[Tensor], Tensor]) -> None:
        if site.operation is not None:
            call = site.module, site.call[0]
            self._operations.setdefault(call, []).append((site.operation, visit))
            return
        key = site.module, site.when
        # What is spread over processes is seen before hooks of others, which come before ours.
        begins = self.begins and self.subject.sharded and site.module is self.subject.entrance
        calls = self._calls.setdefault(key, _Calls(site.module, [], begins=begins))
        calls.visits.append((site, visit))

    def _on_passage(self, source: int, value: Tensor) -> Tensor:
        self.see(source, value)
        return value

    def _on_write(
        self, index: int, module: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> None:
        self.write(index, output)

    def _on_state(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.remember(args)


@dataclass
class _Calls:
    """The sites at one end of one module, each visited at its own call."""

    module: nn.Module
    visits: list[tuple[Site, Callable[[Tensor], Tensor]]]
    begins: bool = False
    count: int = 0

    def watch(self, *, first: bool) -> RemovableHandle:
        """Stand at the module; ``first``: before the hooks that others put on it already."""
        if self.visits[0][0].when == "output":
            return self.module.register_forward_hook(self._after)
        return self.module.register_forward_pre_hook(self._before, with_kwargs=True, prepend=first)

    def _due(self) -> Iterator[tuple[Site, Callable[[Tensor], Tensor]]]:
        for site, visit in self.visits:
            number, of = site.call
            # ``Recorder.check`` counts visits, and refuses a module that is called too often.
            if self.count == number or self.count >= of:
                yield site, visit
        self.count += 1

    def _before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self.begins and torch.is_grad_enabled():
            begin(args, kwargs)
        for _, visit in self._due():
            at = next((i for i, value in enumerate(args) if isinstance(value, Tensor)), None)
            if at is not None:
                args = (*args[:at], visit(args[at]), *args[at + 1 :])
            else:
                name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
                kwargs = {**kwargs, name: visit(kwargs[name])}
        return args, kwargs

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        for site, visit in self._due():
            if site.item is None:
                output = visit(output)
            else:
                output = replaced(output, site.item, visit(element(output, site.item)))
        return output


class Together(Visitor):
    """Several visitors in one forward of one model.

    Args:
        visitors: of subjects of the same model.
    """

    def __init__(self, visitors: Sequence[Visitor]) -> None:
        super().__init__(visitors[0].subject)
        self._visitors = visitors

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for visitor in self._visitors:
                stack.enter_context(visitor)
            self._hooks = stack.pop_all()
        return self


class Recorder(Visitor):
    """Taps every read of one forward and follows every write.

    A tap hands an alias of ``u`` to the branch: the forward is unchanged, and the tap's gradient
    is the gradient along that branch alone, while ``reads`` keeps the stream itself.

    Args:
        subject: the model and its sites.
        tapped: taps and what they stand for, by the taps' ids, of recorders that watch the same
            forward: a branch that reads both streams is tapped once.

    Attributes:
        values: what stood at each reader, the stream itself and whatever else the tensor holds.
        origins: the same tensors as the model has them, where FSDP hands on others to its modules.
        reads: h_l (N, T, D), l = 1..L+1, the measured part of them.
        taps: what the branches got instead of ``values``.
        seen: the stream (N, T, D) before each fusion, by the fusion's number as a source.
        writes: v_i (N, T, D), i = 0..L, under a router; elsewhere no write outlives the next
            read, so that recording costs no memory.
        rounding: what plain addition loses; None without writers, or under a router.
        state: positional arguments of the state site.
    """

    begins = True

    def __init__(
        self, subject: Subject, tapped: dict[int, tuple[Tensor, Tensor]] | None = None
    ) -> None:
        super().__init__(subject)
        self._tapped = tapped
        self.values: list[Tensor] = []
        self.origins: list[Tensor] = []
        self.reads: list[Tensor] = []
        self.taps: list[Tensor] = []
        self.seen: dict[int, Tensor] = {}
        self.writes: list[Tensor] = []
        self.state: tuple[Any, ...] | None = None
        self.rounding: Rounding | None = None
        if subject.writers is not None and subject.routes is None:
            self.rounding = Rounding()
        self._versions: list[int] = []
        self._fired: list[int] = []
        self._written: list[int] = []
        self._passed: list[int] = []

    def read(self, index: int, value: Tensor) -> Tensor:
        """Take note of what reader ``index`` (from 0) reads, and return what it gets."""
        tap, value = self._tap(value)
        self._fired.append(index)
        self.values.append(value)
        self.origins.append(self._origins.of(value))
        self.reads.append(self.subject.readers[index].view.take(value))
        self.taps.append(tap)
        self._versions.append(value._version)
        if self.rounding is not None and self.writes:
            write = self.writes.pop()
            if len(self.reads) == 1:
                self.rounding.start(value, write)
            else:
                self.rounding.add(self.reads[-2], value, write)
        return tap

    def _tap(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tap of what stands at a reader, and that itself."""
        # view_as may give an axis of length 1 another stride, for which torch multiplies otherwise.
        if self._tapped is None:
            return torch.ops.aten.alias(value), value
        if id(value) not in self._tapped:
            tap: Tensor = torch.ops.aten.alias(value)
            self._tapped[id(tap)] = tap, value
            return tap, value
        return self._tapped[id(value)]

    def write(self, index: int, value: Tensor) -> None:
        """Take note of a write."""
        self._written.append(index)
        self.writes.append(value)

    def see(self, source: int, value: Tensor) -> None:
        """Take note of the stream before a fusion."""
        self._passed.append(source)
        self.seen[source] = self.subject.passages[source].view.take(value)

    def remember(self, state: tuple[Any, ...]) -> None:
        """Take note of the arguments of the state site."""
        self.state = state

    def states(self) -> list[Tensor]:
        """Return the stream (N, T, D) right after each source has entered it."""
        sources, reads = self.subject.sources, iter(self.reads)
        following = [*range(1, len(sources)), None]
        return [
            self.seen[i] if i is not None and not sources[i].written else next(reads)
            for i in following
        ]

    def check(self) -> None:
        """Make sure that every site fired once, in order, and no read was overwritten.

        Raises:
            ProbeError: naming the site.
        """
        subject = self.subject
        names = [reader.name for reader in subject.readers]
        _once("reader", names, [reader.module for reader in subject.readers], self._fired)
        passages = {subject.sources[i].name: p.module for i, p in subject.passages.items()}
        order = {source: at for at, source in enumerate(subject.passages)}
        seen = [order[source] for source in self._passed]
        _once("place before", list(passages), list(passages.values()), seen)
        if subject.writers is not None:
            sources = [source.name for source in subject.sources]
            _once("writer", sources, list(subject.writers), self._written)
        for name, value, version in zip(names, self.values, self._versions, strict=True):
            if value._version != version:
                raise ProbeError(
                    f"the stream was overwritten in place after {name!r} read it",
                    hint="the probe needs x = x + f(x), not x += f(x)",
                )


def _once(what: str, names: list[str], modules: list[nn.Module], fired: list[int]) -> None:
    for index, name in enumerate(names):
        if (count := fired.count(index)) != 1:
            same = [other for other, m in zip(names, modules, strict=True) if m is modules[index]]
            shared = f"; {' and '.join(map(repr, same))} share one module" if len(same) > 1 else ""
            raise ProbeError(
                f"the {what} {name!r} fired {count} times in one forward, expected once{shared}",
                hint="every site needs a module of its own that runs once in each forward",
            )
    if fired != list(range(len(names))):
        raise ProbeError(f"the {what}s fired in another order than the sites are named")


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Hold a model in eval mode with frozen parameters, eager; then put everything back.

    Activation checkpointing is off meanwhile. What ``frozen`` gives back, the random states of
    torch, numpy and Python, and the fast path of ``torch.backends.mha`` are afterwards as they
    were.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(same_randomness(model))
        stack.enter_context(torch.enable_grad())
        # Hooks added to a compiled module never fire; eager they do.
        if _may_compile(model):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fastpath)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(frozen(model))
        stack.enter_context(without_checkpointing())
        yield


def _may_compile(model: nn.Module) -> bool:
    """Whether something of the model is compiled, or may be while it runs.

    Asking torch to run eager loads Dynamo, which takes more than a second. Where it is not loaded
    nothing was compiled, and torch's modules and ours compile nothing in their forward.
    """
    known = ("torch.nn.", "dar_probe.")
    return "torch._dynamo" in sys.modules or any(
        not type(module).__module__.startswith(known) for module in model.modules()
    )


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Hold a model in eval mode with frozen parameters; then put it back.

    Mode of every submodule, requires_grad of every parameter, every buffer, and requires_grad of
    tensors that modules hold as plain attributes are afterwards as they were.
    """
    with resharded(model), _frozen(model):
        yield


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    recorded = {id(value) for value in _held(model) if value.requires_grad}
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        model.eval()
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        _restore(modes, wanted, buffers)
        for value in _held(model):
            if value.requires_grad and value.is_leaf and id(value) not in recorded:
                value.requires_grad_(False)  # a first block may read one, where autograd starts


def _held(model: nn.Module) -> list[Tensor]:
    """Return the tensors that modules hold as plain attributes, alone or in a list or dict."""
    found = []
    for module in model.modules():
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers"):
                continue
            parts = value.values() if isinstance(value, dict) else value
            inside = parts if isinstance(value, list | tuple | dict) else [value]
            found += [part for part in inside if isinstance(part, Tensor)]
    return found


@contextmanager
def same_randomness(model: nn.Module) -> Iterator[None]:
    """Put back the random states of torch on the model's devices, of numpy and of Python.

    A module may draw from any of them, in eval mode too.
    """
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    own, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(own)
            np.random.set_state(numpys)  # noqa: NPY002


def _restore(
    modes: list[tuple[nn.Module, bool]],
    wanted: list[tuple[nn.Parameter, bool]],
    buffers: list[tuple[nn.Module, str, Tensor, Tensor]],
) -> None:
    for module, training in modes:
        module.training = training
    for parameter, requires_grad in wanted:
        parameter.requires_grad_(requires_grad)
    for module, name, buffer, value in buffers:
        module._buffers[name] = buffer
        if buffer.is_leaf and not value.requires_grad:
            buffer.requires_grad_(False)  # a first block may read a buffer, where autograd starts
        # A forward may count or cache, in eval mode too.
        if not torch.equal(own_part(buffer), own_part(value)):
            with torch.no_grad():
                buffer.copy_(value)
