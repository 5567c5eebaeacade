"""The diagnosis during a training run: of the average, on held-out samples, by the leader alone."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from dar_probe.diffusion.data import Data
from dar_probe.diffusion.noise_levels import parse_levels
from dar_probe.diffusion.objective import Objective
from dar_probe.models.loading import ByClass, Loaded
from dar_probe.models.sit import SiTConfig
from dar_probe.models.sit_family import FAMILY
from dar_probe.probe.monitor import Watch
from dar_probe.probe.options import GridOptions
from dar_probe.probe.plan import Task, of_rows
from dar_probe.results.trajectory_store import TrajectoryFile
from dar_probe.runtime.ranks import Ranks
from dar_probe.sites.family import Identified
from dar_probe.training.config import TrainConfig
from dar_probe.training.run_folder import RunFolder


class Run(Protocol):
    """A training run, as far as its diagnosis goes."""

    @property
    def config(self) -> TrainConfig:
        """Its settings."""

    @property
    def folder(self) -> RunFolder:
        """Where its files are."""

    @property
    def ranks(self) -> Ranks:
        """This process among those that train."""

    @property
    def average(self) -> nn.Module:
        """The model with averaged weights."""

    @property
    def objective(self) -> Objective:
        """What it is trained for."""

    @property
    def probed(self) -> Data:
        """Held-out samples."""

    @property
    def model_config(self) -> SiTConfig:
        """Sizes and routing of the model."""


def begin(run: Run, start: int) -> Callable[[int], Any]:
    """Bring out/trajectory.nc to step ``start``; return what is to be called after every step.

    Raises:
        CheckpointError, UsageError: the file is damaged, or of another grid.
    """
    config, path = run.config, run.folder.trajectory
    if not run.ranks.leads:
        return _nothing
    if start:  # a killed run may have written more, with the diagnosis on or off
        TrajectoryFile(path).rewind(start)
    if not config.probe_every:
        return _nothing
    watch = Watch(plan(run), path, every=config.probe_every)
    if not start:
        watch(0)
    return lambda step: watch.measure(step) if step == config.steps else watch(step)


def plan(run: Run) -> Task:
    """Return what is measured: what ``api.analyze`` would of the checkpoint, on the run's data."""
    sizes, shape = run.model_config, tuple(run.probed.latents.shape[1:])
    found = Identified(
        family="dar-probe",
        sizes=sizes.to_dict(),
        shape=shape,
        num_classes=sizes.num_classes,
        objective=run.objective.name,
        assumptions=[],
    )
    subject = FAMILY.subject(run.average, found)
    loaded = Loaded(
        file={"name": run.folder.path.resolve().name, "weights": "ema"},
        identified=found,
        model=run.average,
        subject=subject,
        objective=run.objective,
        assumptions=list(subject.assumptions),
        call=ByClass(),
    )
    levels = parse_levels(run.config.probe_levels)
    return of_rows(loaded, run.probed, levels, GridOptions(seed=run.config.seed))


def _nothing(step: int) -> None:
    """Measure nothing."""
