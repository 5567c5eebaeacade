"""One finished analysis: its dataset, metrics, verdict, pictures and files. Runs without torch."""

import json
import os
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from dar_probe.files.analysis_folder import BEFORE, OutputFolder
from dar_probe.files.atomic import identity, write_text
from dar_probe.results import fail_rule, metrics, schema, store, streams, trajectory, verdict
from dar_probe.results.fail_rule import Rule
from dar_probe.results.intervals import numbers
from dar_probe.results.metrics import Metric
from dar_probe.results.symptoms import SYMPTOMS
from dar_probe.results.verdict import Thresholds, Verdict

if TYPE_CHECKING:
    import pandas as pd

    from dar_probe.reports.plots import Plots
    from dar_probe.results.dataframe import Per

OnFile = Callable[[str, int, int, str], None]


class Analysis:
    """A validated dataset and what it means.

    Attributes:
        dataset: see ``dar_probe.results.schema`` for every variable.
        thresholds: where a symptom becomes a warning and where it fails.
        rule: replaces that judgement where set, e.g. "inflation > 8".
        before: the same module untrained, where this is the analysis of a trained copy.
        trajectory: the dataset with its dim ``step``, where several training steps were analysed;
            ``dataset``, metrics and verdict are those of the last one.
        joint: the dataset with its dim ``stream``, where both streams of a joint model were
            analysed; ``dataset``, metrics and verdict are those of the image's.
    """

    def __init__(
        self,
        dataset: xr.Dataset,
        *,
        thresholds: Thresholds | None = None,
        fail_on: str | Rule | None = None,
        before: "Analysis | None" = None,
    ) -> None:
        whole = streams.validate(streams.selected(dataset))
        self.trajectory = whole if "step" in whole.dims else None
        self.joint = whole if "stream" in whole.dims else None
        self.dataset = streams.single(whole)
        self.thresholds = thresholds or Thresholds()
        self.rule = fail_rule.parse_rule(fail_on) if isinstance(fail_on, str) else fail_on
        self.before = before

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """Inflation, gradient decay, redundancy and the rest, each with a bootstrap interval."""
        return metrics.compute(self.dataset)

    @cached_property
    def verdict(self) -> Verdict:
        """The judgement, by ``thresholds`` or by ``rule``."""
        found = verdict.judge(self.dataset, self.metrics, self.thresholds)
        return fail_rule.apply_rule(found, self.rule, self.metrics) if self.rule else found

    @property
    def whole(self) -> xr.Dataset:
        """What ``analysis.nc`` holds: a trajectory, both streams, or the dataset."""
        found = self.joint if self.trajectory is None else self.trajectory
        return self.dataset if found is None else found

    @cached_property
    def steps(self) -> list[tuple[int, "Analysis"]]:
        """Every (training step, analysis) of a trajectory; empty for a single checkpoint."""
        if self.trajectory is None:
            return []
        pairs = trajectory.split(self.trajectory)
        earlier = [
            (step, Analysis(ds, thresholds=self.thresholds, fail_on=self.rule))
            for step, ds in pairs[:-1]
        ]
        return [*earlier, (pairs[-1][0], self)]

    @cached_property
    def streams(self) -> "dict[str, Analysis]":
        """The analyses of image and text by these names; empty where one stream was analysed."""
        if self.joint is None:
            return {}
        (first, _), *others = streams.split(self.joint).items()
        rest = {
            name: Analysis(ds, thresholds=self.thresholds, fail_on=self.rule) for name, ds in others
        }
        return {first: self, **rest}

    @property
    def manifest(self) -> dict[str, Any]:
        """Provenance: versions, checkpoint, model, config, seed, assumptions, warnings."""
        return schema.manifest(self.dataset)

    @property
    def name(self) -> str:
        """The model's name as the reports print it."""
        return str(self.manifest["model"]["name"])

    @property
    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` holds: verdict, findings, metrics, assumptions, warnings.

        Of a trajectory also "steps": step, verdict and metrics of each; of both streams of a joint
        model "streams": the same of each, by its name. After training also "training", the mean
        "loss", and "before": verdict, sentence, metrics and loss of the untrained module.
        """
        found = verdict.summary(self.dataset, self.metrics, self.verdict)
        if self.steps:
            parts = [
                (step, verdict.summary(a.dataset, a.metrics, a.verdict)) for step, a in self.steps
            ]
            keys = ("verdict", "metrics")
            found["steps"] = [{"step": at, **{key: one[key] for key in keys}} for at, one in parts]
        if self.streams:
            found["streams"] = {
                name: {key: one[key] for key in ("verdict", "sentence", "metrics")}
                for name, one in (
                    (name, verdict.summary(a.dataset, a.metrics, a.verdict))
                    for name, a in self.streams.items()
                )
            }
        if self.before is None:
            return found
        earlier = self.before.summary
        return {
            **found,
            "loss": numbers(self.loss),
            "training": self.manifest.get("training"),
            "before": {
                **{key: earlier[key] for key in ("verdict", "sentence", "metrics")},
                "loss": numbers(self.before.loss),
            },
        }

    @property
    def loss(self) -> Metric:
        """The mean loss over samples and noise levels, with a bootstrap interval."""
        return metrics.mean_loss(self.dataset)

    @property
    def changes(self) -> dict[str, tuple[Metric, Metric]]:
        """The three symptoms and the loss before and after training; empty without training."""
        if self.before is None:
            return {}
        pairs = {name: (self.before.metrics[name], self.metrics[name]) for name in SYMPTOMS}
        return {**pairs, "loss": (self.before.loss, self.loss)}

    @property
    def plot(self) -> "Plots":
        """The paper's figures and heatmaps as matplotlib figures."""
        from dar_probe.reports.plots import Plots

        return Plots(self)

    def to_markdown(self) -> str:
        """Return the numbers with intervals and verdicts as a Markdown table."""
        from dar_probe.reports import text_tables

        return text_tables.markdown(text_tables.of_analysis(self.metrics, self.verdict))

    def to_latex(self) -> str:
        """Return the same as a LaTeX tabular with the rules of booktabs."""
        from dar_probe.reports import text_tables

        return text_tables.latex(text_tables.of_analysis(self.metrics, self.verdict))

    def to_dataframe(self, *names: str, per: "Per" = "sample") -> "pd.DataFrame":
        """Return variables as a tidy frame, see ``dar_probe.results.dataframe.to_dataframe``."""
        from dar_probe.results import dataframe

        return dataframe.to_dataframe(self.whole, *names, per=per)

    def save(
        self,
        folder: str | Path,
        *,
        figures: bool = True,
        report: bool = True,
        formats: Sequence[str] | None = None,
        on_file: OnFile | None = None,
    ) -> Path:
        """Write analysis.nc, summary.json, report.html and figures/ to ``folder``, all or nothing.

        Args:
            folder: is made where it is missing; an earlier analysis in it is replaced.
            figures: also write the printed figures, which take most of the time.
            report: also write the page, report.html.
            formats: of the figures, some of "png", "pdf" and "svg". Default: PNG, of the paper's
                figures PDF as well.
            on_file: called with ("writing" or "drawing", done, all, name of the next one) before
                each file or figure, and at the end of each of the two.

        Raises:
            UsageError: the folder holds something else or cannot be written.
        """
        with OutputFolder(Path(folder)) as output:
            output.publish(
                lambda fresh: self.write(
                    fresh, figures=figures, report=report, formats=formats, on_file=on_file
                )
            )
        return Path(folder)

    def write(
        self,
        folder: Path,
        *,
        figures: bool = True,
        report: bool = True,
        formats: Sequence[str] | None = None,
        on_file: OnFile | None = None,
    ) -> None:
        """Write the files of one analysis into an existing folder; see ``save``."""
        tell = on_file or (lambda what, done, total, name: None)
        files: dict[str, Callable[[Path], None]] = {"analysis.nc": partial(store.write, self.whole)}
        if self.before is not None:
            files[BEFORE] = partial(store.write, self.before.dataset)
        files["summary.json"] = self._write_summary
        if report:
            files["report.html"] = self._write_page
        for done, (name, write) in enumerate(files.items()):
            tell("writing", done, len(files), name)
            write(folder / name)
        tell("writing", len(files), len(files), "")
        if figures:
            from dar_probe.reports import printing

            drawn = partial(printing.write_all, formats=formats, on_figure=partial(tell, "drawing"))
            drawn(self.whole, folder / "figures", name=self.name)
            if (text := self.streams.get(streams.TEXT)) is not None:
                drawn(text.dataset, folder / "figures" / "text", name=f"{self.name}, text")

    def _write_summary(self, path: Path) -> None:
        write_text(path, json.dumps(self.summary, indent=2, allow_nan=False) + "\n")

    def _write_page(self, path: Path) -> None:
        from dar_probe.reports.pages import analysis

        text = self.streams.get(streams.TEXT)
        html = analysis.render(
            self.dataset,
            self.metrics,
            self.verdict,
            thresholds=self.thresholds,
            changes=self.changes,
            trajectory=self.trajectory,
            text=(text.dataset, text.metrics) if text is not None else None,
        )
        write_text(path, html)

    def __repr__(self) -> str:
        from dar_probe.reports.pages import notebook

        return notebook.text(self.dataset, self.metrics, self.verdict, name=self.name)

    def _repr_html_(self) -> str:
        from dar_probe.reports.pages import notebook

        return notebook.html(
            self.dataset, self.metrics, self.verdict, name=self.name, changes=self.changes
        )


def open_analysis(path: str | Path, *, thresholds: Thresholds | None = None) -> Analysis:
    """Open an ``analysis.nc``, or the folder that holds it, and the ``before.nc`` beside it.

    Raises:
        CheckpointError: a file is missing, damaged, or no analysis of this version.
    """
    path = Path(path)
    file = path / "analysis.nc" if os.path.isdir(path) else path
    home = identity(file.parent)
    ds, earlier = store.read(file), file.with_name(BEFORE)
    before = None
    if file.name == "analysis.nc" and "training" in schema.manifest(ds) and earlier.exists():
        before = Analysis(store.read(earlier), thresholds=thresholds)
        if identity(file.parent) != home:  # replaced meanwhile: the two may be of different runs
            return open_analysis(path, thresholds=thresholds)
    return Analysis(ds, thresholds=thresholds, before=before)
