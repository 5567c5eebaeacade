"""Several analyses of the same samples side by side: differences, pictures, files. No torch."""

import json
import math
from collections.abc import Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dar_probe.analysis import Analysis, open_analysis
from dar_probe.errors import UsageError
from dar_probe.files.analysis_folder import OutputFolder
from dar_probe.files.atomic import write_text
from dar_probe.reports.style import palette
from dar_probe.results import paired as pairs
from dar_probe.results.fail_rule import Rule
from dar_probe.results.intervals import numbers
from dar_probe.results.metrics import Metric
from dar_probe.results.paired import NUMBERS, Pair
from dar_probe.results.verdict import plain

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from dar_probe.reports.plots import ComparisonPlots

PARTS = ("reference", "other", "difference")


class Comparison:
    """Analyses of the same samples and noise, each against the first one.

    Attributes:
        analyses: the first is the reference.
        names: what they are called here; equal names are numbered.
        pairs: one for every other analysis, with a ``reason`` where it cannot be compared.
    """

    def __init__(self, *analyses: Analysis, names: Sequence[str] | None = None) -> None:
        _require_two(len(analyses))
        self.analyses = list(analyses)
        called = pairs.named([analysis.name for analysis in analyses], names)
        self.names = pairs.distinct([palette.clean(name) for name in called])

    @cached_property
    def pairs(self) -> list[Pair]:
        """Every other analysis against the first, paired over samples, with intervals."""
        # A trajectory goes in whole, so that a note tells which step was compared.
        whole = [analysis.whole for analysis in self.analyses]
        return pairs.compare(list(zip(self.names, whole, strict=True)))

    @property
    def sentences(self) -> list[str]:
        """What differs, one sentence for each pair."""
        return [pair.sentence for pair in self.pairs]

    @property
    def summary(self) -> dict[str, Any]:
        """What ``comparison.json`` holds: the models, and their differences with intervals."""
        models = zip(self.names, self.analyses, strict=True)
        return {
            "reference": self.names[0],
            "models": [{"name": name, **_model(analysis)} for name, analysis in models],
            "pairs": [_pair(pair) for pair in self.pairs],
        }

    @property
    def plot(self) -> "ComparisonPlots":
        """The overlay and the differences over depth as matplotlib figures."""
        from dar_probe.reports.plots import ComparisonPlots

        return ComparisonPlots(self.named)

    def meeting(self, rule: Rule) -> list[Pair]:
        """Return the pairs whose differences, other minus reference, meet a rule to fail on."""
        return [pair for pair in self.pairs if pair.changes and rule.evaluate(_differences(pair))]

    def undecided(self, rule: Rule) -> list[tuple[Pair, list[str]]]:
        """Return the pairs of which unknown numbers decide whether they meet a rule, and these."""
        compared = [(pair, _differences(pair)) for pair in self.pairs if pair.changes]
        found = [(pair, rule.unknown(differences)) for pair, differences in compared]
        return [(pair, unknown) for pair, unknown in found if unknown]

    def to_markdown(self) -> str:
        """Return one row for each pair and number as a Markdown table."""
        from dar_probe.reports import text_tables

        return text_tables.markdown(self._table())

    def to_latex(self) -> str:
        """Return the same as a LaTeX tabular with the rules of booktabs."""
        from dar_probe.reports import text_tables

        return text_tables.latex(self._table())

    def _table(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        rows = [
            (
                pair.other, plain(change.name),
                pairs.amount(change.reference, change.difference.value),
                pairs.amount(change.other, change.difference.value),
                pairs.signed(change.difference),
            )
            for pair in self.pairs
            for change in pair.changes
        ]  # fmt: skip
        return ("other", "number", self.names[0], "its own", "difference"), rows

    def to_dataframe(self) -> "pd.DataFrame":
        """Return one row for each pair and number, NaN where it cannot be compared."""
        import pandas as pd

        rows = []
        for pair in self.pairs:
            known = {change.name: change for change in pair.changes}
            for name in NUMBERS:
                change = known.get(name)
                row: dict[str, Any] = {"reference": pair.reference, "other": pair.other}
                row["number"] = name
                for part in PARTS:
                    for key in ("value", "low", "high"):
                        metric = getattr(change, part, None)
                        row[f"{part}_{key}"] = getattr(metric, key, math.nan)
                row["sentence"] = change.sentence if change else pair.sentence
                rows.append(row)
        return pd.DataFrame(rows)

    def save(self, folder: str | Path) -> Path:
        """Write comparison.html, .json, .csv and figures/ to ``folder``, all or nothing.

        Raises:
            UsageError: the folder holds something else or cannot be written.
        """
        with OutputFolder(Path(folder), kind="comparison") as output:
            output.publish(self.write)
        return Path(folder)

    def write(self, folder: Path) -> None:
        """Write the files of a comparison into an existing folder."""
        from dar_probe.reports.draw import matplotlib
        from dar_probe.reports.figures import differences, dilution
        from dar_probe.reports.pages import comparison as comparison_page

        text = json.dumps(self.summary, indent=2, allow_nan=False) + "\n"
        write_text(folder / "comparison.json", text)
        table = self.to_dataframe().map(_no_formula)
        write_text(folder / "comparison.csv", table.to_csv(index=False))
        judged = [(analysis.metrics, analysis.verdict) for analysis in self.analyses]
        html = comparison_page.render(self.named, self.pairs, judged=judged)
        write_text(folder / "comparison.html", html)
        (folder / "figures").mkdir()
        shown = {"dilution": dilution.dilution(self.named)}
        if differences.drawable(self.named):
            shown["differences"] = differences.differences(self.named)
        for stem, described in shown.items():
            figure = matplotlib.draw(described)
            for suffix in ("png", "pdf"):
                matplotlib.save(figure, folder / "figures" / f"{stem}.{suffix}")

    @property
    def named(self) -> list[tuple[str, "xr.Dataset"]]:
        """The (name, dataset) pairs; of a trajectory the last step."""
        return [(name, a.dataset) for name, a in zip(self.names, self.analyses, strict=True)]

    def __repr__(self) -> str:
        head = f"<dar_probe.Comparison of {len(self.analyses)} models with {self.names[0]!r}>"
        return "\n".join([head, *self.sentences])

    def _repr_html_(self) -> str:
        """Return a table of the differences for notebooks; pandas escapes every text."""
        import pandas as pd

        parts = []
        for pair in self.pairs:
            rows = [[plain(c.name), pairs.signed(c.difference), c.sentence] for c in pair.changes]
            columns = ["number", "difference, 95 % interval", "in words"]
            table = pd.DataFrame(rows or [["", "", pair.sentence]], columns=columns)
            with pd.option_context("display.max_colwidth", None):
                text = table.to_html(index=False, border=0)
            parts.append(f"<p>{escape(pair.other)} minus {escape(pair.reference)}</p>\n{text}")
        return "\n".join(parts)


def compare(*analyses: Analysis | str | Path, names: Sequence[str] | None = None) -> Comparison:
    """Compare analyses with the first one, paired over the same samples and noise.

    Args:
        analyses: analyses, or paths of an ``analysis.nc`` or of its folder.
        names: what they are called here. Default: as they call themselves.

    Raises:
        CheckpointError: a file is missing, damaged, or no analysis of this version.
        UsageError: fewer than two analyses, or another number of names.
    """
    _require_two(len(analyses))
    opened = [a if isinstance(a, Analysis) else open_analysis(a) for a in analyses]
    return Comparison(*opened, names=names)


def _no_formula(cell: Any) -> Any:
    """Return a cell that a spreadsheet does not run: a model may be called =1+1."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in tuple("=+-@\t\r") else cell


def _require_two(count: int) -> None:
    if count < 2:
        raise UsageError(
            f"{count} analys{'i' if count == 1 else 'e'}s cannot be compared with anything",
            hint="give two or more analysis.nc, or their folders, the reference first",
        )


def _differences(pair: Pair) -> dict[str, Metric]:
    return {change.name: change.difference for change in pair.changes}


def _model(analysis: Analysis) -> dict[str, Any]:
    manifest, sizes, summary = analysis.manifest, analysis.dataset.sizes, analysis.summary
    return {
        "model": manifest["model"],
        "checkpoint": manifest.get("checkpoint"),
        "noise_levels": sizes["noise_level"],
        "samples": sizes["sample"],
        **{key: summary[key] for key in ("verdict", "sentence", "warnings")},
    }


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        "reference": pair.reference,
        "other": pair.other,
        "comparable": not pair.reason,
        "sentence": pair.sentence,
        "notes": list(pair.notes),
        "changes": [
            {
                "name": change.name,
                **{part: numbers(getattr(change, part)) for part in PARTS},
                "direction": change.direction,
                "sentence": change.sentence,
            }
            for change in pair.changes
        ],
    }
