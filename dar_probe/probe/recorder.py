"""Watches one forward at the sites of a subject, and leaves no trace."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dar_probe.errors import ProbeError
from dar_probe.subjects.subject import Subject


class Recorder:
    """Context manager that taps every read and keeps every write of one forward.

    A tap hands ``u.view_as(u)`` to the branch: the forward is unchanged, and the tap's gradient
    is the gradient along that branch alone, while ``reads`` keeps the stream itself.

    Attributes:
        reads: h_l (N, T, D), l = 1..L+1, as the stream holds them.
        taps: what the branches got instead.
        writes: v_i (N, T, D), i = 0..L; empty where the subject has no writers.
        state: positional arguments of the state site.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.reads: list[Tensor] = []
        self.taps: list[Tensor] = []
        self.writes: list[Tensor] = []
        self.state: tuple[Any, ...] | None = None
        self._versions: list[int] = []
        self._fired: list[int] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        subject = self.subject
        for index, reader in enumerate(subject.readers):
            hook = self._tap(index)
            self._handles.append(reader.module.register_forward_pre_hook(hook))
        for writer in subject.writers or ():
            self._handles.append(writer.register_forward_hook(self._keep))
        if subject.state_site is not None:
            self._handles.append(subject.state_site.register_forward_pre_hook(self._remember))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def check(self) -> None:
        """Make sure that every site fired once, in order, and no read was overwritten.

        Raises:
            ProbeError: naming the site.
        """
        names = [reader.name for reader in self.subject.readers]
        for index, name in enumerate(names):
            if (count := self._fired.count(index)) != 1:
                raise ProbeError(
                    f"the reader {name!r} fired {count} times in one forward, expected once",
                    hint="a compiled or wrapped model must be unwrapped before it is probed",
                )
        if self._fired != list(range(len(names))):
            raise ProbeError("the readers fired in another order than the sites are named")
        if self.subject.writers is not None and len(self.writes) != len(self.subject.sources):
            raise ProbeError(
                f"{len(self.writes)} writes in one forward, expected {len(self.subject.sources)}"
            )
        for name, read, version in zip(names, self.reads, self._versions, strict=True):
            if read._version != version:
                raise ProbeError(
                    f"the stream was overwritten in place after {name!r} read it",
                    hint="the probe needs x = x + f(x), not x += f(x)",
                )

    def _tap(self, index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            read: Tensor = args[0]
            tap = read.view_as(read)
            self._fired.append(index)
            self.reads.append(read)
            self.taps.append(tap)
            self._versions.append(read._version)
            return (tap, *args[1:])

        return hook

    def _keep(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.writes.append(output)

    def _remember(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.state = args


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Hold a model in eval mode with frozen parameters, eager; then put everything back.

    Mode of every submodule, requires_grad of every parameter, every buffer, the random state and
    the fast path of ``torch.backends.mha`` are afterwards as they were.
    """
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    devices = sorted({p.device.index for p, _ in wanted if p.device.type == "cuda"})
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.enable_grad())
        # Hooks added to a compiled module never fire; eager they do.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fastpath)
        stack.callback(_restore, modes, wanted, buffers)
        torch.backends.mha.set_fastpath_enabled(False)
        model.eval()
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        yield


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
        if not torch.equal(buffer, value):  # a forward may count or cache, in eval mode too
            with torch.no_grad():
                buffer.copy_(value)
