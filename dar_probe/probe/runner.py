"""One analysis from its plan to its files: resumed where it was cut off, published as a whole."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import xarray as xr

from dar_probe.analysis import Analysis, OnFile
from dar_probe.errors import CheckpointError, UsageError
from dar_probe.files.analysis_folder import OutputFolder, check_target
from dar_probe.files.text import quote
from dar_probe.models.options import CheckpointOptions
from dar_probe.probe import plan
from dar_probe.probe.options import GridOptions, OutputOptions
from dar_probe.results import schema, store, trajectory
from dar_probe.results.fail_rule import Rule
from dar_probe.runtime.ranks import ALONE, Ranks

OnVerdict = Callable[[Analysis], None]


class Measurable(Protocol):
    """What is run; see ``dar_probe.probe.plan.Task``."""

    @property
    def key(self) -> dict[str, Any]:
        """What the numbers depend on."""

    def measure(
        self,
        *,
        shards: OutputFolder | None = None,
        ranks: Ranks = ALONE,
        on_cells: plan.OnCells | None = None,
    ) -> xr.Dataset:
        """Return the dataset."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """How one analysis is run.

    Attributes:
        output: where its files go.
        rule: replaces the default judgement where set.
        ranks: this process among those of the job; the leader alone writes files.
        on_cells: called with (done, total) after each batch of cells.
        on_verdict: called by the leader with the measured analysis, before its files are written.
        on_file: called by the leader before each file, see ``Analysis.save``.
    """

    output: OutputOptions
    rule: Rule | None = None
    ranks: Ranks = ALONE
    on_cells: plan.OnCells | None = None
    on_verdict: OnVerdict | None = None
    on_file: OnFile | None = None

    def check(self) -> None:
        """Refuse an impossible output folder before any work is done for it."""
        if self.output.out is not None and self.ranks.leads:
            check_target(Path(self.output.out))
        if self.output.formats is not None:
            from dar_probe.reports.draw.matplotlib import FORMATS  # it takes a second to load

            if wrong := [form for form in self.output.formats if form not in FORMATS]:
                raise UsageError(
                    f"there is no format {quote(wrong[0])}", hint=f"some of {', '.join(FORMATS)}"
                )

    def plan(self, checkpoint: CheckpointOptions, grid: GridOptions, engine: str) -> plan.Task:
        """Load a checkpoint and return what is measured of it."""
        with self.ranks.leader_first():  # it may draw samples, which the others then find
            return plan.of_checkpoint(checkpoint, grid, engine=engine, ranks=self.ranks)

    def finish(self, task: Measurable, *, name: str | None = None) -> Analysis:
        """Measure, or take what was measured before, and let the leader write the files.

        Args:
            task: what is measured.
            name: what the caller wants it to be called; what was measured before gets this name.
        """
        if self.output.out is None:
            return self._measured(task)
        out = Path(self.output.out)
        if self.output.resume:
            found = self.ranks.from_leader(finished(out, task.key) if self.ranks.leads else None)
            if found is not None:
                return self._found(found, out, task.key, name)
        if self.ranks.leads and not self.output.overwrite:
            refuse_another(out, lambda there: _content(there) == _content(task.key))
        if not self.ranks.leads:
            return self._measured(task)
        with OutputFolder(out, key=shard_key(task.key), resume=self.output.resume) as folder:
            analysis = self._measured(task, folder)
            self.publish(analysis, folder)
        return analysis

    def publish(self, analysis: Analysis, folder: OutputFolder) -> None:
        """Tell the verdict, then draw the pictures and put the files in their place."""
        if self.on_verdict is not None:
            self.on_verdict(analysis)
        wanted = self.output
        folder.publish(
            lambda fresh: analysis.write(
                fresh, figures=wanted.figures, report=wanted.report, formats=wanted.formats,
                on_file=self.on_file,
            )
        )  # fmt: skip

    def has_pictures(self) -> bool:
        """Tell whether the output folder has the page and the figures that are asked for."""
        wanted = self.output
        if wanted.out is None:
            return True
        page, figures = Path(wanted.out) / "report.html", Path(wanted.out) / "figures"
        if wanted.report and not page.is_file():
            return False
        if not wanted.figures:
            return True
        return figures.is_dir() and all(
            any(figures.glob(f"*.{suffix}")) for suffix in wanted.formats or ()
        )

    def _measured(self, task: Measurable, shards: OutputFolder | None = None) -> Analysis:
        found = task.measure(shards=shards, ranks=self.ranks, on_cells=self.on_cells)
        return Analysis(found, fail_on=self.rule)

    def _found(
        self, dataset: xr.Dataset, out: Path, key: dict[str, Any], name: str | None
    ) -> Analysis:
        """Return an analysis that is finished already; its pictures or its name may be missing."""
        renamed = False
        if name is not None and name != schema.manifest(dataset)["model"]["name"]:
            dataset, renamed = schema.renamed(dataset, name), True
        analysis = Analysis(dataset, fail_on=self.rule)
        if self.ranks.leads:
            _forget(out, key)
            if renamed or not self.has_pictures():
                with OutputFolder(out) as folder:
                    self.publish(analysis, folder)
        return analysis


def refuse_another(out: Path, own: Callable[[dict[str, Any]], bool]) -> None:
    """Refuse a folder that holds the analysis of another checkpoint, or of another model.

    Args:
        out: the folder, which may be missing.
        own: whether a manifest is of the model that is analysed now.

    Raises:
        UsageError: naming what is there, also where it cannot be read.
    """
    path = out / "analysis.nc"
    if not path.is_file():
        return
    try:
        ds = store.read(path)
    except CheckpointError as error:
        raise UsageError(
            f"{quote(out)} holds an analysis that cannot be read: {error}",
            hint="name another folder, or replace it with --overwrite (overwrite=True)",
        ) from None
    there = [schema.manifest(one) for one in _parts(ds)]
    if any(map(own, there)):
        return
    raise UsageError(
        f"{quote(out)} holds the analysis of {quote(there[-1]['model']['name'])}, another "
        "checkpoint",
        hint="name another folder, or replace that analysis with --overwrite (overwrite=True)",
    )


def _parts(ds: xr.Dataset) -> list[xr.Dataset]:
    return [one for _, one in trajectory.split(ds)] if "step" in ds.dims else [ds]


def _content(manifest: dict[str, Any]) -> tuple[Any, Any]:
    """Return what was analysed: the hash of a checkpoint, or the sizes of a module."""
    if checkpoint := manifest.get("checkpoint"):
        return checkpoint.get("sha256"), manifest["model"].get("family")
    sizes = ("family", "parameters", "depth", "width", "routing")
    return None, tuple(manifest["model"].get(name) for name in sizes)


def shard_key(key: dict[str, Any]) -> dict[str, Any]:
    """Return the key of unfinished parts, which hold the variables of this version alone."""
    return {**key, "variables": sorted(schema.VARIABLES)}


def finished(out: Path, key: dict[str, Any]) -> xr.Dataset | None:
    """Return the dataset of a folder if it is a finished analysis with this key."""
    path = out / "analysis.nc"
    return matching(store.read(path), key) if path.is_file() else None


def matching(ds: xr.Dataset | None, key: dict[str, Any]) -> xr.Dataset | None:
    """Return a dataset of a single checkpoint if its manifest has this key."""
    if ds is None or "step" in ds.dims:
        return None
    manifest = schema.manifest(ds)
    # What a model is called changes no number.
    there = {name: manifest.get(name) for name in key}
    if "model" in key:
        there["model"] = {name: v for name, v in manifest["model"].items() if name != "name"}
    return ds if there == key else None


def _forget(out: Path, key: dict[str, Any]) -> None:
    """Drop the shards of a finished analysis, which was killed before it could do so itself."""
    with suppress(UsageError):  # of other settings, or in use: not ours
        left = OutputFolder(out, key=shard_key(key), resume=True)
        if left.work.is_dir():
            with left:
                left.discard()
