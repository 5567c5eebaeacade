"""The audit of a module: as it came, or before and after a copy of it was trained."""

from dataclasses import asdict, replace

from torch import nn

from dar_probe.analysis import Analysis
from dar_probe.errors import UsageError
from dar_probe.probe import module_plan
from dar_probe.probe.in_step import check_same_question
from dar_probe.probe.options import GridOptions, ModuleOptions
from dar_probe.probe.plan import OnCells, Task
from dar_probe.probe.recorder import same_randomness
from dar_probe.results import streams
from dar_probe.results.fail_rule import Rule
from dar_probe.runtime.ranks import alive
from dar_probe.runtime.sharded import ranks_of
from dar_probe.sites.unwrap import unwrap
from dar_probe.training.finetune import FinetuneOptions, OnStep, train_copy


def audit(
    module: nn.Module,
    options: ModuleOptions,
    grid: GridOptions,
    training: FinetuneOptions | None = None,
    *,
    rule: Rule | None = None,
    on_cells: OnCells | None = None,
    on_step: OnStep | None = None,
) -> Analysis:
    """Measure a module; with ``training`` first the module, then a trained copy of it.

    Args:
        module: any module with a pre-norm residual stack.
        options: how it is run, and where its stream is read.
        grid: noise levels, samples and batch size.
        training: how a copy is trained, on samples of its own; None: nothing is trained.
        rule: replaces the default judgement.
        on_cells: called with (done, total) after each batch of cells.
        on_step: called with (step, steps, loss) after each step of the training.

    Returns:
        The analysis of the module, or of the trained copy with that of the module as ``before``.

    Raises:
        ProbeError: no pre-norm stack was found, or nothing could be measured.
        UsageError: an argument does not fit.
    """
    ranks = ranks_of(unwrap(module))
    if training is not None and ranks.in_step:
        raise UsageError(
            "a module that is sharded over processes cannot be copied, and it is a copy that is "
            "trained",
            hint="leave train_steps out",
        )
    if ranks.in_step:
        with alive():
            check_same_question(ranks, options.asked, grid)
            task = module_plan.of_module(module, options, grid)
            return Analysis(task.measure(ranks=ranks, on_cells=on_cells), fail_on=rule)
    task = module_plan.of_module(module, options, grid)
    if training is None:
        return Analysis(task.measure(on_cells=on_cells), fail_on=rule)
    if task.loss in (module_plan.random_target, module_plan.mean_square):
        raise UsageError(
            "training takes a loss: nothing is learnt from what stands in for one",
            hint="loss(output, sample_ids, noise_level) -> (N,), third of (module, batch, loss)",
        )
    before = Analysis(task.measure(on_cells=on_cells), fail_on=rule)
    trained = _trained(task, options, training, on_step)
    return Analysis(trained.measure(on_cells=on_cells), fail_on=rule, before=before)


def _trained(
    task: Task, options: ModuleOptions, training: FinetuneOptions, on_step: OnStep | None
) -> Task:
    """Return the same task of a trained copy of the module."""
    losses: list[float] = []

    def tell(step: int, steps: int, value: float) -> None:
        losses.append(value)
        if on_step:
            on_step(step, steps, value)

    levels = task.grid.levels
    with same_randomness(task.subject.model):  # training forks torch's alone
        twin = train_copy(
            task.subject.model,
            task.batch,
            task.loss,
            training,
            noise_levels=levels,
            first_id=len(task.grid.ids),
            on_step=tell,
        )
    stream = task.manifest["config"].get("stream", streams.IMAGE)
    subject = module_plan.find_sites(
        twin, replace(options, batch=task.batch), levels, stream=stream
    )
    own = {
        "model": {**task.manifest["model"], **subject.facts},
        "training": {**asdict(training), "first_loss": losses[0], "final_loss": losses[-1]},
    }
    return replace(task, subject=subject, manifest={**task.manifest, **own})
