"""Analyses of checkpoints: of one, of several training steps, and with real interventions."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from dar_probe.analysis import Analysis, OnFile
from dar_probe.checkpoints import memory_check
from dar_probe.errors import UsageError
from dar_probe.models import offload
from dar_probe.models.options import CheckpointOptions
from dar_probe.probe import ablation, module_plan, plan
from dar_probe.probe.estimate import Foreseen
from dar_probe.probe.in_step import check_same_question
from dar_probe.probe.options import (
    GridOptions,
    InterventionOptions,
    ModuleOptions,
    OutputOptions,
)
from dar_probe.probe.placing import offloaded
from dar_probe.probe.runner import OnVerdict, Run
from dar_probe.probe.steps import run_steps
from dar_probe.results import streams
from dar_probe.results.fail_rule import parse_rule
from dar_probe.runtime.ranks import alive, joined
from dar_probe.runtime.sharded import ranks_of
from dar_probe.sites.unwrap import unwrap


def analyze(
    checkpoints: Sequence[CheckpointOptions],
    grid: GridOptions,
    output: OutputOptions,
    *,
    engine: str = "hooks",
    on_cells: plan.OnCells | None = None,
    on_verdict: OnVerdict | None = None,
    on_file: OnFile | None = None,
) -> Analysis:
    """Analyse a checkpoint, or several of one training run as one trajectory.

    Args:
        checkpoints: one or more.
        grid: samples and noise levels.
        output: where files go, and the rule to fail on.
        engine: "hooks" or "nnsight": the same numbers, bit for bit.
        on_cells: called with (done, total) after each batch of cells.
        on_verdict: called with the analysis as soon as all is measured, before pictures are drawn
            and files are written; by the leader of a job alone, and not where nothing is written.
        on_file: called before each file is written, see ``Analysis.save``; by the leader alone.

    Raises:
        CheckpointError, ProbeError, UsageError: see ``dar_probe.errors``.
    """
    if not checkpoints:
        raise UsageError("there is no checkpoint to analyse")
    rule = None if output.fail_on is None else parse_rule(output.fail_on)
    with joined(in_step=checkpoints[0].shard) as ranks, alive():
        run = Run(
            output=output, rule=rule, ranks=ranks,
            on_cells=on_cells, on_verdict=on_verdict, on_file=on_file,
        )  # fmt: skip
        run.check()
        if len(checkpoints) > 1 and grid.stream == streams.ALL:
            raise UsageError(
                "a trajectory is of one stream",
                hint="--stream image or text, or one checkpoint at a time",
            )
        if len(checkpoints) > 1:
            return run_steps(run, checkpoints, grid, engine)
        return run.finish(run.plan(checkpoints[0], grid, engine), name=checkpoints[0].name)


def estimate(
    checkpoint: CheckpointOptions, grid: GridOptions, *, engine: str = "hooks"
) -> Foreseen:
    """Return what ``analyze``, given the same, will need; the model is loaded for it.

    Raises:
        CheckpointError, ProbeError, UsageError: see ``dar_probe.errors``.
    """
    task = plan.of_checkpoint(checkpoint, grid, engine=engine)
    device = offload.device_of(task.subject.model)
    return Foreseen(estimate=task.estimate(), available=memory_check.available(device))


def analyze_module(
    module: nn.Module,
    options: ModuleOptions,
    grid: GridOptions,
    output: OutputOptions,
    interventions: InterventionOptions | None = None,
    *,
    engine: str = "hooks",
    on_cells: plan.OnCells | None = None,
) -> Analysis:
    """Analyse a module that somebody brings, in this process alone.

    One that is sharded over processes is analysed by all of them in step, and the first one writes.

    Args:
        module: with a pre-norm residual stack; it is left bit for bit as it was.
        options: how it is run, and where its stream is read.
        grid: samples and noise levels.
        output: where files go, and the rule to fail on.
        interventions: what is done to it for real; None: nothing.
        engine: as for ``analyze``.
        on_cells: as for ``analyze``.

    Raises:
        ProbeError, UsageError: see ``dar_probe.errors``.
    """
    plan.check_engine(engine, recompute=grid.recompute, stream=grid.stream, offload=options.offload)
    if interventions is not None:
        check_interventions(interventions)
    rule = None if output.fail_on is None else parse_rule(output.fail_on)
    run = Run(output=output, rule=rule, ranks=ranks_of(unwrap(module)), on_cells=on_cells)
    with alive():
        check_same_question(
            run.ranks, options.asked, grid, interventions, engine, output.out is None,
            output.resume,
        )  # fmt: skip
        run.check()
        with offloaded(module, options) as (module, options):
            return _of_module(run, module, options, grid, interventions, engine)


def _of_module(
    run: Run,
    module: nn.Module,
    options: ModuleOptions,
    grid: GridOptions,
    interventions: InterventionOptions | None,
    engine: str,
) -> Analysis:
    plan.check_engine(engine, sharded=run.ranks.in_step)
    task = module_plan.of_module(module, options, grid)
    task = replace(task, engine=engine, offload=options.offload)
    if run.output.out is not None:
        task = module_plan.identified(task)
    if interventions is not None:
        task = _intervening(task, interventions)
    return run.finish(task, name=options.name)


def ablate(
    checkpoint: CheckpointOptions,
    grid: GridOptions,
    wanted: InterventionOptions,
    output: OutputOptions,
    *,
    engine: str = "hooks",
    on_cells: plan.OnCells | None = None,
    on_verdict: OnVerdict | None = None,
    on_file: OnFile | None = None,
) -> Analysis:
    """Analyse a checkpoint, and intervene in it for real; arguments as of ``analyze``.

    Raises:
        CheckpointError, ProbeError, UsageError: see ``dar_probe.errors``.
    """
    check_interventions(wanted)
    with joined(in_step=checkpoint.shard) as ranks, alive():
        run = Run(
            output=output, ranks=ranks,
            on_cells=on_cells, on_verdict=on_verdict, on_file=on_file,
        )  # fmt: skip
        run.check()
        task = _intervening(run.plan(checkpoint, grid, engine), wanted)
        return run.finish(task, name=checkpoint.name)


def check_interventions(wanted: InterventionOptions) -> None:
    """Refuse numbers that no model has; nothing is loaded for it.

    Raises:
        UsageError: a noise level outside [0, 1], or fewer than no pairs.
    """
    frozen_at, pairs = wanted.frozen_at, wanted.pairs
    if frozen_at is not None and not 0 <= frozen_at <= 1:
        raise UsageError(f"there is no noise level {frozen_at}", hint="0 is data, 1 is noise")
    if pairs < 0:
        raise UsageError(f"{pairs} pairs were asked for; it takes at least 0")


def _intervening(task: plan.Task, wanted: InterventionOptions) -> plan.Task:
    """Return the task with its interventions.

    Raises:
        UsageError: the model has no such site, or nothing was asked for. It is raised before
            anything is measured: afterwards it would be late, and leave shards.
    """
    levels, subject = task.grid.levels, task.subject
    usual = ablation.kinds_for(subject)
    level = levels[len(levels) // 2] if wanted.frozen_at is None else wanted.frozen_at
    kinds = usual if wanted.kinds is None else list(wanted.kinds)
    ablation.check_kinds(subject, kinds)
    for reader, source in wanted.gates:
        ablation.single(subject, reader - 1, source)
    if not wanted.gates and not wanted.pairs and set(kinds) <= {"gate"}:
        raise UsageError("no intervention was asked for", hint="raise --pairs, or name a --gate")
    interventions = {
        "kinds": kinds,
        "pairs": wanted.pairs,
        "gates": [list(gate) for gate in wanted.gates],
        "frozen_at": min(levels, key=lambda one: abs(one - level)),
    }
    return replace(task, interventions=interventions)
