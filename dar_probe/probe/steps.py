"""Several checkpoints of one training run, measured one after the other into one trajectory."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from dar_probe.analysis import Analysis
from dar_probe.checkpoints.naming import display_name
from dar_probe.errors import UsageError
from dar_probe.files.analysis_folder import OutputFolder
from dar_probe.models.options import CheckpointOptions
from dar_probe.probe.options import GridOptions
from dar_probe.probe.plan import OnCells, Task
from dar_probe.probe.runner import Run, finished, matching, refuse_another, shard_key
from dar_probe.results import schema, store, trajectory

OWN_SAMPLES = "every training step was measured on samples of its own: curves over steps mix both"


def run_steps(
    run: Run, checkpoints: Sequence[CheckpointOptions], grid: GridOptions, engine: str
) -> Analysis:
    """Measure the checkpoints of one training run, and join them.

    Steps that are finished are kept beside the output folder for ``resume``; those that an
    earlier trajectory has are not measured again.

    Args:
        run: where files go; its rule judges the last step, its progress is that of all steps.
        checkpoints: the last number in a checkpoint's name is its training step.
        grid: as for a single one.
        engine: as for a single one.

    Raises:
        UsageError: a name without a step, or checkpoints that are not of one run.
    """
    steps = {step_of(one.path): one for one in checkpoints}
    if len(steps) < len(checkpoints):
        raise UsageError(
            f"{len(checkpoints)} checkpoints have {len(steps)} different training steps",
            hint="the step is the last number in a checkpoint's name",
        )
    whole = _Steps(run, dict(sorted(steps.items())), grid, engine)
    if run.output.out is None or not run.ranks.leads:
        return Analysis(whole.measure(), fail_on=run.rule)
    out, resume = Path(run.output.out), run.output.resume
    if not run.output.overwrite:
        names = [one.name or display_name(one.path, one.adapter) for one in checkpoints]
        refuse_another(out, lambda there: there["model"]["name"] in names)
    there = _trajectory_in(out) if resume else None
    with OutputFolder(out, key={"steps": list(whole.steps)}, resume=resume) as folder:
        found = whole.measure(folder, {} if there is None else dict(trajectory.split(there)))
        analysis = Analysis(found, fail_on=run.rule)
        if there is not None and found.identical(there) and run.has_pictures():
            folder.discard()
        else:
            run.publish(analysis, folder)
    return analysis


def step_of(path: str | Path) -> int:
    """Return the training step of a checkpoint: the last number in its name."""
    numbers = re.findall(r"\d+", Path(path).stem, re.ASCII)
    if not numbers or len(numbers[-1]) > 15:
        raise UsageError(
            f"the name {Path(path).name!r} tells no training step",
            hint="several checkpoints of one run are told apart by the last number in their names",
        )
    return int(numbers[-1])


class _Steps:
    """The checkpoints of one run, and how each is measured."""

    def __init__(
        self, run: Run, steps: dict[int, CheckpointOptions], grid: GridOptions, engine: str
    ) -> None:
        self.run, self.steps, self.grid, self.engine = run, steps, grid, engine

    def measure(
        self, folder: OutputFolder | None = None, earlier: dict[int, xr.Dataset] | None = None
    ) -> xr.Dataset:
        """Return the trajectory; steps that are in ``earlier`` or in ``folder`` are taken."""
        pairs: list[tuple[int, xr.Dataset]] = []
        for step, checkpoint in self.steps.items():
            task = self.run.plan(checkpoint, self.grid, self.engine)
            ds = matching((earlier or {}).get(step), task.key)
            if ds is None and folder is not None and self.run.output.resume:
                ds = finished(_home(folder, step), task.key)
            ds = self.run.ranks.from_leader(ds)
            if ds is None:
                ds = self._measured(task, folder, step, done=len(pairs))
            pairs.append((step, ds))
            trajectory.check(*pairs[-2:])
        return trajectory.join(_told_apart(pairs))

    def _measured(
        self, task: Task, folder: OutputFolder | None, step: int, *, done: int
    ) -> xr.Dataset:
        """Measure one step; it and its shards stay in the folder of the whole until it is done."""
        ranks, tell = self.run.ranks, _part(done, len(self.steps), self.run.on_cells)
        if folder is None:
            return task.measure(ranks=ranks, on_cells=tell)
        resume = self.run.output.resume
        with OutputFolder(_home(folder, step), key=shard_key(task.key), resume=resume) as own:
            ds = task.measure(shards=own, ranks=ranks, on_cells=tell)
            own.publish(lambda fresh: store.write(ds, fresh / "analysis.nc"))
        return ds


def _home(folder: OutputFolder, step: int) -> Path:
    return folder.work / f"step-{step}"


def _trajectory_in(out: Path) -> xr.Dataset | None:
    path = out / "analysis.nc"
    ds = store.read(path) if path.is_file() else None
    return ds if ds is not None and "step" in ds.dims else None


def _told_apart(pairs: list[tuple[int, xr.Dataset]]) -> list[tuple[int, xr.Dataset]]:
    """Say in every manifest where the steps were not measured on the same samples."""
    manifests = [schema.manifest(ds) for _, ds in pairs]
    if len({m["config"].get("data_sha256") for m in manifests}) > 1:
        for (_, ds), manifest in zip(pairs, manifests, strict=True):
            if OWN_SAMPLES not in manifest["assumptions"]:
                manifest["assumptions"].append(OWN_SAMPLES)
                ds.attrs["manifest"] = json.dumps(manifest)
    return pairs


def _part(at: int, parts: int, on_cells: OnCells | None) -> OnCells | None:
    """Return what passes on the progress of one of several equal parts."""
    if on_cells is None:
        return None
    return lambda done, cells: on_cells(at * cells + done, parts * cells)
