"""A model for interventions by hand: nnsight traces whose sites are named as in the reports."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from dar_probe.errors import ProbeError, UsageError
from dar_probe.files.text import quote
from dar_probe.probe import module_plan, plan
from dar_probe.probe import nnsight_engine as trace
from dar_probe.probe.measure import Batch, Loss
from dar_probe.probe.monitor import Watch
from dar_probe.probe.options import GridOptions, Levels, ModuleOptions, sort
from dar_probe.probe.recorder import frozen
from dar_probe.probe.user_functions import batch_of, loss_of
from dar_probe.runtime.ranks import leads
from dar_probe.runtime.sharded import is_sharded
from dar_probe.sites.autograd_entry import entering
from dar_probe.sites.listing import writing
from dar_probe.sites.unwrap import unwrap

FEW = 8


class UnknownSiteError(UsageError, KeyError):
    """A name that no site has (exit code 2)."""

    __str__ = Exception.__str__  # a KeyError shows its sentence in quotation marks


class Sites(dict[str, Any]):
    """Sites by name; a name that is not there is answered with the nearest ones.

    Args:
        kind: "read", "write" or "module", for the message.
        found: the sites.
    """

    def __init__(self, kind: str, found: Mapping[str, Any]) -> None:
        super().__init__(found)
        self._kind = kind

    def __missing__(self, name: object) -> Any:
        near = get_close_matches(str(name), self, 3, 0.3) or list(self)[:3]
        what = ", ".join(map(repr, near)) or "there is none"
        raise UnknownSiteError(f"there is no {self._kind} {quote(name)}", hint=f"such as {what}")


class Probe:
    """A model under nnsight, for interventions by hand.

    In the body of ``with probe.trace(...):`` a site of ``reads`` has an ``input`` and one of
    ``writes`` an ``output`` that can be read, kept with ``probe.save`` and assigned, in the order
    of the forward. The model is in eval mode with frozen parameters until ``close``.

    Args:
        model: a checkpoint (file or folder), or a module.
        batch: as for ``api.audit``; left out, as there.
        loss: as for ``api.audit``.
        settings: for a checkpoint data, noise_levels, samples, device and so on of
            ``api.analyze``; for a module noise_levels, samples, batch_size, blocks, readers
            and layout of ``api.audit``.

    Attributes:
        module: the plain module, for those who work without nnsight; see ``inputs``.
        model: the whole model as an nnsight envoy; ``probe.model.output`` in a trace.
        modules: every module by its own path, also where no residual stream was found.
        reads: the module of each sublayer's read, by names such as "block 3 attention" and
            "head". Left out are modules that run more than once in a forward, and the head where
            it is no module of its own.
        writes: the module that returns each write to the stream, by names such as "block 3 mlp".
            Left out are writes that no single module returns, such as a branch times its gate.
        ids: sample ids that can be traced.

    Example:
        >>> with dp.Probe("ckpt.pt") as probe, probe.trace(0.5):
        ...     read = probe.save(probe.reads["block 3 mlp"].input)

    Raises:
        UsageError: a module came without a batch function, and none is known for its class.
        CheckpointError, ProbeError: see ``dar_probe.errors``.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        *,
        batch: Batch | None = None,
        loss: Loss | None = None,
        **settings: Any,
    ) -> None:
        subject, asked = None, "samples" in settings
        self.ids: tuple[int, ...] = tuple(range(FEW))
        if not isinstance(model, nn.Module):
            engine = settings.pop("engine", "hooks")
            planned = plan.of_checkpoint(*sort(model, settings), engine=engine)
            subject, self._batch, self._loss = planned.subject, planned.batch, planned.loss
            module = planned.subject.model
            self.ids = planned.grid.ids if asked else planned.grid.ids[:FEW]
        else:
            names = {name: settings.pop(name, None) for name in ("blocks", "readers", "layout")}
            wanted = ModuleOptions(batch=batch, loss=loss, **names)
            module = unwrap(model)
            _refuse_sharded(module)
            try:
                planned = module_plan.of_module(module, wanted, GridOptions(**settings))
                subject, self._batch, self._loss = planned.subject, planned.batch, planned.loss
                self.ids = planned.grid.ids
            except ProbeError:
                if batch is None:
                    raise
                # No residual stream: its modules can be traced all the same.
                self._batch = batch_of(batch, module)
                self._loss = loss_of(loss, module) if loss else module_plan.mean_square
        self.module, self._closed = module, False
        with ExitStack() as stack:
            stack.enter_context(frozen(module))
            self.model = stack.enter_context(trace.wrapped(module))
            self._held = stack.pop_all()
        at = trace.envoys(self.model)
        self.modules = Sites("module", {n: at[m] for n, m in module.named_modules() if n})
        self.reads, self.writes = Sites("read", {}), Sites("write", {})
        if subject is not None:
            # An envoy's ``input`` is that of the first call alone.
            simple = [r for r in subject.readers if r.when == "input" and r.call[1] == 1]
            self.reads = Sites("read", {r.name: at[r.module] for r in simple})
            self.writes = Sites("write", {n: at[m] for n, m in writing(subject).items()})

    def inputs(
        self, noise_level: float, ids: Sequence[int] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return (args, kwargs) of ``module`` for samples ``ids`` at ``noise_level``.

        The first input requires a gradient: parameters do not, and autograd begins somewhere.

        Example: ``args, kwargs = probe.inputs(0.5); output = probe.module(*args, **kwargs)``

        Raises:
            UsageError: no such noise level.
        """
        return entering(*self._batch(*self._cells(noise_level, ids)))

    def trace(self, noise_level: float, ids: Sequence[int] | None = None) -> Any:
        """Return nnsight's tracer of one forward of samples ``ids`` at ``noise_level``.

        Raises:
            UsageError: no such noise level, or the probe is closed.
        """
        if self._closed:
            raise UsageError(
                "this probe is closed: its model is as it came", hint="make another dp.Probe"
            )
        args, kwargs = self.inputs(noise_level, ids)
        return self.model.trace(*args, **kwargs)

    def loss(self, output: Any, noise_level: float, ids: Sequence[int] | None = None) -> Tensor:
        """Return the loss (N,) of an output for the same samples and level."""
        return self._loss(output, *self._cells(noise_level, ids))

    @staticmethod
    def save(value: Any) -> Any:
        """Keep a value of a trace beyond its end."""
        return trace.import_nnsight().save(value)

    @staticmethod
    def watch(
        model: nn.Module,
        *,
        out: str | Path,
        every: int | None = None,
        batch: Batch | None = None,
        loss: Loss | None = None,
        noise_levels: Levels | None = None,
        samples: int = 8,
        batch_size: int = 8,
        blocks: str | None = None,
        readers: str | None = None,
        layout: str | None = None,
    ) -> Watch:
        """Return a monitor that measures ``model`` while it is trained; call it at every step.

        Each measurement is an ``api.audit``, and leaves the model bit for bit as it was. It is
        added to the trajectory file ``out``, which is a whole file at every moment. Under torchrun
        the leader alone measures. A file of the same model and grid is continued: a step that is
        measured again replaces its earlier measurement and all later ones.

        Args:
            model: the module that is trained. torch.compile, DataParallel and
                DistributedDataParallel are taken off.
            out: a file such as "run/trajectory.nc".
            every: steps from one measurement to the next. Default:
                ``dar_probe.probe.monitor.EVERY``.
            batch: as for ``api.audit``, like all that follow.
            loss: as for ``api.audit``.
            noise_levels: as for ``api.audit``.
            samples: as for ``api.audit``.
            batch_size: as for ``api.audit``.
            blocks: as for ``api.audit``.
            readers: as for ``api.audit``.
            layout: as for ``api.audit``.

        Raises:
            ProbeError: no pre-norm stack was found.
            CheckpointError, UsageError: an argument does not fit, or ``out`` holds something
                else.
        """
        if not isinstance(model, nn.Module):
            raise UsageError(
                f"a {type(model).__name__} cannot be watched; it takes the module that is trained",
                hint="dar-probe analyze measures checkpoints",
            )
        _refuse_sharded(model)
        planned = None
        if leads():
            planned = module_plan.of_module(
                model,
                ModuleOptions(
                    batch=batch, loss=loss, blocks=blocks, readers=readers, layout=layout
                ),
                GridOptions(noise_levels=noise_levels, samples=samples, batch_size=batch_size),
            )
        return Watch(planned, out, every=every)

    def close(self) -> None:
        """Put the model back into the modes and gradients that it came with."""
        self._closed = True
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()

    def _cells(self, noise_level: float, ids: Sequence[int] | None) -> tuple[Tensor, Tensor]:
        if not 0 <= noise_level <= 1:
            raise UsageError(f"there is no noise level {noise_level}", hint="0 is data, 1 is noise")
        chosen = torch.tensor(list(self.ids if ids is None else ids))
        return chosen, torch.full((len(chosen),), float(noise_level), dtype=torch.float64)


def _refuse_sharded(module: nn.Module) -> None:
    """Refuse a module that several processes run in step: here one of them works alone.

    Raises:
        UsageError: it is one.
    """
    if is_sharded(module):
        raise UsageError(
            "the parameters of this module are sharded over processes, and one alone cannot run it",
            hint="call dp.analyze or dp.audit on every process instead, at a step as well",
        )
