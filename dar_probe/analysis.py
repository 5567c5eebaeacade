"""One finished analysis: its dataset, metrics, verdict, pictures and files. Runs without torch."""

import json
import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from dar_probe import metrics, rule, schema, store, verdict
from dar_probe.files import write_atomically
from dar_probe.metrics import Metric
from dar_probe.output import BEFORE, OutputFolder
from dar_probe.verdict import Thresholds, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dar_probe.reports.canvas import Width


class Analysis:
    """A validated dataset and what it means.

    Attributes:
        dataset: see ``dar_probe.schema`` for every variable.
        thresholds: where a symptom becomes a warning and where it fails.
        rule: replaces that judgement where set, e.g. "inflation > 8".
        before: the same module untrained, where this is the analysis of a trained copy.
    """

    def __init__(
        self,
        dataset: xr.Dataset,
        *,
        thresholds: Thresholds | None = None,
        fail_on: str | None = None,
        before: "Analysis | None" = None,
    ) -> None:
        self.dataset = schema.validate(dataset)
        self.thresholds = thresholds or Thresholds()
        self.rule = rule.parse_rule(fail_on) if fail_on is not None else None
        self.before = before

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """Inflation, gradient decay, redundancy and the rest, each with a bootstrap interval."""
        return metrics.compute(self.dataset)

    @cached_property
    def verdict(self) -> Verdict:
        """The judgement, by ``thresholds`` or by ``rule``."""
        found = verdict.judge(self.dataset, self.metrics, self.thresholds)
        return rule.apply_rule(found, self.rule, self.metrics) if self.rule else found

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

        After training also "training", the mean "loss", and "before": verdict, sentence, metrics
        and loss of the untrained module.
        """
        found = verdict.summary(self.dataset, self.metrics, self.verdict)
        if self.before is None:
            return found
        earlier = self.before.summary
        return {
            **found,
            "loss": _plain(self.loss),
            "training": self.manifest.get("training"),
            "before": {
                **{key: earlier[key] for key in ("verdict", "sentence", "metrics")},
                "loss": _plain(self.before.loss),
            },
        }

    @property
    def loss(self) -> Metric:
        """The mean loss over samples and noise levels, with a bootstrap interval."""
        found = metrics.profile(self.dataset, "loss")
        value, low, high = (float(found[key]) for key in ("value", "low", "high"))
        text = "mean loss over samples and noise levels"
        return Metric(name="loss", value=value, low=low, high=high, definition=text)

    @property
    def changes(self) -> dict[str, tuple[Metric, Metric]]:
        """The three symptoms and the loss before and after training; empty without training."""
        if self.before is None:
            return {}
        pairs = {name: (self.before.metrics[name], self.metrics[name]) for name in verdict.SYMPTOMS}
        return {**pairs, "loss": (self.before.loss, self.loss)}

    @property
    def plot(self) -> "Plots":
        """The paper's figures and heatmaps as matplotlib figures."""
        return Plots(self)

    def save(self, folder: str | Path) -> Path:
        """Write analysis.nc, summary.json, report.html and figures/ to ``folder``, all or nothing.

        Raises:
            UsageError: the folder holds something else or cannot be written.
        """
        with OutputFolder(Path(folder)) as output:
            output.publish(self.write)
        return Path(folder)

    def write(self, folder: Path) -> None:
        """Write the files of one analysis into an existing folder."""
        from dar_probe.reports import figures, page

        store.write(self.dataset, folder / "analysis.nc")
        if self.before is not None:
            store.write(self.before.dataset, folder / BEFORE)
        text = json.dumps(self.summary, indent=2, allow_nan=False) + "\n"
        _write_text(folder / "summary.json", text)
        html = page.render(
            self.dataset,
            self.metrics,
            self.verdict,
            thresholds=self.thresholds,
            changes=self.changes,
        )
        _write_text(folder / "report.html", html)
        figures.write_all(self.dataset, folder / "figures", name=self.name)

    def __repr__(self) -> str:
        sizes = self.dataset.sizes
        return (
            f"<dar_probe.Analysis of {self.name!r}: {sizes['noise_level']} noise levels x "
            f"{sizes['sample']} samples, {sizes['block'] - 1} blocks; {self.verdict.status}>\n"
            f"{self.verdict.sentence}"
        )


class Plots:
    """Matplotlib figures of one analysis, "one" column (3.25 in) or "two" (6.75 in) wide."""

    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis

    def dilution(self, *others: Analysis, width: "Width" = "two") -> "Figure":
        """RMS, gradient and cosine over the block index, one line per analysis."""
        from dar_probe.reports import figures

        everything = (self._analysis, *others)
        return figures.dilution([(a.name, a.dataset) for a in everything], width=width)

    def sources(
        self, *, shallow: int | None = None, deep: int | None = None, width: "Width" = "two"
    ) -> "Figure":
        """Importance, and routing weights, of every source at a shallow and a deep block."""
        from dar_probe.reports import figures

        return figures.sources(self._analysis.dataset, shallow=shallow, deep=deep, width=width)

    def matrix(
        self,
        *,
        noise_level: float | None = None,
        kind: str | None = None,
        width: "Width" = "two",
    ) -> "Figure":
        """Reader x source maps at the nearest noise level, attention and MLP readers apart."""
        from dar_probe.reports import figures

        return figures.matrix(
            self._analysis.dataset, noise_level=noise_level, kind=kind, width=width
        )

    def spread(self, *, kind: str | None = None, width: "Width" = "two") -> "Figure":
        """Routing entropy and effective number of sources over depth, of a model with a router."""
        from dar_probe.reports import figures

        return figures.spread(self._analysis.dataset, kind=kind, width=width)

    def decodability(self, *, kind: str | None = None, width: "Width" = "two") -> "Figure":
        """How well the noise level is decoded from what each reader reads."""
        from dar_probe.reports import figures

        return figures.decodability(self._analysis.dataset, kind=kind, width=width)

    def interventions(self, *, width: "Width" = "two") -> "Figure":
        """True against predicted loss changes, of an analysis that ``ablate`` made."""
        from dar_probe.reports import interventions

        return interventions.figure(self._analysis.dataset, name=self._analysis.name, width=width)

    def heatmap(self, variable: str, *, width: "Width" = "two") -> "Figure":
        """Depth x noise level map of one variable."""
        from dar_probe.reports import figures

        return figures.heatmap(self._analysis.dataset, variable, width=width)


def open_analysis(path: str | Path, *, thresholds: Thresholds | None = None) -> Analysis:
    """Open an ``analysis.nc``, or the folder that holds it, and the ``before.nc`` beside it.

    Raises:
        CheckpointError: a file is missing, damaged, or no analysis of this version.
    """
    path = Path(path)
    file = path / "analysis.nc" if path.is_dir() else path
    ds, earlier = store.read(file), file.with_name(BEFORE)
    before = None
    if file.name == "analysis.nc" and "training" in schema.manifest(ds) and earlier.exists():
        before = Analysis(store.read(earlier), thresholds=thresholds)
    return Analysis(ds, thresholds=thresholds, before=before)


def _plain(metric: Metric) -> dict[str, float | None]:
    values = {"value": metric.value, "low": metric.low, "high": metric.high}
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def _write_text(path: Path, text: str) -> None:
    def write(target: Path) -> None:
        target.write_text(text, encoding="utf-8")

    write_atomically(path, write)
