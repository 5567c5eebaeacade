"""A module that somebody brings, turned into a task: its inputs, its loss and its sites."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dar_probe.diffusion import data as datasets
from dar_probe.diffusion.noise_levels import parse_levels
from dar_probe.diffusion.objective import Objective
from dar_probe.errors import UsageError, blamed
from dar_probe.models import registry
from dar_probe.models.offload import stored
from dar_probe.probe import inferred_inputs, plan
from dar_probe.probe.in_step import check_in_step
from dar_probe.probe.measure import Batch, Loss
from dar_probe.probe.options import GridOptions, ModuleOptions
from dar_probe.probe.recorder import untouched
from dar_probe.probe.sharding import Grid
from dar_probe.probe.user_functions import batch_of, check_batch, check_loss, loss_of, tensors
from dar_probe.results import streams
from dar_probe.runtime.checks import check_counts
from dar_probe.runtime.sharded import class_of, is_sharded, ranks_of, whole
from dar_probe.sites.discover import Asked
from dar_probe.sites.freshness import freshness
from dar_probe.sites.subject import Subject
from dar_probe.sites.tracing import innermost
from dar_probe.sites.unwrap import unwrap

SAMPLES, BATCH_SIZE = 8, 8  # where none are asked for
LEVELS = 5  # of a module with a time of its own
TARGET_SEED = 7_919  # no inputs are drawn from it
CONSTANT = 1e-3  # losses of two samples that are closer are one number


class UnknownInputsError(UsageError):
    """A module that came without a batch function, and of no known library (exit code 2)."""


def of_module(module: nn.Module, options: ModuleOptions, grid: GridOptions) -> plan.Task:
    """Find the sites of a module and return what ``api.audit`` measures.

    Args:
        module: any module; wrappers such as DistributedDataParallel are taken off. One that is
            sharded over processes is asked for by all of them.
        options: how it is run, and where its stream is read.
        grid: noise levels, samples and batch size; data and seed are the batch function's own.

    Raises:
        ProbeError: no pre-norm stack was found.
        UsageError: an argument does not fit.
    """
    if grid.data is not None or grid.seed:
        raise UsageError(
            "data and seed belong to checkpoints: a module's samples come from its batch function"
        )
    samples = SAMPLES if grid.samples is None else grid.samples
    batch_size = BATCH_SIZE if grid.batch_size is None else grid.batch_size
    check_counts(samples=samples, batch_size=batch_size)
    module = unwrap(module)
    if next(module.parameters(), None) is None:
        raise UsageError("the module has no parameters")
    noise_levels = grid.noise_levels
    batch = options.batch and batch_of(options.batch, module)
    loss = options.loss and loss_of(options.loss, module)
    data = {"name": "batch", "description": "inputs from the caller's batch function"}
    assumptions: list[str] = []
    objective: Objective | None = None
    stood_in: str | None = None  # what was measured where no loss was given
    if batch is None:
        inputs = _own_inputs(module)
        batch = inputs.batch
        data = {"name": inputs.name, "description": inputs.description}
        assumptions.append(f"no batch function was given: inputs are {inputs.description}")
        if loss is None and inputs.loss is not None:
            loss, stood_in = inputs.loss, inputs.stand_in
            assumptions += [_standing_in(stood_in), *inputs.assumptions]
        objective = inputs.objective
    timestep = log_snr = None
    if objective is not None:
        s = torch.from_numpy(parse_levels(LEVELS if noise_levels is None else noise_levels))
        s = torch.unique(objective.reached(s))
        levels, timestep = s.numpy(), objective.model_time(s).numpy().astype(np.float64)
        log_snr = objective.log_snr(s).numpy()
    else:
        levels = np.zeros(1) if noise_levels is None else parse_levels(noise_levels)
    if options.batch is not None:
        with untouched(module):
            check_batch(batch, float(levels[len(levels) // 2]), samples)
    level = float(levels[len(levels) // 2])
    if is_sharded(module):
        with untouched(module):
            check_in_step(
                module, partial(_inputs, module, batch, level), ranks_of(module),
                blocks=options.blocks,
            )  # fmt: skip
    subject = find_sites(module, replace(options, batch=batch), levels.tolist(), stream=grid.stream)
    if options.loss is not None and loss is not None:
        ids = torch.arange(min(samples, 2))
        _try_loss(module, batch, loss, ids, float(levels[len(levels) // 2]))
    if loss is None:
        with untouched(module):
            loss = stand_in(module, batch, float(levels[0]))
        stood_in = "the mean square of the output"
        if loss is random_target:
            stood_in += " less a random target, one of each sample's own,"
        assumptions.append(_standing_in(stood_in))
    with untouched(module):
        subject, warnings = plan.with_derivatives_checked(
            subject, batch, loss, [0], float(levels[len(levels) // 2])
        )
    cells = Grid(
        levels=tuple(levels.tolist()), ids=tuple(range(samples)), batch_size=batch_size,
        recompute=grid.recompute,
    )  # fmt: skip
    unknown = np.full(len(levels), np.nan)
    task = plan.Task(
        subject=subject,
        grid=cells,
        batch=batch,
        loss=loss,
        timestep=unknown if timestep is None else timestep,
        log_snr=unknown if log_snr is None else log_snr,
        manifest=plan.provenance(
            subject,
            cells,
            data=data,
            config={
                "stand_in_loss": stood_in,
                **({} if grid.stream == streams.IMAGE else {"stream": grid.stream}),
            },
            assumptions=[*assumptions, *subject.assumptions],
            warnings=warnings,
        ),
    )
    return task.called(options.name)


def identified(task: plan.Task) -> plan.Task:
    """Return the task with a hash of weights and inputs, so that files continue only their own."""
    found = hashlib.sha256()
    state = {**task.subject.model.state_dict(), **stored(task.subject.model)}
    ids, level = torch.tensor(task.grid.ids[:1]), task.grid.levels[len(task.grid.levels) // 2]
    with untouched(task.subject.model):
        args, kwargs = task.batch(ids, torch.tensor([level], dtype=torch.float64))
    for name, value in [*state.items(), *enumerate(tensors(args)), *enumerate(tensors(kwargs))]:
        if isinstance(value, Tensor):
            value = whole(value)
            raw = value.detach().cpu().contiguous().reshape(-1)
            found.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
            found.update(raw.view(torch.uint8).numpy().data)
    config = {**task.manifest["config"], "module_sha256": found.hexdigest()}
    return replace(task, manifest={**task.manifest, "config": config})


@torch.no_grad()
def _try_loss(module: nn.Module, batch: Batch, loss: Loss, ids: Tensor, level: float) -> None:
    """Hold a user's loss to its contract on the outputs of the samples ``ids``."""
    levels = torch.full((len(ids),), level, dtype=torch.float64)
    with untouched(module):
        args, kwargs = batch(ids, levels)
        check_loss(loss, module(*args, **kwargs), ids, levels)


def _standing_in(what: str) -> str:
    return f"no loss was given: {what} stands in"


def find_sites(
    module: nn.Module,
    options: ModuleOptions,
    levels: Sequence[float],
    *,
    stream: str = streams.IMAGE,
) -> Subject:
    """Name the sites of a module without wrappers, and tell whether it is as it was made.

    Args:
        module: without wrappers.
        options: with a batch function.
        levels: noise levels of the grid, rising.
        stream: as for ``GridOptions``.
    """
    assert options.batch is not None
    with untouched(module):
        # What a level scales may well vanish at the lowest one.
        level = levels[len(levels) // 2]
        loss = None if options.loss is None else loss_of(options.loss, module)
        first = _inputs(module, options.batch, level)
        subject = registry.find(
            module, *first, blocks=options.blocks, readers=options.readers, axes=options.layout,
            asked=Asked(
                two=partial(_inputs, module, options.batch, level, 2),
                judge=None if loss is None else partial(_loss_of_one, loss, level),
                second=stream != streams.IMAGE,
            ),
        )  # fmt: skip
        if subject.second is None and stream != streams.IMAGE:
            raise UsageError(
                f"of a {type(module).__name__} one stream is known, that of the image",
                hint="leave --stream out",
            )
    fresh = freshness(module, stored(module))
    subject = replace(subject, facts={**subject.facts, "fresh": fresh})
    return plan.of_stream(subject, stream)


def _loss_of_one(loss: Loss, level: float, output: Any) -> Tensor:
    only, levels = torch.arange(1), torch.full((1,), level, dtype=torch.float64)
    check_loss(loss, output, only, levels)
    return loss(output, only, levels)


@torch.no_grad()
def stand_in(module: nn.Module, batch: Batch, level: float) -> Loss:
    """Return a loss for a module that came without one.

    The mean square of the output, unless that is the same for two samples: after a norm it is a
    constant, and has no gradient but rounding.
    """
    ids, levels = torch.arange(2), torch.full((2,), level, dtype=torch.float64)
    args, kwargs = batch(ids, levels)
    one, other = mean_square(module(*args, **kwargs), ids, levels).tolist()
    return random_target if math.isclose(one, other, rel_tol=CONSTANT) else mean_square


def random_target(output: Any, sample_ids: Tensor, noise_level: Tensor) -> Tensor:
    """Return the mean square (N,) of a module's output, or of its first tensor, less a target.

    The target is normal noise, a function of the sample id alone.
    """
    found = _first_tensor(output)
    target = datasets.noise(sample_ids, found.shape[1:], seed=TARGET_SEED).to(found.device)
    return (found.float() - target).square().reshape(len(sample_ids), -1).mean(1)


def mean_square(output: Any, sample_ids: Tensor, noise_level: Tensor) -> Tensor:
    """Return the mean square (N,) of a module's output, or of its first tensor."""
    return _first_tensor(output).float().square().flatten(1).mean(1)


def _first_tensor(output: Any) -> Tensor:
    found = innermost(output)
    if found is None:
        raise UsageError(
            f"no tensor was found in the {type(output).__name__} that the module returns",
            hint="give a loss: loss(output, sample_ids, noise_level) -> (N,)",
        )
    return found


def _own_inputs(module: nn.Module) -> inferred_inputs.Inputs:
    found = inferred_inputs.find(module)
    if found is None:
        raise UnknownInputsError(
            f"a {class_of(module).__name__} came without a batch function, and none is known for "
            "it",
            hint="batch(sample_ids, noise_level) -> (args, kwargs)",
        )
    return found


def _inputs(
    module: nn.Module, batch: Batch, level: float, count: int = 1
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the inputs of the first samples, on which the module is known to run."""
    made = batch(torch.arange(count), torch.full((count,), level, dtype=torch.float64))

    def refuse(why: str) -> UsageError:
        hint = "check the batch function or --input"
        return UsageError(f"the module does not run on its inputs: {why}", hint=hint)

    with blamed(refuse), torch.no_grad():
        module(*made[0], **made[1])
    return made
