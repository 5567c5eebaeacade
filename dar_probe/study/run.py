"""Does the runs of a study, one after the other; a folder of finished runs is where it stands."""

import csv
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dar_probe.diffusion.evaluation import Judge
from dar_probe.errors import InUseError, UsageError
from dar_probe.files import atomic
from dar_probe.models.generator import load_generator
from dar_probe.models.options import CheckpointOptions, SamplingOptions
from dar_probe.results import metrics, store, trajectory
from dar_probe.results.intervals import numbers
from dar_probe.results.study import record
from dar_probe.results.study.record import Record
from dar_probe.runtime.version import __version__
from dar_probe.study import cost
from dar_probe.study.plan import PlannedRun
from dar_probe.training import loop
from dar_probe.training.config import TrainConfig

OnStart = Callable[[PlannedRun], None]
OnStep = Callable[[PlannedRun, loop.Progress], None]


def pending(planned: Sequence[PlannedRun], out: Path) -> list[PlannedRun]:
    """Return the runs that have no record in ``out`` yet.

    Raises:
        UsageError: a run was recorded with other settings.
        CheckpointError: a record cannot be read.
    """
    left = []
    for run in planned:
        path = record_path(out, run)
        if not path.exists():
            left.append(run)
            continue
        stored = {**TrainConfig().to_dict(), **record.read(path).config}
        wanted = run.config.to_dict()
        if other := [name for name in wanted if stored.get(name) != wanted[name]]:
            raise UsageError(
                f"{path.name} was made with other settings: {other[0]} is "
                f"{stored.get(other[0])!r} there and {wanted[other[0]]!r} here",
                hint="remove it to do the run again, or choose another --out",
            )
    return left


def perform(
    run: PlannedRun,
    out: Path,
    *,
    device: str = "cpu",
    on_start: OnStart | None = None,
    on_step: OnStep | None = None,
) -> Record | None:
    """Do one run, or go on with it, and write its record.

    Checkpoints lie in out/work until then, so that a run which is cut off goes on where it was.
    ``on_start`` is called where nothing stands in the way any more.

    Returns:
        The record; None where another process does this run.
    """
    work = out / "work" / run.name
    # What cannot be done is refused before there is a folder, not after the training.
    sizes = loop.Run(run.config, work, device=device).model_config
    judge: Judge | None = None
    if run.scale.samples and run.config.data == "digits":
        shape = (sizes.in_channels, sizes.input_size, sizes.input_size)
        judge = Judge(run.config.data, "digits", shape=shape, device=device)
    with ExitStack() as held:
        try:
            held.callback(os.close, atomic.hold(work.absolute(), work))
        except InUseError:
            return None
        if record_path(out, run).exists():  # another process has finished it meanwhile
            found = record.read(record_path(out, run))
        else:
            if on_start:
                on_start(run)
            found = _perform(run, work, device, judge, on_step)
            atomic.make_folder(out / "runs", out / "runs")
            found.write(record_path(out, run))
        shutil.rmtree(work)
        with suppress(OSError):  # another run's is in it
            work.parent.rmdir()
    return found


def reprice(run: PlannedRun, out: Path, *, device: str = "cpu") -> Record:
    """Time the steps of a finished run again, and write that into its record.

    Raises:
        CheckpointError: its record cannot be read.
    """
    path = record_path(out, run)
    found = replace(record.read(path), **cost.measure(run, device))
    found.write(path)
    return found


def record_path(out: Path, run: PlannedRun) -> Path:
    """Return where the record of a run lies."""
    return out / "runs" / f"{run.name}.json"


def _perform(
    run: PlannedRun, work: Path, device: str, judge: Judge | None, on_step: OnStep | None
) -> Record:
    costs = cost.measure(run, device)
    steps, parts = run.config.steps, run.scale.checkpoints
    config = replace(run.config, checkpoint_every=max(1, steps // parts), probe_every=steps)

    def tell(progress: loop.Progress) -> None:
        if on_step:
            on_step(run, progress)

    loop.train(config, work / "train", resume=True, device=device, on_step=tell)
    curve = _curve(work / "train" / "metrics.csv")
    analyses = trajectory.split(store.read(work / "train" / "trajectory.nc"))
    (_, start), (_, end) = analyses[0], analyses[-1]
    return Record(
        version=__version__,
        scale=run.scale.name,
        name=run.entry.name,
        label=run.entry.label,
        group=run.entry.group,
        seed=run.seed,
        config=run.config.to_dict(),
        steps=[step for step, _ in curve],
        losses=[loss for _, loss in curve],
        quality=_quality(run, work / "train", device, judge) if judge else [],
        start=_symptoms(start),
        end=_symptoms(end),
        routes=_routes(end),
        blocks={name: _profile(end, name) for name in record.BLOCKS},
        **costs,
    )


def _curve(path: Path) -> list[tuple[int, float]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return [(int(row["step"]), float(row["val_loss"])) for row in rows if row["val_loss"]]


def _quality(run: PlannedRun, trained: Path, device: str, judge: Judge) -> list[dict[str, Any]]:
    """Judge samples of the average at every checkpoint; equal noise for all runs of one seed."""
    scale, found = run.scale, []
    for path in sorted((trained / "checkpoints").glob("step-*.pt")):
        made = load_generator(
            CheckpointOptions(path=path, device=device),
            SamplingOptions(solver=scale.solver, steps=scale.solver_steps),
        )
        drawn = made.draw(made.labels(scale.samples), seed=run.seed)
        measures = judge.measure(drawn)
        step = int(path.stem.removeprefix("step-"))
        kept = {name: measures[name] for name in record.MEASURES}
        found.append({"step": step, "samples": scale.samples, **kept})
    return found


def _symptoms(ds: Any) -> dict[str, dict[str, float | None]]:
    measured = metrics.compute(ds)
    return {name: numbers(measured[name]) for name in record.NUMBERS}


def _routes(ds: Any) -> list[list[float | None]]:
    if "route" not in ds or not np.isfinite(ds["route"]).any():
        return []
    # An offer is the same at every noise level and in every sample.
    means = ds["route"].mean(("noise_level", "sample"), skipna=False).values
    return [
        [float(f"{value:.5g}") if np.isfinite(value) else None for value in row[: at + 1]]
        for at, row in enumerate(means)
    ]


def _profile(ds: Any, name: str) -> list[float | None]:
    values = metrics.profile(ds, name, resamples=1)["value"].sel(block=slice(1, None)).values
    return [float(value) if np.isfinite(value) else None for value in values]
