"""Measuring into a folder: what is there is found again, what is new is measured and written."""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import xarray as xr

from dar_probe.analysis import Analysis
from dar_probe.errors import UsageError
from dar_probe.files.analysis_folder import OutputFolder, check_target
from dar_probe.probe.plan import OnCells, Task
from dar_probe.results import schema, store, trajectory
from dar_probe.runtime.ranks import Ranks

OWN_SAMPLES = "every training step was measured on samples of its own: curves over steps mix both"
Measure = Callable[[OutputFolder | None], xr.Dataset]


def made(
    measure: Measure,
    key: dict[str, Any],
    out: str | Path | None,
    *,
    resume: bool,
    fail_on: str | None,
    ranks: Ranks,
) -> Analysis:
    """Measure, or find what was measured before, and let the leader write it to ``out``."""
    if out is None:
        return Analysis(measure(None), fail_on=fail_on)
    if resume:
        found = ranks.from_leader(_finished(Path(out), key) if ranks.leads else None)
        if found is not None:
            if ranks.leads:
                _forget(Path(out), key)
            return Analysis(found, fail_on=fail_on)
    if not ranks.leads:
        return Analysis(measure(None), fail_on=fail_on)
    with OutputFolder(Path(out), key=key, resume=resume) as output:
        analysis = Analysis(measure(output), fail_on=fail_on)
        output.publish(analysis.write)
    return analysis


def made_over_steps(
    paths: Sequence[str | Path],
    plan: Callable[[str | Path], Task],
    out: str | Path | None,
    *,
    resume: bool,
    fail_on: str | None,
    ranks: Ranks,
    on_cells: OnCells | None,
) -> Analysis:
    """Measure the checkpoints of one training run, one after the other, and join them.

    Args:
        paths: the checkpoints; the last number in a name is the training step.
        plan: loads one checkpoint.
        out: as for ``made``; steps that are finished are kept beside it for ``resume``.
        resume: measure only the steps that are in no earlier analysis.
        fail_on: a rule on the last step.
        ranks: this process among others.
        on_cells: told (finished, all) cells of all the checkpoints.

    Raises:
        UsageError: a name without a step, or checkpoints that are not of one run.
    """
    if out is not None and ranks.leads:
        check_target(Path(out))
    steps = {step_of(path): path for path in paths}
    if len(steps) < len(paths):
        raise UsageError(
            f"{len(paths)} checkpoints have {len(steps)} different training steps",
            hint="the step is the last number in a checkpoint's name",
        )

    def measure(output: OutputFolder | None, earlier: dict[int, xr.Dataset]) -> xr.Dataset:
        pairs: list[tuple[int, xr.Dataset]] = []
        for at, step in enumerate(sorted(steps)):
            planned = plan(steps[step])
            ds = _matching(earlier.get(step), planned.key)
            if ds is None and output is not None and resume:
                ds = _finished(_home(output, step), planned.key)
            ds = ranks.from_leader(ds)
            if ds is None:
                tell = _part(at, len(steps), on_cells)
                ds = _measured(planned, output, step, resume=resume, ranks=ranks, on_cells=tell)
            pairs.append((step, ds))
            trajectory.check(*pairs[-2:])
        return trajectory.join(_told_apart(pairs))

    if out is None or not ranks.leads:
        return Analysis(measure(None, {}), fail_on=fail_on)
    there = _trajectory_in(Path(out)) if resume else None
    earlier = {} if there is None else dict(trajectory.split(there))
    with OutputFolder(Path(out), key={"steps": sorted(steps)}, resume=resume) as output:
        found = measure(output, earlier)
        analysis = Analysis(found, fail_on=fail_on)
        if there is not None and found.identical(there):
            output.discard()
        else:
            output.publish(analysis.write)
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


def _measured(
    planned: Task,
    output: OutputFolder | None,
    step: int,
    *,
    resume: bool,
    ranks: Ranks,
    on_cells: OnCells | None,
) -> xr.Dataset:
    """Measure one step; it and its shards stay in the folder of the whole until that is done."""
    if output is None:
        return planned.measure(ranks=ranks, on_cells=on_cells)
    with OutputFolder(_home(output, step), key=planned.key, resume=resume) as own:
        ds = planned.measure(shards=own, ranks=ranks, on_cells=on_cells)
        own.publish(lambda fresh: store.write(ds, fresh / "analysis.nc"))
    return ds


def _home(output: OutputFolder, step: int) -> Path:
    return output.work / f"step-{step}"


def _finished(out: Path, key: dict[str, Any]) -> xr.Dataset | None:
    path = out / "analysis.nc"
    return _matching(store.read(path), key) if path.is_file() else None


def _forget(out: Path, key: dict[str, Any]) -> None:
    """Drop the shards of a finished analysis, which was killed before it could do so itself."""
    with suppress(UsageError):  # of other settings, or in use: not ours
        left = OutputFolder(out, key=key, resume=True)
        if left.work.is_dir():
            with left:
                left.discard()


def _matching(ds: xr.Dataset | None, key: dict[str, Any]) -> xr.Dataset | None:
    if ds is None or "step" in ds.dims:
        return None
    manifest = schema.manifest(ds)
    return ds if all(manifest.get(name) == value for name, value in key.items()) else None


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
